"""The scorecard of one factor on one segment that may be looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.engine.panel import Days
from qlib_llm_alpha.engine.scoring import MIN_NAMES, coverage, ic_series, rank_ic_series, turnover
from qlib_llm_alpha.errors import ConfigError, PanelError, WallError
from qlib_llm_alpha.evaluation.confirm import ConfirmPermit
from qlib_llm_alpha.evaluation.signal import aged
from qlib_llm_alpha.evaluation.statistics import finite_or_none, hac_t, icir, mean_of
from qlib_llm_alpha.evaluation.walls import LABEL_HORIZON, Walls

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Scorecard:
    """What a factor did on a segment.

    ``ic`` and ``rank_ic`` are daily means, ``icir`` and ``rank_icir`` those means over their daily sample deviation
    (not annualised), ``t_ic`` and ``t_rank_ic`` HAC t values of the means, ``hit_rate`` the share of days whose rank
    IC is above 0, ``turnover`` the mean daily share of new names in the top, ``coverage`` the mean share of the
    universe with a score. ``decay`` gives the rank IC of scores that are so many days older, ``by_regime`` the mean
    rank IC of the days of a regime. ``start``, ``end`` and ``n_days`` are of the days that count: purged, with a rank
    IC. NaN where nothing is known.
    """

    factor: str
    factor_id: str
    segment: str
    start: str
    end: str
    horizon: int
    label: str
    n_days: int
    ic: float
    icir: float
    t_ic: float
    rank_ic: float
    rank_icir: float
    t_rank_ic: float
    hit_rate: float
    turnover: float
    coverage: float
    decay: Mapping[int, float] = field(default_factory=dict)
    by_regime: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Return plain values for JSON: NaN as None, keys of ``decay`` as text."""
        plain = {name: finite_or_none(value) for name, value in asdict(self).items()}
        plain["decay"] = {str(lag): finite_or_none(value) for lag, value in self.decay.items()}
        plain["by_regime"] = {name: finite_or_none(value) for name, value in self.by_regime.items()}
        return plain


def score_factor(
    score: Array,
    label: Array,
    days: Days,
    walls: Walls,
    *,
    factor: str,
    factor_id: str = "",
    segment: str = "train",
    horizon: int = LABEL_HORIZON,
    label_name: str = "Ref($close,-2)/Ref($close,-1)-1",
    member: Mask | None = None,
    regime: NDArray[np.str_] | None = None,
    decay_lags: Sequence[int] = (),
    top: float = 0.2,
    min_names: int = MIN_NAMES,
    permit: ConfirmPermit | None = None,
) -> Scorecard:
    """Score one factor on a segment.

    Parameters
    ----------
    score : array, (T, N)
        The factor, known at the close of its day.
    label : array, (T, N)
        The return that follows, known ``horizon`` days later.
    days : array, (T,) datetime64[D]
        Calendar of the rows; may reach beyond the segment on both sides, only the segment's purged days are used (and
        older scores for ``decay``).
    walls : Walls
        Where the segments end. The sealed segment, test, is refused here.
    factor, factor_id : str
        Name and id that the card carries.
    segment : str
        ``train`` or ``valid``, or ``confirm`` with a permit.
    horizon : int
        Trading days after which a label is known: that many days are purged at the segment's end.
    label_name : str
        How the label is called in records.
    member : array, (T, N) bool, optional
        The universe of each day; scores and labels outside it are left out. None means all names.
    regime : array, (T,) str, optional
        Label of the market's state known at the close of each day.
    decay_lags : sequence of int
        Ages of the score, in days, for ``decay``.
    top : float or int
        The top set of turnover: a share or a count.
    min_names : int
        Days with fewer joint names do not count.
    permit : ConfirmPermit, optional
        That this reading of ``confirm`` was logged: from ``evaluation.confirm.read_confirm``.

    Raises
    ------
    ConfigError
        The segment is sealed, missing or empty, or a lag is below 1.
    WallError
        The segment is ``confirm``, and its reading was not logged, or other dates were.
    PanelError
        Shapes that do not fit.
    """
    if segment == "test":
        raise ConfigError(
            "segment 'test' is sealed; expected 'train' or 'valid'; its outcomes are computed by records alone"
        )
    if segment == "confirm":
        _check_permit(permit, walls)
    late = [lag for lag in decay_lags if lag < 1]
    if late:
        raise ConfigError(f"decay lags {late!r} are below 1; expected ages of the score in days; leave them out")
    rows = walls.purged(days, segment, horizon)
    if score.shape != label.shape or len(score) != len(rows):
        raise PanelError(
            f"score has shape {score.shape}, label {label.shape}, days {len(rows)}; expected (T, N), (T, N) and T; "
            "align them"
        )
    if regime is not None and len(regime) != len(rows):
        raise PanelError(f"regime has {len(regime)} days; expected {len(rows)}; align it to the days")
    inside = np.ones(score.shape, dtype=np.bool_) if member is None else member
    shown = np.where(inside, score, np.nan)
    outcome = np.where(inside, label, np.nan)[rows]
    ic = ic_series(shown[rows], outcome, min_names=min_names)
    rank_ic = rank_ic_series(shown[rows], outcome, min_names=min_names)
    counted = ~np.isnan(rank_ic)
    used = np.asarray(days)[rows][counted]
    states = {} if regime is None else {str(name): regime[rows] == name for name in np.unique(regime[rows])}
    return Scorecard(
        factor=factor,
        factor_id=factor_id,
        segment=segment,
        start=str(used[0]) if len(used) else "",
        end=str(used[-1]) if len(used) else "",
        horizon=horizon,
        label=label_name,
        n_days=int(counted.sum()),
        ic=mean_of(ic),
        icir=icir(ic),
        t_ic=hac_t(ic),
        rank_ic=mean_of(rank_ic),
        rank_icir=icir(rank_ic),
        t_rank_ic=hac_t(rank_ic),
        hit_rate=float(np.mean(rank_ic[counted] > 0)) if counted.any() else float("nan"),
        turnover=mean_of(turnover(shown[rows], top, min_names=min_names)),
        coverage=mean_of(coverage(shown[rows], inside[rows])),
        decay={
            int(lag): mean_of(rank_ic_series(aged(shown, lag)[rows], outcome, min_names=min_names))
            for lag in decay_lags
        },
        by_regime={name: mean_of(rank_ic[mask]) for name, mask in states.items()},
    )


def _check_permit(permit: ConfirmPermit | None, walls: Walls) -> None:
    asked = walls.segment("confirm")
    dates = (str(asked.start), str(asked.end))
    permitted = None if permit is None else (permit.key.start, permit.key.end)
    if permitted != dates:
        raise WallError(
            f"segment 'confirm' ({dates[0]} to {dates[1]}) was asked for with the permit {permitted!r}; expected one "
            "for these dates: log the reading first, with evaluation.confirm.read_confirm"
        )
