"""A simulated daily market, the same for every competitor: dense arrays and a Qlib provider of the same numbers.

What makes real panels slow or awkward is in it: a fifth of the names list late, a twentieth is delisted early, days are
suspended one by one and in runs, prices are rounded to the cent before they are adjusted (ties), volumes have long
memory.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

FIELDS = ("open", "high", "low", "close", "volume", "vwap", "amount")
SEED = 20240607
LABEL = "Ref($close, -2)/Ref($close, -1) - 1"


@dataclass(frozen=True)
class Market:
    """The files of one market.

    Attributes
    ----------
    folder : Path
        ``provider/`` is a Qlib provider; ``FIELD.npy`` are (days, names) float32; ``spans.npy`` is (names, 2): the
        first day on which a name exists, and the day after its last.
    names, days : int
    """

    folder: Path
    names: int
    days: int

    @property
    def provider(self) -> Path:
        """The folder that ``qlib.init`` takes as ``provider_uri``."""
        return self.folder / "provider"

    def field(self, name: str) -> NDArray[np.float32]:
        """Return the (days, names) array of a field; NaN where there is no bar."""
        array: NDArray[np.float32] = np.load(self.folder / f"{name}.npy")
        return array

    def exists(self) -> NDArray[np.bool_]:
        """Return the (days, names) mask of the rows that exist, suspended days included."""
        first, stop = np.load(self.folder / "spans.npy").T
        day = np.arange(self.days)[:, None]
        mask: NDArray[np.bool_] = (day >= first) & (day < stop)
        return mask


def market_in(work: Path, names: int, days: int) -> Market:
    """Return the market of that size under ``work``, made if it is not there yet; other code makes another folder."""
    code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:10]
    folder = work / f"market-{names}x{days}-{code}"
    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
        _write(unfinished, names, days)
        try:
            unfinished.rename(folder)
        except OSError:  # another run was first
            shutil.rmtree(unfinished)
    return Market(folder, names, days)


def _write(folder: Path, names: int, days: int) -> None:
    rng = np.random.default_rng([SEED, names, days])
    bars = _bars(rng, names, days)
    first, stop = _spans(rng, names, days)
    missing = _suspended(rng, names, days)
    # Qlib stores a series from its first to its last bar, so these two must be bars.
    missing[first, np.arange(names)] = False
    missing[stop - 1, np.arange(names)] = False
    day = np.arange(days)[:, None]
    missing |= (day < first) | (day >= stop)

    calendar = pd.bdate_range("2010-01-04", periods=days).strftime("%Y-%m-%d")
    codes = [f"SH{600000 + column}" for column in range(names)]
    provider = folder / "provider"
    for part in ("calendars", "instruments", *(f"features/{code.lower()}" for code in codes)):
        (provider / part).mkdir(parents=True)
    (provider / "calendars/day.txt").write_text("\n".join(calendar) + "\n")
    listed = zip(codes, first, stop, strict=True)
    (provider / "instruments/all.txt").write_text(
        "".join(f"{code}\t{calendar[start]}\t{calendar[end - 1]}\n" for code, start, end in listed)
    )
    np.save(folder / "spans.npy", np.column_stack([first, stop]))
    for name, values in bars.items():
        values[missing] = np.nan
        stored = values.astype(np.float32)
        np.save(folder / f"{name}.npy", stored)
        for column, code in enumerate(codes):
            series = stored[first[column] : stop[column], column]
            file = provider / f"features/{code.lower()}/{name}.day.bin"
            np.concatenate([[first[column]], series]).astype("<f4").tofile(file)


def _bars(rng: np.random.Generator, names: int, days: int) -> dict[str, NDArray[np.float64]]:
    """Return adjusted prices, shares and money of every day, as if nothing were ever suspended."""
    shape = (days, names)
    market = rng.normal(0.0002, 0.011, (days, 1)) * rng.uniform(0.5, 1.5, names)
    own = rng.standard_t(5, shape) * (rng.uniform(0.01, 0.03, names) / 1.3)
    returns = np.clip(market + own, -0.1, 0.1)
    close = rng.uniform(3, 80, names) * np.exp(np.cumsum(returns, axis=0))
    opening = np.concatenate([close[:1], close[:-1]]) * np.exp(rng.normal(0, 0.006, shape))
    high = np.maximum(opening, close) * np.exp(np.abs(rng.normal(0, 0.006, shape)))
    low = np.minimum(opening, close) * np.exp(-np.abs(rng.normal(0, 0.006, shape)))
    opening, high, low, close = (np.round(np.maximum(price, 0.05), 2) for price in (opening, high, low, close))

    activity = rng.normal(0, 0.25, shape)
    for day in range(1, days):
        activity[day] += 0.85 * activity[day - 1]
    shares = np.round(np.exp(rng.uniform(11, 15, names) + activity + 8 * np.abs(returns)))
    average = (opening + high + low + 2 * close) / 5
    paid_out = (rng.random(shape) < 0.004) * rng.uniform(0, 0.3, shape)
    factor = np.exp(np.cumsum(paid_out, axis=0))
    return {
        "open": opening * factor,
        "high": high * factor,
        "low": low * factor,
        "close": close * factor,
        "volume": shares / factor,
        "vwap": average * factor,
        "amount": shares * average,
    }


def _spans(rng: np.random.Generator, names: int, days: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    late, early = rng.random(names) < 0.2, rng.random(names) < 0.05
    first = np.where(late, rng.integers(1, days // 2, names), 0)
    stop = np.where(early, rng.integers(days * 3 // 4, days, names), days)
    return first, stop


def _suspended(rng: np.random.Generator, names: int, days: int) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = rng.random((days, names)) < 0.004
    for column, runs in enumerate(rng.integers(0, 3, names)):
        for begin, length in zip(rng.integers(0, days - 60, runs), rng.integers(5, 50, runs), strict=True):
            mask[begin : begin + length, column] = True
    return mask
