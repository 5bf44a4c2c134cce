"""How strongly to hold a gate: chosen on the tune segment, from a short logged ladder, in doubt strongly."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.evaluation.statistics import hac_standard_error
from qlib_llm_alpha.gating.gates import SoftmaxGate
from qlib_llm_alpha.gating.objective import Penalty
from qlib_llm_alpha.gating.sufficient import Array, SufficientStatistics, composite_ic

logger = logging.getLogger(__name__)

LADDER: tuple[Penalty, ...] = (
    Penalty(kl=float("inf")),
    Penalty(kl=0.30, smoothness=1.0, ridge=0.03),
    Penalty(kl=0.10, smoothness=1.0, ridge=0.01),
    Penalty(kl=0.04, smoothness=1.0, ridge=0.01),
    Penalty(kl=0.02, smoothness=1.0, ridge=0.003),
)
"""From the strongest rung, which is the prior itself, to the weakest."""


@dataclass(frozen=True)
class LadderRow:
    """One rung, for the log.

    Attributes
    ----------
    penalty : Penalty
    search_ic, tune_ic : float
        Mean daily IC of the composite on the days fitted on, and on the tune days.
    behind_best : float
        Mean daily IC that the rung loses on the tune days against the best rung.
    standard_error : float
        HAC standard error of that paired daily difference.
    chosen : bool
    """

    penalty: Penalty
    search_ic: float
    tune_ic: float
    behind_best: float
    standard_error: float
    chosen: bool


@dataclass(frozen=True, eq=False)
class LadderResult:
    """The gate fitted with the chosen penalty, and every rung that was tried."""

    gate: SoftmaxGate
    rows: tuple[LadderRow, ...]


def climb(
    gate: SoftmaxGate,
    search: SufficientStatistics,
    search_state: Array,
    tune: SufficientStatistics,
    tune_state: Array,
    prior: Array | None = None,
    ladder: Sequence[Penalty] = LADDER,
) -> LadderResult:
    """Fit the gate on search with every penalty of a ladder and choose one on tune.

    The choice is the strongest penalty whose mean daily IC on tune is within one HAC standard error of the best rung's;
    the standard error is that of the paired daily difference to the best. Choosing the best rung alone would free
    the gate on most draws of pure noise.

    Parameters
    ----------
    gate : SoftmaxGate
        Its own penalty is replaced.
    search, search_state
        Out-of-fold statistics and aligned state (T, S), purged of the last two days.
    tune, tune_state
        The same for the tune segment. Nothing later is read.
    prior : array, (K,), optional
        As in `SoftmaxGate.fit`.
    ladder : sequence of Penalty
        From the strongest to the weakest; must begin with ``kl = inf``.

    Raises
    ------
    ConfigError
        If the ladder is empty, does not begin at the prior, weakens nowhere or strengthens somewhere in `kl`, or tune
        has no day.
    """
    strengths = [penalty.kl for penalty in ladder]
    if not strengths or not np.isinf(strengths[0]) or strengths != sorted(strengths, reverse=True):
        raise ConfigError(f"ladder has kl {strengths!r}; order it from the strongest penalty, beginning with inf")
    if len(tune.days) == 0:
        raise ConfigError(f"tune has no usable day ({tune.dropped} dropped); widen the segment or the universe")
    fitted = [replace(gate, penalty=penalty).fit(search, search_state, prior) for penalty in ladder]
    on_tune = np.stack([composite_ic(tune, rung.weights(tune_state)) for rung in fitted])
    best = int(np.argmax(on_tune.mean(axis=1)))
    lost = on_tune[best] - on_tune
    # A rung that gives the best's own weights loses nothing on any day, and has no deviation to estimate.
    errors = [float(hac_standard_error(series)) if series.any() else 0.0 for series in lost]
    chosen = next(i for i in range(len(ladder)) if lost[i].mean() <= errors[i])
    rows = tuple(
        LadderRow(
            penalty=penalty,
            search_ic=float(composite_ic(search, rung.weights(search_state)).mean()),
            tune_ic=float(series.mean()),
            behind_best=float(lost[i].mean()),
            standard_error=errors[i],
            chosen=i == chosen,
        )
        for i, (penalty, rung, series) in enumerate(zip(ladder, fitted, on_tune, strict=True))
    )
    for row in rows:
        logger.info("ladder: %s", row)
    return LadderResult(fitted[chosen], rows)
