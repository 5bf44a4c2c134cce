"""The tables of the documentation, measured: what is planted, and how close the bars are to real ones."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qlib_llm_alpha.data.embedded.moments import bar_moments
from qlib_llm_alpha.data.embedded.plants import plant_scores, rank_scores, strengths
from qlib_llm_alpha.data.embedded.regime import REGIMES
from qlib_llm_alpha.data.embedded.simulate import Kind, Market, label, planted_factors, simulate
from qlib_llm_alpha.engine.cross_section import daily_correlation, rank
from qlib_llm_alpha.errors import ConfigError, ProviderError

Array = NDArray[np.float64]

STATIC, CONDITIONAL = "all, one weight each", "all, weights by true regime"
_REAL_FILES = "daily_201[89]*.parquet", "daily_202[0-3]*.parquet"
_REAL_INDEX = "SH000300"


def plant_ics(market: Market) -> dict[str, Array]:
    """Return the daily rank IC of each plant and of two combinations of all plants, (days,) each.

    The combinations weigh the plants by their planted strength: averaged over the regimes, and by the true regime of
    each day, which nobody can know.
    """
    outcome = rank(label(market))
    ics = {name: _rank_ic(values, outcome) for name, values in planted_factors(market).items()}
    bars = market.bars()
    scores = np.stack([rank_scores(plant_scores(bars, t)) for t in range(len(market.days))])
    scores = np.where(np.isfinite(market.close)[:, None], scores, np.nan)
    weights = strengths()
    ics[STATIC] = _rank_ic((weights.mean(axis=0)[:, None] * scores).sum(axis=1), outcome)
    ics[CONDITIONAL] = _rank_ic((weights[market.regime][:, :, None] * scores).sum(axis=1), outcome)
    return ics


def plant_table(seeds: Iterable[int], *, kind: Kind, instruments: int, start: str, end: str) -> str:
    """Return mean and deviation of the daily rank IC by regime, pooled over seeds, as a Markdown table."""
    ics: dict[str, list[Array]] = {}
    regimes = []
    for seed in seeds:
        market = simulate(kind, instruments, start, end, seed)
        regimes.append(market.regime)
        for name, values in plant_ics(market).items():
            ics.setdefault(name, []).append(values)
    if not regimes:
        raise ConfigError("--plants was given no seed; give at least 1")
    regime = np.concatenate(regimes)
    lines = [
        "| factor | " + " | ".join(REGIMES) + " | all days | deviation |",
        "| --- |" + " ---: |" * (len(REGIMES) + 2),
    ]
    for name, parts in ics.items():
        values = np.concatenate(parts)
        means = [np.nanmean(values[regime == k]) for k in range(len(REGIMES))] + [np.nanmean(values)]
        cells = " | ".join(f"{mean:+.3f}" for mean in means)
        lines.append(f"| {name} | {cells} | {np.nanstd(values):.3f} |")
    return "\n".join(lines)


def moment_table(folder: Path, *, kind: Kind, instruments: int, start: str, end: str, seed: int) -> str:
    """Return the moments of the embedded market beside those of real bars from 2018 to 2023, as a Markdown table.

    Parameters
    ----------
    folder : Path
        Parquet files of raw bars, ``daily_<years>.parquet`` with date, instrument, open, high, low, close, volume and
        factor, and ``index_daily.parquet``.
    kind, instruments, start, end, seed
        As for :func:`~qlib_llm_alpha.data.embedded.simulate.simulate`.
    """
    real_bars, real_index = _real_bars(Path(folder))
    market = simulate(kind, instruments, start, end, seed)
    own = bar_moments(market.bars(), market.index.close)
    real = bar_moments(real_bars, real_index)
    lines = ["| moment | embedded | real |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {value:.3f} | {real[name]:.3f} |" for name, value in own.items()]
    return "\n".join(lines)


def _rank_ic(values: Array, outcome_rank: Array) -> Array:
    joint = np.isfinite(values) & np.isfinite(outcome_rank)
    return daily_correlation(rank(np.where(joint, values, np.nan)), rank(np.where(joint, outcome_rank, np.nan)))


def _real_bars(folder: Path) -> tuple[dict[str, Array], Array]:
    files = sorted({path for pattern in _REAL_FILES for path in folder.glob(pattern)})
    index_file = folder / "index_daily.parquet"
    if not files or not index_file.is_file():
        raise ProviderError(
            f"{str(folder)!r} has no bars from 2018 to 2023: expected files {_REAL_FILES} and 'index_daily.parquet'; "
            "give the folder that holds them to --moments"
        )
    frame = pd.concat([pd.read_parquet(path) for path in files])
    frame["instrument"] = frame["instrument"].astype(str)
    wide = {
        name: frame.pivot(index="date", columns="instrument", values=name).astype(np.float64)
        for name in ("open", "high", "low", "close", "volume", "factor")
    }
    factor = wide.pop("factor").to_numpy()
    bars = {
        name: values.to_numpy() / factor if name == "volume" else values.to_numpy() * factor
        for name, values in wide.items()
    }
    index = pd.read_parquet(index_file)
    level = index[index["instrument"].astype(str) == _REAL_INDEX].set_index("date")["close"]
    return bars, level.reindex(wide["close"].index).to_numpy(dtype=np.float64)
