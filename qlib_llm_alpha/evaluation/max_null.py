"""What the best of many candidates looks like when none of them is any good.

The daily IC of a candidate without merit is as often above zero as below. Its signs may therefore be turned, a block of
days at a time so that what neighbouring days share stays together, and all candidates at once so that what candidates
share stays together too. The largest ``|t|`` of many such turnings is what chance offers to whoever picks the best.

A candidate's ``t`` is taken from the sums of its blocks, ``sum(S) / sqrt(sum(S^2))``. Turning signs leaves the
denominator alone, so that the distribution of the maximum is exact for block sums that are independent and symmetric,
whatever their variance, and needs no estimate of autocorrelation beyond the length of a block. A series that keeps its
sign for weeks, or is very skewed, breaks that: with an autocorrelation of 0.6 one worthless run in eight has p below
0.05.

NaN rule: a day without an IC adds nothing to its block. A candidate with values in fewer than ``FEWEST_BLOCKS`` blocks
has no ``t``, and its p is 1.

References
----------
Westfall and Young (1993), *Resampling-Based Multiple Testing*, for the step-down maximum; Romano and Wolf (2005),
"Exact and approximate stepdown methods for multiple hypothesis testing", JASA 100; Canay, Romano and Shaikh (2017),
"Randomization tests under an approximate symmetry assumption", Econometrica 85, for turning signs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from qlib_llm_alpha.errors import ConfigError, PanelError
from qlib_llm_alpha.evaluation.many_trials import sidak_p

Array = NDArray[np.float64]

BLOCK = 10
"""Days of a block: two trading weeks, longer than the overlap of any label up to that horizon."""

FEWEST_BLOCKS = 8
_COLUMNS_AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class MaxNull:
    """A family of candidates against the maximum that chance offers.

    Parameters
    ----------
    t : array, (K,)
        From block sums; NaN where there is too little.
    p : array, (K,)
        Two-sided p of each candidate alone: exact for normal block sums.
    adjusted_p : array, (K,)
        Two-sided p among all K, step-down: the chance that the best of those not better than this one would reach its
        ``|t|`` if none had merit. Admitting at most ``alpha`` admits anything worthless in at most ``alpha`` of runs.
    run_p : float
        The smallest of them: the p of the run. 1 without candidates.
    sidak_p : float
        The same from the smallest ``p`` and ``effective``, by Sidak's formula.
    effective : float
        Number of independent candidates whose maximum would have the same median.
    critical_t : float
        The ``|t|`` from which a run's best candidate is beyond chance at 0.05.
    blocks, draws : int
    """

    t: Array = field(repr=False)
    p: Array = field(repr=False)
    adjusted_p: Array = field(repr=False)
    run_p: float
    sidak_p: float
    effective: float
    critical_t: float
    blocks: int
    draws: int


def max_null(series: Array, *, block: int = BLOCK, draws: int = 2000, seed: int = 0) -> MaxNull:
    """Compare every candidate with the best that chance offers to this family.

    Parameters
    ----------
    series : array, (T, K)
        Daily IC (or any daily gain whose mean is 0 without merit) of every candidate that was scored, the rejected ones
        included. Rows are consecutive days of the search segment.
    block : int
        Days whose signs turn together; at least the label's horizon.
    draws : int
        Turnings; the smallest p is ``1 / (draws + 1)``.
    seed : int

    Returns
    -------
    MaxNull

    Raises
    ------
    PanelError
        Not (T, K), or infinite values.
    ConfigError
        A block or number of draws below 1, or fewer than ``FEWEST_BLOCKS`` blocks of days.
    """
    scaled, t, filled = _scaled_block_sums(series, block, draws, seed)
    blocks = len(scaled)
    known = ~np.isnan(t)
    p = np.ones(len(t))
    p[known] = _p_of_t(t[known], filled[known])
    order = np.flatnonzero(known)[np.argsort(np.abs(t[known]), kind="stable")]
    signs = _signs(blocks, draws, seed)
    best = np.zeros(draws)
    reached = np.empty(len(order))
    for start, turned in _turned(scaled[:, order], signs):
        # Candidate by candidate from the weakest: the best of it and of all that are weaker.
        np.abs(turned, out=turned)
        np.maximum(turned[:, 0], best, out=turned[:, 0])
        np.maximum.accumulate(turned, axis=1, out=turned)
        best = turned[:, -1].copy()
        part = order[start : start + turned.shape[1]]
        reached[start : start + turned.shape[1]] = (turned >= np.abs(t[part]) * (1 - 1e-12)).sum(axis=0)
    adjusted = np.ones(len(t))
    # From the strongest down a p is never smaller than that of a stronger candidate.
    adjusted[order] = np.maximum.accumulate(((1.0 + reached) / (1.0 + draws))[::-1])[::-1]
    effective = _effective(best, blocks, len(order), two_sided=True) if len(order) else 0.0
    run_p = float(adjusted.min(initial=1.0))
    smallest = float(p.min(initial=1.0))
    return MaxNull(
        t=t,
        p=p,
        adjusted_p=adjusted,
        run_p=run_p,
        sidak_p=sidak_p(smallest, max(effective, 1.0)) if len(order) else 1.0,
        effective=effective,
        critical_t=float(np.quantile(best, 0.95)) if len(order) else float("nan"),
        blocks=blocks,
        draws=draws,
    )


def effective_trials(
    series: Array, *, two_sided: bool = True, block: int = BLOCK, draws: int = 1000, seed: int = 0
) -> float:
    """Return the number of independent trials whose best would look like the best of these correlated ones.

    Parameters
    ----------
    series : array, (T, K)
        Daily IC, or daily returns, of every trial.
    two_sided : bool
        True: best means the largest ``|t|``, each trial counts as one. False: the largest ``t``; give each series once
        for each sign that was tried.
    block, draws, seed
        As in :func:`max_null`.

    Returns
    -------
    float
        ``N`` with ``(1 - p)^N = 1/2``, where ``p`` is the chance that a single trial passes the median of the
        maximum that turned signs give; at most K, and 1 or more apart from the error of drawing. A trial with
        too few days to be compared counts as one. 0 without a trial.
    """
    scaled, t, _ = _scaled_block_sums(series, block, draws, seed)
    kept = scaled[:, ~np.isnan(t)]
    alone = len(t) - int(kept.shape[1])
    if not kept.shape[1]:
        return float(alone)
    best = np.full(draws, -np.inf)
    for _, turned in _turned(kept, _signs(len(scaled), draws, seed)):
        best = np.maximum(best, (np.abs(turned) if two_sided else turned).max(axis=1))
    return _effective(best, len(scaled), kept.shape[1], two_sided=two_sided) + float(alone)


def _scaled_block_sums(series: Array, block: int, draws: int, seed: int) -> tuple[Array, Array, Array]:
    """Return the block sums over their norm, (B, K), their sum, which is ``t``, and how many blocks have a value."""
    values = np.asarray(series, dtype=np.float64)
    if values.ndim != 2 or np.isinf(values).any():
        raise PanelError(
            f"series has shape {values.shape}; expected (days, candidates) without infinite values; stack one column "
            "for each candidate"
        )
    if block < 1 or draws < 1 or seed < 0:
        raise ConfigError(
            f"block is {block!r}, draws {draws!r} and seed {seed!r}; expected 1 or more of the first two, and no "
            "negative seed; 10, 2000 and 0 are usual"
        )
    if values.shape[1] == 0:
        return np.empty((0, 0)), np.empty(0), np.empty(0)
    starts = np.arange(0, len(values), block)
    if len(starts) < FEWEST_BLOCKS:
        raise ConfigError(
            f"{len(values)} days make {len(starts)} blocks of {block}; expected at least {FEWEST_BLOCKS}; score "
            "a longer segment or take shorter blocks"
        )
    known = ~np.isnan(values)
    sums = np.add.reduceat(np.where(known, values, 0.0), starts, axis=0)
    filled = (np.add.reduceat(known, starts, axis=0, dtype=np.int64) > 0).sum(axis=0)
    norm = np.sqrt(np.sum(sums**2, axis=0))
    usable = (filled >= FEWEST_BLOCKS) & (norm > 0)
    scaled = np.divide(sums, norm, out=np.zeros_like(sums), where=usable)
    return scaled, np.where(usable, scaled.sum(axis=0), np.nan), filled.astype(np.float64)


def _signs(blocks: int, draws: int, seed: int) -> Array:
    drawn: Array = np.random.default_rng(seed).choice(np.array([-1.0, 1.0]), size=(draws, blocks))
    return drawn


def _turned(scaled: Array, signs: Array) -> Iterator[tuple[int, Array]]:
    """Give ``t`` under every turning, (draws, columns), a few columns at a time."""
    for start in range(0, scaled.shape[1], _COLUMNS_AT_ONCE):
        yield start, signs @ scaled[:, start : start + _COLUMNS_AT_ONCE]


def _p_of_t(t: Array, blocks: Array | float) -> Array:
    """Return the two-sided p: with the mean known to be 0, this ``t`` follows from Student's with one block less."""
    room = np.maximum(blocks - t**2, 1e-12)
    p: Array = 2.0 * stats.t.sf(np.abs(t) * np.sqrt((blocks - 1) / room), blocks - 1)
    return p


def _effective(best: Array, blocks: int, trials: int, *, two_sided: bool) -> float:
    middle = float(np.median(best))
    p = float(_p_of_t(np.array([middle]), float(blocks))[0])
    if not two_sided:
        p = p / 2 if middle > 0 else 1 - p / 2
    found = float(np.log(0.5) / np.log1p(-p)) if 0 < p < 1 else (1.0 if p >= 1 else float("inf"))
    return min(found, float(trials))
