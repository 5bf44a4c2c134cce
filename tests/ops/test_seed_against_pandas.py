"""The seed factors on bars and shares, through Qlib's own expression engine, against a plain pandas oracle.

Qlib keeps bars and sums of bars in float32, so a difference of two prices is good to about 1e-6 of the price: the
comparison allows 2e-5 of the factor's own spread, not the 1e-8 that float64 would give.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import qlib
from qlib.data import D

from qlib_llm_alpha.data.provider_files import write_calendar, write_feature, write_instruments
from qlib_llm_alpha.library.seed import Mode, SeedFactor, seed_factors
from qlib_llm_alpha.ops.ours import OPERATORS
from tests.ops import seed_oracle as oracle

DAYS = np.arange("2020-01-01", "2020-11-16", dtype="datetime64[D]")
CODES = ("SH600000", "SZ000001")
PRICES = ("open", "high", "low", "close")
RUNNABLE = [entry for entry in seed_factors() if entry.literal is not None]
ON_BARS = [entry for entry in RUNNABLE if entry.needs in ("bars", "shares")]
BOTH_MODES = [
    pytest.param(entry, mode, id=f"{entry.name}-{mode}") for entry in ON_BARS for mode in ("literal", "scale_free")
]
TOLERANCE = 2e-5


def synthetic_bars(seed: int) -> pd.DataFrame:
    """Bars of one instrument with two splits, as float32 values in float64."""
    rng = np.random.default_rng(seed)
    days = len(DAYS)
    close = 20 * np.exp(np.cumsum(rng.normal(0, 0.02, days)))
    start = close * np.exp(rng.normal(0, 0.01, days))
    frame = pd.DataFrame(
        {
            "open": start,
            "high": np.maximum(start, close) * np.exp(rng.uniform(0.001, 0.02, days)),
            "low": np.minimum(start, close) * np.exp(-rng.uniform(0.001, 0.02, days)),
            "close": close,
            "volume": rng.lognormal(14, 0.5, days),
            "factor": np.select([np.arange(days) < 90, np.arange(days) < 210], [0.4, 0.8], 1.6),
            "shares": np.where(np.arange(days) < 210, 1e9, 2e9),
        }
    )
    return frame.astype("float32").astype("float64")


BARS = {code: synthetic_bars(seed) for seed, code in enumerate(CODES, start=11)}


def rescaled(frame: pd.DataFrame, *, prices: float, volume: float, factor: float) -> pd.DataFrame:
    scaled = frame.copy()
    scaled[list(PRICES)] *= prices
    scaled["volume"] *= volume
    scaled["factor"] *= factor
    return scaled


# Ten times the adjusted price, as another vendor's normalisation gives it; and prices and volumes in other units.
VARIANTS = {
    "SH600010": rescaled(BARS["SH600000"], prices=10, volume=0.1, factor=10),
    "SH600020": rescaled(BARS["SH600000"], prices=10, volume=3, factor=1),
}


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Every form of every seed factor on every instrument: one column a (name, mode)."""
    root = tmp_path_factory.mktemp("provider")
    frames = {**BARS, **VARIANTS}
    write_calendar(root, list(DAYS))
    write_instruments(root, "all", [(code, DAYS[0], DAYS[-1]) for code in frames])
    for code, frame in frames.items():
        for field in frame:
            write_feature(root, code, str(field), 0, frame[field].to_numpy())
    qlib.init(provider_uri=str(root), region="cn", custom_ops=list(OPERATORS), kernels=1)
    keys = [(entry.name, mode) for entry in ON_BARS for mode in ("literal", "scale_free")]
    texts = [entry.factor(mode).expression.qlib for entry in ON_BARS for mode in ("literal", "scale_free")]
    loaded = D.features(list(frames), texts, str(DAYS[0]), str(DAYS[-1]))
    assert list(loaded.columns) == texts
    loaded.columns = pd.MultiIndex.from_tuples(keys)
    return loaded


def expected(entry: SeedFactor, mode: Mode, frame: pd.DataFrame) -> pd.Series:
    adjusted, raw = oracle.adjusted(frame), oracle.raw(frame)
    if entry.name in oracle.UNIT_FREE:
        return oracle.UNIT_FREE[entry.name](adjusted)
    if entry.name == "turnover_rate" or (entry.name, mode) == ("liquidity_ratio", "scale_free"):
        return raw.volume / raw.shares
    if (entry.name, mode) == ("amihud_illiquidity", "literal"):
        return oracle.returns(adjusted).abs() / raw.volume
    return oracle.LITERAL[entry.name](raw) if mode == "literal" else oracle.SCALE_FREE[entry.name](adjusted)


