from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.mining.steps import StepStore


class Counted:
    """Returns a value and counts how often it was asked."""

    def __init__(self, value: object) -> None:
        self.value, self.calls = value, 0

    def __call__(self) -> object:
        self.calls += 1
        return self.value


def test_a_finished_step_is_not_computed_again(tmp_path: Path) -> None:
    compute = Counted({"kept": [1, 2]})
    assert StepStore(tmp_path).run("filter", ["a"], compute) == {"kept": [1, 2]}
    assert StepStore(tmp_path).run("filter", ["a"], compute) == {"kept": [1, 2]}
    assert compute.calls == 1


def test_other_inputs_or_another_name_are_another_step(tmp_path: Path) -> None:
    store = StepStore(tmp_path)
    compute = Counted(1)
    store.run("filter", ["a"], compute)
    store.run("filter", ["a", "b"], compute)
    store.run("merge", ["a", "b"], compute)
    assert compute.calls == 3


def test_fresh_and_stored_outputs_have_the_same_types(tmp_path: Path) -> None:
    store = StepStore(tmp_path)
    fresh = store.run("merge", [], lambda: {"pairs": [(1, "a")], "share": 0.1})
    assert fresh == store.run("merge", [], lambda: {}) == {"pairs": [[1, "a"]], "share": 0.1}


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"name": "merge"}', "\udcff"])
def test_a_damaged_file_is_computed_again(tmp_path: Path, damage: str) -> None:
    store = StepStore(tmp_path)
    store.run("merge", [1], lambda: "first")
    (tmp_path / "merge.json").write_bytes(damage.encode("utf-8", "surrogateescape"))
    assert store.run("merge", [1], lambda: "second") == "second"
    assert store.run("merge", [1], lambda: "third") == "second"


def test_a_step_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fails() -> object:
        raise ConfigError("planted")

    with pytest.raises(ConfigError, match="planted"):
        StepStore(tmp_path).run("merge", [], fails)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_behind_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "merge.json.4711.part").write_text('{"format": 1, "name": "merge"')
    assert StepStore(tmp_path).run("merge", [], lambda: 5) == 5
    assert json.loads((tmp_path / "merge.json").read_text())["output"] == 5


@pytest.mark.parametrize("name", ["", "../merge", "Merge", "a/b", "a.json", "x" * 100])
def test_a_name_that_is_no_plain_word_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="rename the step"):
        StepStore(tmp_path).run(name, [], lambda: 1)


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object()])
def test_what_json_cannot_hold_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(ConfigError, match="JSON cannot hold"):
        StepStore(tmp_path).run("merge", [], lambda: value)
    assert not (tmp_path / "merge.json").exists()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_whatever_json_holds_comes_back(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    store = StepStore(tmp_path_factory.mktemp("steps"))
    assert store.run("merge", value, lambda: value) == value
    assert store.run("merge", value, lambda: "computed again") == value
