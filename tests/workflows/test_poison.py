"""Nothing up to a day knows what comes after it: the whole chain on two markets that differ only after that day."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from qlib.backtest import backtest

from qlib_llm_alpha.data.embedded.simulate import simulate
from qlib_llm_alpha.data.embedded.write import write_market
from qlib_llm_alpha.data.market_state import load_market_context
from qlib_llm_alpha.evaluation.ledger import TrialLedger
from qlib_llm_alpha.factor.factor import Factor
from qlib_llm_alpha.gating.gates import SoftmaxGate
from qlib_llm_alpha.gating.mixture import GATES
from qlib_llm_alpha.library.factor_set import FactorSet, load_factor_set
from qlib_llm_alpha.model.gated import GatedModel
from qlib_llm_alpha.strategy.gated import GatedTopkStrategy
from qlib_llm_alpha.wiring import mine_factors
from tests.support.poison import poisoned
from tests.support.provider import (
    BENCHMARK,
    END,
    INSTRUMENTS,
    SEED,
    SMALL_MODEL,
    START,
    TEST,
    TRAIN,
    VALID,
    open_provider,
    small_dataset,
    small_handler,
)

# The first lies inside test. The second is the day on which the last label used in fitting becomes known.
INSIDE_TEST, END_OF_FITTING = "2021-03-31", VALID[1]
END_OF_SEARCH = TRAIN[1]
CLEAN = "clean"
LABEL = "Ref($close,-2)/Ref($close,-1)-1"


class RecordingStrategy(GatedTopkStrategy):
    """The strategy under test; what it decides is written down."""

    decided: list[tuple[pd.Timestamp, str, int, float]]

    def generate_trade_decision(self, execute_result: Any = None) -> Any:
        decision = super().generate_trade_decision(execute_result)
        for order in decision.get_decision():
            self.decided.append((order.start_time, order.stock_id, int(order.direction), float(order.amount)))
        return decision


@dataclass
class Chain:
    """Everything a run of the chain gives, each dated by its first index level."""

    frames: dict[str, pd.DataFrame]
    fitted: dict[str, Any] = field(default_factory=dict)

    def until(self, name: str, day: str) -> pd.DataFrame:
        frame = self.frames[name]
        return frame[frame.index.get_level_values(0) <= pd.Timestamp(day)]

    def after(self, name: str, day: str) -> pd.DataFrame:
        frame = self.frames[name]
        return frame[frame.index.get_level_values(0) > pd.Timestamp(day)]


def run_chain(root: Path, factor_set: str, traded: tuple[str, ...]) -> Chain:
    """Load the whole range, fit, score test with every gate, and trade all of it with some."""
    open_provider(root)
    handler = small_handler(factor_set=factor_set)
    dataset = small_dataset(handler)
    model = GatedModel(**SMALL_MODEL).fit(dataset)
    read_the_state(model)
    fitted = {
        "experts": [expert.factors for expert in model.fitted().experts],
        "predictors": [expert.predictor for expert in model.fitted().experts],
        "softmax": model.fitted().gates["softmax"],
        "static": model.fitted().gates["static"],
        "search": model.fitted().search,
        "tune": model.fitted().tune,
    }
    frames = {
        "features": handler.fetch(col_set="feature", data_key="infer"),
        "market state": load_market_context("csi300", BENCHMARK, END).to_frame(),
    }
    for gate in GATES:
        model.gate = gate
        scores = model.predict(dataset)
        days = scores.index.get_level_values("datetime").unique()
        outcomes = model.realised(scores) if gate == "trailing_ic" else None
        weights = model.weights(gate, days.to_numpy().astype("datetime64[D]"), outcomes)
        frames[f"scores of {gate}"] = scores
        frames[f"weights of {gate}"] = pd.DataFrame(weights, index=days)
        if gate in traded:
            frames[f"orders of {gate}"], frames[f"account of {gate}"] = trade(model, scores)
    return Chain(frames, fitted)


def read_the_state(model: GatedModel) -> None:
    """Refit the softmax gate under a fixed penalty: where the ladder chose the prior, no state would be read."""
    mixture = model.fitted()
    context = model.market_context(mixture.search.days[-1])
    columns = [context.names.index(name) for name in mixture.state]
    rows = context.standardised(fit_until=mixture.fit_until)[:, columns]
    gate = SoftmaxGate().fit(mixture.search, mixture.search.align(rows, context.days))
    model.mixture = replace(mixture, gates={**mixture.gates, "softmax": gate})


def trade(model: GatedModel, scores: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    strategy = RecordingStrategy(signal=scores, model=model, topk=8, n_drop=3)
    strategy.decided = []
    exchange = {
        "class": "AShareExchange",
        "module_path": "qlib_llm_alpha.strategy.exchange",
        "kwargs": {"start_time": TEST[0], "end_time": TEST[1], "deal_price": "$close"},
    }
    executor = {
        "class": "SimulatorExecutor",
        "module_path": "qlib.backtest.executor",
        "kwargs": {"time_per_step": "day", "generate_portfolio_metrics": True},
    }
    portfolio, _ = backtest(
        start_time=TEST[0],
        end_time=TEST[1],
        strategy=strategy,
        executor=executor,
        benchmark=BENCHMARK,
        account=1e8,
        exchange_kwargs={"exchange": exchange},
    )
    orders = pd.DataFrame(strategy.decided, columns=["day", "code", "direction", "amount"]).set_index("day")
    return orders, portfolio["1day"][0]


@dataclass(frozen=True)
class Mined:
    """What a mining session left behind: its files, and the rows of the ledger without what names the provider."""

    folder: Path
    files: dict[str, bytes]
    ledger: list[tuple[str, dict[str, Any]]]


def mined(provider: Path, out: Path) -> Mined:
    """Mine on search as the command does, with an alpha that lets something in where nothing is to be found."""
    book = out / "ledger"
    mine_factors(
        provider,
        "csi300",
        start=TRAIN[0],
        end=TRAIN[1],
        out=out / "session",
        ledger=book,
        tune=VALID,
        trials=60,
        label=LABEL,
        alpha=0.99,
        seed=3,
    )
    names = ("library.yaml", "verdicts.parquet", "series.parquet", "report.md")
    rows = [(row.kind, {**row.body, "data": ""}) for row in TrialLedger(book).chain.rows()]
    return Mined(out / "session", {name: (out / "session" / name).read_bytes() for name in names}, rows)


@pytest.fixture(scope="module")
def libraries(markets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Mined]:
    @cache
    def library(market: str) -> Mined:
        return mined(markets[market], tmp_path_factory.mktemp("mined"))

    return library


@pytest.fixture(scope="module")
def mixed_sets(libraries: Callable[[str], Mined], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return, for a market, bars, shares, accounts and what was mined on it: every poisoned file is read."""

    @cache
    def mixed(market: str) -> str:
        path = tmp_path_factory.mktemp("set") / "mixed.yaml"
        found = load_factor_set(str(libraries(market).folder / "library.yaml"))
        FactorSet("mixed", (*_chosen_factors(), *found.factors[:4]), "strict").save(path)
        return str(path)

    return mixed


