"""A profile says what there is in coarse words, holds under noise, and knows nothing after its window."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlib_llm_alpha.data.embedded.in_memory import market_panel
from qlib_llm_alpha.data.embedded.simulate import Market, simulate
from qlib_llm_alpha.documents.masking import Names, find_leaks
from qlib_llm_alpha.engine.tiles import Column, TiledPanel
from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.evaluation.search_data import SearchData
from qlib_llm_alpha.evaluation.walls import Walls
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.mining.candidates import MINED_FIELDS
from qlib_llm_alpha.mining.exploring import cut
from qlib_llm_alpha.mining.market_profile import coarse, market_profile, one_figure, whole_t
from tests.support.poison import poisoned

LABEL = parse("Ref($close,-2)/Ref($close,-1)-1", allow_future=True)
WALLS = Walls.from_segments({"train": ["2018-01-02", "2019-12-31"]})


@pytest.fixture(scope="module")
def market() -> Market:
    return simulate("planted", 60, "2017-06-01", "2020-06-30", 3)


def searched(market: Market) -> SearchData:
    return walled(market_panel(market, end=WALLS.search.end))


def walled(panel: TiledPanel) -> SearchData:
    return SearchData.of(panel, WALLS.search, LABEL, universe="csi300", data="planted 3")


def small_panel(values: dict[str, np.ndarray], names: int = 12) -> TiledPanel:
    days = np.busday_offset("2018-01-02", np.arange(len(next(iter(values.values())))), roll="forward")
    return TiledPanel.from_arrays(days, [f"SH6000{place:02d}" for place in range(names)], values)


def flat_walk(seed: int = 5, days: int = 300, names: int = 12) -> np.ndarray:
    return 10 * np.exp(np.cumsum(np.random.default_rng(seed).normal(0, 0.02, (days, names)), axis=0))


def test_a_planted_reversal_is_told_with_its_sign_and_a_whole_t(market: Market) -> None:
    trace = next(one for one in market_profile(searched(market)).traces if one.name == "return of 5 days")
    assert trace.t is not None
    assert trace.t <= -3
    assert trace.strength in {"clear", "strong"}
    assert f"{trace.strength} negative (t {trace.t})" in market_profile(searched(market)).text


def test_each_figure_is_what_the_arrays_hold() -> None:
    close = flat_walk()
    volume = np.random.default_rng(1).lognormal(10, 1.5, close.shape)
    volume[::4] = 0.0
    close[100:200, :6] = np.nan
    profile = market_profile(walled(small_panel({"$close": close, "$volume": volume})))
    assert {one.name: (one.unit, one.coverage) for one in profile.fields} == {
        # 100 of 300 days are missing for half of the names: 83 percent are there.
        "$close": ("a price", 80),
        "$volume": ("a number of shares", 100),
    }
    assert (profile.names, profile.days) == ("10", "300")
    assert profile.volatility == "2"
    assert profile.autocorrelation == "about none"
    assert profile.zero_volume == 25
    assert profile.volume_skew == "heavily skewed to the right"


def test_returns_that_turn_each_day_are_clearly_negatively_autocorrelated() -> None:
    steps = np.random.default_rng(2).normal(0, 0.02, (301, 12))
    close = 10 * np.exp(np.cumsum(steps[1:] - 0.9 * steps[:-1], axis=0))
    assert market_profile(walled(small_panel({"$close": close}))).autocorrelation == "clearly negative"


def test_fields_that_are_not_there_are_left_out_with_all_that_needs_them() -> None:
    profile = market_profile(walled(small_panel({"$close": flat_walk(), "$volume": np.full((300, 12), np.nan)})))
    assert [one.name for one in profile.fields] == ["$close"]
    assert profile.zero_volume is None
    assert profile.volume_skew == "unknown"
    assert all("$volume" not in one.formula for one in profile.traces)


def test_the_mark_of_a_name_that_never_traded_is_unknown_and_no_error() -> None:
    profile = market_profile(walled(small_panel({"$close": np.full((300, 12), 10.0)})))
    assert profile.autocorrelation == "unknown"
    assert profile.volatility == "0"
    assert {one.strength for one in profile.traces} == {"unknown"}
    assert "unknown" in profile.text


def test_what_was_tried_is_added_and_formulas_that_cannot_be_scored_are_unknown(market: Market) -> None:
    tried = [parse("Mean($close,3)/$close"), parse("$unheard/$close", fields=["$unheard"])]
    last = market_profile(searched(market), tried=tried).traces[-2:]
    assert [one.formula for one in last] == ["Mean($close,3)/$close", "$unheard/$close"]
    assert last[0].t is not None
    assert last[1].strength == "unknown"
    assert market_profile(searched(market), tried=tried).text.endswith("`$unheard/$close`: unknown")


def test_no_date_code_universe_or_exact_count_is_told(market: Market) -> None:
    profile = market_profile(searched(market))
    shown = profile.text + json.dumps(profile.to_dict())
    assert not re.search(r"(19|20)\d\d|SH\d|SZ\d|csi|planted", shown)
    assert "about 50 instruments a day, about 500 days of trading" in shown
    assert find_leaks(profile.text, Names.of(instruments=searched(market).panel.instruments)) == []
    for number in re.findall(r"(?<![\w,(.])\d+(?:\.\d+)?(?=%)", profile.text):
        assert float(number) % 5 == 0 or float(number) < 10


def test_noise_of_one_in_a_hundred_thousand_changes_no_byte(market: Market) -> None:
    text = market_profile(searched(market)).text
    for seed in range(5):
        panel, rng = market_panel(market, end=WALLS.search.end), np.random.default_rng(seed)
        for name in (*MINED_FIELDS, "$factor"):
            column = panel.column(name)
            noise = 1 + 1e-5 * rng.standard_normal(column.values.shape)
            panel.put(name, Column((column.values * noise).astype(np.float32), column.spans))
        assert market_profile(walled(panel)).text == text


def test_what_comes_after_the_window_changes_nothing(market: Market) -> None:
    text = market_profile(searched(market)).text
    cut_at = int(np.searchsorted(market.days, WALLS.search.end, side="right"))
    for other in (poisoned(market, str(WALLS.search.end)), _missing_after(market, cut_at)):
        assert market_profile(searched(other)).text == text


def test_what_comes_after_explore_changes_nothing(market: Market) -> None:
    explore, judge = cut(searched(market))
    cut_at = int(np.searchsorted(market.days, judge.window.start))
    other, _ = cut(searched(_missing_after(market, cut_at)))
    assert market_profile(other).to_dict() == market_profile(explore).to_dict()


def test_a_value_in_the_middle_of_two_steps_is_clear_of_the_edge() -> None:
    for noise in (-1e-3, 0.0, 1e-3):
        assert coarse(0.25 + noise, 0.1) == 0.3
        assert coarse(0.2 + noise, 0.1) == 0.2
        assert coarse(2.5 + noise, 1.0) == 3.0


@given(st.floats(-1e6, 1e6), st.sampled_from([0.05, 0.1, 1.0, 5.0, 10.0]))
def test_a_coarse_value_is_a_multiple_near_it_and_odd(value: float, step: float) -> None:
    result = coarse(value, step)
    assert abs(result - value) <= 0.531 * step + 1e-6 * abs(value)
    assert result / step == pytest.approx(round(result / step), rel=1e-6)
    assert coarse(-value, step) == -result


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.0, "1"), (9.99, "10"), (10.0, "10"), (340.0, "300"), (0.0213, "0.02"), (-4.6, "-5"),
     (float("nan"), "unknown"), (1e-30, "0"), (0.96, "1"), (123456.0, "100000")],
)  # fmt: skip
def test_one_figure_is_left_of_a_number(value: float, text: str) -> None:
    assert one_figure(value) == text


def test_t_is_a_whole_number_and_capped() -> None:
    assert [whole_t(t) for t in (0.2, -1.9, 3.4, 57.0, -57.0, float("nan"))] == [0, -2, 3, 10, -10, None]


def test_a_step_or_value_that_means_nothing_is_refused() -> None:
    for value, step in ((float("nan"), 1.0), (1.0, 0.0), (float("inf"), 1.0)):
        with pytest.raises(ConfigError, match="coarse"):
            coarse(value, step)


def _missing_after(market: Market, row: int) -> Market:
    changed = {}
    for name in ("open", "high", "low", "close", "volume", "vwap", "amount", "factor", "shares"):
        values = getattr(market, name).copy()
        values[row:] = np.nan
        changed[name] = values
    return replace(market, **changed)
