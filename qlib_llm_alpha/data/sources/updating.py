"""Append new days to a provider, leaving every value it holds as it is.

Bars that the source and the provider share are compared first; any difference refuses the whole update before
anything is written. Each file is replaced by itself plus the new values in one rename, and the calendar is extended
after all of them, so a reader of the provider sees the old state until the end and a killed update is simply repeated.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from qlib_llm_alpha.data.provider_files import (
    Span,
    feature_path,
    read_calendar,
    read_feature,
    read_instruments,
)
from qlib_llm_alpha.data.sources.bars import Bars, lay_out, provider_fields
from qlib_llm_alpha.data.sources.codes import is_index
from qlib_llm_alpha.data.sources.reading import BarSource, Contents, fingerprint, read_bars, survey
from qlib_llm_alpha.data.sources.writing import (
    ImportReport,
    cut_calendar,
    cut_spans,
    on_calendar,
    positions_in,
    read_manifest,
    trading_days,
    write_atomically,
    write_manifest,
)
from qlib_llm_alpha.errors import ProviderError

_COMPARED = ("open", "high", "low", "close", "volume", "amount", "factor")
# Stored values are float32: two computations of one value may differ in the last of 24 bits.
_TOLERANCE = 1e-5
# A factor that starts anew at the joint moves the adjusted price by its whole level; a real move stays inside this.
_LARGEST_MOVE = 0.45
_PENDING = ".update.json"


@dataclass(frozen=True)
class _Existing:
    """What the provider held before the update."""

    root: Path
    calendar: NDArray[np.datetime64]

    def field(self, code: str, name: str) -> NDArray[np.float32] | None:
        """Return a field over the whole old calendar, NaN outside its bars; None when there is no file."""
        if not feature_path(self.root, code, name).exists():
            return None
        start, values = read_feature(self.root, code, name)
        whole = np.full(len(self.calendar), np.nan, dtype=np.float32)
        kept = values[: max(len(whole) - start, 0)]
        whole[start : start + len(kept)] = kept
        return whole


def update_bars(
    source: BarSource, provider: Path, *, end: np.datetime64 | None = None, progress: bool = True
) -> ImportReport:
    """Append the days after a provider's last one.

    Parameters
    ----------
    source : BarSource
        Same market as the provider. It may hold the whole history or only the last days; days before the provider's
        first one are ignored.
    provider : Path
        A provider made by ``import_bars``.
    end : numpy.datetime64 or None
        Last day to append.
    progress : bool
        Draw progress bars on stderr.

    Raises
    ------
    ProviderError
        The provider was not made by this package or is unfinished; a shared value differs (the message says where); a
        factor does not continue; membership of the past differs.
    """
    manifest = _require_manifest(provider, source)
    old = _Existing(provider, read_calendar(provider)[: int(manifest["days"])])
    contents = survey(source)
    new_days = trading_days(source, contents)
    calendar = np.concatenate([old.calendar, cut_calendar(new_days, None, end)])
    calendar = np.concatenate([old.calendar, np.unique(calendar[calendar > old.calendar[-1]])])
    _compare_days(old.calendar, new_days)
    _compare_membership(source, old)
    if not (provider / _PENDING).exists():
        # Refuse before the first byte is written; a repeated run has passed this already.
        for bars in _walk(source, contents, "compare", progress):
            _compare_bars(on_calendar(old.calendar, bars), old)
            _continue_factor(bars, old, calendar)
        write_atomically(provider / _PENDING, json.dumps({"days": len(old.calendar)}))
    industries = source.industries()
    known: dict[str, int] = dict(manifest["industry_codes"])
    for name in sorted(set(industries.values()) - set(known)):
        known[name] = len(known) + 1
    written = 0
    spans = {code: (code, first, last) for code, first, last in cut_spans(_all_spans(provider), old.calendar)}
    indices = 0
    for bars in _walk(source, contents, "append", progress):
        fresh = on_calendar(calendar, _continue_factor(bars, old, calendar)).cut(old.calendar[-1] + 1, calendar[-1])
        if not len(fresh.days):
            continue
        # Asked of the old calendar, because a killed run may have made the file already.
        before = old.field(bars.instrument, "close")
        indices += is_index(bars.instrument) and (before is None or not np.isfinite(before).any())
        _append(fresh, old, calendar, known.get(industries.get(bars.instrument, "")))
        written += 1
        if not is_index(bars.instrument):
            first = spans[bars.instrument][1] if bars.instrument in spans else fresh.days[0]
            spans[bars.instrument] = (bars.instrument, first, fresh.days[-1])
    _write_membership(provider, source, calendar, spans)
    write_atomically(provider / "calendars" / "day.txt", "".join(f"{day!s}\n" for day in calendar))
    update = {"last_day": str(calendar[-1]), "layout": source.layout, "source_hash": fingerprint(source)}
    added = len(calendar) > len(old.calendar)
    manifest = {
        **manifest,
        "last_day": str(calendar[-1]),
        "days": len(calendar),
        "instruments": len(spans),
        "indices": int(manifest["indices"]) + indices,
        "industry_codes": known,
        "not_point_in_time": ["industry"] if known else [],
        "updates": [*manifest["updates"], update] if added else manifest["updates"],
    }
    write_manifest(provider, manifest)
    (provider / _PENDING).unlink()
    return ImportReport(
        provider=str(provider),
        source=source.kind,
        layout=source.layout,
        first=str(calendar[0]),
        last=str(calendar[-1]),
        days=len(calendar),
        instruments=len(spans),
        indices=int(manifest["indices"]),
        written=written,
        kept=len(spans) + int(manifest["indices"]) - written,
        notes=(*source.notes(), f"{len(calendar) - len(old.calendar)} days appended"),
    )


def _walk(source: BarSource, contents: Contents, what: str, progress: bool) -> tqdm[Bars]:
    codes = contents.instruments
    return tqdm(
        read_bars(source, contents, codes),
        total=len(codes),
        desc=what,
        unit="instrument",
        file=sys.stderr,
        disable=not progress,
    )


def _require_manifest(provider: Path, source: BarSource) -> dict[str, Any]:
    manifest = read_manifest(provider)
    if manifest is None:
        raise ProviderError(
            f"{str(provider)!r} has no provider.json; expected a finished provider made by `data import`; "
            "import it first (without --update)"
        )
    if manifest["market"] != source.market:
        raise ProviderError(
            f"the provider is of market {manifest['market']!r} and the source of {source.market!r}; expected the same; "
            "give --market"
        )
    return manifest


def _compare_days(old: NDArray[np.datetime64], new: NDArray[np.datetime64]) -> None:
    shared = new[(new >= old[0]) & (new <= old[-1])]
    strange = shared[~np.isin(shared, old)]
    if len(strange):
        raise ProviderError(
            f"the source trades on {strange[0]!s} ({len(strange)} such days) inside the provider's calendar, "
            "which does not list it; expected only later days to be new; import again into a new folder"
        )


def _compare_bars(bars: Bars, old: _Existing) -> None:
    if not len(bars.days):
        return
    bars = _continue_factor(bars, old, old.calendar)
    fields = provider_fields(bars)
    positions = positions_in(old.calendar, bars)
    for name in _COMPARED:
        stored = old.field(bars.instrument, name)
        if stored is None or name not in fields:
            continue
        before, now = stored[positions].astype(np.float64), fields[name].astype(np.float64)
        same = np.isclose(before, now, rtol=_TOLERANCE, atol=0.0, equal_nan=True)
        if not same.all():
            place = int(np.flatnonzero(~same)[0])
            raise ProviderError(
                f"{bars.instrument!r} ${name} on {bars.days[place]!s} is {before[place]:.8g} in the provider and "
                f"{now[place]:.8g} in the source ({int((~same).sum())} days differ); expected equal values where both "
                "have them; import again into a new folder, or correct the source"
            )


def _continue_factor(bars: Bars, old: _Existing, calendar: NDArray[np.datetime64]) -> Bars:
    """Carry the provider's factor on, and refuse one that starts anew at the joint."""
    factors, closes = old.field(bars.instrument, "factor"), old.field(bars.instrument, "close")
    inside = bars.cut(calendar[0], calendar[-1])
    if factors is None or closes is None or not np.isfinite(closes).any() or not len(inside.days):
        return bars
    shared = inside.cut(old.calendar[0], old.calendar[-1])
    positions = np.searchsorted(old.calendar, shared.days)
    held = positions[np.isfinite(factors[positions])] if len(shared.days) else positions
    last = int(np.flatnonzero(np.isfinite(closes))[-1])
    if bars.relative_factor:
        if len(held):
            place = int(np.searchsorted(bars.days, old.calendar[held[-1]]))
            return bars.scale_factor(float(factors[held[-1]]) / float(bars.columns["factor"][place]))
        raw = float(closes[last]) / float(factors[last])
        begin = int(np.searchsorted(bars.days, inside.days[0]))
        reference = float(bars.columns["pre_close"][begin])
        event = raw / reference if abs(raw - reference) >= 0.005 else 1.0
        return bars.scale_factor(float(factors[last]) * event / float(bars.columns["factor"][begin]))
    if not len(held) and not is_index(bars.instrument):
        move = float(provider_fields(inside)["close"][0]) / float(closes[last]) - 1
        if abs(move) > _LARGEST_MOVE:
            raise ProviderError(
                f"{bars.instrument!r} would move by {move:+.1%} from {old.calendar[last]!s} to {inside.days[0]!s}, so "
                "its factor seems to start anew; expected a factor that continues; give a source that also holds the "
                "provider's last days"
            )
    return bars


