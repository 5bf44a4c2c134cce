"""Did the state of the market help? Shuffle it in blocks, refit, and see how often chance does as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.evaluation.statistics import block_permutation
from qlib_llm_alpha.evaluation.walls import LABEL_HORIZON
from qlib_llm_alpha.gating.crossfit import Fold, surrounding_folds
from qlib_llm_alpha.gating.gates import SoftmaxGate, StaticGate
from qlib_llm_alpha.gating.sufficient import Array, SufficientStatistics, composite_ic

ENOUGH_BLOCKS = 6
"""With fewer blocks so many shuffles repeat the true order that even a perfect gate stays above 0.05."""


@dataclass(frozen=True, eq=False)
class PermutationResult:
    """Outcome of the permutation test.

    Attributes
    ----------
    gain : float
        Cross-fitted mean daily IC of the gate minus that of the static gate.
    shuffled_gains : array, (permutations,)
        The same with the state shuffled.
    p_value : float
        Share of shuffles, the unshuffled one included, with at least this gain: one-sided.
    sentence : str
        The finding in words.
    """

    gain: float
    shuffled_gains: Array
    p_value: float
    sentence: str


def permutation_test(
    gate: SoftmaxGate,
    stats: SufficientStatistics,
    state: Array,
    *,
    static: StaticGate | None = None,
    permutations: int = 200,
    block: int = 60,
    n_folds: int = 5,
    horizon: int = LABEL_HORIZON,
    seed: int = 0,
) -> PermutationResult:
    """Test whether the state of the market helps the gate against static weights.

    Rows of the state are moved in blocks within the segment, which keeps its own persistence and breaks its tie to the
    outcomes; the gate is refitted on each of the shuffled states. Gains are taken out of fold.

    Parameters
    ----------
    gate : SoftmaxGate
        Only its settings are used. With ``kl = inf`` every gain is 0 and the p-value is 1.
    stats, state
        Out-of-fold statistics and aligned state (T, S) of one segment.
    static : StaticGate, optional
        Fitted in every fold: the comparison, and the gate's prior.
    permutations, block, n_folds, horizon, seed : int
        The same seed gives the same result; `horizon` days are purged around every fold. With fewer than
        `ENOUGH_BLOCKS` blocks too few orders exist for a verdict, and the sentence says so.

    Raises
    ------
    ConfigError
        If there are no permutations, or the segment is shorter than two blocks.
    """
    count = len(stats.days)
    if permutations < 1 or block < 1 or count < 2 * block:
        raise ConfigError(
            f"{count} days, {permutations} permutations and blocks of {block} days make no test; give at least one "
            f"permutation and two blocks of days"
        )
    folds = surrounding_folds(count, n_folds, horizon)
    priors = [(static or StaticGate()).fit(stats.select(fold.train)) for fold in folds]
    gain = cross_fitted_gain(gate, stats, state, folds, priors)
    rng = np.random.default_rng(seed)
    shuffled = np.array(
        [
            cross_fitted_gain(gate, stats, state[block_permutation(count, block, rng)], folds, priors).mean()
            for _ in range(permutations)
        ]
    )
    observed = float(gain.mean())
    p_value = float((1 + (shuffled >= observed).sum()) / (1 + permutations))
    return PermutationResult(observed, shuffled, p_value, _sentence(observed, p_value, permutations, block, count))


def cross_fitted_gain(
    gate: SoftmaxGate,
    stats: SufficientStatistics,
    state: Array,
    folds: Sequence[Fold],
    priors: Sequence[StaticGate],
) -> Array:
    """Daily IC of the gate minus that of its fold's fitted static gate, each day out of fold, (T,).

    Days that no fold predicts are NaN.
    """
    gains = np.full(len(stats.days), np.nan)
    for fold, prior in zip(folds, priors, strict=True):
        held_out, held_out_state = stats.select(fold.predict), state[fold.predict]
        fitted = gate.fit(stats.select(fold.train), state[fold.train], prior.weights(state[:1])[0])
        gains[fold.predict] = composite_ic(held_out, fitted.weights(held_out_state)) - composite_ic(
            held_out, prior.weights(held_out_state)
        )
    return gains


def _sentence(gain: float, p_value: float, permutations: int, block: int, days: int) -> str:
    figures = (
        f"mean daily IC gain over static weights {gain:+.4f}, permutation p = {p_value:.3f} "
        f"({permutations} shuffles in blocks of {block} days)"
    )
    if days // block < ENOUGH_BLOCKS:
        return f"Too few days ({days // block} blocks) to tell whether the state of the market helped: {figures}."
    if p_value < 0.05:
        return f"The state of the market helped: {figures}."
    return f"No evidence that the state of the market helped: {figures}."
