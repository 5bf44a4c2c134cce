"""What lists, comparisons and exports say of factor sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from qlib.data.dataset.loader import QlibDataLoader

from qlib_llm_alpha.errors import LibraryError
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.factor.factor import Factor
from qlib_llm_alpha.library.describe import compare_sets, listed_sets, loader_config, open_set, set_to_dict
from qlib_llm_alpha.library.factor_set import FactorSet, builtin_names, load_factor_set

GAP = Factor("gap", parse("$open/Ref($close,1)-1"), "technical", "Gaps fade.", ("Lou 2019",), "human")
WEEK = Factor("week", parse("$close/Ref($close,5)-1"), "momentum")
OLD = FactorSet("old", (GAP, WEEK), "strict")


def of(*factors: Factor, **settings: str) -> FactorSet:
    return replace(FactorSet("new", factors, "strict"), **settings)


def test_built_in_sets_come_first_and_say_what_they_hold() -> None:
    rows = listed_sets()
    assert tuple(row.ref for row in rows) == builtin_names()
    classic = next(row for row in rows if row.ref == "classic")
    assert (classic.factors, classic.id) == (16, load_factor_set("classic").id)
    assert sum(count for _, count in classic.categories) == 16
    assert classic.categories[0][1] == max(count for _, count in classic.categories)


def test_sessions_and_files_of_a_folder_are_found_and_other_yaml_is_not(tmp_path: Path) -> None:
    (tmp_path / "session").mkdir()
    OLD.save(tmp_path / "session" / "library.yaml")
    OLD.save(tmp_path / "own.yml")
    (tmp_path / "workflow.yaml").write_text("qlib_init: {}\n")
    (tmp_path / "torn.yaml").write_text("a: [\n")
    found = listed_sets(tmp_path)[len(builtin_names()) :]
    assert [Path(row.ref).relative_to(tmp_path).as_posix() for row in found] == ["own.yml", "session/library.yaml"]
    assert {row.id for row in found} == {OLD.id}


def test_a_set_that_cannot_be_read_is_listed_with_its_fault(tmp_path: Path) -> None:
    (tmp_path / "library.yaml").write_text("name: x\nwarmup: strict\nfactors:\n  - {name: a, expression: 1, b: 2}\n")
    last = listed_sets(tmp_path)[-1]
    assert "unknown key 'b'" in last.fault
    assert last.factors == 0


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match="is no folder"):
        listed_sets(tmp_path / "absent")


def test_a_set_is_opened_by_name_id_file_and_session(tmp_path: Path) -> None:
    OLD.save(tmp_path / "library.yaml")
    assert open_set(tmp_path) == open_set(str(tmp_path / "library.yaml")) == OLD
    assert open_set("starter") is load_factor_set("starter")
    assert open_set(load_factor_set("starter").id) == load_factor_set("starter")


def test_a_session_that_admitted_nothing_has_no_set_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match=r"no library\.yaml; .* admitted something"):
        open_set(tmp_path)


def test_a_set_as_plain_values_keeps_what_is_known_of_each_factor() -> None:
    plain = set_to_dict(OLD)
    assert plain["id"] == OLD.id
    assert plain["fields"] == ["$close", "$open"]
    assert plain["factors"][0] == {
        "name": "gap",
        "id": GAP.id,
        "category": "technical",
        "formula": "$open/Ref($close,1)-1",
        "lookback": 1,
        "fields": ["$close", "$open"],
        "hypothesis": "Gaps fade.",
        "sources": ["Lou 2019"],
        "origin": "human",
    }


def test_a_set_does_not_differ_from_itself() -> None:
    found = compare_sets(OLD, replace(OLD, name="another name"))
    assert found.same
    assert found.unchanged == 2


def test_what_is_added_removed_and_changed_is_told_apart() -> None:
    other = replace(GAP, expression=parse("1-$open/Ref($close,2)"))
    month = Factor("month", parse("$close/Ref($close,20)-1"))
    found = compare_sets(OLD, of(other, month))
    assert (found.added, found.removed) == ((month,), (WEEK,))
    assert [(one.before, one.after) for one in found.changed] == [(GAP, other)]
    assert not found.same


def test_the_same_formula_up_to_algebra_is_rewritten_whatever_its_name() -> None:
    spelled = replace(GAP, expression=parse("($open-Ref($close,1))/Ref($close,1)"))
    renamed = replace(WEEK, name="five_days")
    found = compare_sets(OLD, of(spelled, renamed))
    assert [(one.before.name, one.after.name) for one in found.rewritten] == [("gap", "gap"), ("week", "five_days")]
    assert (found.added, found.removed, found.changed) == ((), (), ())


def test_another_hypothesis_is_described_anew_and_settings_are_named() -> None:
    found = compare_sets(OLD, of(WEEK, replace(GAP, hypothesis="They do not."), warmup="qlib", as_of="2020-01-02"))
    assert [one.after.hypothesis for one in found.described] == ["They do not."]
    assert found.unchanged == 1
    assert found.settings == (
        "warm-up strict became qlib",
        "chosen as of no stated day became 2020-01-02",
        "the factors that both have stand in another order",
    )
    assert found.to_dict()["described"][0]["after"]["hypothesis"] == "They do not."


def test_an_export_is_read_by_qlibs_own_loader_as_the_expressions_and_names_of_the_set() -> None:
    config = loader_config(load_factor_set("classic"))
    loader = yaml.safe_load(config.to_yaml())["data_loader"]
    assert loader["class"] == QlibDataLoader.__name__
    assert loader["module_path"] == QlibDataLoader.__module__
    expressions, names = QlibDataLoader(**loader["kwargs"]).fields["feature"]
    assert names == list(load_factor_set("classic").names)
    assert expressions == [factor.expression.qlib for factor in load_factor_set("classic").factors]


def test_an_export_says_what_stock_qlib_needs_or_cannot_do() -> None:
    ours = Factor("ours", parse("DecayLinear($close/Ref($close,1),5)"))
    across = Factor("across", parse("CSRank($close/Ref($close,5))"))
    config = loader_config(of(GAP, ours, across))
    assert config.operators == ("CSRank", "DecayLinear")
    assert config.need_engine == ("across",)
    notes = config.to_yaml().partition("data_loader")[0]
    assert all(line.startswith("# ") for line in notes.splitlines())
    assert "Register first: CSRank, DecayLinear" in notes
    assert "cannot compute across" in notes
    plain = loader_config(of(GAP, warmup="qlib"))
    assert (plain.operators, plain.need_engine, len(plain.notes)) == ((), (), 1)
