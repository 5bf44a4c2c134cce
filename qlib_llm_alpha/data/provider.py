"""``D.features`` on our engine: the same frame, many times sooner, and cross-sectional operators.

::

    qlib_init:
        provider_uri: ~/.qlib/qlib_data/cn_data
        region: cn
        dataset_provider:
            class: PanelDatasetProvider
            module_path: qlib_llm_alpha.data.provider
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from qlib.config import C
from qlib.data.cache import H
from qlib.data.data import Cal, DatasetD, FeatureD, LocalDatasetProvider, LocalFeatureProvider
from qlib.data.inst_processor import InstProcessor
from qlib.utils import init_instance_by_config

from qlib_llm_alpha.data.bars import BinSource, QlibSource
from qlib_llm_alpha.data.qlib_text import is_foreign, read_text, to_qlib
from qlib_llm_alpha.engine.evaluate import Batch
from qlib_llm_alpha.engine.execution import Cells
from qlib_llm_alpha.engine.graph import Graph
from qlib_llm_alpha.engine.tiles import Mask, TiledPanel, Values
from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.factor.printing import to_text
from qlib_llm_alpha.factor.tree import Call, Node, walk

_LOG = logging.getLogger(__name__)
_PANELS_KEPT = 2
_SERVED = "day"

Spans = Sequence[tuple[Any, Any]]


class PanelDatasetProvider(LocalDatasetProvider):
    """Serves ``D.features`` for daily bars from a panel of all asked instruments at once.

    Index, columns, types and order are those of Qlib's own provider, and so are the values, as if Qlib had been asked
    for the whole history: a value never depends on where the query starts. Stock Qlib reads only a window's worth of
    bars before the start, so that its ``EMA`` (and everything with a window of 0) differs from query to query;
    ``qlib_window`` reproduces that.

    Formulas are read by our own reader, never executed as Python. Operators of ours, the cross-sectional ones included,
    may stand in them; a cross-section is taken over the asked instruments, with their dates of membership where the
    universe has dates (a market's name, a dict with spans), over all of them where it is a list.

    An operator class that was registered through ``custom_ops`` is evaluated by Qlib and joined in. Another frequency
    than ``day`` goes to Qlib's own provider, with one line in the log.

    Parameters
    ----------
    align_time : bool
        As in Qlib's ``LocalDatasetProvider``.
    qlib_window : bool
        Load as many bars before the start of a query as stock Qlib does, and no more.
    threads : int, optional
        Default: the processors of this process.

    Notes
    -----
    Files are looked at on every query: a bar that was added or changed on disk is seen, except for the calendar, which
    Qlib itself keeps until the next ``qlib.init``.
    """

    def __init__(self, align_time: bool = True, qlib_window: bool = False, threads: int | None = None) -> None:
        super().__init__(align_time=align_time)
        if not isinstance(qlib_window, bool):
            raise ConfigError(f"qlib_window is {qlib_window!r}; expected true or false; mend dataset_provider.kwargs")
        if threads is not None and (type(threads) is not int or threads < 1):
            raise ConfigError(f"threads is {threads!r}; expected a whole number of at least 1, or leave it out")
        self.qlib_window = qlib_window
        self.threads = threads
        self._panels: OrderedDict[tuple[str, ...], _KeptPanel] = OrderedDict()
        self._lock = threading.Lock()
        self._told: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        # Workers that are started rather than forked get the provider pickled; they read their own panel.
        return {"align_time": self.align_time, "qlib_window": self.qlib_window, "threads": self.threads}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def dataset(
        self,
        instruments: Any,
        fields: Sequence[Any],
        start_time: Any = None,
        end_time: Any = None,
        freq: str = "day",
        inst_processors: Any = (),
    ) -> pd.DataFrame:
        """Return the frame indexed (instrument, datetime), one float32 column for each formula.

        Parameters
        ----------
        instruments : list, tuple, Index, array, or dict
            Codes, codes with spans of membership, or a market as ``D.instruments`` gives it, filters included.
        fields : sequence of str
            Formulas; the columns bear their texts.
        start_time, end_time : date, optional
            First and last day of the rows, both included.
        freq : str
        inst_processors : list
            As in Qlib: called on the frame of each instrument.

        Raises
        ------
        ExpressionError
            A formula that cannot be read or computed.
        """
        names = self.get_column_names(fields)
        trees = [read_text(name) for name in names]
        if freq != _SERVED:
            self._tell_once(freq)
            stock: pd.DataFrame = super().dataset(
                instruments, fields, start_time, end_time, freq, inst_processors=inst_processors
            )
            return stock
        frame = self._served(instruments, trees, names, start_time, end_time, by_day=False)
        return _processed(frame, self._codes(instruments), inst_processors) if inst_processors else frame

    def dataset_by_day(
        self,
        instruments: Any,
        fields: Sequence[Any],
        start_time: Any = None,
        end_time: Any = None,
        freq: str = "day",
        inst_processors: Any = (),
    ) -> pd.DataFrame:
        """Return :meth:`dataset` indexed (datetime, instrument), as handlers want it, without a sort afterwards."""
        if freq != _SERVED or inst_processors:
            frame = self.dataset(instruments, fields, start_time, end_time, freq, inst_processors)
            by_day: pd.DataFrame = frame.swaplevel().sort_index()
            return by_day
        names = self.get_column_names(fields)
        return self._served(instruments, [read_text(name) for name in names], names, start_time, end_time, by_day=True)

    def _codes(self, instruments: Any) -> list[str]:
        return list(_spans_by_code(self.get_instruments_d(instruments, _SERVED)))

    def _served(
        self, instruments: Any, trees: Sequence[Node], names: Sequence[str], start: Any, end: Any, *, by_day: bool
    ) -> pd.DataFrame:
        levels = ["datetime", "instrument"] if by_day else ["instrument", "datetime"]
        frame: pd.DataFrame
        days = Cal.calendar(start, end, _SERVED)
        if len(days) == 0:
            frame = pd.DataFrame(index=_no_rows(levels), columns=list(names))
            return frame
        spans = _spans_by_code(self.get_instruments_d(instruments, _SERVED))
        if not spans:
            frame = pd.DataFrame(index=_no_rows(levels), columns=list(names), dtype=np.float32)
            return frame
        calendar = Cal.calendar(freq=_SERVED)
        begin = int(np.searchsorted(calendar, days[0]))
        panel = self._panel(tuple(spans), calendar, _membership(spans, calendar), trees)
        wanted, values = self._values(panel, trees, begin, begin + len(days), len(calendar), by_day=by_day)
        index = _index(panel.instruments, pd.Index(calendar[begin : begin + len(days)]), wanted, levels)
        frame = pd.DataFrame(values.T, index=index, columns=list(names), copy=False)
        return frame

    def _values(
        self, panel: TiledPanel, trees: Sequence[Node], begin: int, end: int, days: int, *, by_day: bool
    ) -> tuple[Mask, Values]:
        """Return which cells the frame holds, (N, rows), and their values, (K, M)."""
        parts = []
        for positions, opened, closed in self._windows(trees, begin, end, days):
            whole = opened == 0 and closed == days
            part = Batch(
                [trees[position] for position in positions],
                panel if whole else panel.window(opened, closed),
                threads=self.threads,
                foreign=is_foreign,
            )
            parts.append((positions, opened, part))
        wanted = np.zeros((len(panel.instruments), end - begin), dtype=np.bool_)
        row = np.arange(begin, end)
        for _, offset, part in parts:
            for span in {id(span): span for span in part.spans}.values():
                first, stop = (side.ravel()[: len(wanted), None] + offset for side in (span.first, span.stop))
                wanted |= (first <= row) & (row < stop)
        if panel.member is not None:
            wanted &= panel.untiled(panel.member)[begin:end].T.astype(np.bool_)
        cells = Cells.by_day(wanted) if by_day else Cells.by_instrument(wanted)
        values = np.empty((len(trees), len(cells)), dtype=np.float32)
        for positions, offset, part in parts:
            block = values if len(parts) == 1 else np.empty((len(positions), len(cells)), dtype=np.float32)
            part.write_cells(cells.later(offset - begin), block)
            if block is not values:
                values[positions] = block
        return wanted, values

    def _windows(self, trees: Sequence[Node], begin: int, end: int, rows: int) -> Iterable[tuple[list[int], int, int]]:
        """Yield positions of formulas with the rows they may see."""
        if not self.qlib_window:
            yield list(range(len(trees))), 0, rows
            return
        groups: dict[tuple[int, int], list[int]] = {}
        graph = Graph(is_foreign)
        for position, tree in enumerate(trees):
            graph.add(tree)  # refuses what cannot be computed before anything of Qlib's is made of it
            left, right = to_qlib(tree).get_extended_window_size()
            first = 0 if not np.isfinite(left) else max(0, begin - int(left))
            groups.setdefault((first, min(rows, end + int(right))), []).append(position)
        for (first, last), positions in groups.items():
            yield positions, first, last

    def _panel(
        self, codes: tuple[str, ...], calendar: NDArray[Any], member: Mask | None, trees: Sequence[Node]
    ) -> TiledPanel:
        root = _files()
        with self._lock:
            kept = self._panels.pop(codes, None)
            if kept is None or kept.root != root or len(kept.panel.days) != len(calendar):
                source = QlibSource(bars=None if root is None else BinSource(root))
                days = pd.DatetimeIndex(calendar).to_numpy().astype("datetime64[D]")
                kept = _KeptPanel(root, source, TiledPanel(days, codes, source))
            kept.source.expressions = _foreign_expressions(trees)
            if kept.source.expressions:
                # Qlib's own memory of computed series does not look at files.
                H["f"].clear()
            kept.panel.forget_changed()
            self._panels[codes] = kept
            while len(self._panels) > _PANELS_KEPT:
                self._panels.popitem(last=False)
        return kept.panel.with_members(member)

    def _tell_once(self, freq: str) -> None:
        if freq not in self._told:
            self._told.add(freq)
            _LOG.warning("freq %r is served by Qlib's own provider: the panel provider serves %r", freq, _SERVED)


def configured_panel_provider() -> PanelDatasetProvider | None:
    """Return the panel provider that ``qlib.init`` was given, behind a dataset cache or not; None: it was another."""
    provider = getattr(DatasetD, "_provider", None)
    inner = getattr(provider, "provider", provider)
    return inner if isinstance(inner, PanelDatasetProvider) else None


@dataclass
class _KeptPanel:
    """A panel between queries."""

    root: Path | None
    source: QlibSource
    panel: TiledPanel


def _files() -> Path | None:
    """Return the folder of the bars, or None where they are not Qlib's local files."""
    provider = getattr(FeatureD, "_provider", None)
    if not isinstance(provider, LocalFeatureProvider) or provider.backend:
        return None
    return Path(C.dpm.get_data_uri(_SERVED))


def _foreign_expressions(trees: Iterable[Node]) -> dict[str, Any]:
    """Return what Qlib has to evaluate itself, by text."""
    calls = (node for tree in trees for node in walk(tree) if isinstance(node, Call))
    return {to_text(call): to_qlib(call) for call in calls if call.op in ("P", "PRef") or is_foreign(call)}


def _spans_by_code(universe: Any) -> dict[str, Spans | None]:
    """Return the asked codes in order of code, with their spans of membership where there are any."""
    if isinstance(universe, Mapping):
        return {str(code): universe[code] for code in sorted(universe)}
    return dict.fromkeys(sorted({str(code) for code in universe}))


def _membership(spans: Mapping[str, Spans | None], calendar: NDArray[Any]) -> Mask | None:
    if all(dates is None for dates in spans.values()):
        return None
    days = pd.DatetimeIndex(calendar)
    member = np.zeros((len(days), len(spans)), dtype=np.bool_)
    for place, dates in enumerate(spans.values()):
        if dates is None:
            member[:, place] = True
            continue
        for first, last in dates:
            member[
                days.searchsorted(pd.Timestamp(first)) : days.searchsorted(pd.Timestamp(last), side="right"), place
            ] = True
    return member


def _no_rows(levels: Sequence[str]) -> pd.MultiIndex:
    none: pd.MultiIndex = pd.MultiIndex.from_arrays([[], []], names=list(levels))
    return none


def _index(codes: Sequence[str], days: Any, wanted: Mask, levels: Sequence[str]) -> pd.MultiIndex:
    """Return the index of the true cells of a (N, rows) mask, ordered by the first level."""
    if not wanted.any():
        return _no_rows(levels)
    kept = wanted.any(axis=1)
    present = [codes[place] for place in np.flatnonzero(kept).tolist()]
    places: Any = np.nonzero(wanted[kept].T if levels[0] == "datetime" else wanted[kept])
    values = [days, present] if levels[0] == "datetime" else [present, days]
    index: pd.MultiIndex = pd.MultiIndex(levels=values, codes=places, names=list(levels))
    return index


def _processed(frame: pd.DataFrame, codes: Sequence[str], processors: Iterable[Any]) -> pd.DataFrame:
    """Apply Qlib's processors to the frame of each instrument, as Qlib does in its workers."""
    present = set(frame.index.get_level_values("instrument"))
    parts: dict[str, pd.DataFrame] = {}
    for code in codes:
        part: Any = frame.xs(code, level="instrument") if code in present else frame.iloc[:0].droplevel("instrument")
        for processor in processors:
            if processor:
                part = init_instance_by_config(processor, accept_types=InstProcessor)(part, instrument=code)
        if len(part):
            parts[code] = part
    # As Qlib: of what a processor adds, only the asked columns come back.
    joined = pd.concat(parts, names=["instrument"], sort=False) if parts else frame.iloc[:0]
    asked: pd.DataFrame = joined[list(frame.columns)]
    return asked
