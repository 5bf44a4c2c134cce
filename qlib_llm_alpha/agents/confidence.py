"""The confidence agent: how well a factor has predicted, as far as can be known on the day of the decision.

theta of a factor on decision day ``d`` is the mean daily rank IC of its last 252 observable days, pulled towards the
mean of those among them that had today's regime:

    theta = (n_r * mean_r + k * mean) / (n_r + k),  k = 60

with ``n_r`` days of the regime. A row dated ``s`` is observable when ``s <= d - horizon``: its label is known by then.
The sign of theta orients the factor; confidence is ``|theta|``. A slower label, with its own and later horizon, can be
averaged in. (The paper defines theta as an expectation and gives no estimator; this is ours.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.errors import PanelError

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Confidence:
    """What the agent says on one decision day; all arrays are (F,).

    ``theta`` is signed, ``sign`` is +1 or -1, ``strength`` is ``|theta|``; ``mean`` and ``conditional`` are the means
    over all observable days and over those of the regime; ``n_days`` and ``n_regime`` count them. A factor with too few
    days has theta NaN and sign +1.
    """

    theta: Array
    sign: Array
    strength: Array
    mean: Array
    conditional: Array
    n_days: NDArray[np.int64]
    n_regime: NDArray[np.int64]


def confidence(
    rank_ic: Array,
    regime: NDArray[np.str_],
    as_of: int,
    *,
    horizon: int = 2,
    window: int = 252,
    shrinkage: float = 60.0,
    min_days: int = 60,
    slow_rank_ic: Array | None = None,
    slow_horizon: int = 6,
) -> Confidence:
    """Judge every factor on one day.

    Parameters
    ----------
    rank_ic : array, (F, T)
        Daily rank IC by the day of the score.
    regime : array, (T,) str
        The market's regime, known at the close of its day.
    as_of : int
        Row of the decision day. Rows after ``as_of - horizon`` are not read.
    horizon : int
        Trading days after which a label is known.
    window : int
        Trailing observable days.
    shrinkage : float
        Days of weight that the unconditional mean has.
    min_days : int
        Fewer days with a rank IC, and theta is NaN.
    slow_rank_ic : array, (F, T), optional
        Daily rank IC on a slower label; theta is then the mean of both thetas.
    slow_horizon : int
        Trading days after which the slower label is known, 6 for ``Ref($close,-6)/Ref($close,-1)-1``.

    Returns
    -------
    Confidence

    Raises
    ------
    PanelError
        Shapes that do not fit, or a decision day outside the rows.
    """
    if rank_ic.ndim != 2 or regime.shape != rank_ic.shape[1:]:
        raise PanelError(
            f"rank_ic has shape {rank_ic.shape}, regime {regime.shape}; expected (F, T) and (T,); align them"
        )
    if not 0 <= as_of < len(regime):
        raise PanelError(f"as_of is row {as_of!r}; expected 0 to {len(regime) - 1}; choose a day of the evidence")
    fast = _theta(rank_ic, regime, as_of, horizon, window, shrinkage, min_days)
    theta = fast[0]
    if slow_rank_ic is not None:
        if slow_rank_ic.shape != rank_ic.shape:
            raise PanelError(f"slow_rank_ic has shape {slow_rank_ic.shape}; expected {rank_ic.shape}; align them")
        theta = (theta + _theta(slow_rank_ic, regime, as_of, slow_horizon, window, shrinkage, min_days)[0]) / 2
    sign = np.where(theta < 0, -1.0, 1.0)
    return Confidence(theta, sign, np.abs(theta), *fast[1:])


def _theta(
    rank_ic: Array, regime: NDArray[np.str_], as_of: int, horizon: int, window: int, shrinkage: float, min_days: int
) -> tuple[Array, Array, Array, NDArray[np.int64], NDArray[np.int64]]:
    stop = max(as_of - horizon + 1, 0)
    rows = slice(max(stop - window, 0), stop)
    recent = rank_ic[:, rows]
    mean, n_days = _mean(recent)
    conditional, n_regime = _mean(recent[:, regime[rows] == regime[as_of]])
    weight = n_regime + shrinkage
    pulled = n_regime * np.nan_to_num(conditional) + shrinkage * mean
    theta = np.divide(pulled, weight, out=mean.copy(), where=weight > 0)
    return np.where(n_days >= max(min_days, 1), theta, np.nan), mean, conditional, n_days, n_regime


def _mean(values: Array) -> tuple[Array, NDArray[np.int64]]:
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0.0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0), count.astype(np.int64)