def assert_close(actual: np.ndarray, wanted: np.ndarray) -> None:
    assert np.isfinite(wanted).all()
    spread = np.std(wanted) if np.std(wanted) > 1e-12 * np.abs(wanted).mean() else np.abs(wanted).mean()
    assert np.abs(actual - wanted).max() <= TOLERANCE * (spread + np.abs(wanted).max())


@pytest.mark.parametrize(("entry", "mode"), BOTH_MODES)
def test_qlib_computes_what_the_printed_formula_says(entry: SeedFactor, mode: Mode, values: pd.DataFrame) -> None:
    lookback = entry.factor(mode).expression.lookback
    for code, frame in BARS.items():
        actual = values.loc[code, (entry.name, mode)].to_numpy(dtype="float64")[lookback:]
        wanted = expected(entry, mode, frame).to_numpy()[lookback:]
        assert len(wanted) > 100
        assert_close(actual, wanted)


@pytest.mark.parametrize("entry", ON_BARS, ids=lambda entry: entry.name)
def test_a_renormalised_stock_keeps_its_scale_free_and_its_raw_values(entry: SeedFactor, values: pd.DataFrame) -> None:
    for mode in ("scale_free", "literal"):
        lookback = entry.factor(mode).expression.lookback
        plain = values.loc["SH600000", (entry.name, mode)].to_numpy(dtype="float64")[lookback:]
        assert_close(values.loc["SH600010", (entry.name, mode)].to_numpy(dtype="float64")[lookback:], plain)


@pytest.mark.parametrize("entry", [entry for entry in ON_BARS if entry.needs == "bars"], ids=lambda entry: entry.name)
def test_scale_free_values_do_not_know_the_unit_of_prices_or_volumes(entry: SeedFactor, values: pd.DataFrame) -> None:
    lookback = entry.factor("scale_free").expression.lookback
    plain, other = (
        values.loc[code, (entry.name, "scale_free")].to_numpy(dtype="float64")[lookback:]
        for code in ("SH600000", "SH600020")
    )
    assert_close(other, plain)


@pytest.mark.parametrize("entry", ON_BARS, ids=lambda entry: entry.name)
def test_the_printed_unit_flag_is_true(entry: SeedFactor, values: pd.DataFrame) -> None:
    lookback = entry.factor("literal").expression.lookback
    plain, other = (
        values.loc[code, (entry.name, "literal")].to_numpy(dtype="float64")[lookback:]
        for code in ("SH600000", "SH600020")
    )
    changed = np.abs(other - plain).max() > 1e-2 * np.abs(plain).max()
    # Turnover is free of units, and knows shares from volume: three times the volume is three times the turnover.
    assert changed == (not entry.printed_scale_free or entry.name == "turnover_rate")


@pytest.mark.parametrize("mode", ["literal", "scale_free"])
def test_declared_duplicates_are_duplicates_in_value(mode: Mode, values: pd.DataFrame) -> None:
    by_name = {entry.name: entry for entry in ON_BARS}
    for entry in ON_BARS:
        for duplicate in entry.duplicates:
            if duplicate.mode not in (None, mode):
                continue
            lookback = max(by_name[name].factor(mode).expression.lookback for name in (entry.name, duplicate.of))
            one = values.loc["SH600000", (entry.name, mode)].iloc[lookback:].astype("float64")
            two = values.loc["SH600000", (duplicate.of, mode)].iloc[lookback:].astype("float64")
            if duplicate.kind == "same":
                assert_close(one.to_numpy(), two.to_numpy())
            method = "pearson" if duplicate.kind == "affine" else "spearman"
            assert abs(one.corr(two, method=method)) > 1 - 1e-6, (entry.name, duplicate)


@pytest.mark.parametrize("mode", ["literal", "scale_free"])
def test_nothing_else_is_a_copy_in_rank_of_another(mode: Mode, values: pd.DataFrame) -> None:
    kept = [entry for entry in ON_BARS if entry.obstacle(mode) is None]
    lookback = max(entry.factor(mode).expression.lookback for entry in kept)
    columns = [(entry.name, mode) for entry in kept]
    ranks = values.loc["SH600000", columns].iloc[lookback:].corr(method="spearman").abs().to_numpy()
    assert (ranks - np.eye(len(kept))).max() < 0.9999
