"""Gates: from the state of the market to weights over the experts.

A gate is a frozen value. `fit` returns a fitted copy whose learned numbers are public attributes, so it pickles as it
is.
Weights dated t use the state dated t and outcomes dated s <= t - 2; the score they make is traded at t + 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np

from qlib_llm_alpha.errors import ConfigError, PanelError
from qlib_llm_alpha.evaluation.walls import LABEL_HORIZON
from qlib_llm_alpha.gating.objective import GateProblem, Penalty, log_softmax, log_weights, maximise
from qlib_llm_alpha.gating.sufficient import (
    Array,
    Days,
    SufficientStatistics,
    trailing_observable_ic,
)

T = TypeVar("T")

STATIC_PENALTY = Penalty(kl=0.02)
SOFTMAX_PENALTY = Penalty(kl=0.05, smoothness=1.0, ridge=0.01)


class Gate(Protocol):
    """What every gate can do."""

    def fit(self, stats: SufficientStatistics, state: Array, prior: Array | None = None) -> Gate:
        """Return a fitted copy.

        Parameters
        ----------
        stats : SufficientStatistics
            Of out-of-fold scores, purged of the last two days before the next segment.
        state : array, (T, S)
            Standardised market state of the statistics' days, row by row.
        prior : array, (K,), optional
            Weights to be held to. A gate that takes none ignores it.
        """
        ...

    def weights(self, state: Array, days: Days | None = None, outcomes: SufficientStatistics | None = None) -> Array:
        """Weights (T, K), not negative, each row summing to 1.

        Parameters
        ----------
        state : array, (T, S)
            Standardised market state of the decision days.
        days : datetime64[D] array, (T,), optional
            Decision days; needed by gates that watch outcomes.
        outcomes : SufficientStatistics, optional
            Outcomes so far; a gate reads those dated at least two trading days before the decision.
        """
        ...


@dataclass(frozen=True, eq=False)
class EqualGate:
    """The floor: 1/K on every expert, whatever happens. `experts` is learned."""

    experts: int | None = None

    def fit(self, stats: SufficientStatistics, state: Array, prior: Array | None = None) -> EqualGate:
        """Remember the number of experts."""
        return replace(self, experts=stats.experts)

    def weights(self, state: Array, days: Days | None = None, outcomes: SufficientStatistics | None = None) -> Array:
        """Equal weights (T, K)."""
        experts = _fitted(self.experts)
        return np.full((len(state), experts), 1.0 / experts)


@dataclass(frozen=True, eq=False)
class StaticGate:
    """One set of weights for all days: the softmax gate without a state, and the prior of the gates with one.

    Held to equal weights by a divergence penalty. With the default of 0.02 an expert whose marginal IC is 0.02 above
    another's gets about e times its weight; the standard error of a mean IC over four years is about 0.003, which
    moves a weight by a sixth at most, and an expert of pure noise ends below 1/K as long as the others carry signal.

    Attributes
    ----------
    penalty : Penalty
        Only `kl` acts: there is no W, and weights do not change from day to day. ``inf`` is the equal gate.
    top_m : int, optional
        Keep the m largest weights, renormalised.
    learned : array, (K,), optional
        Weights before `top_m`.
    """

    penalty: Penalty = STATIC_PENALTY
    top_m: int | None = None
    learned: Array | None = None

    def __post_init__(self) -> None:
        _check_top_m(self.top_m)

    def fit(self, stats: SufficientStatistics, state: Array | None = None, prior: Array | None = None) -> StaticGate:
        """Learn the weights; `state` is not read, `prior` (K,) defaults to equal weights."""
        _check_days(stats)
        anchor = _prior(prior, stats.experts)
        if np.isinf(self.penalty.kl):
            return replace(self, learned=anchor)
        _, bias = maximise(GateProblem(stats, np.empty((len(stats.days), 0)), anchor, self.penalty))
        return replace(self, learned=np.exp(log_softmax(bias)))

    def weights(self, state: Array, days: Days | None = None, outcomes: SufficientStatistics | None = None) -> Array:
        """Repeat the learned weights for each row of `state`."""
        return np.tile(keep_largest(_fitted(self.learned), self.top_m), (len(state), 1))


@dataclass(frozen=True, eq=False)
class TrailingICGate:
    """Softmax of each expert's trailing observable IC; learns nothing but the number of experts.

    Attributes
    ----------
    window : int
        Outcomes averaged, at most.
    temperature : float
        Difference of trailing ICs that changes the odds by a factor e.
    min_days : int
        With fewer observable outcomes the weights are equal.
    top_m : int, optional
        Keep the m largest weights, renormalised.
    experts : int, optional
        Learned.
    """

    window: int = 60
    temperature: float = 0.02
    min_days: int = 20
    top_m: int | None = None
    experts: int | None = None

    def __post_init__(self) -> None:
        _check_top_m(self.top_m)
        if not self.temperature > 0 or self.window < 1:
            raise ConfigError(
                f"temperature {self.temperature!r} and window {self.window!r} must be above 0: the weights are a "
                f"softmax of the mean IC over the window divided by the temperature"
            )

    def fit(self, stats: SufficientStatistics, state: Array, prior: Array | None = None) -> TrailingICGate:
        """Remember the number of experts."""
        return replace(self, experts=stats.experts)

    def weights(self, state: Array, days: Days | None = None, outcomes: SufficientStatistics | None = None) -> Array:
        """Weights (T, K) from outcomes dated at least two trading days before each decision day."""
        experts = _fitted(self.experts)
        if days is None or outcomes is None:
            raise ConfigError("the trailing gate was given no days or no outcomes; pass both to weights()")
        if outcomes.experts != experts:
            raise PanelError(f"outcomes hold {outcomes.experts} experts; the gate was fitted on {experts}")
        trailing = trailing_observable_ic(outcomes, days, self.window, self.min_days, LABEL_HORIZON)
        logits = np.where(np.isnan(trailing), 0.0, trailing) / self.temperature
        return keep_largest(np.exp(log_softmax(logits)), self.top_m)


@dataclass(frozen=True, eq=False)
class SoftmaxGate:
    """``softmax(W m_t + b)``: log-odds between experts are linear in the market state.

    A missing state value counts as its mean (0 after standardising), and state values are clipped to `clip` deviations,
    so that a state never seen before cannot drive the weights to a corner. ``kl = inf`` is exactly the prior.

    Attributes
    ----------
    penalty : Penalty
        Chosen by `qlib_llm_alpha.gating.ladder` on the tune segment.
    top_m : int, optional
        Keep the m largest weights of each day, renormalised. It acts on `weights`, not on the fit.
    clip : float
        Bound on the absolute value of the standardised state.
    prior : array, (K,), optional
        Learned: what the gate was held to.
    matrix : array, (K, S), optional
        Learned: W.
    bias : array, (K,), optional
        Learned: b.
    """

    penalty: Penalty = SOFTMAX_PENALTY
    top_m: int | None = None
    clip: float = 3.0
    prior: Array | None = None
    matrix: Array | None = None
    bias: Array | None = None

    def __post_init__(self) -> None:
        _check_top_m(self.top_m)
        if not self.clip > 0:
            raise ConfigError(f"clip is {self.clip!r}; it bounds the standardised state and must be above 0")

    def fit(self, stats: SufficientStatistics, state: Array, prior: Array | None = None) -> SoftmaxGate:
        """Learn W and b; without a prior the gate is held to a `StaticGate` fitted on the same days."""
        _check_days(stats)
        if state.ndim != 2 or len(state) != len(stats.days):
            raise PanelError(
                f"state has shape {state.shape!r}; expected one row for each of the {len(stats.days)} days of the "
                f"statistics (use SufficientStatistics.align)"
            )
        anchor = StaticGate().fit(stats).learned if prior is None else prior
        anchor = _prior(anchor, stats.experts)
        if np.isinf(self.penalty.kl):
            matrix, bias = np.zeros((stats.experts, state.shape[1])), log_weights(anchor)
        else:
            matrix, bias = maximise(GateProblem(stats, self.prepared(state), anchor, self.penalty))
        return replace(self, prior=anchor, matrix=matrix, bias=bias)

    def weights(self, state: Array, days: Days | None = None, outcomes: SufficientStatistics | None = None) -> Array:
        """Weights (T, K) from the state alone."""
        return keep_largest(self.dense_weights(state), self.top_m)

    def dense_weights(self, state: Array) -> Array:
        """Weights (T, K) before `top_m`."""
        prior, matrix, bias = _fitted(self.prior), _fitted(self.matrix), _fitted(self.bias)
        if state.ndim != 2 or state.shape[1] != matrix.shape[1]:
            raise PanelError(f"state has shape {state.shape!r}; the gate was fitted on {matrix.shape[1]} features")
        if np.isinf(self.penalty.kl):
            return np.tile(prior, (len(state), 1))
        return np.asarray(np.exp(log_softmax(self.prepared(state) @ matrix.T + bias)))

    def prepared(self, state: Array) -> Array:
        """State (T, S) as the gate reads it: NaN to 0, clipped."""
        return np.clip(np.where(np.isnan(state), 0.0, state), -self.clip, self.clip)


def keep_largest(weights: Array, top_m: int | None) -> Array:
    """Keep the `top_m` largest weights of each row, renormalised; ties go to the expert that comes first."""
    if top_m is None or top_m >= weights.shape[-1]:
        return weights
    order = np.argsort(-weights, axis=-1, kind="stable")[..., :top_m]
    kept = np.zeros_like(weights)
    np.put_along_axis(kept, order, np.take_along_axis(weights, order, axis=-1), axis=-1)
    return np.asarray(kept / kept.sum(axis=-1, keepdims=True))


def _fitted(value: T | None) -> T:
    if value is None:
        raise ConfigError("the gate has not been fitted; call fit(stats, state) and use what it returns")
    return value


def _prior(prior: Array | None, experts: int) -> Array:
    if prior is None:
        return np.full(experts, 1.0 / experts)
    if prior.shape != (experts,) or not np.isfinite(prior).all() or (prior < 0).any() or prior.sum() <= 0:
        raise PanelError(f"prior {prior!r} is not valid; expected {experts} finite weights of at least 0")
    # Weights that sum to 1 already are not touched: an infinite penalty must return the prior to the last bit.
    return prior if abs(prior.sum() - 1.0) < 1e-12 else np.asarray(prior / prior.sum())


def _check_days(stats: SufficientStatistics) -> None:
    if len(stats.days) == 0:
        raise PanelError(
            f"no day has enough names to fit a gate ({stats.dropped} were dropped); widen the segment or the universe"
        )


def _check_top_m(top_m: int | None) -> None:
    if top_m is not None and top_m < 1:
        raise ConfigError(f"top_m is {top_m!r}; give the number of experts to keep, at least 1, or leave it out")
