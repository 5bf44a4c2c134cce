from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.library.factor_set import load_factor_set
from qlib_llm_alpha.mining.profile import Profile, default_profile, match_turnover, turnover_distance

MOMENTUM, SURPRISE = parse("$close/Ref($close,5)-1"), parse("CSRank(Mean($volume,20)/$volume)")
LOW_TURNOVER = tuple(np.linspace(0.02, 0.3, 40))


def test_a_profile_is_what_can_be_counted_by_hand() -> None:
    profile = Profile.of([MOMENTUM, SURPRISE], [0.3, 0.1])
    assert profile.shapes == ((4, 7), (4, 6))
    # Each formula counts the same: thirds of the first, thirds of the second, then halves.
    third = pytest.approx(1 / 3)
    sixth = pytest.approx(1 / 6)
    assert profile.operators == {"CSRank": sixth, "Div": third, "Mean": sixth, "Ref": sixth, "Sub": sixth}
    assert profile.fields == {"$close": 0.5, "$volume": 0.5}
    assert profile.patterns == {
        "CSRank": ((None,),),
        "Div": ((None, None), (None, None)),
        "Mean": ((None, 20),),
        "Ref": ((None, 5),),
        "Sub": ((None, 1),),
    }
    assert profile.windows == (5, 20)
    assert profile.cross_sectional == 0.5
    assert profile.turnovers == (0.1, 0.3)


def test_a_number_that_a_formula_repeats_counts_once() -> None:
    profile = Profile.of([parse("Ref($close,5)/Ref($open,5)")])
    assert profile.patterns["Ref"] == ((None, 5),)


def test_the_default_profile_is_computed_from_the_seed_library() -> None:
    profile, factors = default_profile(), load_factor_set("seed_bars").factors
    assert profile.shapes == tuple((factor.expression.depth, factor.expression.nodes) for factor in factors)
    assert sum(profile.operators.values()) == pytest.approx(1.0)
    assert sum(profile.fields.values()) == pytest.approx(1.0)
    assert profile.turnovers == ()
    assert set(default_profile("alpha158").operators) > {"Corr", "Rank"}


def test_formulas_without_an_operator_have_no_profile() -> None:
    with pytest.raises(ConfigError, match="1 formulas without an operator"):
        Profile.of([parse("$close")])


def test_turnovers_that_are_not_known_are_left_out() -> None:
    assert Profile.of([MOMENTUM, SURPRISE], [np.nan, 0.2]).turnovers == (0.2,)


def test_the_chosen_turn_over_as_the_target_does() -> None:
    fast = np.random.default_rng(1).uniform(0.0, 0.9, 400)
    chosen = match_turnover(fast, LOW_TURNOVER, 80, seed=2)
    assert len(set(chosen.tolist())) == 80
    assert stats.ks_2samp(fast, LOW_TURNOVER).pvalue < 1e-6
    assert stats.ks_2samp(fast[chosen], LOW_TURNOVER).pvalue > 0.5
    assert turnover_distance(fast[chosen], LOW_TURNOVER) < 0.1


def test_a_candidate_without_turnover_is_never_chosen() -> None:
    chosen = match_turnover([np.nan, 0.3, np.nan, 0.1], [0.1, 0.3], 2, seed=0)
    assert chosen.tolist() == [1, 3]


def test_more_than_there_are_cannot_be_chosen() -> None:
    with pytest.raises(ConfigError, match="2 of 3 candidates have a turnover"):
        match_turnover([0.1, 0.2, np.nan], [0.1], 3, seed=0)
    with pytest.raises(ConfigError, match="no number"):
        match_turnover([0.1], [np.nan], 1, seed=0)


def test_the_distance_of_turnovers_is_that_of_scipy() -> None:
    rng = np.random.default_rng(3)
    one, two = rng.random(50), rng.random(70) ** 2
    assert turnover_distance([*one, np.nan], two) == pytest.approx(stats.ks_2samp(one, two).statistic)
    with pytest.raises(ConfigError, match="0 and 1 turnovers are known"):
        turnover_distance([np.nan], [0.1])


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=30),
    st.lists(st.floats(0, 1), min_size=1, max_size=10),
    st.integers(0, 10_000),
    st.data(),
)
def test_a_choice_is_of_distinct_positions_and_the_same_under_a_seed(
    turnovers: list[float], target: list[float], seed: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, len(turnovers)))
    chosen = match_turnover(turnovers, target, count, seed=seed)
    assert len(np.unique(chosen)) == count
    assert np.array_equal(chosen, match_turnover(turnovers, target, count, seed=seed))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(0, 100))
def test_the_target_itself_is_chosen_where_it_is_among_the_candidates(target: list[float], seed: int) -> None:
    ordered = np.sort(target)
    quantiles = np.quantile(ordered, (np.arange(len(ordered)) + 0.5) / len(ordered))
    others = [7.0] * len(target)
    chosen = match_turnover([*quantiles, *others], target, len(target), seed=seed)
    assert chosen.tolist() == list(range(len(target)))
