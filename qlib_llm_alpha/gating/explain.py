"""Why the gate leaned where it did: which state feature moved the odds between the two heaviest experts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.gating.gates import SoftmaxGate
from qlib_llm_alpha.gating.objective import log_weights
from qlib_llm_alpha.gating.sufficient import Array


@dataclass(frozen=True, eq=False)
class LogOddsExplanation:
    """Per day, the log-odds of the heaviest expert against the second, taken apart.

    ``contributions.sum(axis=1) + constant == log_odds - prior_log_odds``, exactly up to rounding.

    Attributes
    ----------
    first, second : int array, (T,)
        The two heaviest experts of the day, before `top_m`.
    contributions : array, (T, S)
        What each state feature added.
    constant : array, (T,)
        What the fitted bias added whatever the state is.
    log_odds, prior_log_odds : array, (T,)
        On that day, and in the prior.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    contributions: Array
    constant: Array
    log_odds: Array
    prior_log_odds: Array


def explain_log_odds(gate: SoftmaxGate, state: Array) -> LogOddsExplanation:
    """Take the change of log-odds against the prior apart, day by day.

    Parameters
    ----------
    gate : SoftmaxGate
        Fitted, with at least two experts.
    state : array, (T, S)
        Standardised market state; dated by signal day like the weights.

    Raises
    ------
    ConfigError
        If the gate is not fitted or has one expert.
    """
    weights = gate.dense_weights(state)
    if weights.shape[1] < 2:
        raise ConfigError("the gate has one expert; there are no odds to explain between fewer than two")
    order = np.argsort(-weights, axis=1, kind="stable")
    first, second = order[:, 0], order[:, 1]
    # dense_weights refuses an unfitted gate; this only tells the type checker so.
    matrix, bias, prior = np.asarray(gate.matrix), np.asarray(gate.bias), log_weights(np.asarray(gate.prior))
    prior_log_odds = prior[first] - prior[second]
    logits = gate.prepared(state) @ matrix.T + bias
    row = np.arange(len(weights))
    return LogOddsExplanation(
        first=first,
        second=second,
        contributions=(matrix[first] - matrix[second]) * gate.prepared(state),
        constant=bias[first] - bias[second] - prior_log_odds,
        log_odds=logits[row, first] - logits[row, second],
        prior_log_odds=prior_log_odds,
    )
