from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from qlib.backtest.signal import create_signal_from
from qlib.contrib.strategy import TopkDropoutStrategy
from qlib.data.dataset import DatasetH

from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.model.gated import GatedModel
from qlib_llm_alpha.strategy.gated import GatedTopkStrategy
from tests.support.backtests import A_SHARE_EXCHANGE, WITHOUT_LOTS, holdings, never_suspended, run_backtest

TOPK, N_DROP = 8, 2


class WatchedStrategy(GatedTopkStrategy):
    """Remembers the scores it traded on, by the day they are dated."""

    def score(self, signal: pd.DataFrame | pd.Series) -> pd.Series:
        found = super().score(signal)
        dated, _ = self.trade_calendar.get_step_time(self.trade_calendar.get_trade_step(), shift=1)
        self.seen = {**getattr(self, "seen", {}), pd.Timestamp(dated).normalize(): found}
        return found


@pytest.fixture
def predictions(model_small: GatedModel, dataset_small: DatasetH) -> pd.DataFrame:
    frame = model_small.predict(dataset_small)
    kept = never_suspended(sorted(frame.index.get_level_values("instrument").unique()))
    return frame[frame.index.get_level_values("instrument").isin(kept)]


@pytest.mark.parametrize("gate", ["softmax", "static", "equal"])
def test_with_a_frozen_gate_the_trades_are_those_of_stock_qlib_on_the_composite(
    gate: str, model_small: GatedModel, predictions: pd.DataFrame
) -> None:
    ours = GatedTopkStrategy(signal=predictions, model=model_small, gate=gate, topk=TOPK, n_drop=N_DROP)
    report, positions = run_backtest(ours, WITHOUT_LOTS)

    experts = predictions[list(model_small.fitted().names)]
    days = experts.index.get_level_values("datetime").unique().sort_values()
    weights = model_small.weights(gate, days.to_numpy().astype("datetime64[D]"))
    composite = slow_composite(experts, pd.DataFrame(weights, index=days, columns=experts.columns))
    stock = TopkDropoutStrategy(signal=composite, topk=TOPK, n_drop=N_DROP, forbid_all_trade_at_limit=False)
    stock_report, stock_positions = run_backtest(stock, WITHOUT_LOTS)

    pd.testing.assert_frame_equal(holdings(positions), holdings(stock_positions), rtol=1e-9)
    pd.testing.assert_frame_equal(report, stock_report, rtol=1e-9)
    assert report["turnover"].sum() > 1


def test_the_first_column_of_the_predictions_is_what_the_strategy_trades(
    model_small: GatedModel, dataset_small: DatasetH
) -> None:
    whole = model_small.predict(dataset_small)
    mixed = run_backtest(GatedTopkStrategy(signal=whole, model=model_small, topk=TOPK, n_drop=N_DROP))
    first = run_backtest(GatedTopkStrategy(signal=whole, topk=TOPK, n_drop=N_DROP))
    pd.testing.assert_frame_equal(holdings(mixed[1]), holdings(first[1]))


def test_the_trailing_gate_adapts_inside_the_backtest_as_computed_afterwards(
    model_small: GatedModel, dataset_small: DatasetH
) -> None:
    frame = model_small.predict(dataset_small)
    strategy = WatchedStrategy(signal=frame, model=model_small, gate="trailing_ic", topk=TOPK, n_drop=N_DROP)
    run_backtest(strategy)

    seen = strategy.seen
    days = np.array(sorted(seen), dtype="datetime64[D]")
    weights = model_small.weights("trailing_ic", days, model_small.realised(frame))
    table = pd.DataFrame(weights, index=pd.DatetimeIndex(days), columns=list(model_small.fitted().names))
    assert table.nunique().max() > 20, "the weights must move"
    afterwards = slow_composite(frame[table.columns], table)
    for day, scores in seen.items():
        expected = afterwards.xs(day, level="datetime").reindex(scores.index)
        np.testing.assert_allclose(scores.to_numpy(), expected.to_numpy(), rtol=0, atol=1e-12)


def test_the_trailing_gate_reads_nothing_that_a_trader_could_not_know(
    model_small: GatedModel, dataset_small: DatasetH
) -> None:
    """Experts shuffled from a day on leave the weights of that day's and the next day's decisions as they were."""
    frame = model_small.predict(dataset_small)
    days = frame.index.get_level_values("datetime").unique().sort_values()
    poisoned = frame.copy()
    later = poisoned.index.get_level_values("datetime") >= days[60]
    poisoned.loc[later, "one"] = -poisoned.loc[later, "one"].to_numpy()
    stamps = days.to_numpy().astype("datetime64[D]")
    honest = model_small.weights("trailing_ic", stamps, model_small.realised(frame))
    changed = model_small.weights("trailing_ic", stamps, model_small.realised(poisoned))
    differs = np.flatnonzero((honest != changed).any(axis=1))
    assert differs[0] == 62


