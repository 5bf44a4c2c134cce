from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from qlib_llm_alpha.data.embedded.in_memory import market_panel
from qlib_llm_alpha.data.embedded.simulate import label, planted_factors, simulate
from qlib_llm_alpha.engine.funnel import prepare_label
from qlib_llm_alpha.engine.scoring import ic_series
from qlib_llm_alpha.engine.tile_scoring import PreparedLabel, Universe, score_columns
from qlib_llm_alpha.engine.tiles import TiledPanel, tiled
from qlib_llm_alpha.errors import ConfigError, PanelError
from qlib_llm_alpha.evaluation.nulls import (
    credited,
    draw_shifts,
    shifted_label,
    shifted_prepared_label,
    shuffled_across,
    shuffled_prepared_label,
)
from qlib_llm_alpha.factor.expression import parse

LABEL = parse("Ref($close,-2)/Ref($close,-1)-1", allow_future=True)
DAYS = 260


def noise(seed: int, days: int = DAYS, names: int = 30) -> NDArray[np.float64]:
    drawn: NDArray[np.float64] = np.random.default_rng(seed).standard_normal((days, names))
    return drawn


def mean_ic(score: NDArray[np.float64], outcome: NDArray[np.float64]) -> float:
    return float(np.nanmean(ic_series(score, outcome)))


# --- credit ----------------------------------------------------------------------------------------------------------


def test_a_credit_is_what_can_be_worked_out_by_hand() -> None:
    credit = credited(0.03, [0.01, -0.01, 0.02, 0.0], name="mean IC", null_name="labels moved in time")
    assert credit.median == pytest.approx(0.005)
    assert credit.gain == pytest.approx(0.025)
    assert credit.p == pytest.approx(1 / 5)
    assert credit.p_two_sided == pytest.approx(2 / 5)
    assert credit.draws == 4
    assert credit.sentence == (
        "Mean IC: 0.03; labels moved in time: median 0.005 of 4; gain +0.025, one-sided p 0.2, two-sided 0.4."
    )


def test_draws_that_tie_with_the_figure_count_against_it() -> None:
    assert credited(1.0, [1.0, 0.0, 2.0]).p == pytest.approx(3 / 4)


def test_draws_without_a_value_are_left_out() -> None:
    assert credited(1.0, [np.nan, 0.0]) == credited(1.0, [0.0])


def test_a_figure_that_is_missing_has_no_gain_and_no_evidence() -> None:
    credit = credited(float("nan"), [0.0, 1.0])
    assert np.isnan(credit.gain)
    assert credit.p == credit.p_two_sided == 1.0


def test_a_null_without_a_draw_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected one draw at least"):
        credited(1.0, [np.nan])


@given(
    st.lists(st.floats(-10, 10), min_size=1, max_size=30),
    st.floats(-10, 10),
    st.floats(0, 5),
)
def test_a_larger_figure_has_no_smaller_gain_and_no_larger_p(null: list[float], observed: float, more: float) -> None:
    low, high = credited(observed, null), credited(observed + more, null)
    assert high.gain >= low.gain
    assert high.p <= low.p
    assert 0 < low.p <= 1
    assert low.p_two_sided <= 1


