from __future__ import annotations

import numpy as np
import pandas as pd
from qlib.data.dataset.processor import CSZScoreNorm, DropnaLabel

from qlib_llm_alpha.data.processor import DailyInf, DailyZScore, DropUnlabelled


def frame_of(values: list[list[float]], group: str = "feature") -> pd.DataFrame:
    days = pd.date_range("2020-01-06", periods=len(values))
    index = pd.MultiIndex.from_product([days, list("abcd")], names=["datetime", "instrument"])
    column = pd.MultiIndex.from_tuples([(group, "x")])
    return pd.DataFrame(np.array(values, dtype=float).reshape(-1, 1), index=index, columns=column)


def treated(values: list[list[float]], group: str = "feature") -> list[list[float]]:
    result: list[list[float]] = DailyInf()(frame_of(values, group)).to_numpy().reshape(-1, 4).tolist()
    return result


INF, NAN = np.inf, np.nan


def test_infinite_values_take_the_ends_of_their_own_day() -> None:
    assert treated([[1, INF, -INF, 5], [100, 200, INF, 300]]) == [[1, 5, 1, 5], [100, 200, 300, 300]]


def test_missing_values_stay_missing() -> None:
    np.testing.assert_array_equal(treated([[NAN, INF, 2, NAN]]), [[NAN, 2, 2, NAN]])


def test_a_day_without_a_finite_value_becomes_missing() -> None:
    np.testing.assert_array_equal(treated([[INF, -INF, NAN, INF], [1, 2, 3, 4]]), [[NAN] * 4, [1, 2, 3, 4]])


def test_only_its_group_is_treated() -> None:
    assert treated([[1, INF, 2, 3]], group="label") == [[1, INF, 2, 3]]


def test_rows_in_any_order_give_the_same() -> None:
    frame = frame_of([[1, INF, -INF, 5], [7, INF, 3, 4]])
    shuffled = frame.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(DailyInf()(shuffled.copy()).sort_index(), DailyInf()(frame.copy()))


def test_prediction_is_treated_as_training_is() -> None:
    assert DailyInf().is_for_infer()


def test_the_daily_zscore_is_qlibs_up_to_rounding() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(0, 0.02, (30, 4))
    values[3, 1] = values[7] = NAN
    values[9, :3] = NAN
    frame = frame_of(values.tolist(), "label").astype(np.float32)
    expected = CSZScoreNorm(fields_group="label")(frame.copy())
    found = DailyZScore()(frame.copy())
    assert found.dtypes.tolist() == [np.dtype(np.float32)]
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5, atol=1e-6)


def test_the_daily_zscore_of_a_day_is_its_own_in_any_order_of_rows() -> None:
    frame = frame_of([[1, 2, 3, 4], [10, 30, 20, NAN]], "label")
    found = DailyZScore()(frame.sample(frac=1.0, random_state=1)).sort_index().to_numpy().reshape(2, 4)
    deviation = np.sqrt(5 / 3)
    np.testing.assert_allclose(found[0], np.array([-1.5, -0.5, 0.5, 1.5]) / deviation)
    np.testing.assert_allclose(found[1], [-1, 1, 0, NAN])


def test_the_daily_zscore_leaves_other_groups_alone() -> None:
    frame = frame_of([[1, 2, 3, 4]])
    pd.testing.assert_frame_equal(DailyZScore()(frame.copy()), frame)


def test_the_given_frame_stays_as_it_is() -> None:
    for processor, group in ((DailyInf(), "feature"), (DailyZScore(), "label")):
        given = frame_of([[1, INF, 2, 3], [5, 6, NAN, 8]], group)
        kept = given.copy()
        processor(given)
        assert processor.readonly()
        pd.testing.assert_frame_equal(given, kept)


def test_rows_without_a_label_are_dropped_as_by_qlib() -> None:
    frame = pd.concat(
        [frame_of([[1, 2, 3, 4], [5, 6, 7, 8]]), frame_of([[1, NAN, 3, 4], [NAN, 6, 7, NAN]], "label")], axis=1
    )
    given = frame.copy()
    pd.testing.assert_frame_equal(DropUnlabelled()(frame), DropnaLabel()(frame))
    pd.testing.assert_frame_equal(frame, given)
    assert DropUnlabelled().readonly()
    assert not DropUnlabelled().is_for_infer()
