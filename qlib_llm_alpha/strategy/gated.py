"""Trade the top names of a gated mixture."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pandas as pd
from qlib.backtest.decision import Order, OrderDir, TradeDecisionWO
from qlib.contrib.strategy.signal_strategy import BaseSignalStrategy

from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.gating.sufficient import SufficientStatistics, composite
from qlib_llm_alpha.model.gated import GatedModel
from qlib_llm_alpha.strategy.selection import Trades, best_outsiders, choose_trades


class GatedTopkStrategy(BaseSignalStrategy):
    """Hold the best names of the mixture, with the experts weighed anew at every step.

    At trade step t the strategy reads the experts' scores dated t-1, computes the gate's weights from the market
    context at the close of t-1 and from outcomes dated t-3 and earlier, mixes, and trades during t. Without `model`
    it trades the first column of the signal as it is.

    It holds at most `topk` names, buys with equal cash, sells whole positions. Suspended names and names at their
    limit are left to the exchange: no purchase at limit-up, no sale at limit-down. A day without a score is held
    through.

    Parameters
    ----------
    signal
        As in Qlib, usually ``<PRED>``: the frame that ``GatedModel.predict`` gave.
    model : GatedModel, optional
        Usually ``<MODEL>``.
    gate : str, optional
        Another of the model's gates than the one it predicts with.
    topk, n_drop : int
        Names held, and the most that are changed a day.
    hold_thresh : int
        Days a name is held at least; 1 keeps to T+1.
    """

    def __init__(
        self,
        *,
        signal: Any,
        topk: int,
        n_drop: int,
        model: GatedModel | None = None,
        gate: str | None = None,
        hold_thresh: int = 1,
        **kwargs: Any,
    ) -> None:
        if not 0 < n_drop <= topk:
            raise ConfigError(f"topk {topk!r} and n_drop {n_drop!r}: expected 0 < n_drop <= topk, for example 50 and 5")
        super().__init__(signal=signal, **kwargs)
        self.topk = topk
        self.n_drop = n_drop
        self.model = model
        self.gate = gate if gate is not None or model is None else model.gate
        self.hold_thresh = hold_thresh
        self.predictions = signal
        self.outcomes: SufficientStatistics | None = None

    def generate_trade_decision(self, execute_result: Any = None) -> TradeDecisionWO:
        """Decide the orders of this step."""
        step = self.trade_calendar.get_trade_step()
        start, end = self.trade_calendar.get_step_time(step)
        signal = self.signal.get_signal(*self.trade_calendar.get_step_time(step, shift=1))
        if signal is None or not len(signal):
            return TradeDecisionWO([], self)
        scores = self.score(signal)
        position = self.trade_position
        held = position.get_stock_list()
        age = {code: position.get_stock_count(code, bar=self.trade_calendar.get_freq()) for code in held}
        exchange = self.trade_exchange

        def tradable(code: str, direction: OrderDir) -> bool:
            return bool(exchange.is_stock_tradable(stock_id=code, start_time=start, end_time=end, direction=direction))

        ranked = {str(code): float(score) for code, score in scores.items()}
        outsiders = best_outsiders(ranked, held, topk=self.topk, n_drop=self.n_drop)
        trades = choose_trades(
            ranked,
            held,
            [code for code in held if age[code] >= self.hold_thresh and tradable(code, OrderDir.SELL)],
            [code for code in outsiders if tradable(code, OrderDir.BUY)],
            topk=self.topk,
            n_drop=self.n_drop,
        )
        return TradeDecisionWO(self._orders(trades, start, end), self)

    def score(self, signal: pd.DataFrame | pd.Series) -> pd.Series:
        """Return the score of each name: the first column, or the mixture under today's weights."""
        if self.model is None:
            first: pd.Series = signal if isinstance(signal, pd.Series) else signal.iloc[:, 0]
            return first
        names = list(self.model.fitted().names)
        given = [] if isinstance(signal, pd.Series) else list(signal.columns)
        missing = [name for name in names if name not in given]
        if missing:
            raise ConfigError(
                f"the signal has columns {given} and lacks the experts {missing} of the model; expected the frame "
                "of GatedModel.predict: give <PRED> of the same run, or leave out model"
            )
        dated, _ = self.trade_calendar.get_step_time(self.trade_calendar.get_trade_step(), shift=1)
        weights = self.model.weights(str(self.gate), np.array([np.datetime64(dated, "D")]), self._outcomes())
        experts = signal[names].to_numpy(np.float64).T[:, None, :]
        mixed: pd.Series = pd.Series(composite(experts, weights)[0], index=signal.index)
        return mixed

    def _outcomes(self) -> SufficientStatistics | None:
        if self.model is None or self.gate != "trailing_ic":
            return None
        if self.outcomes is None:
            if not isinstance(self.predictions, pd.DataFrame):
                raise ConfigError(
                    f"the trailing_ic gate was given a signal of type {type(self.predictions).__name__}; expected the "
                    "frame of GatedModel.predict, from which it takes what the experts earned: give <PRED>"
                )
            # All at once; a gate reads at t only what is dated t-2 and earlier.
            self.outcomes = self.model.realised(self.predictions)
        return self.outcomes

    def _orders(self, trades: Trades, start: Any, end: Any) -> list[Order]:
        exchange = self.trade_exchange
        position = copy.deepcopy(self.trade_position)
        cash = position.get_cash()
        sales = []
        # Not in the order of Qlib's position, which is that of a set and differs between processes: the cash, and with
        # it a rounded lot, depends on the order of a sum.
        for code in trades.sell:
            order = Order(code, position.get_stock_amount(code), OrderDir.SELL, start, end)
            if exchange.check_order(order):
                sales.append(order)
                value, cost, _ = exchange.deal_order(order, position=position)
                cash += value - cost
        purchases = []
        for code in trades.buy:
            price = exchange.get_deal_price(code, start, end, direction=OrderDir.BUY)
            factor = exchange.get_factor(code, start, end)
            amount = exchange.round_amount_by_trade_unit(cash * self.risk_degree / trades.parts / price, factor)
            purchases.append(Order(code, amount, OrderDir.BUY, start, end))
        return [*sales, *purchases]