def _chosen_factors() -> tuple[Factor, ...]:
    starter = load_factor_set("starter")
    reported = [
        factor
        for factor in load_factor_set("seed_accounts").factors
        if any(name.startswith("$$") for name in factor.expression.fields) and factor.name not in starter.names
    ]
    assert len(reported) > 4
    return starter.factors + tuple(reported[:4])


@pytest.fixture(scope="module")
def markets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("markets")
    market = simulate("planted", INSTRUMENTS, START, END, SEED)
    folders = {CLEAN: root / "clean"}
    folders |= {day: root / day for day in (END_OF_SEARCH, END_OF_FITTING, INSIDE_TEST)}
    write_market(market, folders[CLEAN])
    for day in (END_OF_SEARCH, END_OF_FITTING, INSIDE_TEST):
        write_market(poisoned(market, day), folders[day])
    return folders


@pytest.fixture(scope="module")
def chains(markets: dict[str, Path], mixed_sets: Callable[[str], str]) -> Callable[[str, bool], Chain]:
    @cache
    def chain(market: str, whole: bool) -> Chain:
        if whole:
            return run_chain(markets[market], mixed_sets(market), GATES)
        return run_chain(markets[market], "starter", ("softmax",))

    return chain


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((INSIDE_TEST, False), id="bars, one gate traded"),
        pytest.param((INSIDE_TEST, True), id="bars and accounts, every gate traded", marks=pytest.mark.slow),
        pytest.param((END_OF_FITTING, True), id="poisoned from the end of fitting", marks=pytest.mark.slow),
    ],
)
def pair(request: pytest.FixtureRequest, chains: Callable[[str, bool], Chain]) -> tuple[str, Chain, Chain]:
    """Return the day, the chain on the clean market and the one on the market that differs after the day."""
    day, whole = request.param
    return day, chains(CLEAN, whole), chains(day, whole)


@pytest.mark.parametrize("day", [END_OF_FITTING, INSIDE_TEST])
def test_the_mined_library_and_its_ledger_do_not_change_by_a_byte(day: str, libraries: Callable[[str], Mined]) -> None:
    clean, other = libraries(CLEAN), libraries(day)
    assert other.files == clean.files
    assert other.ledger == clean.ledger
    assert len(load_factor_set(str(clean.folder / "library.yaml")).factors) >= 2
    assert {kind for kind, _ in clean.ledger} == {"trial", "tune_read"}


def test_what_search_alone_decides_does_not_change_when_tune_is_another(libraries: Callable[[str], Mined]) -> None:
    """The report tells how the admitted did on tune, and nothing but the report may differ."""
    clean, other = libraries(CLEAN), libraries(END_OF_SEARCH)
    assert {name for name in clean.files if other.files[name] != clean.files[name]} == {"report.md"}
    assert other.ledger == clean.ledger


def test_the_poison_works_everything_after_the_day_differs(pair: tuple[str, Chain, Chain]) -> None:
    day, clean, other = pair
    for name in clean.frames:
        if name not in ("weights of equal", "weights of static"):
            assert not clean.after(name, day).equals(other.after(name, day)), name


def test_nothing_up_to_the_day_changes_by_a_bit(pair: tuple[str, Chain, Chain]) -> None:
    day, clean, other = pair
    for name in clean.frames:
        before, poisoned_before = clean.until(name, day), other.until(name, day)
        pd.testing.assert_frame_equal(poisoned_before, before, check_exact=True, obj=name)
        assert len(before) or day == END_OF_FITTING, name


def test_what_was_fitted_does_not_change_by_a_bit(pair: tuple[str, Chain, Chain]) -> None:
    _, clean, other = pair
    assert other.fitted["experts"] == clean.fitted["experts"]
    for ours, theirs in zip(clean.fitted["predictors"], other.fitted["predictors"], strict=True):
        for name, value in vars(ours).items():
            np.testing.assert_array_equal(getattr(theirs, name), value)
    for gate, names in (("softmax", ("matrix", "bias", "prior")), ("static", ("learned",))):
        for name in names:
            np.testing.assert_array_equal(getattr(other.fitted[gate], name), getattr(clean.fitted[gate], name))
    for stage in ("search", "tune"):
        np.testing.assert_array_equal(other.fitted[stage].c, clean.fitted[stage].c)
        np.testing.assert_array_equal(other.fitted[stage].R, clean.fitted[stage].R)
