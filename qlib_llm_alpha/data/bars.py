"""Read the engine's panel from a Qlib provider.

The files are read directly: opening a panel neither imports nor starts Qlib, so that worker processes and the command
line begin at once. :class:`QlibSource` asks Qlib itself where files cannot serve.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.data.provider_files import (
    PeriodRecords,
    Span,
    period_path,
    read_calendar,
    read_instruments,
    read_period_records,
)
from qlib_llm_alpha.engine.panel import DayLike, Days, Mask, as_day, as_days
from qlib_llm_alpha.engine.tiles import Series, TiledPanel
from qlib_llm_alpha.errors import ProviderError

_log = logging.getLogger(__name__)
_FIELD: Final = re.compile(r"\$(\w+)")
_REPORTED: Final = re.compile(r"P\(\s*\$\$(\w+_[qQaA])\s*\)|PRef\(\s*\$\$(\w+_[qQaA])\s*,\s*(\d+)\s*\)")
# Names that Windows keeps for devices; Qlib stores such codes under another name on every system.
_DEVICES: Final = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))})
_NONE: Final[Series] = (0, np.empty(0, dtype=np.float32))


def open_panel(
    provider: Path | str,
    universe: str | Sequence[str],
    *,
    start: DayLike | None = None,
    end: DayLike | None = None,
    departed: bool = True,
    memory_limit: int | None = None,
) -> TiledPanel:
    """Open a provider as a panel; columns are read when they are first asked for.

    Parameters
    ----------
    provider : path
        Folder of a Qlib provider with daily bars; ``~`` is the home folder.
    universe : str or sequence of str
        A market of ``instruments/``, such as ``"csi300"`` or ``"all"``, whose members change with its dates; or codes,
        which are members on every day.
    start : date, optional
        First day that will be asked for. Rows begin at the provider's first day all the same: values must not depend
        on where a query starts.
    end : date, optional
        Last row; default the calendar's last day. Operators that read ahead, as labels do, find nothing after it.
    departed : bool
        Keep the instruments that left the market before ``start``. A cross-sectional operator inside a window, such as
        ``Mean(CSRank($close), 5)``, reads days before ``start`` and needs those who were members then. False saves
        their lanes, and is exact for formulas without such operators.
    memory_limit : int, optional
        Bytes that the columns may take, as for :class:`~qlib_llm_alpha.engine.tiles.TiledPanel`.

    Returns
    -------
    TiledPanel
        Instruments sorted by code: all that were members on some row, see ``departed``.

    Raises
    ------
    ProviderError
        No provider there, a malformed calendar or market, an unknown market, no trading day or no member from
        ``start`` to ``end``, or codes none of which has bars.
    """
    root = Path(provider).expanduser()
    days = _trading_days(root, end)
    first = 0 if start is None else int(np.searchsorted(days, as_day(start)))
    if first >= len(days):
        raise ProviderError(
            f"no trading day from {start!r} to {end!r}; the provider's last one up to there is {days[-1]}; choose "
            "dates inside its calendar or import more bars"
        )
    codes, member = (
        _market(root, universe, days, first, departed)
        if isinstance(universe, str)
        else (_known_codes(root, universe), None)
    )
    return TiledPanel(days, codes, BinSource(root), member, memory_limit=memory_limit)


def provider_fields(provider: Path | str) -> tuple[str, ...]:
    """Return the daily fields, with their sigil, that some instrument of a provider has."""
    folder = Path(provider).expanduser() / "features"
    suffix = ".day.bin"
    names = {name for code in _entries(folder) for name in _entries(folder / code) if name.endswith(suffix)}
    return tuple(sorted(f"${name.removesuffix(suffix)}" for name in names))


def membership(days: Days, instruments: Sequence[str], spans: Iterable[Span]) -> Mask:
    """Return which instruments belong to a market on which days.

    Parameters
    ----------
    days : array, (T,) datetime64[D]
    instruments : sequence of str, (N,)
    spans : iterable of (code, first day, last day)
        Both days included; a code may have several. Codes that are not asked for are passed over.

    Returns
    -------
    array, (T, N) bool
    """
    member = np.zeros((len(days), len(instruments)), dtype=np.bool_)
    position = {code: place for place, code in enumerate(instruments)}
    for code, first, last in spans:
        if code in position:
            begin, stop = np.searchsorted(days, first, side="left"), np.searchsorted(days, last, side="right")
            member[begin:stop, position[code]] = True
    return member


class BinSource:
    """Columns from a provider's files: bars, and reported items as known on each day.

    Parameters
    ----------
    provider : path
        Folder of the provider.

    Notes
    -----
    Serves ``$field`` from ``features/``, ``P($$field_q)`` and ``PRef($$field_q, period)`` from ``financial/``, with the
    numbers that Qlib gives. A missing file is an instrument without values. An instrument with reports exists, as in
    Qlib, on every day of the calendar.

    Pickles as its path.
    """

    def __init__(self, provider: Path | str) -> None:
        self.root = Path(provider).expanduser()

    def serves(self, name: str) -> bool:
        """Say whether files alone give this column."""
        return _FIELD.fullmatch(name) is not None or _REPORTED.fullmatch(name) is not None

    def read(self, name: str, instruments: Sequence[str], rows: int, since: int = 0) -> Iterator[Series]:
        """Return, for each instrument in order, the row of its first value and its values up to row ``rows``.

        Parameters
        ----------
        name : str
            ``$field``, ``P($$field_q)`` or ``PRef($$field_q, period)``.
        instruments : sequence of str
        rows : int
            Rows of the panel.
        since : int
            Leave out, and do not read, values before this row.

        Returns
        -------
        iterator of (int, array of float32)

        Raises
        ------
        ProviderError
            Another text, or a file that is not Qlib's.
        """
        self._check(name)
        if reported := _REPORTED.fullmatch(name):
            return self._reports(reported, instruments, rows, since)
        return (_bars(path, rows, since) for path in self._paths(name, instruments))

    def stamp(self, name: str, instruments: Sequence[str]) -> bytes:
        """Return a fingerprint of a column's files, from sizes and times alone, 16 bytes.

        Two stamps that differ mean that a file came, went or was written in between.
        """
        self._check(name)
        digest = hashlib.blake2b(digest_size=16)
        for path in self._paths(name, instruments):
            try:
                status = os.stat(path)  # noqa: PTH116 - see _paths
                digest.update(b"%d %d %d;" % (status.st_size, status.st_mtime_ns, status.st_ctime_ns))
            except FileNotFoundError:
                digest.update(b"none;")
        return digest.digest()

    def _check(self, name: str) -> None:
        if not self.serves(name):
            raise ProviderError(
                f"column {name!r} is not kept in files; expected $field, P($$field_q) or PRef($$field_q, period); "
                "evaluate other operators in the engine, or hand them to QlibSource as Qlib expressions"
            )

    def _paths(self, name: str, instruments: Sequence[str]) -> Iterator[str]:
        """Give the file of each instrument, as text: building path objects would take longer than reading."""
        if reported := _REPORTED.fullmatch(name):
            field = (reported[1] or reported[2]).lower()
            return (str(period_path(self.root, _stored(code), field)) for code in instruments)
        folder = str(self.root / "features")
        file = f"{name[1:].lower()}.day.bin"
        return (os.path.join(folder, _stored(code), file) for code in instruments)  # noqa: PTH118

    def _reports(self, reported: re.Match[str], instruments: Sequence[str], rows: int, since: int) -> Iterator[Series]:
        days = _read_calendar(self.root)[:rows]
        field = (reported[1] or reported[2]).lower()
        period = int(reported[3]) if reported[3] else None
        for code in instruments:
            path = period_path(self.root, _stored(code), field)
            if not (path.is_file() and path.with_suffix(".index").is_file()):
                yield _NONE
                continue
            known = _known_values(read_period_records(self.root, _stored(code), field), days, period)
            yield (since, known[since:]) if since < len(known) else _NONE


class QlibSource:
    """Columns through Qlib, for providers that are not files and for operators that only Qlib computes.

    Parameters
    ----------
    expressions : mapping of text to qlib.data.base.Expression, optional
        What a column's text means where it is not a field. Qlib must be initialised, with the user's operators.
    bars : BinSource, optional
        Serves what files give, faster; None: every field comes from Qlib's feature provider, perhaps one in memory.

    Notes
    -----
    An expression is computed over rows 0 to the panel's last one, whatever is asked, so that its values do not depend
    on a start. Qlib keeps what it computed in its memory cache (``H``): after a change of data in a living process,
    clear it.
    """

    def __init__(self, expressions: Mapping[str, Any] | None = None, bars: BinSource | None = None) -> None:
        self.expressions = dict(expressions or {})
        self.bars = bars

    def read(self, name: str, instruments: Sequence[str], rows: int, since: int = 0) -> Iterator[Series]:
        """Return, for each instrument in order, the row of its first value and its values up to row ``rows``.

        Parameters are those of :meth:`BinSource.read`, with the texts of ``expressions`` besides.

        Raises
        ------
        ProviderError
            A text that is neither a field nor among the expressions, or values that are not numbers by row.
        """
        if self.bars is not None and self.bars.serves(name):
            return self.bars.read(name, instruments, rows, since)
        if name not in self.expressions and not _FIELD.fullmatch(name):
            raise ProviderError(
                f"column {name!r} is neither a field nor among the {len(self.expressions)} expressions handed in; "
                "expected one of them; add the Qlib expression of this text"
            )
        return self._ask(name, instruments, rows, since)

    def stamp(self, name: str, instruments: Sequence[str]) -> bytes | None:
        """Return :meth:`BinSource.stamp` where files serve the column; None where nothing tells of a change."""
        if self.bars is not None and self.bars.serves(name):
            return self.bars.stamp(name, instruments)
        return None

    def _ask(self, name: str, instruments: Sequence[str], rows: int, since: int) -> Iterator[Series]:
        from qlib.data.data import FeatureD  # opening bars from files must not cost Qlib's import

        expression = self.expressions.get(name)
        for code in instruments:
            if expression is None:
                series = FeatureD.feature(code, name, since, rows - 1, "day")
            else:
                series = expression.load(code, 0, rows - 1, "day")
            yield _by_row(series, name, code, rows, since)


def _market(root: Path, market: str, days: Days, first: int, departed: bool) -> tuple[list[str], Mask]:
    """Return the codes of a market, sorted, and their membership."""
    known = sorted(path.stem for path in (root / "instruments").glob("*.txt"))
    if market.lower() not in known:
        raise ProviderError(
            f"universe {market!r}: the provider has {known}; choose one of them or add instruments/{market.lower()}.txt"
        )
    try:
        spans = read_instruments(root, market.lower())
    except ValueError as error:
        raise ProviderError(
            f"instruments/{market.lower()}.txt: {error}; expected rows of code, first day and last day, separated by "
            "tabs; correct the file"
        ) from error
    codes = sorted({code for code, _, _ in spans})
    member = membership(days, codes, spans)
    asked = member[first:].any(axis=0)
    if not asked.any():
        raise ProviderError(
            f"universe {market!r} has no member from {days[first]} to {days[-1]}, of {len(codes)} in the file; choose "
            "other dates or another universe"
        )
    kept = np.flatnonzero(member.any(axis=0) if departed else asked)
    return [codes[place] for place in kept], member[:, kept]


def _known_codes(root: Path, universe: Sequence[str]) -> list[str]:
    codes = sorted(str(code) for code in universe)
    features = root / "features"
    unknown = [code for code in codes if not (features / _stored(code)).is_dir()]
    if len(unknown) == len(codes):
        raise ProviderError(
            f"instruments {codes[:5]!r} ({len(codes)} in all): none has a folder in {str(features)!r}; expected codes "
            "such as those of instruments/all.txt: correct them or import their bars"
        )
    if unknown:
        _log.warning("%d of %d instruments have no bars: %s", len(unknown), len(codes), unknown[:5])
    return codes


def _trading_days(root: Path, end: DayLike | None) -> Days:
    if not (root / "features").is_dir():
        raise ProviderError(
            f"provider {str(root)!r}: expected a Qlib provider with calendars/day.txt and features/, found none; write "
            "the embedded market with `qlib-llm-alpha market --out DIR`, import bars with `qlib-llm-alpha data import` "
            "or give another folder"
        )
    days = as_days(_read_calendar(root))
    stop = len(days) if end is None else int(np.searchsorted(days, as_day(end), side="right"))
    if not stop:
        first = days[0] if len(days) else "none"
        raise ProviderError(
            f"no trading day up to {end!r}; the provider's first one is {first}; choose a later end or import more bars"
        )
    return days[:stop]


def _read_calendar(root: Path) -> NDArray[np.datetime64]:
    try:
        return read_calendar(root)
    except (FileNotFoundError, ValueError) as error:
        raise ProviderError(
            f"provider {str(root)!r}: calendars/day.txt: {error}; expected a file with one date such as 2020-01-31 a "
            "line; write the calendar again"
        ) from error


def _entries(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []  # noqa: PTH208 - names alone, for thousands of folders


def _stored(code: str) -> str:
    """Return the name under which a code's files are kept."""
    name = code.lower()
    return f"_qlib_{name}" if name in _DEVICES else name


