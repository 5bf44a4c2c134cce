"""Nulls: what a selector finds where nothing can be found. Only the gain over them is credited.

========================  ===========================================================================
null                      what it keeps, and what it destroys
========================  ===========================================================================
values shuffled           each day's values and gaps; which instrument has which value
labels moved in time      persistence of scores and of labels, every cross-section; which day follows. What pays
                          always, to instruments that are always the same, survives, and so is not credited
random formulas           size, operators, windows, turnover (``mining.random_formulas``); the idea
noise market              everything but the plants (``data.embedded``, kind ``noise``)
========================  ===========================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.engine.tile_scoring import PreparedLabel
from qlib_llm_alpha.errors import ConfigError, PanelError

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
_Float = TypeVar("_Float", np.float32, np.float64)


@dataclass(frozen=True)
class Credit:
    """A figure, and what of it remains when a null's is deducted.

    Parameters
    ----------
    name, null_name : str
        What was measured, and against what.
    observed, median : float
        The figure, and the median of the null's.
    gain : float
        ``observed - median``: what may be credited.
    p : float
        One-sided: ``(1 + draws that reach the figure) / (1 + draws)``.
    p_two_sided : float
        Twice the smaller of the two one-sided ones, at most 1.
    draws : int
        Figures of the null.
    """

    name: str
    null_name: str
    observed: float
    median: float
    gain: float
    p: float
    p_two_sided: float
    draws: int

    @property
    def sentence(self) -> str:
        """The same for people."""
        return (
            f"{self.name[:1].upper()}{self.name[1:]}: {self.observed:.4g}; {self.null_name}: median {self.median:.4g} "
            f"of {self.draws}; gain {self.gain:+.4g}, one-sided p {self.p:.3g}, two-sided {self.p_two_sided:.3g}."
        )


def credited(
    observed: float,
    null: Array | Sequence[float],
    *,
    name: str = "the figure",
    null_name: str = "the null",
) -> Credit:
    """Credit a figure with its gain over a null.

    Parameters
    ----------
    observed : float
        Larger is better.
    null : array, (D,)
        The same figure where nothing can be found, one for each draw; NaN left out.
    name, null_name : str
        For the sentence.

    Returns
    -------
    Credit
        The figure itself counts among the draws, so that p is never 0 and a test at alpha errs in at most alpha of
        cases when the figure and the draws are exchangeable. A figure that is NaN has gain NaN and p 1.

    Raises
    ------
    ConfigError
        No draw with a value.

    References
    ----------
    Phipson and Smyth (2010), "Permutation p-values should never be zero", SAGMB 9.
    """
    draws = np.asarray(null, dtype=np.float64).ravel()
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        raise ConfigError(f"null has no value ({null_name!r}); expected one draw at least; 20 are few, 200 are usual")
    median = float(np.median(draws))
    if np.isnan(observed):
        return Credit(name, null_name, float("nan"), median, float("nan"), 1.0, 1.0, len(draws))
    above, below = (
        float(1 + count) / (1 + len(draws)) for count in ((draws >= observed).sum(), (draws <= observed).sum())
    )
    return Credit(
        name=name,
        null_name=null_name,
        observed=float(observed),
        median=median,
        gain=float(observed) - median,
        p=above,
        p_two_sided=min(1.0, 2.0 * min(above, below)),
        draws=len(draws),
    )


def shuffled_across(values: NDArray[_Float], member: Mask | None = None, *, seed: int) -> NDArray[_Float]:
    """Permute values across the members of each day.

    Parameters
    ----------
    values : array, (T, N), or (tiles, T, LANES) as the engine keeps a column
        Row ``t`` is known at the close of day ``t``; so is what is returned.
    member : array of bool, the same shape, optional
        Who takes part; None: everyone.
    seed : int
        Every day has a permutation of its own. Columns with the same gaps and the same seed are permuted alike, which
        keeps how they move together; give each its own seed to break that too.

    Returns
    -------
    array, the same shape and type
        Members with a value on a day have those values in another order; NaN stays where it was, and what does not
        belong to a member stays as it was.

    Raises
    ------
    PanelError
        Shapes that do not fit.
    """
    if values.ndim not in (2, 3) or (member is not None and member.shape != values.shape):
        shape = None if member is None else member.shape
        raise PanelError(
            f"values have shape {values.shape} and member {shape}; expected (T, N) or (tiles, T, LANES) of both; "
            "align them"
        )
    known = ~np.isnan(values) if member is None else member & ~np.isnan(values)
    # Days first, so that the cells of a day lie together.
    by_day = np.moveaxis(values, -2, 0)
    cells = np.nonzero(np.moveaxis(known, -2, 0))
    key = np.random.default_rng(seed).random(len(cells[0]))
    order = np.lexsort((key, cells[0]))
    shuffled = by_day.copy()
    shuffled[cells] = by_day[tuple(axis[order] for axis in cells)]
    return np.ascontiguousarray(np.moveaxis(shuffled, 0, -2))


def draw_shifts(n_days: int, count: int, minimum: int, seed: int) -> NDArray[np.int64]:
    """Draw by how many days labels are moved.

    Parameters
    ----------
    n_days : int
        Length of the segment.
    count : int
        Distinct shifts wanted.
    minimum : int
        Each shift ``s`` has ``minimum <= s <= n_days - minimum``: round the corner, too, a label is at least that many
        days away from its own. Take more than the label's horizon and the longest look-back that should not leak.
    seed : int

    Returns
    -------
    array, (count,) int
        Increasing; all there are, when these are fewer.

    Raises
    ------
    ConfigError
        A segment that is too short for any shift.
    """
    if minimum < 1 or count < 1:
        raise ConfigError(
            f"minimum is {minimum!r} and count {count!r}; expected 1 or more of both; 60 and 20 are usual"
        )
    possible = np.arange(minimum, n_days - minimum + 1)
    if not len(possible):
        raise ConfigError(
            f"{n_days} days leave no shift of at least {minimum} days both ways; expected {2 * minimum} days or more; "
            "take a longer segment or a smaller minimum"
        )
    chosen = np.random.default_rng(seed).choice(possible, size=min(count, len(possible)), replace=False)
    return np.sort(chosen).astype(np.int64)


def shifted_label(label: NDArray[_Float], shift: int, *, minimum: int = 1) -> NDArray[_Float]:
    """Move a label in time, round the corner.

    Parameters
    ----------
    label : array, (T, N)
    shift : int
        Row ``t`` gets the label of row ``t + shift``, and the last ``shift`` rows those of the first.
    minimum : int
        The least distance, either way.

    Returns
    -------
    array, (T, N)
        The rows that had no label, the last ``horizon`` of a segment, are now rows ``T - shift - horizon`` to
        ``T - shift - 1``; no other row becomes NaN. Nothing can be learnt from it about the days it is put on, but
        each cross-section, and the order of days but for one seam, is that of the label.

    Raises
    ------
    ConfigError
        A shift nearer than ``minimum``.
    """
    _check_shift(shift, len(label), minimum)
    return np.roll(label, -shift, axis=0)


def shifted_prepared_label(label: PreparedLabel, rows: slice, shift: int, *, minimum: int = 1) -> PreparedLabel:
    """Move a label that is ranked already, within some rows.

    Parameters
    ----------
    label : PreparedLabel
        Over all days of the panel.
    rows : slice
        The segment within which labels are moved; labels outside it are neither used nor kept.
    shift, minimum : int
        As for :func:`shifted_label`, in days of the segment.

    Returns
    -------
    PreparedLabel
        Over all days; without a label outside ``rows``. A name counts on a day when it is a member of that day and was
        one on the day that the label comes from.
    """
    begin, end, step = rows.indices(len(label.values))
    if step != 1:
        raise ConfigError(f"rows {rows!r} have step {step}; expected 1; give a plain range of rows")
    _check_shift(shift, end - begin, minimum)
    order = np.roll(np.arange(begin, end), -shift)
    values, ranks = np.full_like(label.values, np.nan), np.zeros_like(label.ranks)
    known, count = np.zeros_like(label.known), np.zeros_like(label.count)
    values[begin:end], ranks[begin:end] = label.values[order], label.ranks[order]
    known[begin:end], count[begin:end] = label.known[order], label.count[order]
    return PreparedLabel(values, ranks, known, count, label.universe)


def shuffled_prepared_label(label: PreparedLabel, *, seed: int) -> PreparedLabel:
    """Give each day's labels to other instruments of that day, at random, in a label that is ranked already.

    Who has no label keeps none. To candidates that are scored against it, it is as if their own values had been
    shuffled across instruments, all of them alike, so that what candidates share stays.
    """
    rng = np.random.default_rng(seed)
    values, ranks = label.values.copy(), label.ranks.copy()
    for day in range(len(ranks)):
        names = np.flatnonzero(ranks[day])
        drawn = rng.permutation(names)
        values[day, names], ranks[day, names] = label.values[day, drawn], label.ranks[day, drawn]
    return PreparedLabel(values, ranks, label.known, label.count, label.universe)


def _check_shift(shift: int, days: int, minimum: int) -> None:
    if not minimum <= shift <= days - minimum:
        raise ConfigError(
            f"shift is {shift!r} of {days} days; expected {minimum} to {days - minimum}, so that no label is nearer to "
            "its own day; take one of draw_shifts"
        )
