"""The proof's own arithmetic, that its market holds the plant, and that it runs through in a small form."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from qlib_llm_alpha.data.embedded.in_memory import market_panel
from qlib_llm_alpha.data.embedded.simulate import Market, simulate
from qlib_llm_alpha.engine.evaluate import evaluate
from qlib_llm_alpha.engine.tile_scoring import score_columns
from qlib_llm_alpha.evaluation.statistics import mean_of
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.mining.exploring import cut

PROOFS = Path(__file__).parents[2] / "benchmarks" / "proofs"
SMALL = ["--instruments", "40", "--end", "2019-12-31", "--size", "0.12", "--trials", "300", "--proposers", "genetic"]


@pytest.fixture
def proof(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Load the proof as its command line does, from its own folder."""
    monkeypatch.syspath_prepend(str(PROOFS))
    loaded = {}
    for name in ("resumable", "noise_admission", "genetic_finds"):
        spec = importlib.util.spec_from_file_location(name, PROOFS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        loaded[name] = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, loaded[name])
        spec.loader.exec_module(loaded[name])
    return loaded["genetic_finds"]


@pytest.fixture(scope="module")
def noise() -> Market:
    return simulate("noise", 40, "2017-01-03", "2019-12-31", 7)


def row(seed: int, effect: str, proposer: str = "genetic", **changes: Any) -> dict[str, Any]:
    job = {"seed": seed, "effect": effect, "proposer": proposer, "trials": 300, "size": 0.04}
    found = {"scored": 290, "best_t": 5.0, "judged": 50, "run_p": 0.01, "admitted": 1, "chosen": [], "seconds": 1.0}
    rest = {"planted_rank_ic": 0.05, "alike": 0.9, "share_of_ic": 0.9, "found": True, "first_at": 100}
    return job | found | (rest if effect != "none" else {}) | changes


@pytest.mark.parametrize("effect", ["reversal_5", "volume_price_divergence"])
def test_what_is_planted_is_what_its_formula_says(proof: ModuleType, noise: Market, effect: str) -> None:
    market = proof.planted(noise, proof.EFFECTS[effect], 0.1)
    panel = market_panel(market)
    formula = parse(proof.EFFECTS[effect].expression)
    values = panel.untiled(evaluate([formula], panel, warmup="strict", threads=1).values[0])
    order = np.argsort(market.codes)
    expected = np.stack([proof.EFFECTS[effect].score(market.bars(), day) for day in range(len(market.days))])[:, order]
    expected = expected[:, np.isin(market.codes[order], panel.instruments)]
    both = np.isfinite(values) & np.isfinite(expected)
    assert both.mean() > 0.8
    assert np.quantile(np.abs(values - expected)[both], 0.999) < 1e-3


@pytest.mark.parametrize("effect", ["reversal_5", "volume_price_divergence"])
def test_an_effect_has_about_its_size_and_bars_stay_bars(proof: ModuleType, noise: Market, effect: str) -> None:
    def rank_ic(size: float) -> float:
        market = proof.planted(noise, proof.EFFECTS[effect], size)
        data = proof.search_data(market)
        column = evaluate([parse(proof.EFFECTS[effect].expression)], data.panel, warmup="strict", threads=1).values
        daily = score_columns(column, data.prepared, threads=1, rows=data.rows)[0].rank_ic
        assert daily is not None
        return mean_of(daily)

    assert rank_ic(0.15) - rank_ic(0.0) == pytest.approx(0.15, abs=0.06)
    market = proof.planted(noise, proof.EFFECTS[effect], 0.15)
    there = np.isfinite(market.close)
    assert (there == np.isfinite(noise.close)).all()
    low, high = market.low[there], market.high[there]
    for price in (market.open, market.close, market.vwap):
        assert (price[there] <= high * (1 + 1e-6)).all()
        assert (price[there] >= low * (1 - 1e-6)).all()
    moved = market.close / noise.close
    np.testing.assert_allclose(market.amount[there], (noise.amount * moved)[there])
    np.testing.assert_array_equal(market.volume, noise.volume)


def test_the_past_is_never_moved(proof: ModuleType, noise: Market) -> None:
    # The first effect needs five bars before it and ends two days later.
    market = proof.planted(noise, proof.EFFECTS["reversal_5"], 0.1)
    np.testing.assert_array_equal(market.close[:7], noise.close[:7])
    assert not np.array_equal(market.close[7], noise.close[7], equal_nan=True)


def test_found_means_admitted_and_alike_or_nearly_as_good(proof: ModuleType, noise: Market) -> None:
    effect = proof.EFFECTS["reversal_5"]
    judge = cut(proof.search_data(proof.planted(noise, effect, 0.12)), threads=1)[1]
    target = parse(effect.expression)
    twin = proof.compared([parse("$close/Ref($close,5)")], target, judge)
    assert twin["alike"] == pytest.approx(1.0, abs=1e-5)
    assert twin["share_of_ic"] == pytest.approx(1.0, abs=1e-5)
    assert twin["found"]
    other = proof.compared([parse("$volume/Mean($volume,60)")], target, judge)
    assert other["alike"] < 0.5
    assert not other["found"]
    assert not proof.compared([], target, judge)["found"]


def test_the_table_counts_finds_and_errors(proof: ModuleType) -> None:
    rows = [row(seed, "reversal_5", first_at=100 * seed or None) for seed in range(10)]
    rows[9] |= {"found": False, "admitted": 0}
    rows += [row(seed, "none", admitted=int(seed == 0)) for seed in range(20)]
    rows += [row(seed, "none", "random", admitted=int(seed < 10)) for seed in range(20)]
    lines = proof.table(rows).splitlines()
    assert lines[2] == (
        "| reversal_5 | genetic | 10 | 300 | +0.0500 | 9 of 10 | 55% to 100% | 500 (9 runs) | 9 of 10 | 55% to 100% |"
    )
    assert lines[3] == "| none | genetic | 20 | 300 |  |  |  |  | 1 of 20 | 0% to 25% |"
    assert "genetic, nothing planted: lower bound at most alpha 0.05: yes" in lines
    assert "random, nothing planted: lower bound at most alpha 0.05: NO" in lines


def test_a_strong_plant_is_found_and_noise_admits_nothing(proof: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    assert proof.main(["--seeds", "1", "--first-seed", "7", *SMALL, "--out", str(out)]) == 0
    rows = {one["effect"]: one for one in sys.modules["resumable"].read_rows(out)}
    assert rows["reversal_5"]["found"]
    assert rows["reversal_5"]["first_at"] <= 300
    assert rows["none"]["admitted"] == 0
    assert rows["volume_price_divergence"]["scored"] > 200
    before = out.read_bytes()
    assert proof.main(["--seeds", "1", "--first-seed", "7", *SMALL, "--out", str(out)]) == 0
    assert out.read_bytes() == before
