from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from qlib_llm_alpha.errors import LibraryError
from qlib_llm_alpha.library.factor_set import load_factor_set
from qlib_llm_alpha.library.formula_file import read_formulas


@pytest.fixture
def write(tmp_path: Path):
    def written(content: str | bytes, name: str = "formulas.txt") -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return written


def test_a_line_is_a_name_and_a_formula_or_the_formula_alone(write) -> None:
    formulas, warmup = read_formulas(
        write("up: $close/$open\r\n\n# a note: $low\n  Mean($close, 5)/$close \nv2.5-x:$high")
    )
    assert warmup == "strict"
    assert [(one.name, one.text) for one in formulas] == [
        ("up", "$close/$open"),
        ("Mean($close, 5)/$close", "Mean($close, 5)/$close"),
        ("v2.5-x", "$high"),
    ]
    assert [str(one.expression) for one in formulas] == ["$close/$open", "Mean($close,5)/$close", "$high"]
    assert {one.refusal for one in formulas} == {""}


def test_what_the_language_refuses_stays_in_its_place_with_the_reason(write) -> None:
    formulas, _ = read_formulas(write("a: $close\nb: Ref($close,-1)\nnot a name: $close\n"))
    assert [one.name for one in formulas] == ["a", "b", "not a name: $close"]
    assert [one.expression is None for one in formulas] == [False, True, True]
    assert formulas[1].refusal.startswith("[look_ahead]")


def test_bytes_that_are_no_text_cost_their_line_alone(write) -> None:
    good, bad, last = read_formulas(write(b"\xef\xbb\xbf$close\n\xff\xfe\x1b[2J\n$open\n"))[0]
    assert (good.name, last.name) == ("$close", "$open")
    assert bad.refusal.startswith("[not_ascii]")
    good, bad = read_formulas(write("$close\n$open\u2028$high\n"))[0]
    assert bad.refusal.startswith("[not_ascii]"), "one line of the file is one formula"


def test_a_field_of_the_provider_may_be_named(write) -> None:
    file = write("$turn/$volume\n")
    assert read_formulas(file)[0][0].refusal.startswith("[unknown_field]")
    assert read_formulas(file, ["$turn"])[0][0].refusal == ""


@pytest.mark.parametrize("name", ["alpha158", "starter"])
def test_a_built_in_set_brings_its_names_and_its_warm_up_by_name_and_by_id(name: str) -> None:
    known = load_factor_set(name)
    for reference in (name, known.id):
        formulas, warmup = read_formulas(reference)
        assert [one.name for one in formulas] == list(known.names)
        assert [one.expression for one in formulas] == [factor.expression for factor in known.factors]
        assert warmup == known.warmup


def test_a_set_of_ones_own_is_read_from_its_yaml(write) -> None:
    text = "name: mine\nwarmup: qlib\nfactors:\n  - {name: up, expression: $close/$open, category: momentum}\n"
    (formula,), warmup = read_formulas(write(text, "mine.yaml"))
    assert (formula.name, formula.text, warmup) == ("up", "$close/$open", "qlib")


def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"up: $close\n")))
    assert read_formulas("-")[0][0].name == "up"


@pytest.mark.parametrize(
    ("content", "said"), [("", "found none"), ("# note\n\n", "found none"), ("a: $close\na: $open\n", "more than once")]
)
def test_a_text_without_formulas_or_with_a_name_twice_is_refused(content: str, said: str, write) -> None:
    with pytest.raises(LibraryError, match=said):
        read_formulas(write(content))


def test_what_is_neither_a_file_nor_a_set_is_named_with_what_would_be(tmp_path: Path) -> None:
    for reference in ("alpha15", str(tmp_path), str(tmp_path / "absent.txt")):
        with pytest.raises(LibraryError, match="alpha158"):
            read_formulas(reference)
