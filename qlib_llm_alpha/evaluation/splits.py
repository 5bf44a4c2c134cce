"""Splits of a calendar into training and test rows, purged by the timing rule.

The timing rule: features of row ``s`` use bars up to the close of ``s``; the label of row ``s`` uses prices up to row
``s + horizon`` and is known at its close (horizon 2 for Qlib's ``Ref($close,-2)/Ref($close,-1)-1``). The label's
interval is therefore ``[s, s + horizon]``, in rows of the calendar, which is in trading days.

What is dropped from training around a test block of rows ``a`` to ``b``, and why:

=================================  ==================================================================================
rows                               reason
=================================  ==================================================================================
``a - horizon`` to ``a - 1``       their labels reach into the test block: not known when the test begins, and made
                                   of returns that test features have seen or test labels hold
``b + 1`` to ``b + horizon``       the last test labels reach over these rows: same returns on both sides
the next ``embargo`` rows          nothing overlaps, but look-back windows of features there hold test days, and
                                   returns have memory; how much is the caller's choice (López de Prado: 1 percent)
=================================  ==================================================================================

The first is what ``Walls.purged`` does at the end of a segment. The others matter only where training goes on after the
test, as in :func:`combinatorial_purged`.

Labels of the last ``horizon`` test rows are known only after the test block: a figure dated by its signal is too.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.engine.panel import Days, as_days
from qlib_llm_alpha.errors import ConfigError

Rows = NDArray[np.intp]

MAX_SPLITS = 100_000


@dataclass(frozen=True, eq=False)
class Split:
    """Rows to fit on and rows to judge by, both increasing, read-only positions in the calendar.

    ``groups`` are the numbers of the test groups of a combinatorial split; a walk-forward fold has its own number.
    """

    train: Rows
    test: Rows
    groups: tuple[int, ...]

    def __post_init__(self) -> None:
        self.train.setflags(write=False)
        self.test.setflags(write=False)


@dataclass(frozen=True, eq=False)
class CombinatorialSplits:
    """Every choice of test groups out of the groups, each a :class:`Split`, and the paths they join to.

    ``group_of`` (T,) is the group of each row. Splits are in lexical order of their groups.
    """

    group_of: Rows
    splits: tuple[Split, ...]

    def paths(self) -> Rows:
        """Join the test blocks to backtest paths that cover every day once.

        Returns
        -------
        array, (P, T)
            ``paths()[p, t]`` is the split whose test holds row ``t`` in path ``p``. With C(g, k) splits of k out of g
            groups there are ``P = C(g, k) k / g`` paths: each group is tested so often, and path ``p`` takes the
            ``p``-th time. With predictions (S, T) of all splits, those of path p are
            ``predictions[paths[p], np.arange(T)]``.

        References
        ----------
        López de Prado (2018), "Advances in Financial Machine Learning", chapter 12.
        """
        groups = int(self.group_of.max()) + 1
        testing = [[number for number, split in enumerate(self.splits) if g in split.groups] for g in range(groups)]
        of_group: Rows = np.array(testing, dtype=np.intp).T
        return of_group[:, self.group_of]


def purged_walk_forward(
    days: Days,
    *,
    train: int,
    test: int,
    horizon: int,
    embargo: int = 0,
    expanding: bool = False,
    step: int | None = None,
) -> tuple[Split, ...]:
    """Split a calendar into folds that train on the past and test on what comes after.

    Parameters
    ----------
    days : array, (T,) datetime64[D]
        Trading days.
    train : int
        Rows in a training window, after purging; in the first one when ``expanding``.
    test : int
        Rows in a test block.
    horizon : int
        Trading days after which a label is known: that many rows lie between training and test.
    embargo : int
        Further rows between them. Nothing is trained on after a test block, so this is the only place for a margin.
    expanding : bool
        Start every training window at row 0 instead of rolling it.
    step : int, optional
        Rows from one test block to the next; None takes ``test``, which tests every row from the first test day on
        exactly once. Smaller ones overlap, larger ones leave gaps.

    Returns
    -------
    tuple of Split
        In order of time; rows at the end that do not fill a test block are left out.

    Raises
    ------
    ConfigError
        Settings that mean nothing, or too few days for one fold.
    """
    stride = test if step is None else step
    if min(train, test, stride) < 1 or min(horizon, embargo) < 0:
        raise ConfigError(
            f"train is {train!r}, test {test!r}, step {step!r}, horizon {horizon!r} and embargo {embargo!r}; expected "
            "at least 1 for the first three and 0 or more for the others; correct them"
        )
    rows, gap = len(as_days(days)), horizon + embargo
    starts = range(train + gap, rows - test + 1, stride)
    if not starts:
        raise ConfigError(
            f"there are {rows} days; expected at least {train + gap + test} for a training window of {train}, a gap of "
            f"{gap} and a test block of {test}; load more days or shorten the windows"
        )
    return tuple(
        Split(
            np.arange(0 if expanding else start - gap - train, start - gap),
            np.arange(start, start + test),
            (number,),
        )
        for number, start in enumerate(starts)
    )


def combinatorial_purged(
    days: Days, *, groups: int, test_groups: int, horizon: int, embargo: int = 0
) -> CombinatorialSplits:
    """Split a calendar into groups and test every choice of ``test_groups`` of them, training on the rest.

    Training rows lie on both sides of the test, so no path is what a trader could have had: this shows how far a figure
    depends on the one history that happened, not what would have been earned.

    Parameters
    ----------
    days : array, (T,) datetime64[D]
        Trading days.
    groups : int
        Stretches of neighbouring days, of equal length, the first ones a day longer where T does not divide.
    test_groups : int
        Groups in a test, 1 to ``groups - 1``. Neighbouring test groups make one block.
    horizon, embargo : int
        Rows dropped from training around each test block, as the table of this module says.

    Returns
    -------
    CombinatorialSplits

    Raises
    ------
    ConfigError
        Settings that mean nothing, more than :data:`MAX_SPLITS` splits, or a split of which no training row remains.

    References
    ----------
    López de Prado (2018), "Advances in Financial Machine Learning", chapters 7 and 12.
    """
    rows = len(as_days(days))
    if not 1 <= test_groups < groups <= rows or min(horizon, embargo) < 0:
        raise ConfigError(
            f"groups is {groups!r}, test_groups {test_groups!r}, horizon {horizon!r} and embargo {embargo!r} for "
            f"{rows} days; expected 1 <= test_groups < groups <= days, and 0 or more for the others; correct them"
        )
    if comb(groups, test_groups) > MAX_SPLITS:
        raise ConfigError(
            f"{test_groups} of {groups} groups make {comb(groups, test_groups)} splits; expected at most {MAX_SPLITS}; "
            "take fewer groups"
        )
    members = np.array_split(np.arange(rows), groups)
    group_of = np.repeat(np.arange(groups), [len(rows_of) for rows_of in members])
    splits = []
    for chosen in combinations(range(groups), test_groups):
        near = np.zeros(rows, dtype=np.bool_)
        for group in chosen:
            first, last = members[group][0], members[group][-1]
            near[max(0, first - horizon) : last + 1 + horizon + embargo] = True
        kept = np.flatnonzero(~near)
        if not len(kept):
            raise ConfigError(
                f"testing groups {chosen!r} of {groups} leaves no training row after purging {horizon} before, "
                f"{horizon + embargo} after; expected at least one; take fewer groups or load more days"
            )
        splits.append(Split(kept, np.concatenate([members[group] for group in chosen]), chosen))
    group_of.setflags(write=False)
    return CombinatorialSplits(group_of, tuple(splits))