def _append(fresh: Bars, old: _Existing, calendar: NDArray[np.datetime64], industry: int | None) -> None:
    closes = old.field(fresh.instrument, "close")
    traded = np.flatnonzero(np.isfinite(closes)) if closes is not None else np.empty(0, dtype=np.intp)
    previous = float(closes[traded[-1]]) if closes is not None and len(traded) else np.nan
    fields = provider_fields(fresh, previous_close=previous)
    positions = positions_in(calendar, fresh)
    if industry is not None and not is_index(fresh.instrument):
        fields["industry"] = np.full(len(fresh.days), industry, dtype=np.float32)
    stop = int(positions[-1]) + 1
    names = {*fields, *(path.name.split(".")[0] for path in _bins(old.root, fresh.instrument))}
    for name in sorted(names):
        start, kept = _kept(old, fresh.instrument, name, int(positions[0]))
        begin = start + len(kept)
        if name == "industry" and len(kept):
            tail = np.full(stop - begin, kept[-1], dtype=np.float32)
        elif name in fields:
            tail = lay_out(fields[name], positions, begin, stop - begin)
        else:
            tail = np.full(stop - begin, np.nan, dtype=np.float32)
        path = feature_path(old.root, fresh.instrument, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        np.concatenate([np.array([start], dtype="<f4"), kept, tail]).astype("<f4").tofile(part)
        part.replace(path)


def _bins(root: Path, code: str) -> list[Path]:
    return sorted(feature_path(root, code, "close").parent.glob("*.day.bin"))


def _kept(old: _Existing, code: str, name: str, first: int) -> tuple[int, NDArray[np.float32]]:
    """Return the start and the values of a file that belong to the old calendar."""
    if not feature_path(old.root, code, name).exists():
        return first, np.empty(0, dtype=np.float32)
    start, values = read_feature(old.root, code, name)
    if start >= len(old.calendar):
        return first, values[:0]
    return start, values[: len(old.calendar) - start]


def _all_spans(provider: Path) -> list[Span]:
    return read_instruments(provider, "all")


def _member_days(spans: list[Span], first: np.datetime64, last: np.datetime64) -> set[Span]:
    window = np.array([first, last])
    return {(code, begin, finish) for code, begin, finish in cut_spans(spans, window)}


def _compare_membership(source: BarSource, old: _Existing) -> None:
    first, last = old.calendar[0], old.calendar[-1]
    for name, spans in source.markets().items():
        if name == "all" or not (old.root / "instruments" / f"{name}.txt").exists():
            continue
        before = _member_days(read_instruments(old.root, name), first, last)
        differ = sorted(before ^ _member_days(spans, first, last))
        if differ:
            code, begin, finish = differ[0]
            raise ProviderError(
                f"membership of {name!r} differs before {last!s}: {code} from {begin!s} to {finish!s} is in only "
                f"one of provider and source ({len(differ)} such rows); expected an equal past; import again into a "
                "new folder"
            )


def _write_membership(
    provider: Path, source: BarSource, calendar: NDArray[np.datetime64], spans: Mapping[str, Span]
) -> None:
    files: dict[str, list[Span]] = {
        name: cut_spans(rows, calendar) for name, rows in source.markets().items() if name != "all"
    }
    files["all"] = [spans[code] for code in sorted(spans)]
    listed = provider / "instruments" / "listed.txt"
    if listed.exists():
        known = {code: first for code, first, _ in read_instruments(provider, "listed")}
        listings = {**source.listings(), **known}
        files["listed"] = [(code, min(listings.get(code, first), first), last) for code, first, last in files["all"]]
    for name, rows in files.items():
        text = "".join(f"{code}\t{first!s}\t{last!s}\n" for code, first, last in rows)
        write_atomically(provider / "instruments" / f"{name}.txt", text)
