from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qlib_llm_alpha.errors import ConfigError, PanelError
from qlib_llm_alpha.evaluation.splits import combinatorial_purged, purged_walk_forward
from qlib_llm_alpha.evaluation.walls import Walls


def calendar(days: int) -> np.ndarray:
    return np.arange(np.datetime64("2020-01-01"), np.datetime64("2020-01-01") + days)


def labels_overlap(train_row: int, test_row: int, horizon: int) -> bool:
    """Whether the intervals [row, row + horizon] of two labels share a day."""
    return bool(set(range(train_row, train_row + horizon + 1)) & set(range(test_row, test_row + horizon + 1)))


# Walk-forward


def test_walk_forward_by_hand() -> None:
    folds = purged_walk_forward(calendar(12), train=4, test=2, horizon=2)
    assert [(fold.train.tolist(), fold.test.tolist()) for fold in folds] == [
        ([0, 1, 2, 3], [6, 7]),
        ([2, 3, 4, 5], [8, 9]),
        ([4, 5, 6, 7], [10, 11]),
    ]
    assert [fold.groups for fold in folds] == [(0,), (1,), (2,)]


def test_an_expanding_window_keeps_its_beginning_and_an_embargo_widens_the_gap() -> None:
    folds = purged_walk_forward(calendar(12), train=4, test=2, horizon=2, embargo=1, expanding=True)
    assert [(fold.train.tolist(), fold.test.tolist()) for fold in folds] == [
        ([0, 1, 2, 3], [7, 8]),
        ([0, 1, 2, 3, 4, 5], [9, 10]),
    ]


def test_a_step_moves_the_test_block() -> None:
    folds = purged_walk_forward(calendar(10), train=3, test=3, horizon=0, step=1)
    assert [fold.test[0] for fold in folds] == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("horizon", [0, 1, 2, 5])
def test_training_ends_where_the_walls_purge_it(horizon: int) -> None:
    days = calendar(40)
    for fold in purged_walk_forward(days, train=10, test=6, horizon=horizon, expanding=True):
        first, last = fold.test[0], fold.test[-1]
        walls = Walls.from_segments({"train": (days[0], days[first - 1]), "valid": (days[first], days[last])})
        assert np.array_equal(fold.train, np.flatnonzero(walls.purged(days, "train", horizon)))


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 8), st.integers(0, 6), st.integers(0, 4), st.booleans())
@settings(max_examples=100, deadline=None)
def test_no_training_label_is_unknown_when_a_test_begins(
    days: int, train: int, test: int, horizon: int, embargo: int, expanding: bool
) -> None:
    assume(days >= train + test + horizon + embargo)
    folds = purged_walk_forward(
        calendar(days), train=train, test=test, horizon=horizon, embargo=embargo, expanding=expanding
    )
    for fold in folds:
        assert (fold.train + horizon + embargo < fold.test[0]).all()
        assert not labels_overlap(int(fold.train[-1]), int(fold.test[0]), horizon)
        assert len(fold.train) == train or (expanding and len(fold.train) > train)
    tested = np.concatenate([fold.test for fold in folds])
    assert np.array_equal(tested, np.arange(train + horizon + embargo, tested[-1] + 1))
    assert days - test <= tested[-1] < days


@pytest.mark.parametrize("expanding", [False, True])
@pytest.mark.parametrize(("horizon", "embargo"), [(0, 0), (2, 0), (2, 3)])
def test_walk_forward_equals_that_of_skfolio(horizon: int, embargo: int, expanding: bool) -> None:
    # The conventions coincide where skfolio's purge is horizon + embargo and blocks do not overlap.
    selection = pytest.importorskip("skfolio.model_selection", reason="skfolio is not installed")
    witness = selection.WalkForward(test_size=7, train_size=20, purged_size=horizon + embargo, expand_train=expanding)
    expected = [(train.tolist(), test.tolist()) for train, test in witness.split(np.zeros((75, 1)))]
    folds = purged_walk_forward(calendar(75), train=20, test=7, horizon=horizon, embargo=embargo, expanding=expanding)
    assert [(fold.train.tolist(), fold.test.tolist()) for fold in folds] == expected


# Combinatorial


def test_combinatorial_by_hand() -> None:
    made = combinatorial_purged(calendar(12), groups=4, test_groups=2, horizon=1, embargo=1)
    assert [(split.groups, split.train.tolist(), split.test.tolist()) for split in made.splits] == [
        ((0, 1), [8, 9, 10, 11], [0, 1, 2, 3, 4, 5]),
        ((0, 2), [11], [0, 1, 2, 6, 7, 8]),
        ((0, 3), [5, 6, 7], [0, 1, 2, 9, 10, 11]),
        ((1, 2), [0, 1, 11], [3, 4, 5, 6, 7, 8]),
        ((1, 3), [0, 1], [3, 4, 5, 9, 10, 11]),
        ((2, 3), [0, 1, 2, 3, 4], [6, 7, 8, 9, 10, 11]),
    ]
    assert made.group_of.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_paths_by_hand() -> None:
    # Splits test the groups 01, 02, 03, 12, 13, 23; group 2, say, is tested by the splits 1, 3 and 5.
    made = combinatorial_purged(calendar(8), groups=4, test_groups=2, horizon=0)
    assert made.paths()[:, ::2].tolist() == [[0, 0, 1, 2], [1, 3, 3, 4], [2, 4, 5, 5]]