def test_orders_of_a_day_use_scores_dated_the_day_before(model_small: GatedModel, predictions: pd.DataFrame) -> None:
    days = predictions.index.get_level_values("datetime").unique().sort_values()
    scores = predictions[["score"]]
    _, honest = run_backtest(GatedTopkStrategy(signal=scores, topk=TOPK, n_drop=N_DROP))
    turned = scores.copy()
    later = turned.index.get_level_values("datetime") >= days[40]
    turned.loc[later] = -turned.loc[later].to_numpy()
    _, poisoned = run_backtest(GatedTopkStrategy(signal=turned, topk=TOPK, n_drop=N_DROP))
    first, second = holdings(honest), holdings(poisoned)
    same = (first.reindex(columns=second.columns.union(first.columns), fill_value=0.0)).eq(
        second.reindex(columns=second.columns.union(first.columns), fill_value=0.0)
    )
    assert same.loc[: days[40]].all(axis=None)
    assert not same.loc[days[41]].all()


def test_nothing_is_sold_on_the_day_it_was_bought_and_never_more_than_topk_is_held(
    model_small: GatedModel, dataset_small: DatasetH
) -> None:
    frame = model_small.predict(dataset_small)
    strategy = GatedTopkStrategy(signal=frame, model=model_small, topk=TOPK, n_drop=N_DROP, hold_thresh=1)
    _, positions = run_backtest(strategy, A_SHARE_EXCHANGE)
    held = holdings(positions) > 0
    assert held.sum(axis=1).max() <= TOPK
    entered = held & ~held.shift(1, fill_value=False)
    left = ~held & held.shift(1, fill_value=False)
    assert entered.to_numpy().sum() > 20
    assert not (entered & left).to_numpy().any()
    assert left.sum(axis=1).max() <= N_DROP


def test_a_name_is_held_for_the_threshold(predictions: pd.DataFrame) -> None:
    strategy = GatedTopkStrategy(signal=predictions, topk=TOPK, n_drop=N_DROP, hold_thresh=5)
    _, positions = run_backtest(strategy)
    held = holdings(positions) > 0
    for code in held.columns:
        spells = (held[code] != held[code].shift(1)).cumsum()[held[code]]
        ended = spells[spells < spells.max()] if held[code].iloc[-1] else spells
        assert (ended.value_counts() >= 5).all()


def test_days_without_a_score_are_held_through(predictions: pd.DataFrame) -> None:
    days = predictions.index.get_level_values("datetime").unique().sort_values()
    gap = predictions[["score"]].copy()
    gap.loc[gap.index.get_level_values("datetime").isin(days[30:35])] = np.nan
    missing = gap.drop(index=gap.index[gap.index.get_level_values("datetime").isin(days[50:55])])
    _, positions = run_backtest(GatedTopkStrategy(signal=missing, topk=TOPK, n_drop=N_DROP))
    held = holdings(positions)
    assert (held.loc[days[31] : days[35]].nunique() == 1).all()
    assert (held.loc[days[51] : days[55]].nunique() == 1).all()


def test_topk_and_n_drop_that_mean_nothing_are_refused() -> None:
    for topk, n_drop in [(5, 0), (5, 6), (0, 0)]:
        with pytest.raises(ConfigError, match="topk"):
            GatedTopkStrategy(signal=pd.Series(dtype=float), topk=topk, n_drop=n_drop)


def test_a_signal_without_the_experts_is_refused(model_small: GatedModel, predictions: pd.DataFrame) -> None:
    strategy = GatedTopkStrategy(signal=predictions[["score"]], model=model_small, topk=TOPK, n_drop=N_DROP)
    with pytest.raises(ConfigError, match="lacks the experts"):
        strategy.score(predictions[["score"]])


def test_the_trailing_gate_asks_for_the_frame_of_predictions(
    model_small: GatedModel, predictions: pd.DataFrame
) -> None:
    signal = create_signal_from(predictions)
    strategy = GatedTopkStrategy(signal=signal, model=model_small, gate="trailing_ic", topk=TOPK, n_drop=N_DROP)
    with pytest.raises(ConfigError, match="give <PRED>"):
        run_backtest(strategy)


def slow_composite(experts: pd.DataFrame, weights: pd.DataFrame) -> pd.Series:
    """Mix standardised expert scores name by name, with the weights renormalised over the experts that it has."""
    mixed = {}
    for (day, code), scores in experts.iterrows():
        if day in weights.index:
            known = scores.dropna()
            of_known = weights.loc[day, known.index]
            mixed[day, code] = (known * of_known).sum() / of_known.sum() if of_known.sum() > 0 else np.nan
    found = pd.Series(mixed, name="score")
    found.index.names = experts.index.names
    return found
