"""Write a provider from a source of bars, so that a killed run goes on where it stopped.

While it works, the folder holds ``.import.json`` (the request) and ``.import.done`` (finished instruments); an
instrument appears in ``features/`` by one rename, when complete. ``provider.json`` is written last: a folder that has
it is complete. Nothing written depends on the clock, so two runs give the same bytes.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from qlib_llm_alpha.data.provider_files import Span, feature_path, write_calendar, write_feature, write_instruments
from qlib_llm_alpha.data.sources.bars import Bars, lay_out, provider_fields
from qlib_llm_alpha.data.sources.codes import is_index
from qlib_llm_alpha.data.sources.reading import BarSource, Contents, fingerprint, read_bars, survey
from qlib_llm_alpha.errors import ConfigError, ProviderError

logger = logging.getLogger(__name__)

MANIFEST = "provider.json"
FORMAT = 1
_REQUEST = ".import.json"
_DONE = ".import.done"
_STAGE = ".import.stage"


@dataclass(frozen=True)
class ImportReport:
    """What an import or an update did.

    Parameters
    ----------
    provider : str
        The folder.
    source, layout : str
        What was asked for and what was found.
    first, last : str
        First and last trading day of the provider.
    days, instruments, indices : int
        Trading days, shares and indices in the provider.
    written, kept : int
        Instruments written by this run, and found finished from an earlier one.
    notes : tuple of str
        Sentences to read.
    """

    provider: str
    source: str
    layout: str
    first: str
    last: str
    days: int
    instruments: int
    indices: int
    written: int
    kept: int
    notes: tuple[str, ...]


def import_bars(
    source: BarSource,
    out: Path,
    *,
    start: np.datetime64 | None = None,
    end: np.datetime64 | None = None,
    progress: bool = True,
) -> ImportReport:
    """Write a provider, or finish one that an earlier run of the same request began.

    Parameters
    ----------
    source : BarSource
        Where bars come from.
    out : Path
        The provider's folder; must be new, empty, or left by a killed run of the same request.
    start, end : numpy.datetime64 or None
        Calendar, bars and membership are cut to these days, both included.
    progress : bool
        Draw a progress bar on stderr.

    Raises
    ------
    ConfigError
        The dates leave no trading day.
    ProviderError
        The folder holds something else; the source is malformed.
    """
    request = {
        "format": FORMAT,
        "source": source.kind,
        "layout": source.layout,
        "market": source.market,
        "start": None if start is None else str(start),
        "end": None if end is None else str(end),
        "source_hash": fingerprint(source),
    }
    manifest = read_manifest(out)
    if manifest is not None:
        if any(manifest.get(key) != value for key, value in request.items()):
            raise ProviderError(
                f"{str(out)!r} already holds a provider made from another request or source; "
                "expected a new folder; give another --out, or use --update to append new dates"
            )
        return _report(source, out, manifest, written=0, kept=int(manifest["instruments"]) + int(manifest["indices"]))
    finished = _open_journal(out, request)
    contents = survey(source)
    calendar = cut_calendar(trading_days(source, contents), start, end)
    industries = source.industries()
    industry_codes = {name: code for code, name in enumerate(sorted(set(industries.values())), start=1)}
    todo = tuple(code for code in contents.instruments if code not in finished)
    spans: dict[str, Span] = {}
    with (out / _DONE).open("a", encoding="utf-8") as journal:
        bars_of_all = read_bars(source, contents, todo)
        for bars in tqdm(
            bars_of_all, total=len(todo), desc="import", unit="instrument", file=sys.stderr, disable=not progress
        ):
            span = _write_instrument(out, bars, calendar, industry_codes.get(industries.get(bars.instrument, "")))
            # The journal is what a resumed run believes, so the line is on disk only after the rename.
            row = [bars.instrument, *([str(span[1]), str(span[2])] if span else [])]
            journal.write("\t".join(row) + "\n")
            journal.flush()
    finished = _read_journal(out)
    spans = {code: span for code, span in finished.items() if span is not None}
    shares = {code: span for code, span in spans.items() if not is_index(code)}
    for name, rows in instrument_files(source, calendar, shares).items():
        write_instruments(out, name, rows)
    write_calendar(out, list(calendar))
    manifest = {
        **request,
        "first_day": str(calendar[0]),
        "last_day": str(calendar[-1]),
        "days": len(calendar),
        "instruments": len(shares),
        "indices": len(spans) - len(shares),
        "not_point_in_time": ["industry"] if industry_codes else [],
        "industry_codes": industry_codes,
        "updates": [],
    }
    write_manifest(out, manifest)
    for name in (_REQUEST, _DONE):
        (out / name).unlink()
    shutil.rmtree(out / _STAGE, ignore_errors=True)
    return _report(source, out, manifest, written=len(todo), kept=len(finished) - len(todo))


def trading_days(source: BarSource, contents: Contents) -> NDArray[np.datetime64]:
    """Return the source's calendar, or the union of its bars' days; a bar on no trading day is an error."""
    stated = source.calendar()
    if stated is None:
        return contents.days
    calendar = np.unique(stated)
    inside = contents.days[(contents.days >= calendar[0]) & (contents.days <= calendar[-1])]
    strange = inside[~np.isin(inside, calendar)]
    if len(strange):
        raise ProviderError(
            f"there are bars on {strange[0]!s} ({len(strange)} such days), which calendars/day.txt does not list; "
            "expected every bar on a trading day; complete the calendar or remove the bars"
        )
    return calendar


def cut_calendar(
    calendar: NDArray[np.datetime64], start: np.datetime64 | None, end: np.datetime64 | None
) -> NDArray[np.datetime64]:
    """Return the trading days from start to end, both included."""
    kept = calendar
    if start is not None:
        kept = kept[kept >= start]
    if end is not None:
        kept = kept[kept <= end]
    if not len(kept):
        raise ConfigError(
            f"no trading day from {start!s} to {end!s}; the source runs from {calendar[0]!s} to {calendar[-1]!s}; "
            "give --start and --end inside it"
        )
    return kept


def instrument_files(
    source: BarSource, calendar: NDArray[np.datetime64], shares: Mapping[str, Span]
) -> dict[str, list[Span]]:
    """Return the membership files: the source's own, cut to the calendar, ``all`` and ``listed``.

    ``all`` runs from first to last bar; ``listed`` (only when the source knows listing days) from the listing day, so
    that a share which was suspended on the calendar's first day is not taken for a new one.
    """
    files = {name: cut_spans(spans, calendar) for name, spans in source.markets().items() if name != "all"}
    files["all"] = [shares[code] for code in sorted(shares)]
    listings = source.listings()
    if listings:
        files["listed"] = [(code, min(listings.get(code, first), first), last) for code, first, last in files["all"]]
    return files


def cut_spans(spans: list[Span], calendar: NDArray[np.datetime64]) -> list[Span]:
    """Return spans cut to the calendar, without those that miss it."""
    first, last = calendar[0], calendar[-1]
    return [
        (code, max(begin, first), min(finish, last))
        for code, begin, finish in spans
        if begin <= last and finish >= first
    ]


def read_manifest(out: Path) -> dict[str, Any] | None:
    """Return ``provider.json``, or None when the folder has none."""
    path = out / MANIFEST
    if not path.exists():
        return None
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return manifest


def write_manifest(out: Path, manifest: Mapping[str, Any]) -> None:
    """Write ``provider.json`` in one step."""
    write_atomically(out / MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=1, sort_keys=True) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new one, never a part."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def on_calendar(calendar: NDArray[np.datetime64], bars: Bars) -> Bars:
    """Return bars inside the calendar; an index's bars on days without trading are left out with a warning.

    Some vendors repeat an index on a day when the exchange was closed; for a share such a bar is an error.
    """
    inside = bars.cut(calendar[0], calendar[-1])
    if not is_index(bars.instrument):
        return inside
    known = np.isin(inside.days, calendar)
    if not known.all():
        logger.warning(
            "%s: left out the bar of %s, a day on which no share trades", bars.instrument, inside.days[~known]
        )
    return inside.pick(known)


def positions_in(calendar: NDArray[np.datetime64], bars: Bars) -> NDArray[np.intp]:
    """Return where bars stand in the calendar; raise when one stands nowhere."""
    positions = np.searchsorted(calendar, bars.days)
    found = positions < len(calendar)
    found[found] = calendar[positions[found]] == bars.days[found]
    if not found.all():
        raise ProviderError(
            f"{bars.instrument!r} has a bar on {bars.days[~found][0]!s}, which is no trading day of the provider; "
            "expected bars on trading days only; complete the calendar or remove the bar"
        )
    return positions


def _write_instrument(out: Path, bars: Bars, calendar: NDArray[np.datetime64], industry: int | None) -> Span | None:
    bars = on_calendar(calendar, bars)
    if not len(bars.days):
        return None
    positions = positions_in(calendar, bars)
    start, length = int(positions[0]), int(positions[-1] - positions[0] + 1)
    fields = provider_fields(bars)
    stage = out / _STAGE
    shutil.rmtree(stage, ignore_errors=True)
    for name, values in fields.items():
        write_feature(stage, bars.instrument, name, start, lay_out(values, positions, start, length))
    if industry is not None and not is_index(bars.instrument):
        write_feature(stage, bars.instrument, "industry", start, np.full(length, industry, dtype=np.float32))
    folder = feature_path(out, bars.instrument, "close").parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A folder that the journal does not list was renamed just before the kill.
    shutil.rmtree(folder, ignore_errors=True)
    feature_path(stage, bars.instrument, "close").parent.replace(folder)
    return bars.instrument, bars.days[0], bars.days[-1]


def _open_journal(out: Path, request: Mapping[str, Any]) -> dict[str, Span | None]:
    path = out / _REQUEST
    if path.exists():
        if json.loads(path.read_text(encoding="utf-8")) != request:
            raise ProviderError(
                f"{str(out)!r} holds an unfinished import of another request or source; "
                "expected the same one to go on; give another --out, or remove the folder"
            )
        finished = _read_journal(out)
        logger.info("resuming: %d instruments are finished", len(finished))
        return finished
    if out.exists() and any(out.iterdir()):
        raise ProviderError(
            f"{str(out)!r} is not empty and was not made by this command; expected a new folder; give another --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(request, sort_keys=True))
    return {}


def _read_journal(out: Path) -> dict[str, Span | None]:
    path = out / _DONE
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    # A kill may leave half a line; appending to it would join two instruments.
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_atomically(path, whole)
    finished: dict[str, Span | None] = {}
    for line in whole.splitlines():
        code, *days = line.split("\t")
        finished[code] = (code, np.datetime64(days[0], "D"), np.datetime64(days[1], "D")) if days else None
    return finished


def _report(source: BarSource, out: Path, manifest: Mapping[str, Any], *, written: int, kept: int) -> ImportReport:
    return ImportReport(
        provider=str(out),
        source=source.kind,
        layout=source.layout,
        first=manifest["first_day"],
        last=manifest["last_day"],
        days=manifest["days"],
        instruments=manifest["instruments"],
        indices=manifest["indices"],
        written=written,
        kept=kept,
        notes=source.notes(),
    )
