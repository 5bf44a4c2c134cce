"""The one module that computes a statistic from the outcomes of the sealed segment (test).

Only the room ``record`` may import it (an import contract), so that nothing that selects, fits or tunes can.
Predicting on the features of test is not an opening; calling :func:`open_sealed` is, and it takes the
:class:`~qlib_llm_alpha.evaluation.openings.Opening` that the ledger has logged, so that nothing is computed before.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qlib_llm_alpha.engine.panel import Days, Panel
from qlib_llm_alpha.engine.scoring import MIN_NAMES, ic_series, rank_ic_series
from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.evaluation.openings import Opening
from qlib_llm_alpha.evaluation.statistics import hac_t, icir, mean_of
from qlib_llm_alpha.evaluation.walls import Segment

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SealedRow:
    """One score column on the sealed segment.

    ``gain`` is the mean daily IC less that of the reference column on the days where both are known, ``t_gain`` its
    HAC t; NaN for the reference itself and where there is none. The other fields are those of ``Scorecard``.
    """

    column: str
    n_days: int
    ic: float
    icir: float
    t_ic: float
    rank_ic: float
    rank_icir: float
    t_rank_ic: float
    hit_rate: float
    gain: float
    t_gain: float


@dataclass(frozen=True, eq=False)
class SealedFigures:
    """The table and the daily series of one opening: rows by column, series (T,) by column name."""

    opening: Opening
    days: Days
    rows: tuple[SealedRow, ...]
    daily_ic: dict[str, Array] = field(repr=False)
    daily_rank_ic: dict[str, Array] = field(repr=False)

    def table(self) -> pd.DataFrame:
        """Return the rows as a frame indexed by column name."""
        frame: pd.DataFrame = pd.DataFrame([vars(row) for row in self.rows]).set_index("column")
        return frame

    def daily(self) -> pd.DataFrame:
        """Return daily series indexed by datetime, columns (``ic`` | ``rank_ic``, score column)."""
        index = pd.DatetimeIndex(self.days.astype("datetime64[ns]"), name="datetime")
        parts = {
            "ic": pd.DataFrame(self.daily_ic, index=index),
            "rank_ic": pd.DataFrame(self.daily_rank_ic, index=index),
        }
        joined: pd.DataFrame = pd.concat(parts, axis=1)
        return joined


def open_sealed(
    scores: pd.DataFrame,
    label: pd.Series,
    opening: Opening,
    *,
    reference: str | None = None,
    min_names: int = MIN_NAMES,
) -> SealedFigures:
    """Measure every score column against the label of the sealed segment.

    Parameters
    ----------
    scores : DataFrame
        Indexed (datetime, instrument), one column for each score; NaN means none.
    label : Series
        Indexed (datetime, instrument): the return that follows. Rows without a score are left out.
    opening : Opening
        As it was logged; a score outside the dates of its key is refused.
    reference : str, optional
        Column against which the others' gain in IC is taken.
    min_names : int
        Days with fewer names that have score and label are NaN.

    Returns
    -------
    SealedFigures
        Rows in the order of the columns. The last days have no label yet and do not count.

    Raises
    ------
    ConfigError
        No scores, scores outside the segment, an unknown reference.
    PanelError
        Indexes that are not (datetime, instrument), duplicates, infinite values.
    """
    columns = [str(name) for name in scores.columns]
    if not columns or not len(scores):
        raise ConfigError(f"scores have {len(scores)} rows and columns {columns!r}; expected at least one of each")
    if reference is not None and reference not in columns:
        raise ConfigError(f"reference {reference!r} is not a score; expected one of {columns!r}; name one of them")
    label_name = "__label__"
    panel = Panel.from_frame(
        scores.set_axis(columns, axis=1).join(label.rename(label_name).reorder_levels(scores.index.names), how="left")
    )
    segment = Segment("test", np.datetime64(opening.key.start, "D"), np.datetime64(opening.key.end, "D"))
    outside = panel.days[~segment.mask(panel.days)]
    if len(outside):
        raise ConfigError(
            f"scores reach from {panel.days[0]} to {panel.days[-1]}, beyond the opened segment "
            f"'test' ({segment.start} to {segment.end}); expected days inside it; cut the scores to the segment"
        )
    outcome = panel[label_name]
    ic = {name: ic_series(panel[name], outcome, min_names=min_names) for name in columns}
    rank_ic = {name: rank_ic_series(panel[name], outcome, min_names=min_names) for name in columns}
    rows = tuple(_row(name, ic[name], rank_ic[name], _reference(ic, name, reference)) for name in columns)
    return SealedFigures(opening, panel.days, rows, ic, rank_ic)


def _reference(ic: dict[str, Array], name: str, reference: str | None) -> Array:
    if reference is None or name == reference:
        return np.full(len(ic[name]), np.nan)
    return ic[reference]


def _row(name: str, ic: Array, rank_ic: Array, reference: Array) -> SealedRow:
    counted = ~np.isnan(rank_ic)
    gain = ic - reference
    return SealedRow(
        column=name,
        n_days=int(counted.sum()),
        ic=mean_of(ic),
        icir=icir(ic),
        t_ic=hac_t(ic),
        rank_ic=mean_of(rank_ic),
        rank_icir=icir(rank_ic),
        t_rank_ic=hac_t(rank_ic),
        hit_rate=float(np.mean(rank_ic[counted] > 0)) if counted.any() else float("nan"),
        gain=mean_of(gain),
        t_gain=hac_t(gain),
    )
