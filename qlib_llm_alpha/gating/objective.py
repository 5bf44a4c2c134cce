"""What a learned gate maximises, with its gradient.

::

    mean_t g_t.c_t / sqrt(g_t' R_t g_t)  -  kl * mean_t KL(g_t || prior)
        -  smoothness * mean_t |g_t - g_{t-1}|^2  -  ridge * |W|^2,        g_t = softmax(W m_t + b)

Smoothness counts only pairs of consecutive days: rows that were dropped or masked break the chain.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.gating.sufficient import VARIANCE_FLOOR, Array, SufficientStatistics

logger = logging.getLogger(__name__)

SMALLEST_WEIGHT = 1e-12
"""A prior weight of zero is read as this much, so that its logarithm exists."""


@dataclass(frozen=True)
class Penalty:
    """How strongly a gate is held.

    Attributes
    ----------
    kl : float
        Weight of the divergence from the prior, in units of IC. About the difference of conditional ICs that it takes
        to change the odds between two experts by a factor e. ``inf`` leaves the prior as it is.
    smoothness : float
        Weight of the squared change of the weights from one day to the next.
    ridge : float
        Weight of the squared entries of W.

    Raises
    ------
    ConfigError
        If a value is negative or not a number, or one other than `kl` is infinite.
    """

    kl: float
    smoothness: float = 0.0
    ridge: float = 0.0

    def __post_init__(self) -> None:
        values = (self.kl, self.smoothness, self.ridge)
        if any(np.isnan(value) or value < 0 for value in values) or np.isinf(values[1:]).any():
            raise ConfigError(
                f"penalty {self!r} is not valid; every value must be at least 0, and only kl may be infinite "
                f"(which leaves the prior as it is)"
            )


@dataclass(frozen=True, eq=False)
class GateProblem:
    """One fit: statistics, prepared state and penalties. Parameters are W (K, S) and b (K,), flattened in that order.

    Attributes
    ----------
    stats : SufficientStatistics
    state : array, (T, S)
        Finite. S = 0 makes it the problem of a static gate.
    prior : array, (K,)
    penalty : Penalty
        `kl` must be finite here.
    """

    stats: SufficientStatistics
    state: Array
    prior: Array
    penalty: Penalty

    @cached_property
    def days_last(self) -> tuple[Array, Array]:
        """Statistics laid out for the fit: c as (K, T) and R as (K, K, T), contiguous in the days."""
        return np.ascontiguousarray(self.stats.c.T), np.ascontiguousarray(self.stats.R.transpose(1, 2, 0))

    def start(self) -> Array:
        """Parameters at which the gate is the prior."""
        experts, features = self.stats.experts, self.state.shape[1]
        return np.concatenate([np.zeros(experts * features), log_weights(self.prior)])

    def unpack(self, parameters: Array) -> tuple[Array, Array]:
        """Split flat parameters into W (K, S) and b (K,)."""
        experts, features = self.stats.experts, self.state.shape[1]
        return parameters[: experts * features].reshape(experts, features), parameters[experts * features :]

    def value_and_gradient(self, parameters: Array) -> tuple[float, Array]:
        """Objective (to be maximised) and its gradient with respect to the flat parameters."""
        matrix, bias = self.unpack(parameters)
        # Days run along the last axis here: sums over a short last axis would take most of the time of a fit.
        logits = matrix @ self.state.T + bias[:, None]
        logits -= logits.max(axis=0)
        odds = np.exp(logits)
        total = odds.sum(axis=0)
        g, log_g = odds / total, logits - np.log(total)
        value, by_weight = self.value_by_weight(g, log_g)
        # Jacobian of the softmax, applied from the left.
        by_logit = g * (by_weight - (g * by_weight).sum(axis=0))
        value -= self.penalty.ridge * float((matrix**2).sum())
        by_matrix = by_logit @ self.state - 2 * self.penalty.ridge * matrix
        return value, np.concatenate([by_matrix.ravel(), by_logit.sum(axis=1)])

    def value_by_weight(self, g: Array, log_g: Array) -> tuple[float, Array]:
        """Objective without ridge, and its gradient with respect to the weights; all of shape (K, T)."""
        count = g.shape[1]
        c, correlations = self.days_last
        risk = np.einsum("klt,lt->kt", correlations, g)
        variance = (g * risk).sum(axis=0)
        floored = variance <= VARIANCE_FLOOR
        deviation = np.sqrt(np.where(floored, VARIANCE_FLOOR, variance))
        ic = (g * c).sum(axis=0) / deviation
        # On the floor the denominator is a constant.
        slope = np.where(floored, 0.0, ic / deviation**2)
        by_weight = (c / deviation - slope * risk) / count

        divergence = log_g - log_weights(self.prior)[:, None]
        value = float(ic.mean()) - self.penalty.kl * float((g * divergence).sum()) / count
        # The constant 1 of the derivative of g log g vanishes in the softmax Jacobian; it is kept because the gradient
        # with respect to the weights is public.
        by_weight -= self.penalty.kl * (divergence + 1.0) / count

        if self.penalty.smoothness > 0:
            step = np.diff(g, axis=1) * (np.diff(self.stats.positions) == 1)
            value -= self.penalty.smoothness * float((step**2).sum()) / count
            by_step = 2 * self.penalty.smoothness * step / count
            by_weight[:, 1:] -= by_step
            by_weight[:, :-1] += by_step
        return value, by_weight


def maximise(problem: GateProblem, max_iterations: int = 200) -> tuple[Array, Array]:
    """Fit W (K, S) and b (K,) by L-BFGS from the prior; deterministic, one start.

    The problem is divided by `kl` where that exceeds 1, so that a heavy penalty does not ruin the step length.
    """
    scale = max(1.0, problem.penalty.kl)

    def negative(parameters: Array) -> tuple[float, Array]:
        value, gradient = problem.value_and_gradient(parameters)
        return -value / scale, -gradient / scale

    result: Any = minimize(
        negative,
        problem.start(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": max_iterations, "ftol": 1e-8, "gtol": 1e-6},
    )
    logger.debug(
        "gate fit: %s, start at the prior, %d iterations, objective %.6f, %s",
        problem.penalty,
        result.nit,
        -result.fun * scale,
        result.message,
    )
    return problem.unpack(np.asarray(result.x, dtype=np.float64))


def log_softmax(logits: Array) -> Array:
    """Logarithm of the softmax over the last axis, without overflow."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def log_weights(weights: NDArray[np.float64]) -> Array:
    """Logarithm of weights, floored at `SMALLEST_WEIGHT`."""
    return np.log(np.maximum(weights, SMALLEST_WEIGHT))
