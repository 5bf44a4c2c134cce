"""The proofs' own arithmetic, that they resume, and that they run through; their figures are in the documentation."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from qlib_llm_alpha.data.embedded.plants import PLANTS
from qlib_llm_alpha.data.embedded.simulate import simulate
from qlib_llm_alpha.engine.evaluate import evaluate
from qlib_llm_alpha.engine.tile_scoring import PreparedLabel, score_columns
from qlib_llm_alpha.factor.expression import parse

PROOFS = Path(__file__).parents[2] / "benchmarks" / "proofs"
# A year of look-back and two of search: enough for the test against chance, and a second or two a run.
SMALL = ["--formulas", "40", "--instruments", "30", "--end", "2019-12-31"]


@pytest.fixture
def proofs(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """Load the proofs as their command lines do, from their own folder."""
    monkeypatch.syspath_prepend(str(PROOFS))
    loaded = {}
    for name in ("resumable", "noise_admission", "planted_power"):
        spec = importlib.util.spec_from_file_location(name, PROOFS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        loaded[name] = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, loaded[name])
        spec.loader.exec_module(loaded[name])
    return loaded


def noise_row(seed: int, **changes: Any) -> dict[str, Any]:
    shared = {"formulas": 40, "instruments": 30, "end": "2019-12-31", "candidates": 75, "scored": 70, "admitted": 0}
    found = {"chosen": [], "naive": 3, "best_t": 2.5, "run_p": 0.5, "sidak_p": 0.5, "effective_trials": 20.0}
    rest = {"deflated_sharpe": 0.4, "deflated_trials": 40.0, "sharpe": 0.06, "pbo": 0.5, "seconds": 1.0}
    return {"seed": seed, **shared, **found, **rest, **changes}


def power_row(seed: int, size: float, **changes: Any) -> dict[str, Any]:
    shared = {"formulas": 40, "instruments": 30, "end": "2019-12-31", "plant": "overnight_fade", "ic": 0.01}
    found = {"rank_ic": 0.012, "t": 3.0, "adjusted_p": 0.01, "reason": "", "detected": True, "admitted": 1}
    return {"seed": seed, "size": size, **shared, **found, "critical_t": 3.2, "seconds": 1.0, **changes}


def test_runs_on_noise_are_pooled_with_their_intervals(proofs: dict[str, ModuleType]) -> None:
    # p at the middle of tenths: the largest distance from uniform is 0.05.
    rows = [noise_row(seed, run_p=(seed + 0.5) / 10, sidak_p=1.0) for seed in range(10)]
    rows[0] |= {"admitted": 2, "deflated_sharpe": 0.97}
    rows[1] |= {"deflated_sharpe": None}
    text = proofs["noise_admission"].summary(rows)
    # Clopper and Pearson for 1 of 10, as in tables.
    assert "runs that admit anything: 1 of 10, 95 percent interval 0.0025 to 0.4450" in text
    assert "lower bound at most alpha 0.05: yes" in text
    assert "above 0.95: 1 of 10" in text
    assert "turned signs): KS distance from uniform 0.050, p 1.000; 1 at most 0.05" in text
    assert "Sidak p of the best: KS distance from uniform 1.000, p 0.000; 0 at most 0.05" in text


def test_too_many_runs_that_admit_are_called_so(proofs: dict[str, ModuleType]) -> None:
    rows = [noise_row(seed, admitted=int(seed < 14)) for seed in range(100)]
    assert "lower bound at most alpha 0.05: NO" in proofs["noise_admission"].summary(rows)


def test_detections_are_counted_by_size(proofs: dict[str, ModuleType]) -> None:
    rows = [power_row(seed, 0.02, rank_ic=0.018 + 0.004 * (seed % 2)) for seed in range(10)]
    rows += [power_row(seed, 0.0, detected=seed == 0, t=0.5, rank_ic=0.0) for seed in range(10)]
    lines = proofs["planted_power"].table(rows).splitlines()
    assert lines[2] == "| 0 | 10 | +0.0000 | 0.50 | 1 | 10% | 0% to 45% |"
    assert lines[3] == "| 0.02 | 10 | +0.0200 | 3.00 | 10 | 100% | 69% to 100% |"


def test_what_is_done_is_not_run_again_and_other_settings_are_not_mixed_in(
    proofs: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    rows = [noise_row(7), noise_row(8), noise_row(7, formulas=41, admitted=5)]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert proofs["noise_admission"].main(["--first-seed", "7", "--seeds", "2", *SMALL, "--out", str(out)]) == 0
    assert len(out.read_text(encoding="utf-8").splitlines()) == 3
    assert "runs that admit anything: 0 of 2" in capsys.readouterr().out


def test_a_planted_effect_has_the_size_that_was_asked_for(proofs: dict[str, ModuleType]) -> None:
    proof = proofs["planted_power"]
    data = proofs["noise_admission"].search_data(simulate("noise", 60, "2017-01-03", "2019-12-31", 7))
    formula = parse(PLANTS[5].expression)
    column = evaluate([formula], data.panel, warmup="strict", threads=1).values

    def mean_rank_ic(label: PreparedLabel) -> float:
        daily = score_columns(column, label, threads=1)[0].rank_ic
        assert daily is not None
        return float(np.nanmean(daily))

    ics = [mean_rank_ic(proof.with_effect(data, formula, size, 1).prepared) for size in (0.0, 0.02, 0.3)]
    assert ics[0] == pytest.approx(mean_rank_ic(data.prepared), abs=1e-4)  # ties of the label are broken
    assert ics[1] - ics[0] == pytest.approx(0.02, abs=0.002)
    assert ics[2] - ics[0] == pytest.approx(0.3, abs=0.03)


def test_three_noise_seeds_run_through_and_admit_nothing(
    proofs: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    assert proofs["noise_admission"].main(["--first-seed", "7", "--seeds", "3", *SMALL, "--out", str(out)]) == 0
    assert "runs that admit anything: 0 of 3" in capsys.readouterr().out
    rows = proofs["resumable"].read_rows(out)
    assert [row["seed"] for row in rows] == [7, 8, 9]
    assert all(0 < row["run_p"] <= 1 and 0 < row["sidak_p"] <= 1 and row["scored"] > 40 for row in rows)


def test_a_strong_plant_is_detected_and_none_is_not(proofs: dict[str, ModuleType], tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    sizes = ["--sizes", "0", "0.1"]
    assert proofs["planted_power"].main(["--first-seed", "7", "--seeds", "1", *sizes, *SMALL, "--out", str(out)]) == 0
    nothing, strong = proofs["resumable"].read_rows(out)
    assert not nothing["detected"]
    assert strong["detected"]
    assert strong["rank_ic"] - nothing["rank_ic"] == pytest.approx(0.1, abs=0.02)


@pytest.mark.slow
def test_processes_side_by_side_find_what_one_does(proofs: dict[str, ModuleType], tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    for out, workers in ((one, "1"), (two, "2")):
        arguments = ["--first-seed", "7", "--seeds", "2", *SMALL, "--workers", workers, "--out", str(out)]
        assert proofs["noise_admission"].main(arguments) == 0
    rows = [
        sorted(({**row, "seconds": 0} for row in proofs["resumable"].read_rows(out)), key=lambda row: row["seed"])
        for out in (one, two)
    ]
    assert rows[0] == rows[1]
