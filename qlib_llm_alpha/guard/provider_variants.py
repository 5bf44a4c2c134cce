"""Copies of a Qlib provider that differ from it after a day, end on a day, or hold independent returns.

They read and write the files alone, so they work on any daily provider, whoever wrote it, and on fields nobody told us
of. Every copy is complete: nothing in it can be written through to the original except the files of one instrument's
fields, which no handler writes.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.data.provider_files import (
    PeriodRecords,
    Span,
    read_calendar,
    read_feature,
    read_instruments,
    read_period_records,
    write_calendar,
    write_feature,
    write_instruments,
    write_period_records,
)
from qlib_llm_alpha.errors import ProviderError

Line: TypeAlias = NDArray[np.float32]

DAILY: Final = ".day.bin"
_PRICES: Final = ("open", "high", "low", "close", "vwap")
_BARS: Final = (*_PRICES, "volume", "amount", "change")
_GAPS: Final = 0.1  # share of the new days without a bar
_DEVIATION: Final = 0.02  # of a day's independent return
_CACHES: Final = ("features_cache", "dataset_cache", "calendars_cache")


def write_poisoned(source: Path, out: Path, after: np.datetime64, seed: int = 0) -> Path:
    """Copy a provider with everything dated after a day replaced by other valid values.

    Bars, factor and every other daily field, index bars included, have new values and new gaps; a third of the names
    leave the market on the next day or later, in every market file; items reported later have other values and days,
    and some known ones are restated. The calendar stays.

    Parameters
    ----------
    source, out : Path
        Provider to read, folder to write.
    after : datetime64[D]
        The last day that stays as it is.
    seed : int
        Of the new values.
    """
    days = provider_calendar(source)
    cut = int(np.searchsorted(days, after, side="right"))
    _copy_rest(source, out)
    write_calendar(out, list(days))
    traded = {code.lower() for market in _markets(source) for code, _, _ in read_instruments(source, market)}
    leaves = _leaving_days(sorted(traded), days, cut, seed)
    for code, fields in _instruments(source):
        rng = _generator(seed, code)
        end = int(np.searchsorted(days, leaves[code], side="right")) if code in leaves else len(days)
        lines = {field: read_feature(source, code, field) for field in fields}
        # An index, which is in no market, has a bar on every day.
        gaps = _GAPS if code in traded else 0.0
        for field, (start, values) in _other_lines(lines, cut, end, gaps, rng).items():
            write_feature(out, code, field, start, values)
    for market in _markets(source):
        spans = [_other_span(span, after, leaves) for span in read_instruments(source, market)]
        write_instruments(out, market, [span for span in spans if span is not None])
    for code, name, records in _reported(source):
        write_period_records(out, code, name, *_other_records(records, after, _generator(seed, f"{code} {name}")))
    return out


def write_truncated(source: Path, out: Path, last: np.datetime64) -> Path:
    """Copy a provider as it stood at the close of a day: calendar, bars, membership and reports end there.

    Parameters
    ----------
    source, out : Path
        Provider to read, folder to write.
    last : datetime64[D]
        The last day of the copy.
    """
    days = provider_calendar(source)
    cut = int(np.searchsorted(days, last, side="right"))
    _copy_rest(source, out)
    write_calendar(out, list(days[:cut]))
    for code, fields in _instruments(source):
        for field in fields:
            start, values = read_feature(source, code, field)
            if start < cut:
                write_feature(out, code, field, start, values[: cut - start])
    for market in _markets(source):
        spans = read_instruments(source, market)
        write_instruments(out, market, [(code, first, min(end, last)) for code, first, end in spans if first <= last])
    for code, name, (announced, periods, figures) in _reported(source):
        known = announced <= last
        if known.any():
            write_period_records(out, code, name, announced[known], periods[known], figures[known])
    return out


def write_independent(source: Path, out: Path, seed: int = 0) -> tuple[list[str], NDArray[np.float64]]:
    """Copy a provider with returns that are drawn anew, independent over instruments and days.

    Calendar, markets, listing, gaps, factor and whatever is no bar stay as they are; every close is the product of
    normal returns of one deviation, prices of the day lie around it, volume is drawn without regard to them.

    Parameters
    ----------
    source, out : Path
        Provider to read, folder to write.
    seed : int
        Of the returns.

    Returns
    -------
    codes : list of str
        Instruments, in upper case as Qlib names them.
    returns : array, (days, instruments)
        Return from the close of the day before to that of the day; NaN where either is missing.
    """
    days = provider_calendar(source)
    _copy_rest(source, out)
    write_calendar(out, list(days))
    for market in _markets(source):
        write_instruments(out, market, read_instruments(source, market))
    if (source / "financial").is_dir():
        # Reports stay as they are, and nobody writes them: thousands of small files need not be copied.
        (out / "financial").symlink_to((source / "financial").absolute(), target_is_directory=True)
    codes: list[str] = []
    columns: list[NDArray[np.float64]] = []
    for code, fields in _instruments(source):
        lines = {field: read_feature(source, code, field) for field in fields}
        close: NDArray[np.float64] = np.full(len(days), np.nan)
        for field, (start, line) in _independent_lines(lines, _generator(seed, code)).items():
            write_feature(out, code, field, start, line)
            if field == "close":
                close[start : start + len(line)] = line
        codes.append(code.upper())
        columns.append(np.concatenate([[np.nan], close[1:] / close[:-1] - 1]))
    return codes, np.column_stack(columns) if columns else np.empty((len(days), 0))


def provider_calendar(source: Path) -> NDArray[np.datetime64]:
    """Return the trading days of a daily provider; ProviderError when there is none."""
    if not (source / "calendars" / "day.txt").is_file():
        raise ProviderError(
            f"{str(source)!r}: expected a daily Qlib provider with calendars/day.txt; give its folder as provider_uri"
        )
    return read_calendar(source)


def missing_closes(source: Path, lookahead: int = 20) -> NDArray[np.int64]:
    """Count, for each trading day, the instruments that have no close on it but had one before and have one soon after.

    Parameters
    ----------
    source : Path
        Provider.
    lookahead : int
        Trading days within which the close comes back.

    Returns
    -------
    array, (days,)
    """
    count = np.zeros(len(provider_calendar(source)), dtype=np.int64)
    for code, fields in _instruments(source):
        if "close" not in fields:
            continue
        start, values = read_feature(source, code, "close")
        there = np.flatnonzero(np.isfinite(values))
        for before, after in pairwise(there):
            if after - before > 1:
                count[start + max(before + 1, after - lookahead) : start + after] += 1
    return count


def _generator(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.lower().encode())])


def _instruments(source: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder of features with the names of its daily fields."""
    root = source / "features"
    for folder in sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else ():
        fields = sorted(path.name.removesuffix(DAILY) for path in folder.glob(f"*{DAILY}"))
        yield folder.name, [field for field in fields if (folder / f"{field}{DAILY}").stat().st_size > 4]


