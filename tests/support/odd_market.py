"""A small Qlib provider in which everything goes wrong that can: what the differential test is run on.

Prices that stand still, jump and have holes; instruments that come late, leave, are suspended for months or trade on
one day only; fields that are missing, begin late or stop early; infinite values, zeros of both signs and a spike that
costs a running sum its digits.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.data.provider_files import Span, write_calendar, write_feature, write_instruments

DAYS = 400
SEED = 20
INDEX = "SH000300"
COMPLETE = ("$open", "$high", "$low", "$close", "$volume", "$change", "$odd", "$step", "$level")
"""Fields that have the same rows for an instrument. Qlib's ``If``, ``And`` and ``Or`` need that."""

PARTIAL = ("$late", "$brief", "$spike")
"""Fields whose files begin later, stop earlier, or are missing for some instruments."""

FIELDS = COMPLETE + PARTIAL

_PLAIN = 22
Values = NDArray[np.float64]


def write_odd_market(root: Path) -> Path:
    """Write the market, always the same, and return its folder."""
    random = np.random.default_rng(SEED)
    days = np.busday_offset("2019-01-02", np.arange(DAYS), roll="forward")
    write_calendar(root, days)
    spans = _spans(random)
    for place, (code, (first, stop)) in enumerate(spans.items()):
        for name, (start, values) in _bars(random, place, code, first, stop).items():
            write_feature(root, code, name, start, values)
    write_feature(root, INDEX, "close", 0, 3000 * np.exp(np.cumsum(random.normal(0, 0.01, DAYS))))
    write_feature(root, INDEX, "volume", 0, random.lognormal(20, 0.3, DAYS))
    _write_markets(root, days, spans)
    return root


def _spans(random: np.random.Generator) -> dict[str, tuple[int, int]]:
    """Return code: first row, row after the last. Forty of them, so that two tiles are used and the second not full."""
    spans = {f"SH6000{place:02d}": (0, DAYS) for place in range(_PLAIN)}
    for place in range(6):
        spans[f"SZ0010{place:02d}"] = (int(random.integers(5, DAYS - 80)), DAYS)
    for place in range(6):
        spans[f"SZ0020{place:02d}"] = (0, int(random.integers(30, DAYS - 5)))
    spans["SZ300001"] = (DAYS - 1, DAYS)  # listed on the last day
    spans["SZ300002"] = (200, 201)  # one bar, in the middle
    spans["SZ300003"] = (0, 1)
    spans["SZ300004"] = (100, 103)
    spans["SZ300005"] = (120, 180)
    spans["SZ300006"] = (0, 0)  # no files at all
    return spans


def _bars(random: np.random.Generator, place: int, code: str, first: int, stop: int) -> dict[str, tuple[int, Values]]:
    rows = stop - first
    if not rows:
        return {}
    close = _prices(random, place, rows)
    opened = close * (1 + random.normal(0, 0.004, rows).round(3))
    volume = np.round(random.lognormal(12, 0.7, rows)) * (random.random(rows) > 0.04)
    change = np.concatenate([[np.nan], close[1:] / close[:-1] - 1])
    columns = {
        "close": close,
        "open": opened,
        "high": np.maximum(close, opened) * (1 + np.abs(random.normal(0, 0.003, rows)).round(3)),
        "low": np.minimum(close, opened) * (1 - np.abs(random.normal(0, 0.003, rows)).round(3)),
        "volume": volume,
        "change": change,
        "odd": _odd(random, rows),
        "step": np.repeat(random.integers(-2, 3, rows // 7 + 1), 7)[:rows].astype(np.float64),
        "level": 3000 + np.cumsum(random.choice([-0.25, 0, 0, 0.25], rows)),
    }
    suspended = _suspended(random, place, rows)
    for values in columns.values():
        values[suspended] = np.nan
    bars = {name: (first, values) for name, values in columns.items()}
    if place % 7 != 3:  # the others have no such file
        later = min(rows - 1, 25 + place)
        bars["late"] = (first + later, random.normal(0, 1, rows - later))
    if place % 5 != 2:
        bars["brief"] = (first, random.normal(1, 1, max(1, rows - 40 - place)).round(1))
    spike = volume.copy()
    if rows > 300:
        spike[rows - 60 - place] = 1e12
    bars["spike"] = (first, spike)
    return bars


def _prices(random: np.random.Generator, place: int, rows: int) -> Values:
    moves = random.normal(0, 0.02, rows)
    if place % 3 == 0:
        moves[random.random(rows) < 0.6] = 0  # ties
    if place % 4 == 1:
        start = rows // 3
        moves[start : start + 90] = 0  # constant for longer than any window of Alpha158
    price: Values = (5 + 3 * place) * np.exp(np.cumsum(moves))
    return price.round(2)


def _odd(random: np.random.Generator, rows: int) -> Values:
    values = random.normal(0, 1, rows).round(1)
    for value, share in ((0.0, 0.1), (-0.0, 0.1), (np.inf, 0.02), (-np.inf, 0.02), (np.nan, 0.05)):
        values[random.random(rows) < share] = value
    return values


def _suspended(random: np.random.Generator, place: int, rows: int) -> NDArray[np.bool_]:
    suspended = random.random(rows) < 0.01
    if place % 6 == 2 and rows > 200:
        suspended[100:190] = True
    if place % 6 == 4:
        suspended[:3] = True
    if place == 5:
        suspended[-70:] = True
    return np.asarray(suspended, dtype=np.bool_)


def _write_markets(root: Path, days: NDArray[np.datetime64], spans: dict[str, tuple[int, int]]) -> None:
    def dated(code: str, first: int, last: int) -> Span:
        return code, days[first], days[last]

    everywhere = [dated(code, first, max(first, stop - 1)) for code, (first, stop) in spans.items()]
    write_instruments(root, "all", [*everywhere, dated(INDEX, 0, DAYS - 1)])
    write_instruments(root, "stocks", [dated(code, first, stop - 1) for code, (first, stop) in spans.items() if stop])
    members: list[Span] = []
    for place, code in enumerate(spans):
        if place % 4 == 0:
            members += [dated(code, 0, 120), dated(code, 160, 300), dated(code, 301, DAYS - 1)]
        elif place % 4 == 1:
            members.append(dated(code, 10 * (place % 30), DAYS - 1))
        elif place % 4 == 2:
            members += [dated(code, 5, 6), dated(code, 250, 260)]
            members.append((code, days[350], np.datetime64("2099-12-31")))
    write_instruments(root, "index", members)
