"""``qlib-llm-alpha guard cross``: what is printed and written, and which calls are refused."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from qlib_llm_alpha.cli.guard_cross import add_cross
from qlib_llm_alpha.errors import ConfigError, WallError
from qlib_llm_alpha.evaluation.ledger import TrialLedger

PERIODS = ("early=2019-06-03:2020-03-31", "late=2020-04-01:2020-12-31")
FORMULAS = "fade: 1-$open/Ref($close,1)\nreversal: 1-$close/Ref($close,5)\n"
Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(
    small_provider: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Call:
    """Return what runs the command on a text of formulas and gives its code and what it printed."""
    # The ledger's folder is named relative to the present one.
    monkeypatch.chdir(tmp_path)
    parser = argparse.ArgumentParser()
    add_cross(parser.add_subparsers())

    def called(*options: str, text: str = FORMULAS, periods: tuple[str, ...] = PERIODS) -> tuple[int, str]:
        file = tmp_path / "formulas.txt"
        file.write_text(text, encoding="utf-8")
        markets = [f"--market=cn={small_provider}:csi300", f"--market=wide={small_provider}"]
        spans = [f"--period={period}" for period in periods]
        args = parser.parse_args(["cross", str(file), *markets, *spans, "--draws", "20", *options])
        code = args.run(args)
        return code, capsys.readouterr().out

    return called


def test_the_tables_name_factors_places_and_what_the_figures_are_of(call: Call) -> None:
    code, out = call("--lags", "1,2")
    assert code == 0
    for words in ("fade", "reversal", "cn", "wide", "early", "late", "high_volatility", "net a year at 20 bps"):
        assert words in out
    assert "cn/early, lag 2: rank IC against Ref($close,-3)/Ref($close,-2)-1, horizon 3, cn:csi300" in out
    assert "note: cn (csi300, members of the day):" in out


def test_in_brief_the_cells_are_left_out_and_what_the_figures_are_of_is_not(call: Call) -> None:
    code, out = call("--brief")
    assert code == 0
    assert "high_volatility" not in out
    assert "net a year" not in out
    assert "cn/late, lag 1: rank IC against" in out


def test_json_holds_verdicts_cells_stress_and_notes(call: Call) -> None:
    code, out = call("--json", "--costs", "0,15")
    found = json.loads(out)
    assert code == 0
    assert [one["factor"] for one in found["verdicts"]] == ["fade", "reversal"]
    assert len(found["cells"]) == 2 * 2 * 2 * 2
    assert {cell["cost_bps"] for cell in found["cells"]} == {0.0, 15.0}
    assert len(found["notes"]) == 2
    assert {one["state"] for one in found["stress"]} == {"high_volatility", "bear", "limit_moves"}


@pytest.mark.parametrize("name", ["cells.csv", "cells.parquet", "all.json"])
def test_what_is_written_is_what_was_found(call: Call, tmp_path: Path, name: str) -> None:
    out = tmp_path / "new" / name
    _, printed = call("--json", "--out", str(out))
    found = json.loads(printed)
    if out.suffix == ".json":
        assert json.loads(out.read_text(encoding="utf-8")) == found
        return
    table = pd.read_csv(out) if out.suffix == ".csv" else pd.read_parquet(out)
    assert table["net_annual"].tolist() == pytest.approx([cell["net_annual"] for cell in found["cells"]])
    assert table["basis"].tolist() == [cell["basis"] for cell in found["cells"]]


def test_the_same_call_gives_the_same_text(call: Call) -> None:
    assert call("--seed", "3") == call("--seed", "3")


def test_a_refused_formula_is_named_and_the_code_says_so(call: Call) -> None:
    code, out = call(text=FORMULAS + "ahead: Ref($close,-1)/$close\n")
    assert code == 1
    assert "refused ahead:" in out


def test_what_a_terminal_would_obey_is_not_printed(call: Call) -> None:
    _, out = call(text=FORMULAS + "\x1b[31m$close\n")
    assert "\x1b" not in out


def test_trials_are_counted_where_nothing_is_said_of_a_ledger(call: Call, tmp_path: Path) -> None:
    _, out = call("--json")
    assert TrialLedger(tmp_path / "ledger").count(run="guard cross") == 4
    assert "N = 4" in json.loads(out)["cells"][0]["basis"]
    call("--json")
    assert TrialLedger(tmp_path / "ledger").count() == 4


def test_trials_and_looks_at_tune_go_into_the_ledger(call: Call, tmp_path: Path) -> None:
    config = tmp_path / "workflow.yaml"
    config.write_text(
        "qlib_init: {provider_uri: nowhere}\n"
        "task: {dataset: {class: DatasetH, module_path: qlib.data.dataset, kwargs: {handler: {class: Alpha158}, "
        "segments: {train: [2019-06-03, 2020-03-31], valid: [2020-04-01, 2020-12-31], "
        "test: [2021-01-04, 2021-06-28]}}}}\n",
        encoding="utf-8",
    )
    folder = tmp_path / "ledger"
    _, out = call("--ledger", str(folder), "--config", str(config), "--run", "mine")
    # Both universes lie in one provider and are two bases of a factor.
    assert TrialLedger(folder).count(run="mine") == 4
    assert TrialLedger(folder).tune_reads() == 4
    assert "N = 4" in out
    with pytest.raises(WallError, match="'test'"):
        call("--config", str(config), periods=("late=2020-04-01:2021-01-04",))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--out", "cells.txt"), "ends in .json or .csv or .parquet"),
        (("--lags", "1,two"), "--lags '1,two'"),
        (("--costs", ""), "--costs ''"),
        (("--market", "cn"), "NAME=DIR:UNIVERSE"),
        (("--period", "early"), "START:END"),
        (("--alpha", "2"), "alpha is 2.0"),
    ],
)
def test_calls_that_mean_nothing_are_refused(call: Call, options: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("(", "\\(")):
        call(*options)


def test_help_answers_without_a_heavy_import(monkeypatch: pytest.MonkeyPatch) -> None:
    heavy: dict[str, Any] = {name: None for name in ("qlib", "mlflow", "pandas")}
    for name, nothing in heavy.items():
        monkeypatch.setitem(sys.modules, name, nothing)
    parser = argparse.ArgumentParser()
    add_cross(parser.add_subparsers())
    with pytest.raises(SystemExit) as left:
        parser.parse_args(["cross", "--help"])
    assert left.value.code == 0
