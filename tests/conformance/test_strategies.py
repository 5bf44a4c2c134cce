"""What every strategy owes Qlib; a new class in `qlib_llm_alpha.strategy` is found by itself."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pandas as pd
import pytest
from qlib.data.dataset import DatasetH
from qlib.strategy.base import BaseStrategy

import qlib_llm_alpha.strategy
from qlib_llm_alpha.model.gated import GatedModel
from tests.conformance.subjects import subclasses
from tests.support.backtests import A_SHARE_EXCHANGE, FREE_EXCHANGE, holdings, run_backtest

# Keywords that a class needs beside its signal.
KEYWORDS: dict[str, dict[str, Any]] = {"GatedTopkStrategy": {"topk": 8, "n_drop": 2}}


SUBJECTS = subclasses(qlib_llm_alpha.strategy, BaseStrategy)
STRATEGIES = pytest.mark.parametrize("kind", SUBJECTS, ids=lambda kind: kind.__name__)


@pytest.fixture
def predictions(model_small: GatedModel, dataset_small: DatasetH) -> pd.DataFrame:
    return model_small.predict(dataset_small)


def build(kind: type, signal: Any, **more: Any) -> BaseStrategy:
    return kind(signal=signal, **KEYWORDS[kind.__name__], **more)


def test_there_are_strategies_and_each_has_its_keywords_here() -> None:
    assert {kind.__name__ for kind in SUBJECTS} == set(KEYWORDS)


@STRATEGIES
def test_a_strategy_takes_keywords_alone_and_is_named_for_what_it_is(kind: type) -> None:
    parameters = list(inspect.signature(kind).parameters.values())
    assert all(parameter.kind in {parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD} for parameter in parameters)
    assert kind.__name__.endswith("Strategy")


@STRATEGIES
def test_cash_is_held_when_there_is_no_score(kind: type, predictions: pd.DataFrame) -> None:
    empty = predictions.copy()
    empty.loc[:] = np.nan
    report, positions = run_backtest(build(kind, empty))
    assert holdings(positions).empty
    assert (report["turnover"] == 0).all()
    assert report["account"].nunique() == 1


@STRATEGIES
@pytest.mark.parametrize("with_model", [False, True])
def test_the_order_of_rows_does_not_matter(
    kind: type, with_model: bool, predictions: pd.DataFrame, model_small: GatedModel
) -> None:
    more = {"model": model_small} if with_model else {}
    shuffled = predictions.sample(frac=1.0, random_state=7)
    first = holdings(run_backtest(build(kind, predictions, **more))[1])
    second = holdings(run_backtest(build(kind, shuffled, **more))[1])
    assert not first.empty
    pd.testing.assert_frame_equal(first, second)


@STRATEGIES
@pytest.mark.parametrize("exchange", [FREE_EXCHANGE, A_SHARE_EXCHANGE], ids=["stock", "a_share"])
def test_nothing_is_sold_that_is_not_held(kind: type, exchange: dict[str, Any], predictions: pd.DataFrame) -> None:
    asked: list[tuple[float, float]] = []

    class Watched(kind):  # type: ignore[misc, valid-type]
        def generate_trade_decision(self, execute_result: Any = None) -> Any:
            decision = super().generate_trade_decision(execute_result)
            for order in decision.order_list:
                if order.direction == order.SELL:
                    held = self.trade_position.get_stock_amount(order.stock_id)
                    asked.append((order.amount, held))
            return decision

    _, positions = run_backtest(Watched(signal=predictions, **KEYWORDS[kind.__name__]), exchange)
    assert asked
    assert all(0 < amount <= held for amount, held in asked)
    assert (holdings(positions) >= 0).all(axis=None)
    assert all(position.get_cash() >= 0 for position in positions.values())


@STRATEGIES
def test_the_same_input_gives_the_same_trades(kind: type, predictions: pd.DataFrame) -> None:
    first, second = (run_backtest(build(kind, predictions), A_SHARE_EXCHANGE)[0] for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