# --- values shuffled across a day -------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 40))
def test_each_day_keeps_its_values_its_gaps_and_those_who_are_no_members(seed: int, days: int, names: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((days, names))
    values[rng.random(values.shape) < 0.2] = np.nan
    member = rng.random(values.shape) < 0.8
    shuffled = shuffled_across(values, member, seed=seed)
    assert np.array_equal(np.isnan(shuffled), np.isnan(values))
    assert np.array_equal(shuffled[~member], values[~member], equal_nan=True)
    for before, after, there in zip(values, shuffled, member, strict=True):
        assert np.array_equal(np.sort(before[there]), np.sort(after[there]), equal_nan=True)


def test_every_order_of_a_day_is_as_likely_and_days_differ() -> None:
    values = np.tile(np.arange(3.0), (6000, 1))
    orders = shuffled_across(values, seed=1)
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 0.001


def test_the_engines_tiles_are_shuffled_day_by_day_across_all_tiles() -> None:
    dense = np.tile(np.arange(70, dtype=np.float32), (5, 1))
    column = tiled(dense, np.float32(np.nan), dense.shape)
    member = tiled(np.ones(dense.shape, dtype=np.bool_), False, dense.shape)
    shuffled = shuffled_across(column, member, seed=4)
    assert shuffled.dtype == np.float32
    assert shuffled.flags.c_contiguous
    assert np.array_equal(np.isnan(shuffled), np.isnan(column))
    assert np.array_equal(np.sort(shuffled, axis=None), np.sort(column, axis=None), equal_nan=True)
    by_day = np.moveaxis(shuffled, 1, 0).reshape(5, -1)[:, :70]
    assert np.array_equal(np.sort(by_day, axis=1), dense)
    assert (by_day[:, :32] >= 32).any()
    assert not np.array_equal(by_day[0], by_day[1])


def test_the_same_seed_shuffles_alike() -> None:
    values = noise(1, 10)
    assert np.array_equal(shuffled_across(values, seed=3), shuffled_across(values, seed=3))
    assert not np.array_equal(shuffled_across(values, seed=3), shuffled_across(values, seed=4))


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(PanelError, match="align them"):
        shuffled_across(np.zeros((3, 4)), np.ones((3, 5), dtype=np.bool_), seed=0)
    with pytest.raises(PanelError, match="align them"):
        shuffled_across(np.zeros(3), seed=0)


# --- labels moved in time ---------------------------------------------------------------------------------------------


def test_a_label_moves_round_the_corner_and_its_gap_with_it() -> None:
    outcome = np.array([[1.0], [2.0], [3.0], [4.0], [np.nan]])
    assert shifted_label(outcome, 2)[:, 0].tolist()[:2] == [3.0, 4.0]
    # T - shift - horizon = 2 is the row without a label now.
    assert np.flatnonzero(np.isnan(shifted_label(outcome, 2)[:, 0])).tolist() == [2]


@given(st.integers(10, 300), st.integers(1, 30), st.integers(1, 5), st.integers(0, 1000))
def test_no_drawn_shift_brings_a_label_near_its_own_day(n_days: int, count: int, minimum: int, seed: int) -> None:
    shifts = draw_shifts(n_days, count, minimum, seed)
    assert len(np.unique(shifts)) == len(shifts) == min(count, n_days - 2 * minimum + 1)
    row = np.arange(n_days)
    for shift in shifts.tolist():
        source = shifted_label(row[:, None].astype(np.float64), shift, minimum=minimum)[:, 0]
        away = np.abs(source - row)
        assert np.minimum(away, n_days - away).min() >= minimum


def test_shifts_that_would_be_too_near_are_refused() -> None:
    with pytest.raises(ConfigError, match="take one of draw_shifts"):
        shifted_label(np.zeros((10, 2)), 8, minimum=3)
    with pytest.raises(ConfigError, match="leave no shift"):
        draw_shifts(9, 5, 5, 0)
    with pytest.raises(ConfigError, match="expected 1 or more of both"):
        draw_shifts(9, 0, 1, 0)


def prepared(outcome: NDArray[np.float64], member: NDArray[np.bool_] | None = None) -> PreparedLabel:
    column = tiled(outcome.astype(np.float32), np.float32(np.nan), outcome.shape)
    mask = None if member is None else tiled(member, False, outcome.shape)
    return PreparedLabel.of(column, Universe.of(mask, column.shape, outcome.shape[1]))


def test_a_prepared_label_moves_as_the_label_itself_does() -> None:
    rng = np.random.default_rng(2)
    outcome, score = noise(1, 60, 40), noise(2, 60, 40)
    outcome[rng.random(outcome.shape) < 0.1] = np.nan
    score[rng.random(score.shape) < 0.1] = np.nan
    rows = slice(10, 55)
    moved = shifted_prepared_label(prepared(outcome), rows, 7)
    by_hand = np.full_like(outcome, np.nan)
    by_hand[rows] = shifted_label(outcome[rows], 7)
    column = tiled(score.astype(np.float32), np.float32(np.nan), score.shape)[None]
    ours, expected = (score_columns(column, one, threads=1)[0] for one in (moved, prepared(by_hand)))
    for name in ("ic", "rank_ic", "names", "spread", "turnover", "coverage"):
        assert np.array_equal(getattr(ours, name), getattr(expected, name), equal_nan=True), name


def test_only_those_who_are_members_on_both_days_count() -> None:
    member = np.ones((60, 40), dtype=np.bool_)
    member[:30, :10] = False
    member[30:, 30:] = False
    moved = shifted_prepared_label(prepared(noise(1, 60, 40), member), slice(0, 60), 30)
    score = tiled(noise(2, 60, 40).astype(np.float32), np.float32(np.nan), (60, 40))
    daily = score_columns(score[None], moved, threads=1)[0]
    assert set(daily.names.tolist()) == {20}


def test_days_outside_the_segment_keep_no_label() -> None:
    moved = shifted_prepared_label(prepared(noise(1, 60, 40)), slice(20, 50), 10)
    assert np.flatnonzero(moved.count).tolist() == list(range(20, 50))
    assert np.isnan(moved.values[:20]).all()
    assert not moved.known[50:].any()
    with pytest.raises(ConfigError, match="expected 1; give a plain range"):
        shifted_prepared_label(prepared(noise(1, 60, 40)), slice(0, 60, 2), 10)
    with pytest.raises(ConfigError, match="shift is 30 of 30 days"):
        shifted_prepared_label(prepared(noise(1, 60, 40)), slice(20, 50), 30)


# --- what they are for ------------------------------------------------------------------------------------------------


def test_a_planted_factor_is_credited_over_both_nulls_and_shuffled_values_are_not() -> None:
    market = simulate("planted", 60, "2018-01-02", "2019-12-31", 11)
    outcome = label(market)
    factor = planted_factors(market)["overnight_fade"]
    shifts = draw_shifts(len(outcome) - 2, 60, 20, 1)
    moved = [mean_ic(factor[:-2], shifted_label(outcome[:-2], int(shift))) for shift in shifts]
    shuffled = [mean_ic(shuffled_across(factor, market.listed, seed=seed), outcome) for seed in range(60)]
    observed = mean_ic(factor, outcome)
    assert credited(observed, moved).p == pytest.approx(1 / 61)
    assert credited(observed, shuffled).p == pytest.approx(1 / 61)
    assert credited(observed, shuffled).gain == pytest.approx(observed, abs=0.01)
    worthless = mean_ic(shuffled_across(factor, market.listed, seed=999), outcome)
    assert credited(worthless, moved).p_two_sided > 0.05
    assert credited(worthless, shuffled).p_two_sided > 0.05


def test_labels_of_a_market_in_memory_move_within_the_search_rows() -> None:
    panel: TiledPanel = market_panel(simulate("planted", 40, "2018-01-02", "2018-12-28", 3))
    ready = prepare_label(LABEL, panel, threads=1)
    rows = slice(60, len(panel.days) - 2)
    moved = shifted_prepared_label(ready, rows, 40, minimum=30)
    assert (moved.count[rows] > 0).all()
    assert np.array_equal(np.sort(moved.count[rows]), np.sort(ready.count[rows]))


def test_where_nothing_is_to_be_found_p_is_uniform() -> None:
    def p(seed: int) -> float:
        # Both persist, so that a test which took days for independent would reject too often.
        score, outcome = np.cumsum(noise(2 * seed, 150), axis=0), noise(2 * seed + 1, 150)
        moved = [mean_ic(score, shifted_label(outcome, int(shift))) for shift in draw_shifts(150, 39, 10, seed)]
        return credited(mean_ic(score, outcome), moved).p

    found = np.array([p(seed) for seed in range(80)])
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert (found <= 0.05).mean() < 0.125


def test_a_shuffled_label_has_each_days_labels_on_other_names_and_the_same_gaps() -> None:
    rng = np.random.default_rng(3)
    column = rng.normal(size=(2, 30, 32)).astype(np.float32)
    column[rng.random(column.shape) < 0.2] = np.nan
    label = PreparedLabel.of(column)
    found = shuffled_prepared_label(label, seed=1)
    np.testing.assert_array_equal(np.isnan(found.values), np.isnan(label.values))
    np.testing.assert_array_equal(found.count, label.count)
    moved = 0
    for day in range(30):
        there = ~np.isnan(label.values[day])
        np.testing.assert_array_equal(np.sort(found.values[day, there]), np.sort(label.values[day, there]))
        # A value keeps its rank wherever it goes.
        assert dict(zip(found.values[day, there], found.ranks[day, there], strict=True)) == dict(
            zip(label.values[day, there], label.ranks[day, there], strict=True)
        )
        moved += int((found.values[day, there] != label.values[day, there]).sum())
    assert moved > 30 * 40
    again = shuffled_prepared_label(label, seed=1)
    np.testing.assert_array_equal(again.ranks, found.ranks)
    assert (shuffled_prepared_label(label, seed=2).ranks != found.ranks).any()