def _bars(path: str, rows: int, since: int) -> Series:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - see _paths
            return _decoded(file, path, rows, since)
    except FileNotFoundError:
        return _NONE


def _decoded(file: FileIO, path: str, rows: int, since: int) -> Series:
    size = os.fstat(file.fileno()).st_size
    if size == 0:
        return _NONE  # what Qlib's FeatureStorage.clear() leaves
    head = float(np.frombuffer(file.read(4), dtype="<f4")[0]) if size % 4 == 0 else math.nan
    if not (head >= 0 and head.is_integer()):
        raise ProviderError(
            f"{path}: {size} bytes, beginning with {head!r}; expected float32 values after the calendar position of "
            "the first one; import this instrument again"
        )
    first = int(head)
    begin, stop = max(first, since), min(first + size // 4 - 1, rows)
    if begin >= stop:
        return _NONE
    file.seek(4 * (1 + begin - first))
    return begin, np.frombuffer(file.read(4 * (stop - begin)), dtype="<f4").astype(np.float32, copy=False)


def _known_values(records: PeriodRecords, days: Days, period: int | None) -> NDArray[np.float32]:
    """Return, for each day, what was known by then of the latest period, or of one period.

    As Qlib: the value of a period is its last record announced so far; the latest period is the greatest one of any
    record announced so far; a period before the first one reported, or after the latest, has no value.
    """
    announced, periods, values = records
    latest: dict[int, float] = {}
    after = np.full(len(periods) + 1, np.nan)  # after[k]: what is known after k records
    for place, (of, value) in enumerate(zip(periods.tolist(), values.tolist(), strict=True), start=1):
        latest[of] = value
        after[place] = latest[max(latest)] if period is None else latest.get(period, math.nan)
    # Qlib stores reports as float32 too; one beyond its range is infinite.
    with np.errstate(over="ignore"):
        known: NDArray[np.float32] = after.astype(np.float32)[np.searchsorted(announced, days, side="right")]
    return known


def _by_row(series: Any, name: str, code: str, rows: int, since: int) -> Series:
    if len(series) == 0:
        return _NONE
    index = series.index.to_numpy()
    try:
        values = series.to_numpy().astype(np.float32)
    except (TypeError, ValueError) as error:
        raise ProviderError(
            f"column {name!r} of {code!r} has type {series.dtype}; expected numbers; correct the operator"
        ) from error
    if index.dtype.kind not in "iu":
        raise ProviderError(
            f"column {name!r} of {code!r} is indexed by {index.dtype}; expected positions in the calendar, as Qlib's "
            "local providers give; have the feature backend return them"
        )
    inside = (index >= since) & (index < rows)
    index, values = index[inside], values[inside]
    if not len(index):
        return _NONE
    first = int(index.min())
    dense = np.full(int(index.max()) + 1 - first, np.nan, dtype=np.float32)
    dense[index - first] = values
    return first, dense
