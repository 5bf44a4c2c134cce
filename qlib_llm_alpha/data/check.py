"""Name what is wrong with a Qlib provider, and how to mend each thing.

Reads the files directly (no Qlib), so that it also works on a provider that Qlib cannot open. An *error* will give
wrong numbers or a crash; a *warning* is something to know that may be the market's own doing (a long suspension, a
relisting). Everything is read, nothing is changed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.data.provider_files import Span
from qlib_llm_alpha.data.sources.boards import LIMIT_RULES, board_of, limit_in_cents, rules_of
from qlib_llm_alpha.data.sources.codes import is_index
from qlib_llm_alpha.errors import ProviderError

Fields: TypeAlias = dict[str, NDArray[np.float64]]

NEEDED_FIELDS = ("open", "high", "low", "close", "volume", "factor")
USEFUL_FIELDS = ("change", "vwap", "amount")
BENCHMARKS = {"cn": ("SH000300",), "us": ("^GSPC", "SPX", "SPY")}

_EXAMPLES = 5
# The longest closure of the A-share market on record here is 11 calendar days (New Year 2020 and 2024).
_LONGEST_CLOSURE_DAYS = 12
_FEWEST_DAYS_A_YEAR = 235
# One year without a bar: longer suspensions exist, but are rare enough to be looked at.
_LONG_GAP = 250
# A suspension of one single day is rare, so a day on which many shares have one was imported in part.
_MARKET_GAP = 0.3
_MEMBERS_WITHOUT_BARS = 0.05
# A multiplicative factor changes a few times a year at most.
_FACTOR_CHANGES = 0.05
_RELATIVE_NOISE = 1e-4
_OUTSIDE_BAR = 0.02
_SPLIT_TOLERANCE = 0.003
_SPLITS = (1 / 10, 1 / 5, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 4, 3 / 2, 2.0, 3.0, 4.0, 5.0, 10.0)


@dataclass(frozen=True)
class Finding:
    """One kind of defect.

    Parameters
    ----------
    code : str
        Stable name, for programs.
    severity : str
        ``error`` or ``warning``.
    message, mend : str
        What was found, and what to do.
    count : int
        How often.
    examples : tuple of str
        The first few places.
    """

    code: str
    severity: Literal["error", "warning"]
    message: str
    mend: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class CheckReport:
    """Everything found in one provider, errors first."""

    provider: str
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> int:
        """Number of findings that are errors."""
        return sum(finding.severity == "error" for finding in self.findings)

    @property
    def warnings(self) -> int:
        """Number of findings that are warnings."""
        return sum(finding.severity == "warning" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "provider": self.provider,
            "errors": self.errors,
            "warnings": self.warnings,
            "findings": [asdict(finding) for finding in self.findings],
        }


_NO_SUBTRACTION = (
    "use multiplicative adjustment, because subtraction distorts every return: import raw prices with the exchange's "
    "factor"
)

# code: (severity, what was found, how to mend it). ``{n}`` is the count.
_KINDS: dict[str, tuple[Literal["error", "warning"], str, str]] = {
    "calendar_order": (
        "error",
        "{n} places where calendars/day.txt is not increasing (unsorted or duplicate days)",
        "sort the file and drop duplicates, then write all bars again: their positions count lines of it",
    ),
    "calendar_weekend": (
        "error",
        "{n} Saturdays or Sundays in the calendar",
        "remove them and write all bars again; dates shifted by a time zone are the usual cause",
    ),
    "calendar_hole": (
        "error",
        f"{{n}} stretches of more than {_LONGEST_CLOSURE_DAYS} calendar days without a trading day",
        "import the missing days; no market closes that long",
    ),
    "calendar_thin_year": (
        "warning",
        f"{{n}} years with fewer than {_FEWEST_DAYS_A_YEAR} trading days",
        "compare with the exchange's calendar and import the missing days",
    ),
    "folder_case": (
        "error",
        "{n} folders or files under features/ are not in lower case, so Qlib does not find them",
        "rename them to lower case (features/sh600000/close.day.bin)",
    ),
    "bin_malformed": (
        "error",
        "{n} files are no float32 array with a start position inside the calendar",
        "write these files again; a killed copy is the usual cause",
    ),
    "bin_length": (
        "error",
        "{n} instruments whose fields start or end on different days, or run beyond the calendar",
        "write the instrument again so that all fields cover the same days of the calendar",
    ),
    "field_missing": (
        "error",
        f"{{n}} fields that every instrument needs ({', '.join(NEEDED_FIELDS)}) are missing",
        "import them; Qlib reads a missing field as NaN without a word; without $factor lots are ignored",
    ),
    "field_useful_missing": (
        "warning",
        f"{{n}} fields ({', '.join(USEFUL_FIELDS)}) are missing",
        "import them if factors or the exchange use them: $change decides price limits, $vwap is in Alpha158",
    ),
    "field_partly_missing": (
        "warning",
        "{n} fields are NaN on days that have a close",
        "factors on these fields start later for these instruments; import the missing values if the vendor has them",
    ),
    "price_not_positive": (
        "error",
        "{n} instruments with zero or negative prices",
        "negative prices come from adjustment by subtraction: import raw prices with a multiplicative factor; zeros "
        "are untraded days: make them NaN",
    ),
    "bar_inconsistent": (
        "error",
        "{n} instruments with open or close outside low..high",
        "open, high, low and close must be adjusted by the same factor; import the instrument again",
    ),
    "factor_not_positive": (
        "error",
        "{n} instruments whose factor is missing, zero or negative on a day with a close",
        "complete the factor; raw price is $close/$factor",
    ),
    "unadjusted_jump": (
        "error",
        "{n} days on which a share moved beyond its price limit although it had traded the day before and its factor "
        "did not change",
        "a split or dividend is missing from the factor; take the factor from the exchange's reference price "
        "(previous close / reference). If the move is real (a day without limits), nothing is to be done",
    ),
    "jump_after_suspension": (
        "warning",
        "{n} days on which a share moved beyond its price limit on its first day after a suspension, factor unchanged",
        "relistings and restructurings do that; compare with the announcement, and mend the factor if it is a split",
    ),
    "split_like_jump": (
        "warning",
        "{n} days with a move very near to a split ratio and an unchanged factor",
        "compare with the vendor's list of splits and mend the factor",
    ),
    "factor_varies": (
        "error",
        f"{{n}} instruments whose factor changes on more than {_FACTOR_CHANGES:.0%} of the days: adjustment by "
        "subtraction (adjusted minus raw is constant, their ratio is not)",
        _NO_SUBTRACTION,
    ),
    "subtractive_adjustment": (
        "error",
        "{n} instruments whose prices differ from amount/volume by a constant and not by a ratio: adjustment by "
        "subtraction",
        _NO_SUBTRACTION,
    ),
    "amount_mismatch": (
        "error",
        "{n} instruments whose amount/volume lies outside low..high (raw)",
        "amount must be in currency, volume in shares over the factor; hands (100 shares), thousands of currency, or "
        "prices adjusted without a factor are the usual causes",
    ),
    "no_adjustment": (
        "warning",
        "the factor is 1 everywhere over {n} years: nothing seems to be adjusted",
        "import adjustment factors, or dividends and splits are losses in every factor and label",
    ),
    "filled_suspension": (
        "warning",
        "{n} instruments with prices on days without volume",
        "make suspended days NaN: Qlib's exchange takes a day with a close for tradable",
    ),
    "market_gap": (
        "error",
        f"{{n}} days on which more than {_MARKET_GAP:.0%} of the shares with a bar on the days before and after have "
        "none",
        "these days were imported in part; import them again",
    ),
    "long_gap": (
        "warning",
        f"{{n}} stretches of more than {_LONG_GAP} trading days without a bar between bars of one share",
        "check whether it was suspended so long; if not, import the missing bars",
    ),
    "listing_without_bars": (
        "warning",
        "{n} rows of instruments/all.txt that start or end more than 20 trading days away from the bars",
        "cut the span to the bars, or import the missing bars",
    ),
    "membership_span": (
        "error",
        "{n} rows of instruments/*.txt that cannot be read, end before they start, or miss the calendar",
        "write code, first day and last day, separated by tabs",
    ),
    "members_without_bars": (
        "warning",
        "{n} markets have member days without bars (survivorship: usually delisted or merged shares)",
        "import their bars; results on these markets leave these names out",
    ),
    "members_mostly_without_bars": (
        "error",
        f"{{n}} markets lack bars on more than {_MEMBERS_WITHOUT_BARS:.0%} of their member days",
        "import the missing instruments, or start later; a universe with holes is biased towards survivors",
    ),
    "benchmark_missing": (
        "error",
        "the benchmark index has no bars, or not on every trading day ({n} days lack)",
        "import its bars (factor 1); Qlib's backtest needs a benchmark on every day",
    ),
    "index_gap": (
        "warning",
        "{n} indices have no bar on some trading days between their first and their last",
        "use another benchmark on these days, or import the missing bars",
    ),
}


@dataclass
class _Collector:
    places: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, code: str, place: str) -> None:
        self.places[code].append(place)

    def findings(self, counts: Mapping[str, int]) -> tuple[Finding, ...]:
        found = []
        for code, places in self.places.items():
            severity, message, mend = _KINDS[code]
            count = counts.get(code, len(places))
            found.append(Finding(code, severity, message.format(n=count), mend, count, tuple(places[:_EXAMPLES])))
        order = list(_KINDS)
        return tuple(sorted(found, key=lambda item: (item.severity, order.index(item.code))))


def check_provider(provider: Path) -> CheckReport:
    """Check one provider.

    Parameters
    ----------
    provider : Path
        Folder with ``calendars``, ``instruments`` and ``features``.

    Raises
    ------
    ProviderError
        There is no provider to check: a folder or ``calendars/day.txt`` is missing or unreadable.
    """
    for name in ("calendars/day.txt", "instruments", "features"):
        if not (provider / name).exists():
            raise ProviderError(
                f"{str(provider)!r} has no {name}; expected a Qlib provider; give the folder that holds calendars, "
                "instruments and features"
            )
    found = _Collector()
    calendar = _check_calendar(provider, found)
    markets = _check_memberships(provider, calendar, found)
    folders = _check_names(provider, found)
    counts: dict[str, int] = {}
    first_bar: dict[str, int] = {}
    traded: dict[str, NDArray[np.bool_]] = {}
    factor_moves = False
    listings = {code: first for code, first, _ in markets.get("listed", markets.get("all", ()))}
    lacking: dict[str, list[str]] = defaultdict(list)
    for code, folder in sorted(folders.items()):
        fields = _read_fields(folder, code, calendar, found)
        for name in (*NEEDED_FIELDS, *(() if is_index(code) else USEFUL_FIELDS)):
            if name not in fields:
                lacking[name].append(code)
        if "close" not in fields:
            continue
        bars = np.isfinite(fields["close"])
        if not bars.any():
            continue
        traded[code] = bars
        first_bar[code] = int(np.flatnonzero(bars)[0])
        _check_bars(code, fields, calendar, found)
        if is_index(code):
            continue
        _check_adjustment(code, fields, calendar, found, listings.get(code))
        factor = fields.get("factor")
        factor_moves |= factor is not None and bool(np.nanmax(factor) - np.nanmin(factor) > _RELATIVE_NOISE)
    for name, codes in lacking.items():
        kind = "field_missing" if name in NEEDED_FIELDS else "field_useful_missing"
        found.add(kind, f"${name}: {len(codes)} of {len(folders)} instruments, such as {codes[0]}")
    years = int((calendar[-1] - calendar[0]).astype(int) / 365)
    if traded and not factor_moves and years >= 2:
        found.add("no_adjustment", "every instrument")
        counts["no_adjustment"] = years
    _check_gaps(traded, calendar, markets, found)
    market = "cn" if sum(code[:2] in {"SH", "SZ", "BJ"} for code in folders) * 2 > len(folders) else "us"
    _check_benchmark(market, traded, calendar, found, counts)
    return CheckReport(str(provider), found.findings(counts))


def _check_calendar(provider: Path, found: _Collector) -> NDArray[np.datetime64]:
    lines = (provider / "calendars" / "day.txt").read_text(encoding="utf-8").split()
    try:
        days = np.array(lines, dtype="datetime64[D]")
    except ValueError as error:
        raise ProviderError(
            f"calendars/day.txt of {str(provider)!r} holds something else than days ({error}); expected YYYY-MM-DD, "
            "one a line; write it again"
        ) from error
    if not len(days):
        raise ProviderError(f"calendars/day.txt of {str(provider)!r} is empty; expected trading days; import bars")
    step = np.diff(days).astype(int)
    for place in np.flatnonzero(step <= 0):
        found.add("calendar_order", f"{days[place]!s} is followed by {days[place + 1]!s}")
    for day in days[~np.is_busday(days)]:
        found.add("calendar_weekend", str(day))
    for place in np.flatnonzero(step > _LONGEST_CLOSURE_DAYS):
        found.add("calendar_hole", f"nothing between {days[place]!s} and {days[place + 1]!s}")
    years, counts = np.unique(days.astype("datetime64[Y]"), return_counts=True)
    for year, count in zip(years[1:-1], counts[1:-1], strict=True):
        if count < _FEWEST_DAYS_A_YEAR:
            found.add("calendar_thin_year", f"{year!s}: {count} days")
    return days


def _check_memberships(provider: Path, calendar: NDArray[np.datetime64], found: _Collector) -> dict[str, list[Span]]:
    markets: dict[str, list[Span]] = {}
    for path in sorted((provider / "instruments").glob("*.txt")):
        spans = markets.setdefault(path.stem, [])
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            parts = line.split("\t")
            try:
                code, first, last = parts[0], np.datetime64(parts[1][:10], "D"), np.datetime64(parts[2][:10], "D")
            except (IndexError, ValueError):
                found.add("membership_span", f"{path.name}:{number}: {line!r}")
                continue
            if last < first or first > calendar.max() or last < calendar.min():
                found.add("membership_span", f"{path.name}:{number}: {line!r}")
                continue
            spans.append((code.upper(), first, last))
    return markets


def _check_names(provider: Path, found: _Collector) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for folder in sorted(path for path in (provider / "features").iterdir() if path.is_dir()):
        if folder.name != folder.name.lower():
            found.add("folder_case", f"features/{folder.name}")
        for path in folder.glob("*.bin"):
            if path.name != path.name.lower():
                found.add("folder_case", f"features/{folder.name}/{path.name}")
        folders[folder.name.upper()] = folder
    return folders


def _read_fields(folder: Path, code: str, calendar: NDArray[np.datetime64], found: _Collector) -> Fields:
    """Return each field over the whole calendar, NaN outside its file."""
    fields: Fields = {}
    extents: dict[str, tuple[int, int]] = {}
    for path in sorted(folder.glob("*.day.bin")):
        name = path.name.split(".")[0].lower()
        size = path.stat().st_size
        raw = np.fromfile(path, dtype="<f4")
        # numpy drops the bytes after the last whole number, so the size is asked of the file.
        if size % 4 or len(raw) < 2 or not raw[0] >= 0 or raw[0] != int(raw[0]) or raw[0] >= len(calendar):
            found.add("bin_malformed", f"{folder.name}/{path.name} ({size} bytes)")
            continue
        start = int(raw[0])
        extents[name] = (start, start + len(raw) - 1)
        whole = np.full(len(calendar), np.nan)
        values = raw[1:][: len(calendar) - start]
        whole[start : start + len(values)] = values
        fields[name] = whole
    reference = extents.get("close")
    odd = {name: extent for name, extent in extents.items() if name in NEEDED_FIELDS and extent != reference}
    if odd or any(stop > len(calendar) for _, stop in extents.values()):
        found.add("bin_length", f"{code}: close covers {reference}, others {odd or extents}")
    return fields


def _check_bars(code: str, fields: Fields, calendar: NDArray[np.datetime64], found: _Collector) -> None:
    bars = np.isfinite(fields["close"])
    for name in ("open", "high", "low", "close", "vwap"):
        if name in fields and (wrong := fields[name] <= 0).any():
            found.add("price_not_positive", f"{code} ${name} on {_days(calendar, wrong)}")
            break
    if all(name in fields for name in ("open", "high", "low")):
        slack = _RELATIVE_NOISE * np.abs(fields["close"])
        top = np.maximum(fields["open"], fields["close"]) > fields["high"] + slack
        bottom = np.minimum(fields["open"], fields["close"]) < fields["low"] - slack
        if (top | bottom).any():
            found.add("bar_inconsistent", f"{code} on {_days(calendar, top | bottom)}")
    for name, values in fields.items():
        if name == "change" or name not in (*NEEDED_FIELDS, *USEFUL_FIELDS) or (is_index(code) and name == "vwap"):
            continue
        empty = bars & ~np.isfinite(values)
        if empty.any() and name != "factor":
            found.add("field_partly_missing", f"{code} ${name} on {_days(calendar, empty)}")
    if "factor" in fields and (wrong := bars & ~(fields["factor"] > 0)).any():
        found.add("factor_not_positive", f"{code} on {_days(calendar, wrong)}")
    if not is_index(code) and "volume" in fields and (idle := bars & (fields["volume"] == 0)).any():
        found.add("filled_suspension", f"{code} on {_days(calendar, idle)}")


def _check_adjustment(
    code: str, fields: Fields, calendar: NDArray[np.datetime64], found: _Collector, listed: np.datetime64 | None
) -> None:
    if "factor" not in fields:
        return
    rows = np.flatnonzero(np.isfinite(fields["close"]) & (fields["factor"] > 0) & (fields["close"] > 0))
    if len(rows) < 2:
        return
    factor, close = fields["factor"][rows], fields["close"][rows]
    moved = np.abs(factor[1:] / factor[:-1] - 1) > _RELATIVE_NOISE
    if len(rows) > 40 and moved.mean() > _FACTOR_CHANGES:
        found.add("factor_varies", f"{code}: on {moved.mean():.0%} of {len(rows)} days")
    elif board_of(code) is not None:
        _check_jumps(code, rows, close, factor, moved, calendar, found, listed)
    else:
        ratio = close[1:] / close[:-1]
        near = np.min(np.abs(ratio[:, None] / np.array(_SPLITS) - 1), axis=1) < _SPLIT_TOLERANCE
        for place in np.flatnonzero(near & ~moved & (np.abs(ratio - 1) > 0.3)):
            found.add("split_like_jump", f"{code} {calendar[rows[place + 1]]!s}: {ratio[place] - 1:+.1%}")
    if "amount" in fields and "volume" in fields and {"high", "low"} <= set(fields):
        _check_amount(code, fields, rows, calendar, found)


def _check_jumps(
    code: str,
    rows: NDArray[np.intp],
    close: NDArray[np.float64],
    factor: NDArray[np.float64],
    moved: NDArray[np.bool_],
    calendar: NDArray[np.datetime64],
    found: _Collector,
    listed: np.datetime64 | None,
) -> None:
    cents = np.rint(close / factor * 100).astype(np.int64)
    percent = _percent(str(board_of(code)), calendar[rows[1:]])
    high = limit_in_cents(cents[:-1], percent)
    low = limit_in_cents(cents[:-1], -percent)
    # One cent for vendors' rounding; a percent on top because float32 carries seven digits only.
    beyond = (cents[1:] > high + 1) | (cents[1:] < low - 1)
    since_listing = rows[1:] - (np.searchsorted(calendar, listed) if listed is not None else rows[0])
    # A first bar on the calendar's first day says nothing about the listing.
    new = (since_listing < 6) & (rows[0] > 0)
    after_pause = np.diff(rows) > 1
    for place in np.flatnonzero(beyond & ~moved & ~new):
        kind = "jump_after_suspension" if after_pause[place] else "unadjusted_jump"
        found.add(kind, f"{code} {calendar[rows[place + 1]]!s}: {close[place + 1] / close[place] - 1:+.1%}")


def _percent(board: str, days: NDArray[np.datetime64]) -> NDArray[np.int64]:
    rules = rules_of(board)
    starts = np.array([rule.since for rule in rules])
    place = np.clip(np.searchsorted(starts, days, side="right") - 1, 0, len(LIMIT_RULES))
    percent: NDArray[np.int64] = np.array([rule.percent for rule in rules], dtype=np.int64)[place]
    return percent


def _check_amount(
    code: str, fields: Fields, rows: NDArray[np.intp], calendar: NDArray[np.datetime64], found: _Collector
) -> None:
    shares = fields["volume"][rows] * fields["factor"][rows]
    known = np.isfinite(fields["amount"][rows]) & (shares > 0)
    rows, shares = rows[known], shares[known]
    if len(rows) < 20:
        return
    factor = fields["factor"][rows]
    paid = fields["amount"][rows] / shares
    low, high, close = (fields[name][rows] / factor for name in ("low", "high", "close"))
    outside = (paid < low * (1 - _OUTSIDE_BAR)) | (paid > high * (1 + _OUTSIDE_BAR))
    if outside.mean() <= _OUTSIDE_BAR:
        return
    ratio = float(np.median(paid / close))
    if _is_shift(close, paid):
        found.add("subtractive_adjustment", f"{code}: on {outside.mean():.0%} of {len(rows)} days")
    else:
        days = _days(calendar[rows], outside)
        found.add("amount_mismatch", f"{code} on {days}: amount/volume is {ratio:.3g} times the close")


def _is_shift(close: NDArray[np.float64], paid: NDArray[np.float64], block: int = 60) -> bool:
    """Tell whether prices are ``paid - c`` rather than ``paid * k`` in most stretches of a quarter."""
    shift = scale = 0
    for begin in range(0, len(close) - block + 1, block):
        now, raw = close[begin : begin + block], paid[begin : begin + block]
        by_scale = now - raw * (now @ raw) / (raw @ raw)
        by_shift = now - raw - np.mean(now - raw)
        better = float(by_shift @ by_shift) < float(by_scale @ by_scale)
        shift += better
        scale += not better
    return shift > 2 * scale and abs(float(np.median(paid / close)) - 1) < 10


def _check_gaps(
    traded: Mapping[str, NDArray[np.bool_]],
    calendar: NDArray[np.datetime64],
    markets: Mapping[str, list[Span]],
    found: _Collector,
) -> None:
    lost = np.zeros(len(calendar))
    alive = np.zeros(len(calendar))
    for code, bars in traded.items():
        rows = np.flatnonzero(bars)
        pauses = np.diff(rows) - 1
        if is_index(code):
            if pauses.any() and code not in BENCHMARKS["cn"]:
                found.add("index_gap", f"{code}: {int(pauses.sum())} days")
            continue
        for place in np.flatnonzero(pauses > _LONG_GAP):
            found.add("long_gap", f"{code}: {pauses[place]} days after {calendar[rows[place]]!s} without a bar")
        both = np.zeros(len(calendar), dtype=bool)
        both[1:-1] = bars[:-2] & bars[2:]
        alive += both
        lost += both & ~bars
    thin = (lost > _MARKET_GAP * alive) & (alive > 0)
    for place in np.flatnonzero(thin):
        found.add("market_gap", f"{calendar[place]!s}: {int(lost[place])} of {int(alive[place])} shares")
    for name, spans in markets.items():
        _check_members(name, spans, traded, calendar, found)
    for code, first, last in markets.get("all", ()):
        if code in traded:
            rows = np.flatnonzero(traded[code])
            begin = int(np.searchsorted(calendar, first))
            stop = int(np.searchsorted(calendar, last, side="right")) - 1
            if rows[0] - begin > 20 or stop - rows[-1] > 20 or begin - rows[0] > 20 or rows[-1] - stop > 20:
                extent = f"{calendar[rows[0]]!s} to {calendar[rows[-1]]!s}"
                found.add("listing_without_bars", f"{code}: listed {first!s} to {last!s}, bars {extent}")


def _check_members(
    name: str,
    spans: Iterable[Span],
    traded: Mapping[str, NDArray[np.bool_]],
    calendar: NDArray[np.datetime64],
    found: _Collector,
) -> None:
    days = without = 0
    codes: set[str] = set()
    for code, first, last in spans:
        begin, stop = np.searchsorted(calendar, first), np.searchsorted(calendar, last, side="right")
        days += int(stop - begin)
        bars = traded.get(code)
        # A suspended member has bars before and after; a stretch without any is a hole in the data.
        if bars is None or not bars[begin:stop].any():
            without += int(stop - begin)
            codes.add(code)
    if not codes:
        return
    share = without / max(days, 1)
    kind = "members_mostly_without_bars" if share > _MEMBERS_WITHOUT_BARS else "members_without_bars"
    shown = " ".join(sorted(codes)[:_EXAMPLES])
    found.add(kind, f"{name}: {share:.1%} of member days, {len(codes)} codes, such as {shown}")


def _check_benchmark(
    market: str,
    traded: Mapping[str, NDArray[np.bool_]],
    calendar: NDArray[np.datetime64],
    found: _Collector,
    counts: dict[str, int],
) -> None:
    present = [code for code in BENCHMARKS[market] if code in traded]
    if not present:
        found.add("benchmark_missing", f"expected bars of {' or '.join(BENCHMARKS[market])}")
        counts["benchmark_missing"] = len(calendar)
        return
    lacking = ~traded[present[0]]
    if lacking.any():
        found.add("benchmark_missing", f"{present[0]} on {_days(calendar, lacking)}")
        counts["benchmark_missing"] = int(lacking.sum())


def _days(calendar: NDArray[np.datetime64], mask: NDArray[np.bool_]) -> str:
    places = np.flatnonzero(mask)
    more = f" and {len(places) - 1} more days" if len(places) > 1 else ""
    return f"{calendar[places[0]]!s}{more}"