@given(st.integers(2, 7), st.integers(1, 6), st.integers(20, 80), st.integers(0, 3), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_every_day_is_tested_equally_often_and_no_label_is_on_both_sides(
    groups: int, test_groups: int, days: int, horizon: int, embargo: int
) -> None:
    assume(test_groups < groups and days // groups > 2 * horizon + embargo)
    made = combinatorial_purged(
        calendar(days), groups=groups, test_groups=test_groups, horizon=horizon, embargo=embargo
    )
    assert len(made.splits) == comb(groups, test_groups)
    times = np.zeros(days, dtype=int)
    for split in made.splits:
        times[split.test] += 1
        apart = split.train[:, None] - split.test[None, :]
        assert not np.any(np.abs(apart) <= horizon)
        assert not np.any((apart > 0) & (apart <= horizon + embargo))
        dropped = np.setdiff1d(np.arange(days), np.union1d(split.train, split.test))
        for row in dropped:
            near = row - split.test
            assert np.any((np.abs(near) <= horizon) | ((near > 0) & (near <= horizon + embargo)))
    count = comb(groups, test_groups) * test_groups // groups
    assert (times == count).all()
    paths = made.paths()
    assert paths.shape == (count, days)
    for day in range(days):
        assert sorted(paths[:, day]) == [n for n, split in enumerate(made.splits) if day in split.test]


@pytest.mark.parametrize(("horizon", "embargo"), [(0, 0), (2, 0), (2, 3), (0, 4)])
@pytest.mark.parametrize(("groups", "test_groups"), [(4, 2), (6, 2), (6, 3), (6, 5)])
def test_combinatorial_splits_equal_those_of_skfolio(groups: int, test_groups: int, horizon: int, embargo: int) -> None:
    # The conventions coincide where T divides by the groups (skfolio gives the rest to the last one): its purge is our
    # horizon, on both sides of a test block, and its embargo ours.
    selection = pytest.importorskip("skfolio.model_selection", reason="skfolio is not installed")
    witness = selection.CombinatorialPurgedCV(
        n_folds=groups, n_test_folds=test_groups, purged_size=horizon, embargo_size=embargo
    )
    expected = [
        (train.tolist(), np.concatenate(tests).tolist()) for train, tests in witness.split(np.zeros((groups * 20, 1)))
    ]
    made = combinatorial_purged(
        calendar(groups * 20), groups=groups, test_groups=test_groups, horizon=horizon, embargo=embargo
    )
    assert [(split.train.tolist(), split.test.tolist()) for split in made.splits] == expected
    assert len(made.paths()) == witness.n_test_paths
    ids = witness.get_path_ids()
    for path, of_day in enumerate(made.paths()):
        for number, split in enumerate(made.splits):
            at = [k for k, group in enumerate(split.groups) if of_day[group * 20] == number]
            assert [k for k in range(test_groups) if ids[number, k] == path] == at


def test_two_of_six_groups_make_fifteen_splits_and_five_paths() -> None:
    # The published example: López de Prado (2018), figure 12.1.
    made = combinatorial_purged(calendar(60), groups=6, test_groups=2, horizon=2)
    assert (len(made.splits), len(made.paths())) == (15, 5)


def test_one_test_group_is_purged_cross_validation_with_one_path() -> None:
    made = combinatorial_purged(calendar(11), groups=3, test_groups=1, horizon=1)
    assert [split.test.tolist() for split in made.splits] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert made.splits[1].train.tolist() == [0, 1, 2, 9, 10]
    assert made.paths().tolist() == [made.group_of.tolist()]


def test_rows_cannot_be_changed() -> None:
    split = combinatorial_purged(calendar(9), groups=3, test_groups=1, horizon=0).splits[0]
    with pytest.raises(ValueError, match="read-only"):
        split.train[0] = 5


# Refusals


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"train": 0}, "train is 0"),
        ({"step": 0}, "step 0"),
        ({"horizon": -1}, "horizon -1"),
        ({"train": 20}, "there are 20 days; expected at least 24"),
    ],
)
def test_walk_forward_settings_that_mean_nothing_are_refused(setting: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        purged_walk_forward(calendar(20), **{"train": 5, "test": 2, "horizon": 2, **setting})


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"groups": 1}, "groups is 1"),
        ({"test_groups": 4}, "test_groups 4"),
        ({"embargo": -1}, "embargo -1"),
        ({"groups": 20, "test_groups": 10}, "184756 splits"),
        ({"horizon": 9}, r"testing groups \(0, 2\) of 4 leaves no training row"),
    ],
)
def test_combinatorial_settings_that_mean_nothing_are_refused(setting: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        combinatorial_purged(calendar(20), **{"groups": 4, "test_groups": 2, "horizon": 0, **setting})


def test_days_out_of_order_are_refused() -> None:
    with pytest.raises(PanelError, match="strictly increasing"):
        purged_walk_forward(calendar(20)[::-1], train=5, test=2, horizon=2)
