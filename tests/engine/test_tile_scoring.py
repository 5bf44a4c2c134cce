from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qlib_llm_alpha.engine import scoring, tile_scoring
from qlib_llm_alpha.engine.tile_scoring import (
    Pool,
    PreparedLabel,
    Summary,
    UnitRows,
    Universe,
    by_regime,
    exact_correlation,
    score_columns,
    score_horizons,
)
from qlib_llm_alpha.engine.tiles import tiled
from qlib_llm_alpha.errors import PanelError

Array = NDArray[np.float64]
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]


def columns(
    seed: int,
    *,
    days: int = 14,
    names: int = 40,
    missing: float = 0.15,
    decimals: int = 1,
    special: bool = True,
) -> tuple[Floats, Floats, Mask]:
    """A factor, a label and a membership, (T, N): ties, infinities, both zeros, constant and empty days."""
    rng = np.random.default_rng(seed)
    factor = np.round(rng.standard_normal((days, names)), decimals)
    label = np.where(rng.random((days, names)) < 0.3, 0.0, np.round(rng.standard_normal((days, names)) / 50, 3))
    label += 0.01 * factor * (rng.random() < 0.5)
    factor[rng.random(factor.shape) < missing] = np.nan
    label[rng.random(label.shape) < missing] = np.nan
    member = rng.random((days, names)) < 0.9
    if special:
        factor[rng.random(factor.shape) < 0.03] = np.inf
        factor[rng.random(factor.shape) < 0.03] = -np.inf
        factor[rng.random(factor.shape) < 0.05] = -0.0
        factor[rng.random(factor.shape) < 0.05] = 0.0
        factor[1] = 3.3
        label[2] = -0.1
        factor[3, 8:] = np.nan
        factor[4] = np.nan
        member[5] = False
    return factor.astype(np.float32), label.astype(np.float32), member


def as_tiles(values: NDArray[np.generic], fill: object = np.nan) -> NDArray[np.generic]:
    return tiled(values, fill, values.shape)


def prepared(label: Floats, member: Mask | None) -> PreparedLabel:
    mask = None if member is None else as_tiles(member, False)
    return PreparedLabel.of(as_tiles(label), mask, instruments=label.shape[1])


def as_scoring_wants(values: Floats, member: Mask) -> Array:
    return np.where(np.isfinite(values) & member, values, np.nan).astype(np.float64)


def assert_close(mine: Array | None, other: Array) -> None:
    assert mine is not None
    np.testing.assert_allclose(mine, other, rtol=0, atol=1e-12)


@given(st.integers(0, 100_000), st.sampled_from([3, 12, 31, 32, 33, 70, 200]), st.sampled_from([0.0, 0.02, 0.2, 0.6]))
@settings(max_examples=60, deadline=None)
def test_every_measure_agrees_with_the_float64_definition(seed: int, names: int, missing: float) -> None:
    factor, label, member = columns(seed, names=names, missing=missing, decimals=seed % 4)
    score, target = as_scoring_wants(factor, member), as_scoring_wants(label, member)
    daily = score_columns(as_tiles(factor)[None], prepared(label, member))[0]
    assert_close(daily.ic, scoring.ic_series(score, target))
    assert_close(daily.rank_ic, scoring.rank_ic_series(score, target))
    assert_close(daily.autocorrelation, scoring.rank_autocorrelation(score))
    assert_close(daily.turnover, scoring.turnover(score))
    assert_close(daily.spread, scoring.long_short_returns(score, target))
    assert_close(daily.coverage, scoring.coverage(score, member))
    np.testing.assert_array_equal(daily.names, np.sum(~np.isnan(score) & ~np.isnan(target), axis=1))


@given(st.integers(0, 100_000), st.integers(2, 12), st.sampled_from([0.1, 0.5, 1, 3, 1000]), st.integers(2, 10))
@settings(max_examples=25, deadline=None)
def test_settings_mean_what_they_mean_in_the_float64_definition(
    seed: int, min_names: int, top: float, quantiles: int
) -> None:
    factor, label, member = columns(seed, names=20)
    score, target = as_scoring_wants(factor, member), as_scoring_wants(label, member)
    daily = score_columns(
        as_tiles(factor)[None],
        prepared(label, member),
        min_names=min_names,
        top=top,
        quantiles=quantiles,
    )[0]
    assert_close(daily.ic, scoring.ic_series(score, target, min_names=min_names))
    assert_close(daily.rank_ic, scoring.rank_ic_series(score, target, min_names=min_names))
    assert_close(daily.turnover, scoring.turnover(score, top, min_names=min_names))
    assert_close(daily.spread, scoring.long_short_returns(score, target, quantiles=quantiles, min_names=min_names))


