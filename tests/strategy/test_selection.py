from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlib_llm_alpha.strategy.selection import Trades, choose_trades

NAMES = [f"SH{600000 + number}" for number in range(12)]


def qlib_rule(scores: pd.Series, held: Sequence[str], topk: int, n_drop: int) -> tuple[set[str], list[str]]:
    """Say what Qlib 0.9.7's TopkDropoutStrategy does with method_buy top, method_sell bottom, all names tradable."""
    last = scores.reindex(list(held)).sort_values(ascending=False).index
    outsiders = scores[~scores.index.isin(last)].sort_values(ascending=False).index
    today = list(outsiders)[: n_drop + topk - len(last)]
    together = scores.reindex(last.union(pd.Index(today))).sort_values(ascending=False).index
    sell = last[last.isin(list(together)[-n_drop:])]
    return set(sell), today[: len(sell) + topk - len(last)]


@st.composite
def days(draw: st.DrawFn) -> tuple[dict[str, float], list[str], int, int]:
    count = draw(st.integers(1, len(NAMES)))
    order = draw(st.permutations(range(count)))
    scores = {NAMES[place]: float(rank) for place, rank in enumerate(order)}
    topk = draw(st.integers(1, 8))
    n_drop = draw(st.integers(1, topk))
    held = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=topk))
    return scores, held, topk, n_drop


@given(days())
def test_with_everything_tradable_the_trades_are_those_of_qlibs_rule(
    day: tuple[dict[str, float], list[str], int, int],
) -> None:
    scores, held, topk, n_drop = day
    if sum(name not in scores for name in held) > 1:
        return  # Qlib orders several names without a score by the accident of its sort
    trades = choose_trades(scores, held, held, list(scores), topk=topk, n_drop=n_drop)
    sell, buy = qlib_rule(pd.Series(scores), held, topk, n_drop)
    assert set(trades.sell) == sell
    assert list(trades.buy) == buy
    assert trades.parts == len(buy)


@given(days(), st.sets(st.sampled_from(NAMES)), st.sets(st.sampled_from(NAMES)), st.sets(st.sampled_from(NAMES)))
def test_the_portfolio_stays_within_topk_whatever_cannot_be_traded(
    day: tuple[dict[str, float], list[str], int, int], unsellable: set[str], unbuyable: set[str], unknown: set[str]
) -> None:
    scores, held, topk, n_drop = day
    scores = {name: math.nan if name in unknown else score for name, score in scores.items()}
    sellable = [name for name in held if name not in unsellable]
    buyable = [name for name in scores if name not in unbuyable]
    trades = choose_trades(scores, held, sellable, buyable, topk=topk, n_drop=n_drop)
    after = (set(held) - set(trades.sell)) | set(trades.buy)
    assert len(after) <= topk
    assert set(trades.sell) <= set(sellable)
    assert set(trades.buy) <= set(buyable) - set(held)
    assert len(trades.sell) <= n_drop
    # Beyond filling free places, a purchase replaces a sale of the same day.
    assert len(trades.buy) <= topk - len(held) + len(trades.sell)
    assert len(set(trades.sell)) == len(trades.sell)
    assert len(set(trades.buy)) == len(trades.buy)
    assert not any(math.isnan(scores[name]) for name in trades.buy)


@given(days(), st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(day: tuple[dict[str, float], list[str], int, int], random) -> None:  # type: ignore[no-untyped-def]
    scores, held, topk, n_drop = day
    scores = {name: score // 2 for name, score in scores.items()}  # with ties
    expected = choose_trades(scores, held, held, list(scores), topk=topk, n_drop=n_drop)
    shuffled, names = list(scores.items()), list(held)
    random.shuffle(shuffled)
    random.shuffle(names)
    assert choose_trades(dict(shuffled), names, set(held), set(scores), topk=topk, n_drop=n_drop) == expected


def test_the_inputs_are_left_as_they_were_and_a_second_call_gives_the_same() -> None:
    scores = {"a": 3.0, "b": 2.0, "c": 1.0, "d": math.nan}
    held = ["c", "d"]
    first = choose_trades(scores, held, held, ["a", "b"], topk=2, n_drop=1)
    second = choose_trades(scores, held, held, ["a", "b"], topk=2, n_drop=1)
    assert first == second
    assert list(scores) == ["a", "b", "c", "d"]
    assert held == ["c", "d"]


@pytest.mark.parametrize("scores", [{}, {"a": math.nan, "b": math.nan}])
def test_a_day_without_any_score_trades_nothing(scores: dict[str, float]) -> None:
    assert choose_trades(scores, ["a"], ["a"], ["b"], topk=2, n_drop=1) == Trades((), (), 0)


def test_a_name_held_without_a_score_goes_first() -> None:
    trades = choose_trades({"a": 2.0, "b": 1.0, "d": 3.0}, ["a", "b", "c"], ["a", "b", "c"], ["d"], topk=3, n_drop=1)
    assert trades == Trades(("c",), ("d",), 1)


def test_a_name_that_cannot_be_sold_keeps_its_place() -> None:
    scores = {"a": 9.0, "b": 8.0, "c": 1.0, "d": 0.0}
    assert choose_trades(scores, ["c", "d"], ["c", "d"], ["a", "b"], topk=2, n_drop=2) == Trades(
        ("c", "d"), ("a", "b"), 2
    )
    assert choose_trades(scores, ["c", "d"], ["c"], ["a", "b"], topk=2, n_drop=2) == Trades(("c",), ("a",), 1)


def test_a_name_at_its_upper_limit_is_not_replaced_by_a_worse_one() -> None:
    scores = {"a": 9.0, "b": 8.0, "c": 7.0, "d": 0.0}
    assert choose_trades(scores, ["d"], ["d"], ["b", "c"], topk=1, n_drop=1) == Trades(("d",), (), 1)


def test_the_cash_of_a_name_that_cannot_be_bought_doubles_no_other() -> None:
    scores = {"a": 9.0, "b": 8.0, "c": 7.0}
    assert choose_trades(scores, [], [], ["a", "c"], topk=2, n_drop=1) == Trades((), ("a",), 2)


def test_more_than_topk_held_is_worked_down_by_n_drop_a_day() -> None:
    scores = {name: float(score) for score, name in enumerate("abcde")}
    trades = choose_trades(scores, list("abcde"), list("abcde"), [], topk=2, n_drop=2)
    assert trades == Trades(("b", "a"), (), 0)


@given(st.integers(0, 2**32 - 1))
def test_held_names_turn_over_by_at_most_n_drop_once_the_portfolio_is_full(seed: int) -> None:
    rng = np.random.default_rng(seed)
    held: set[str] = set()
    for _ in range(6):
        scores = dict(zip(NAMES, rng.normal(size=len(NAMES)).tolist(), strict=True))
        trades = choose_trades(scores, held, held, NAMES, topk=5, n_drop=2)
        full = len(held) == 5
        held = (held - set(trades.sell)) | set(trades.buy)
        assert len(held) == 5
        assert not full or len(trades.buy) == len(trades.sell) <= 2
