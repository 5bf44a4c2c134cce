from __future__ import annotations

import threading
from dataclasses import replace
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from qlib_llm_alpha.errors import BudgetError, ConfigError
from qlib_llm_alpha.llm.budget import Budget, Reservation, Spent, prompt_bound
from qlib_llm_alpha.llm.models import ModelInfo
from qlib_llm_alpha.llm.request import Message, Request, Usage


class Answer(BaseModel):
    text: str


PRICED = ModelInfo("priced", price_per_million=(2.0, 8.0), image_tokens=1000, knowledge_cutoff=date(2024, 1, 1))
UNPRICED = ModelInfo("unpriced")
REQUEST = Request("test", (Message("user", "hello"),), Answer, "priced", max_tokens=100)


def test_the_worst_case_is_set_aside_and_the_truth_is_booked() -> None:
    budget = Budget(usd=1.0, tokens=10_000)
    held = budget.reserve_tokens(1000, 500, PRICED)
    assert budget.spent == Spent(0.0, 0)
    budget.settle(held, Usage(prompt=100, answer=50))
    # 100 tokens at 2 dollars and 50 at 8 dollars for a million.
    assert budget.spent == Spent(0.0006, 150)


def test_what_a_server_does_not_count_is_booked_as_reserved() -> None:
    budget = Budget()
    # 0.002 + 0.004 dollars as reserved; then 0.00002 as counted + 0.004 as reserved.
    budget.settle(budget.reserve_tokens(1000, 500, PRICED), None)
    budget.settle(budget.reserve_tokens(1000, 500, PRICED), Usage(prompt=10))
    assert budget.spent == Spent(0.01002, 2010)


def test_what_cost_nothing_is_freed() -> None:
    budget = Budget(tokens=100)
    budget.release(budget.reserve_tokens(60, 40, UNPRICED))
    assert budget.spent == Spent(0.0, 0)
    budget.reserve_tokens(60, 40, UNPRICED)


def test_the_call_that_would_pass_a_limit_is_refused_before_it_starts() -> None:
    budget = Budget(tokens=100)
    budget.reserve_tokens(50, 10, UNPRICED)
    with pytest.raises(BudgetError, match=r"41 tokens; 0 are spent and 60 set aside of 100.*raise the budget"):
        budget.reserve_tokens(41, 0, UNPRICED)
    budget.reserve_tokens(40, 0, UNPRICED)


def test_money_stops_as_tokens_do() -> None:
    budget = Budget(usd=0.01)
    budget.reserve_tokens(5000, 0, PRICED)
    with pytest.raises(BudgetError, match=r"0\.000002 US dollars; .*raise the budget"):
        budget.reserve_tokens(1, 0, PRICED)


def test_money_without_a_price_asks_for_a_price_or_for_tokens() -> None:
    with pytest.raises(BudgetError, match=r"price_per_million.*tokens"):
        Budget(usd=1.0).reserve(REQUEST, UNPRICED)
    free = replace(UNPRICED, price_per_million=(0.0, 0.0))
    Budget(usd=0.0).reserve(REQUEST, free)


def test_money_spent_on_a_model_without_a_price_is_unknown_and_not_nought() -> None:
    budget = Budget(tokens=1000)
    budget.settle(budget.reserve_tokens(10, 10, UNPRICED), Usage(1, 1))
    assert budget.spent == Spent(None, 2)
    with pytest.raises(ConfigError, match="price"):
        Budget(usd=1.0, spent_usd=None)


def test_a_raised_budget_goes_on_from_what_was_spent() -> None:
    with pytest.raises(BudgetError):
        Budget(tokens=100, spent_tokens=90).reserve_tokens(11, 0, UNPRICED)
    budget = Budget(usd=1.0, tokens=200, spent_usd=0.25, spent_tokens=90)
    budget.settle(budget.reserve_tokens(11, 0, PRICED), Usage(11, 0))
    assert budget.spent == Spent(0.250022, 101)


@pytest.mark.parametrize("limits", [{"usd": -1.0}, {"usd": float("nan")}, {"tokens": -1}, {"spent_usd": float("inf")}])
def test_figures_that_mean_nothing_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(limits))):
        Budget(**limits)  # type: ignore[arg-type]


def test_nothing_is_settled_twice_or_at_another_budget() -> None:
    budget, other = Budget(), Budget()
    held = budget.reserve_tokens(1, 1, PRICED)
    other.reserve_tokens(1, 1, PRICED)
    with pytest.raises(ValueError, match="not open"):
        other.release(Reservation(held.prompt, held.answer, held.price, held.number))
    budget.settle(held)
    with pytest.raises(ValueError, match="not open"):
        budget.settle(held)


def test_a_prompt_is_bounded_by_its_bytes_its_images_and_its_schema() -> None:
    bare = prompt_bound(REQUEST, PRICED)
    chinese = prompt_bound(replace(REQUEST, messages=(Message("user", "毛利率毛利率"),)), PRICED)
    assert chinese - bare == len("毛利率毛利率".encode()) - len("hello")
    charted = prompt_bound(replace(REQUEST, messages=(Message("user", "hello", (b"1", b"2")),)), PRICED)
    assert charted - bare == 2 * PRICED.image_tokens
    assert prompt_bound(replace(REQUEST, messages=(Message("user", "\ud83d"),)), PRICED) > 0


# One step: (kind, prompt, answer, share of the reservation that was really used, which open one is settled).
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "settle", "unknown", "release"]),
        st.integers(0, 400),
        st.integers(0, 400),
        st.floats(0, 1),
        st.integers(0, 20),
    ),
    max_size=60,
)


@given(STEPS, st.integers(0, 2000), st.floats(0, 0.01), st.floats(0, 100), st.floats(0, 100))
def test_no_interleaving_spends_more_than_the_limits(
    steps: list[tuple[str, int, int, float, int]], tokens: int, usd: float, price: float, other_price: float
) -> None:
    budget = Budget(usd=usd, tokens=tokens)
    info = ModelInfo("any", price_per_million=(price, other_price))
    held: list[Reservation] = []
    for kind, prompt, answer, share, which in steps:
        if kind == "reserve":
            try:
                held.append(budget.reserve_tokens(prompt, answer, info))
            except BudgetError:
                continue
        elif held:
            one = held.pop(which % len(held))
            if kind == "release":
                budget.release(one)
            elif kind == "unknown":
                budget.settle(one, Usage())
            else:
                budget.settle(one, Usage(int(one.prompt * share), int(one.answer * share)))
        assert budget.spent.tokens + sum(one.tokens for one in held) <= tokens
    for one in held:
        budget.settle(one)
    spent = budget.spent
    assert spent.usd is not None
    # The limit itself is a float, known to half of a millionth of a millionth.
    assert (spent.tokens <= tokens, spent.usd <= usd + 5e-13) == (True, True)


def test_threads_at_once_spend_no_more_than_the_limit() -> None:
    budget = Budget(tokens=1000)
    refused: list[int] = []

    def ask(number: int) -> None:
        for _ in range(40):
            try:
                held = budget.reserve_tokens(10, 0, UNPRICED)
            except BudgetError:
                refused.append(number)
                continue
            budget.settle(held, Usage(7, 0))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asked = 8 * 40 - len(refused)
    assert budget.spent.tokens == asked * 7 <= 1000
    assert refused