@given(st.integers(0, 100_000))
@settings(max_examples=15, deadline=None)
def test_ic_and_rank_ic_agree_with_pandas(seed: int) -> None:
    factor, label, member = columns(seed, special=False)
    daily = score_columns(as_tiles(factor)[None], prepared(label, member))[0]
    score, target = pd.DataFrame(as_scoring_wants(factor, member)), pd.DataFrame(as_scoring_wants(label, member))
    joint = score.notna() & target.notna()
    score, target = score.where(joint), target.where(joint)
    assert_close(daily.ic, score.corrwith(target, axis=1).to_numpy())
    ranks = score.rank(axis=1).corrwith(target.rank(axis=1), axis=1)
    assert_close(daily.rank_ic, ranks.to_numpy())


def test_infinite_values_and_those_of_other_names_count_as_missing() -> None:
    factor, label, member = columns(1, special=False)
    spoilt = factor.copy()
    spoilt[3, 5], factor[3, 5] = np.inf, np.nan
    spoilt[3, 6], factor[3, 6] = -np.inf, np.nan
    member[4, 7] = False
    spoilt[4, 7] = 1e30
    plain, other = score_columns(
        np.stack([as_tiles(factor), as_tiles(spoilt)]),
        prepared(label, member),
    )
    for name in ("ic", "rank_ic", "autocorrelation", "turnover", "spread", "coverage", "names"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(other, name))


def test_coverage_counts_the_instruments_and_not_the_lanes_behind_them() -> None:
    factor = np.ones((2, 40), dtype=np.float32)
    factor[1, :10] = np.nan
    daily = score_columns(as_tiles(factor)[None], prepared(factor, None), measures="ic")[0]
    np.testing.assert_array_equal(daily.coverage, [1.0, 0.75])
    assert daily.rank_ic is None
    assert daily.turnover is None


def test_the_number_of_threads_changes_no_bit() -> None:
    made = [columns(seed, days=700, names=130) for seed in range(3)]
    values = np.stack([as_tiles(factor) for factor, _, _ in made])
    label = prepared(made[0][1], made[0][2])
    for one, two in zip(
        score_columns(values, label, threads=1),
        score_columns(values, label, threads=2),
        strict=True,
    ):
        for name in ("ic", "rank_ic", "autocorrelation", "turnover", "spread", "coverage", "names"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_blocks_of_days_leave_no_seam() -> None:
    factor, label, member = columns(5, days=2600, names=33)
    score, target = as_scoring_wants(factor, member), as_scoring_wants(label, member)
    daily = score_columns(as_tiles(factor)[None], prepared(label, member))[0]
    assert_close(daily.rank_ic, scoring.rank_ic_series(score, target))
    assert_close(daily.autocorrelation, scoring.rank_autocorrelation(score))
    assert_close(daily.turnover, scoring.turnover(score))


@given(st.integers(0, 100_000), st.integers(6, 12))
@settings(max_examples=15, deadline=None)
def test_a_day_does_not_depend_on_later_days_nor_on_those_before_yesterday(seed: int, day: int) -> None:
    factor, label, member = columns(seed)
    changed = columns(seed + 1)[0]
    changed[day - 1 : day + 1] = factor[day - 1 : day + 1]
    whole, other = score_columns(
        np.stack([as_tiles(factor), as_tiles(changed)]),
        prepared(label, member),
    )
    for name in ("ic", "rank_ic", "autocorrelation", "turnover", "spread", "coverage"):
        np.testing.assert_array_equal(getattr(whole, name)[day], getattr(other, name)[day])


def test_rows_are_scored_as_if_there_were_no_others() -> None:
    factor, label, member = columns(8)
    values = as_tiles(factor)[None]
    part = score_columns(values, prepared(label, member), rows=slice(6, 12))[0]
    alone = score_columns(
        np.ascontiguousarray(values[:, :, 6:12]),
        prepared(label[6:12], member[6:12]),
    )[0]
    for name in ("ic", "rank_ic", "autocorrelation", "turnover", "spread", "coverage", "names"):
        np.testing.assert_array_equal(getattr(part, name), getattr(alone, name))
    assert part.autocorrelation is not None
    assert np.isnan(part.autocorrelation[0])


@given(st.integers(0, 100_000))
@settings(max_examples=15, deadline=None)
def test_without_numba_the_numbers_are_the_same(seed: int) -> None:
    factor, label, member = columns(seed)
    values = as_tiles(factor)[None]
    fast = score_columns(values, prepared(label, member))[0]
    rows = UnitRows.of(values, prepared(label, member).universe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tile_scoring, "HAVE_NUMBA", False)
        slow = score_columns(values, prepared(label, member))[0]
        plain = UnitRows.of(values, prepared(label, member).universe)
        likeness = plain.mean_correlation(plain)
        horizons = score_horizons(values, {1: prepared(label, member)})[0]
        daily = exact_correlation(values[0], as_tiles(label), prepared(label, member).universe)
    for name in ("ic", "rank_ic", "autocorrelation", "turnover", "spread", "coverage", "names"):
        assert_close(getattr(fast, name), getattr(slow, name))
    np.testing.assert_allclose(rows.values, plain.values, atol=1e-6)
    np.testing.assert_allclose(rows.mean_correlation(rows), likeness, atol=1e-6)
    np.testing.assert_array_equal(rows.known, plain.known)
    assert_close(horizons.rank_ic[0], fast.rank_ic)
    assert_close(daily, fast.ic)


def test_a_prepared_label_is_the_same_without_numba() -> None:
    _, label, member = columns(3)
    fast = prepared(label, member)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tile_scoring, "HAVE_NUMBA", False)
        slow = prepared(label, member)
    for name in ("values", "ranks", "known", "count"):
        np.testing.assert_array_equal(getattr(fast, name), getattr(slow, name))
        assert getattr(fast, name).dtype == getattr(slow, name).dtype


