"""``qlib-llm-alpha library``: what it prints, and what it answers to what is not there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from qlib_llm_alpha.cli import main
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.factor.factor import Factor
from qlib_llm_alpha.library.factor_set import FactorSet, builtin_names, load_factor_set

GAP = Factor("gap", parse("$open/Ref($close,1)-1"), "technical", "Gaps \x1b[31mfade.", ("Lou 2019",), "a-model")


@pytest.fixture
def session(tmp_path: Path) -> Path:
    FactorSet("mined", (GAP,), "strict", as_of="2020-12-31").save(tmp_path / "library.yaml")
    return tmp_path


def test_list_names_the_built_in_sets_and_those_of_a_folder(session: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["library", "list", str(session)]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed for name in builtin_names())
    assert "library.yaml (mined): 1 factors" in printed
    assert "chosen as of 2020-12-31" in printed
    assert main(["library", "list", "--json"]) == 0
    assert [row["ref"] for row in json.loads(capsys.readouterr().out)] == list(builtin_names())


def test_list_ends_with_1_when_a_set_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "library.yaml").write_text("nothing of a set\n")
    assert main(["library", "list", str(tmp_path)]) == 1
    assert "cannot be read" in capsys.readouterr().out


def test_show_tells_all_of_a_factor_and_no_terminal_commands(session: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["library", "show", str(session)]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    for part in ("gap (technical; a-model)", "$open/Ref($close,1)-1", "fade.", "from Lou 2019"):
        assert part in printed
    assert main(["library", "show", str(session), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["factors"][0]["hypothesis"] == GAP.hypothesis


def test_diff_says_what_became_of_each_factor(session: Path, capsys: pytest.CaptureFixture[str]) -> None:
    week = Factor("week", parse("$close/Ref($close,5)-1"), "momentum")
    spelled = replace(GAP, name="opening", expression=parse("($open-Ref($close,1))/Ref($close,1)"))
    FactorSet("mined", (week, spelled), "strict", as_of="2020-12-31").save(session / "new.yaml")
    assert main(["library", "diff", str(session), str(session / "new.yaml")]) == 0
    printed = capsys.readouterr().out
    assert "+ week (momentum): $close/Ref($close,5)-1" in printed
    assert "= gap is now opening" in printed
    assert "1 added, 0 removed, 0 changed, 1 the same up to algebra" in printed
    assert main(["library", "diff", str(session), str(session / "new.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rewritten"][0]["after"]["name"] == "opening"


def test_export_is_yaml_for_qlib_or_json(session: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["library", "export", "classic"]) == 0
    loader = yaml.safe_load(capsys.readouterr().out)["data_loader"]
    assert loader["kwargs"]["config"]["feature"][1] == list(load_factor_set("classic").names)
    assert main(["library", "export", str(session), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["expressions"] == [GAP.expression.qlib]


def test_what_is_no_set_is_a_bad_call_that_says_what_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["show", "absent"], ["show", str(tmp_path)], ["export", "no.yaml"], ["list", str(tmp_path / "no")]):
        assert main(["library", *words]) == 2
        assert "expected" in capsys.readouterr().err or words[1] == "no.yaml"