def _markets(source: Path) -> list[str]:
    return sorted(path.stem for path in (source / "instruments").glob("*.txt"))


def _reported(source: Path) -> Iterator[tuple[str, str, PeriodRecords]]:
    root = source / "financial"
    for path in sorted(root.glob("*/*.data")) if root.is_dir() else ():
        yield path.parent.name, path.stem, read_period_records(source, path.parent.name, path.stem)


def _copy_rest(source: Path, out: Path) -> None:
    """Copy what no variant writes: bars of other frequencies, future calendars, tables somebody put there."""
    written = {source / name for name in ("instruments", "financial", *_CACHES)}
    for path, folders, files in os.walk(source):
        place = Path(path)
        folders[:] = sorted(name for name in folders if place / name not in written)
        (out / place.relative_to(source)).mkdir(parents=True, exist_ok=True)
        for name in files:
            if not name.endswith(DAILY) and not (place.name == "calendars" and name == "day.txt"):
                _link_or_copy(place / name, out / (place / name).relative_to(source))


def _link_or_copy(source: Path, out: Path) -> None:
    # Only bars are shared with the original: tables may be opened for writing by who put them there.
    if source.suffix == ".bin":
        try:
            os.link(source, out)
        except OSError:
            shutil.copyfile(source, out)
    else:
        shutil.copyfile(source, out)


def _leaving_days(codes: Sequence[str], days: NDArray[np.datetime64], cut: int, seed: int) -> dict[str, np.datetime64]:
    """Draw the names that leave after the day, each with its last day."""
    if cut in (0, len(days)):
        return {}
    found: dict[str, np.datetime64] = {}
    for code in codes:
        rng = _generator(seed + 1, code)
        chance = rng.random()
        if chance < 0.15:
            found[code] = days[cut - 1]
        elif chance < 0.35:
            found[code] = days[int(rng.integers(cut, len(days)))]
    return found


def _other_span(span: Span, after: np.datetime64, leaves: dict[str, np.datetime64]) -> Span | None:
    code, first, last = span
    end = leaves.get(code.lower(), last)
    if last <= after:
        return span
    return None if first > end else (code, first, min(last, end))


def _other_lines(
    lines: dict[str, tuple[int, Line]], cut: int, end: int, gaps: float, rng: np.random.Generator
) -> dict[str, tuple[int, Line]]:
    """Replace what comes from the position `cut` on; from `end` on there is nothing more."""
    total = max((start + len(values) for start, values in lines.values()), default=0)
    bars = _other_bars(max(total - cut, 0), lines, cut, gaps, rng)
    found: dict[str, tuple[int, Line]] = {}
    for field, (start, values) in lines.items():
        kept = max(cut - start, 0)
        if kept >= len(values):
            found[field] = start, values
            continue
        if field in bars:
            after = bars[field][max(start - cut, 0) :][: len(values) - kept]
        else:
            after = _redrawn(values, len(values) - kept, rng)
        changed = np.concatenate([values[:kept], after.astype(np.float32)])
        stop = max(end - start, kept)
        # A name that is gone keeps no bar; one that never came keeps an empty one, so that the file can be read.
        found[field] = start, changed[:stop] if stop > 0 else np.full(1, np.nan, dtype=np.float32)
    return found