def test_ranks_of_a_day_by_hand() -> None:
    column = np.array([[5.0, -0.0, np.nan, 0.0, -2.0, np.inf]], dtype=np.float32)
    label = prepared(column, None)
    # -2 is first, the two zeros share places 2 and 3, 5 is fourth; doubled
    np.testing.assert_array_equal(label.ranks[0, :6], [8, 5, 0, 5, 2, 0])
    np.testing.assert_array_equal(label.ranks[0, 6:], 0)


def test_horizons_are_what_each_label_gives_alone() -> None:
    factor, label, member = columns(11)
    other = columns(12)[1]
    universe = Universe.of(as_tiles(member, False), as_tiles(member, False).shape, 40)
    labels = {
        1: PreparedLabel.of(as_tiles(label), universe),
        5: PreparedLabel.of(as_tiles(other), universe),
    }
    values = as_tiles(factor)[None]
    result = score_horizons(values, labels)[0]
    assert result.horizons == (1, 5)
    for at, prepared_label in enumerate(labels.values()):
        alone = score_columns(values, prepared_label)[0]
        np.testing.assert_array_equal(result.ic[at], alone.ic)
        np.testing.assert_array_equal(result.rank_ic[at], alone.rank_ic)
        np.testing.assert_array_equal(result.names[at], alone.names)


def test_labels_of_different_universes_are_refused() -> None:
    factor, label, member = columns(11)
    with pytest.raises(PanelError, match="different universes"):
        score_horizons(
            as_tiles(factor)[None],
            {1: prepared(label, member), 2: prepared(label, None)},
        )


def test_pool_correlation_is_the_mean_daily_correlation_of_factors_with_the_same_names() -> None:
    rng = np.random.default_rng(2)
    made = rng.standard_normal((4, 9, 50)).astype(np.float32)
    made[:, rng.random((9, 50)) < 0.2] = np.nan
    made[2, 4] = 1.0  # constant: no correlation that day
    values = np.stack([as_tiles(one) for one in made])
    universe = Universe.of(None, values[0].shape, 50)
    rows = UnitRows.of(values, universe)
    pool = Pool.empty().add("a", rows, 2).add("b", rows, 3)
    found = pool.correlations(rows)
    assert found.shape == (4, 2)
    for at in range(4):
        for place, which in enumerate((2, 3)):
            daily = exact_correlation(values[at], values[which], universe)
            np.testing.assert_allclose(
                daily, scoring.ic_series(made[at].astype(float), made[which].astype(float)), atol=1e-12
            )
            assert found[at, place] == pytest.approx(np.nanmean(daily), abs=1e-6)
    np.testing.assert_allclose(rows.mean_correlation(rows)[0, 0], 1.0, atol=1e-6)


def test_a_candidate_is_as_alike_to_a_pool_in_whatever_batch_it_comes() -> None:
    rng = np.random.default_rng(6)
    values = rng.standard_normal((11, 3, 60, 32)).astype(np.float32)
    rows = UnitRows.of(values, Universe.of(None, (3, 60, 32)))
    whole = rows.mean_correlation(rows, threads=1)
    expected = np.mean([np.corrcoef(values[:, :, day].reshape(11, -1)) for day in range(60)], axis=0)
    np.testing.assert_allclose(whole, expected, atol=1e-6)
    np.testing.assert_array_equal(rows.mean_correlation(rows, threads=3), whole)
    for at in range(11):
        alone = UnitRows(rows.values[at : at + 1], rows.known[at : at + 1])
        np.testing.assert_array_equal(alone.mean_correlation(rows), whole[at : at + 1])


