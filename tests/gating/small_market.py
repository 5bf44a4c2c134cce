"""Small made-up scores, labels and states for the gating tests."""

from __future__ import annotations

import numpy as np

from qlib_llm_alpha.gating.sufficient import Array, Days, SufficientStatistics


def trading_days(count: int, start: str = "2019-01-02") -> Days:
    return np.arange(count) + np.datetime64(start, "D")


def switching_market(
    seed: int, days: int = 600, names: int = 60, strength: float = 0.10, base: float = 0.04
) -> tuple[Array, Array, Array]:
    """Scores (3, T, N), label (T, N) and state (T, 2): the first state says which of experts 0 and 1 works now.

    The third expert is noise; the second state is noise too.
    """
    rng = np.random.default_rng(seed)
    state = np.stack([np.sin(np.arange(days) / 40.0) * np.sqrt(2), rng.standard_normal(days)], axis=1)
    scores = rng.standard_normal((3, days, names))
    first, second = base + strength * state[:, 0], base - strength * state[:, 0]
    label = first[:, None] * scores[0] + second[:, None] * scores[1] + rng.standard_normal((days, names))
    return scores, label, state


def statistics_of(scores: Array, label: Array, min_names: int = 10) -> SufficientStatistics:
    return SufficientStatistics.from_scores(scores, label, trading_days(label.shape[0]), min_names=min_names)


def random_statistics(seed: int, days: int = 40, experts: int = 4, mean: float = 0.02) -> SufficientStatistics:
    """Statistics drawn directly: correlated experts, one constant expert on one day, one missing day."""
    rng = np.random.default_rng(seed)
    loadings = rng.standard_normal((days, experts, experts + 2))
    loadings /= np.linalg.norm(loadings, axis=2, keepdims=True)
    matrices = loadings @ loadings.transpose(0, 2, 1)
    c = mean + 0.1 * rng.standard_normal((days, experts))
    c[3, 1], matrices[3, 1, :], matrices[3, :, 1], matrices[3, 1, 1] = 0.0, 0.0, 0.0, 1.0
    positions = np.arange(days) + (np.arange(days) >= days // 2)
    return SufficientStatistics(trading_days(days), c, matrices, positions, trading_days(0))