def _other_bars(
    count: int, lines: dict[str, tuple[int, Line]], cut: int, gaps: float, rng: np.random.Generator
) -> dict[str, NDArray[np.float64]]:
    """Draw bars in order (low <= open, close, vwap <= high) that have nothing to do with those before."""
    low, width = rng.uniform(1, 500, count), rng.uniform(0.01, 50, count)
    bars = {name: low + rng.random(count) * width for name in ("open", "close", "vwap")}
    bars |= {"low": low, "high": low + width, "volume": rng.uniform(1e3, 1e8, count)}
    bars["amount"] = bars["volume"] * bars["vwap"]
    missing = rng.random(count) < gaps
    bars = {name: np.where(missing, np.nan, values) for name, values in bars.items()}
    start, close = lines.get("close", (0, np.empty(0, dtype=np.float32)))
    before = close[max(cut - start - 1, 0)] if cut > start and cut - start <= len(close) else np.nan
    previous = np.concatenate([[before], bars["close"]])[:-1]
    bars["change"] = bars["close"] / previous - 1
    steps = np.cumsum(rng.random(count) < 0.005)
    bars["factor"] = np.where(missing, np.nan, rng.uniform(0.2, 5, int(steps[-1]) + 1 if count else 1)[steps])
    return bars


def _redrawn(values: Line, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw values of a field nobody told us of: whole numbers of its range, or its own values at another scale."""
    pool = values[np.isfinite(values)].astype(np.float64)
    if len(pool) == 0:
        return rng.normal(size=count)
    if (pool == np.round(pool)).all() and np.ptp(pool) < 1000:
        return rng.integers(int(pool.min()), int(pool.max()) + 2, count).astype(np.float64)
    return rng.choice(pool, count) * rng.uniform(0.5, 2.0, count)


def _other_records(records: PeriodRecords, after: np.datetime64, rng: np.random.Generator) -> PeriodRecords:
    announced, periods, values = records
    later = announced > after
    delay = rng.integers(0, 30, len(later)).astype("timedelta64[D]")
    known = values[np.isfinite(values)]
    scale = float(np.abs(known).mean()) if len(known) else 1.0
    days = np.where(later, announced + delay, announced)
    drawn = np.where(later, rng.normal(0, scale or 1.0, len(later)), values)
    # What was announced before may be restated after the day.
    again = np.flatnonzero(~later & (rng.random(len(later)) < 0.2))
    restated = after + 1 + rng.integers(0, 60, len(again)).astype("timedelta64[D]")
    return (
        np.concatenate([days, restated]),
        np.concatenate([periods, periods[again]]),
        np.concatenate([drawn, rng.normal(0, scale or 1.0, len(again))]),
    )


def _independent_lines(
    lines: dict[str, tuple[int, Line]], rng: np.random.Generator
) -> dict[str, tuple[int, NDArray[np.floating]]]:
    if "close" not in lines:
        return dict(lines)
    start, stored = lines["close"]
    there = np.isfinite(stored)
    count = len(stored)
    close = np.full(count, np.nan)
    close[there] = 20 * np.exp(np.cumsum(rng.normal(0, _DEVIATION, int(there.sum()))))
    inner = {name: close * np.exp(rng.normal(0, _DEVIATION / 2, count)) for name in ("open", "vwap")}
    ends = np.stack([close, *inner.values()])
    drawn = {
        "close": close,
        **inner,
        "high": ends.max(axis=0) * np.exp(np.abs(rng.normal(0, _DEVIATION / 2, count))),
        "low": ends.min(axis=0) * np.exp(-np.abs(rng.normal(0, _DEVIATION / 2, count))),
        "volume": np.exp(rng.normal(14, 0.5, count)),
        "change": np.concatenate([[np.nan], close[1:] / close[:-1] - 1]),
    }
    drawn["amount"] = drawn["volume"] * drawn["vwap"]
    found: dict[str, tuple[int, NDArray[np.floating]]] = dict(lines)
    for field in set(lines) & set(_BARS):
        begin, values = lines[field]
        fitted = np.full(len(values), np.nan)
        lower, upper = max(begin, start), min(begin + len(values), start + count)
        if lower < upper:
            fitted[lower - begin : upper - begin] = drawn[field][lower - start : upper - start]
        found[field] = begin, np.where(np.isnan(values), np.nan, fitted)
    return found