def test_each_fifth_day_gives_the_correlation_of_those_days() -> None:
    rng = np.random.default_rng(4)
    made = rng.standard_normal((2, 23, 40)).astype(np.float32)
    values = np.stack([as_tiles(one) for one in made])
    universe = Universe.of(None, values[0].shape, 40)
    rows = UnitRows.of(values, universe, every=5)
    expected = np.mean([np.corrcoef(made[0, day], made[1, day])[0, 1] for day in range(0, 23, 5)])
    assert rows.mean_correlation(rows)[0, 1] == pytest.approx(expected, abs=1e-6)


def test_a_pool_keeps_its_members_when_others_grow_from_it() -> None:
    rng = np.random.default_rng(3)
    values = rng.standard_normal((20, 2, 6, 32)).astype(np.float32)
    rows = UnitRows.of(values, Universe.of(None, (2, 6, 32)))
    small = Pool.empty().add("0", rows, 0).add("1", rows, 1)
    before = small.correlations(rows)
    one, other = small.add("2", rows, 2), small.add("3", rows, 3)
    for at in range(4, 20):
        one = one.add(str(at), rows, at)
    np.testing.assert_array_equal(small.correlations(rows), before)
    np.testing.assert_allclose(np.diag(one.correlations(rows)[[0, 1, 2, *range(4, 20)]]), 1.0, atol=1e-5)
    np.testing.assert_allclose(np.diag(other.correlations(rows)[[0, 1, 3]]), 1.0, atol=1e-5)
    assert Pool.empty().correlations(rows).shape == (20, 0)
    with pytest.raises(PanelError, match="already"):
        one.add("2", rows, 2)
    with pytest.raises(PanelError, match="same days"):
        one.add("new", UnitRows.of(values, Universe.of(None, (2, 6, 32)), every=2))


def test_a_summary_by_hand() -> None:
    found = Summary.of(np.array([0.1, np.nan, 0.3, -0.1]))
    assert found.days == 3
    assert found.mean == pytest.approx(0.1)
    assert found.deviation == pytest.approx(0.2)
    assert found.ratio == pytest.approx(0.5)
    assert found.t == pytest.approx(0.5 * np.sqrt(3))
    assert found.positive == pytest.approx(2 / 3)
    assert Summary.of(np.array([np.nan])).days == 0
    assert np.isnan(Summary.of(np.array([0.1])).t)


def test_regimes_share_out_the_days() -> None:
    series = np.array([1.0, 2.0, 3.0, np.nan, 5.0])
    found = by_regime(series, np.array([0, 1, 0, 1, 1]))
    assert {code: (one.days, one.mean) for code, one in found.items()} == {0: (2, 2.0), 1: (2, 3.5)}
    assert by_regime(series, np.array([0, 1, 0, 1, 1]), t_statistic=len)[0].t == 2.0
    with pytest.raises(PanelError, match="align"):
        by_regime(series, np.array([0, 1]))


def test_what_does_not_fit_is_refused() -> None:
    factor, label, member = columns(1)
    good, ready = as_tiles(factor)[None], prepared(label, member)
    with pytest.raises(PanelError, match="float32"):
        score_columns(good.astype(np.float64), ready)
    with pytest.raises(PanelError, match="tile it first"):
        score_columns(good[0], ready)
    with pytest.raises(PanelError, match="align"):
        score_columns(np.ascontiguousarray(good[:, :, :5]), ready)
    with pytest.raises(PanelError, match="do not exist"):
        score_columns(good, ready, measures=["alpha"])
    with pytest.raises(PanelError, match="at least one row"):
        score_columns(good, ready, rows=slice(5, 5))
    with pytest.raises(PanelError, match="threads"):
        score_columns(good, ready, threads=0)
    with pytest.raises(PanelError, match="quintiles"):
        score_columns(good, ready, quantiles=1)
    with pytest.raises(PanelError, match="usual"):
        score_columns(good, ready, top=0)
    with pytest.raises(PanelError, match="member has shape"):
        PreparedLabel.of(as_tiles(label), as_tiles(member[:5], False))
    assert score_columns(np.empty((0, 2, 14, 32), dtype=np.float32), ready) == []


def test_a_mask_that_was_handed_in_is_left_as_it_was() -> None:
    member = np.ones((1, 3, 32), dtype=np.bool_)
    Universe.of(member, (1, 3, 32), 5)
    assert member.all()
