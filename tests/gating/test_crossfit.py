import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlib_llm_alpha.errors import ConfigError, PanelError
from qlib_llm_alpha.gating.crossfit import cross_fit, expanding_folds, surrounding_folds
from tests.gating.small_market import trading_days


@given(count=st.integers(40, 200), n_folds=st.integers(1, 6), horizon=st.integers(0, 5), min_train=st.integers(1, 25))
def test_every_day_after_the_first_training_days_is_predicted_once_from_purged_earlier_days(
    count, n_folds, horizon, min_train
):
    folds = expanding_folds(trading_days(count), n_folds, horizon, min_train)
    assert len(folds) == n_folds
    predicted = np.sum([fold.predict for fold in folds], axis=0)
    np.testing.assert_array_equal(predicted, np.arange(count) >= min_train + horizon)
    for fold in folds:
        first = np.flatnonzero(fold.predict)[0]
        np.testing.assert_array_equal(np.flatnonzero(fold.train), np.arange(first - horizon))
    assert folds[0].train.sum() == min_train


@given(count=st.integers(30, 200), n_folds=st.integers(2, 6), horizon=st.integers(0, 4))
def test_surrounding_folds_predict_every_row_once_and_keep_their_distance(count, n_folds, horizon):
    folds = surrounding_folds(count, n_folds, horizon)
    np.testing.assert_array_equal(np.sum([fold.predict for fold in folds], axis=0), np.ones(count))
    for fold in folds:
        gaps = np.abs(np.flatnonzero(fold.train)[:, None] - np.flatnonzero(fold.predict)[None])
        assert gaps.min() == horizon + 1


@pytest.mark.parametrize("arguments", [(5, 2, 240), (0, 2, 10), (5, -1, 10), (5, 2, 0)])
def test_days_that_do_not_suffice_are_refused(arguments):
    with pytest.raises(ConfigError, match="cannot be cut"):
        expanding_folds(trading_days(100), *arguments)


@pytest.mark.parametrize(("count", "n_folds"), [(100, 1), (8, 3)])
def test_rows_that_do_not_suffice_are_refused(count, n_folds):
    with pytest.raises(ConfigError, match="cannot be cut"):
        surrounding_folds(count, n_folds)


def test_scores_of_folds_are_put_on_their_days():
    folds = expanding_folds(trading_days(20), 3, 2, 6)

    def fit_predict(train, predict):
        dates = np.flatnonzero(predict)
        return np.stack([np.tile(dates[:, None], (1, 4)), np.full((len(dates), 4), train.sum())]).astype(float)

    scores = cross_fit(folds, fit_predict)
    assert scores.shape == (2, 20, 4)
    assert np.isnan(scores[:, :8]).all()
    np.testing.assert_array_equal(scores[0, 8:, 0], np.arange(8, 20))
    np.testing.assert_array_equal(scores[1, 8:, 0], [6] * 4 + [10] * 4 + [14] * 4)


@pytest.mark.parametrize("wrong", [np.zeros((2, 4)), np.zeros((2, 3, 5)), np.zeros((3, 4, 5))])
def test_a_fold_that_gives_another_shape_is_named(wrong):
    answers = iter([np.zeros((2, 4, 5)), wrong])
    with pytest.raises(PanelError, match="fold 2"):
        cross_fit(expanding_folds(trading_days(20), 3, 2, 6), lambda train, predict: next(answers))


def test_no_folds_are_refused():
    with pytest.raises(ConfigError, match="no folds"):
        cross_fit([], lambda train, predict: np.zeros((1, 1, 1)))
