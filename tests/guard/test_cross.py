"""A grid of simulated markets: what is planted where, walls, the ledger, and bars that must not matter."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from qlib_llm_alpha.data.embedded.in_memory import market_panel
from qlib_llm_alpha.data.embedded.simulate import simulate
from qlib_llm_alpha.engine import scoring
from qlib_llm_alpha.engine.panel import Days, as_days
from qlib_llm_alpha.engine.tiles import TiledPanel
from qlib_llm_alpha.errors import ConfigError, ProviderError, WallError
from qlib_llm_alpha.evaluation.cross import Cell, GridVerdict, Resampling
from qlib_llm_alpha.evaluation.ledger import TrialLedger
from qlib_llm_alpha.evaluation.statistics import hac_t
from qlib_llm_alpha.evaluation.walls import Walls
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.guard.cross import (
    CrossReport,
    Grid,
    GridMarket,
    MarketFolder,
    cross_validate,
    cross_validate_folders,
    lag_label,
    open_markets,
    parse_market,
    parse_period,
    workflow_walls,
)
from qlib_llm_alpha.library.formula_file import ReadFormula

Array = NDArray[np.float64]
DAYS, NAMES = 500, 60
FIELDS = ("$everywhere", "$there", "$then", "$nowhere")
EARLY, LATE = "early=2018-01-01:2018-12-15", "late=2018-12-16:2019-08-20"
SMALL = Resampling(draws=20)


def arrays(seed: int, strength: dict[str, Array], days: int = DAYS) -> tuple[Days, dict[str, Array]]:
    """Draw a market in which fields move the return from the next close to the one after, by a strength each day."""
    rng = np.random.default_rng(seed)
    fields = {name: rng.standard_normal((days, NAMES)) for name in FIELDS}
    returns = 0.02 * rng.standard_normal((days, NAMES))
    for name, size in strength.items():
        returns[2:] += 0.02 * size[:-2, None] * fields[name][:-2]
    fields["$close"] = 10.0 * np.exp(np.cumsum(returns, axis=0))
    return as_days(np.datetime64("2018-01-01", "D") + np.arange(days)), fields


def panel_of(days: Days, fields: dict[str, Array]) -> TiledPanel:
    return TiledPanel.from_arrays(days, [f"S{place:03}" for place in range(NAMES)], fields)


@cache
def two_markets() -> tuple[GridMarket, GridMarket]:
    always, never = np.full(DAYS, 0.15), np.zeros(DAYS)
    early = np.where(np.arange(DAYS) < DAYS // 2 - 20, 0.25, 0.0)
    here = {"$everywhere": always, "$there": always, "$then": early, "$nowhere": never}
    far = {"$everywhere": always, "$there": never, "$then": early, "$nowhere": never}
    return (
        GridMarket("here", panel_of(*arrays(1, here)), fields=frozenset({*FIELDS, "$close"})),
        GridMarket("far", panel_of(*arrays(2, far)), fields=frozenset({*FIELDS, "$close"})),
    )


def formulas(*texts: str, fields: tuple[str, ...] = FIELDS) -> list[ReadFormula]:
    return [ReadFormula(text, text, parse(text, fields=fields)) for text in texts]


def grid(*periods: str, **settings: object) -> Grid:
    chosen = [parse_period(text) for text in (periods or (EARLY, LATE))]
    return Grid(chosen, **{"resampling": SMALL, **settings})  # type: ignore[arg-type]


def verdicts(report: CrossReport) -> dict[str, GridVerdict]:
    return {verdict.factor: verdict for verdict in report.verdicts}


def cell(report: CrossReport, factor: str, market: str, period: str, lag: int = 1, cost: float = 0.0) -> Cell:
    (found,) = [
        one
        for one in report.cells
        if (one.factor, one.market, one.period, one.lag, one.basis.cost_bps) == (factor, market, period, lag, cost)
    ]
    return found


# What is planted


def test_a_universal_factor_passes_and_the_others_are_flagged_by_where_they_hold() -> None:
    report = cross_validate(formulas(*FIELDS), two_markets(), grid())
    found = {name: verdict.verdict for name, verdict in verdicts(report).items()}
    assert found == {
        "$everywhere": "robust",
        "$there": "one market only",
        "$then": "one period only",
        "$nowhere": "nothing",
    }
    assert report.passed == ("$everywhere",)
    assert verdicts(report)["$there"].markets == ("here",)
    assert verdicts(report)["$then"].periods == ("early",)


def test_a_factor_that_points_down_passes_with_its_sign() -> None:
    report = cross_validate(formulas("0-$everywhere"), two_markets(), grid())
    (found,) = report.verdicts
    assert (found.verdict, found.sign) == ("robust", -1)
    assert cell(report, "0-$everywhere", "far", "late").gross > 0


def test_a_plant_of_the_embedded_market_passes_two_of_them_and_one_in_noise_is_flagged() -> None:
    one, two = (market_panel(simulate("planted", 60, "2017-01-03", "2019-12-31", seed)) for seed in (3, 4))
    noise = market_panel(simulate("noise", 60, "2017-01-03", "2019-12-31", 4))
    spans = grid("early=2017-03-01:2018-06-29", "late=2018-07-02:2019-12-27")
    plant = formulas("1-$open/Ref($close,1)")
    both = cross_validate(plant, [GridMarket("one", one), GridMarket("two", two)], spans)
    alone = cross_validate(plant, [GridMarket("one", one), GridMarket("noise", noise)], spans)
    assert both.verdicts[0].verdict == "robust"
    assert alone.verdicts[0].verdict == "one market only"


def test_at_most_five_of_a_hundred_noise_factors_picked_in_sample_pass() -> None:
    """200 weighted sums of noise fields; the half that looked best in the reference cell goes over the grid."""
    rng = np.random.default_rng(9)
    texts = [
        "+".join(f"{weight:.2f}*{name}" for name, weight in zip(FIELDS, rng.standard_normal(4), strict=True))
        for _ in range(200)
    ]
    never = {name: np.zeros(DAYS) for name in FIELDS}
    markets = [GridMarket(name, panel_of(*arrays(seed, never))) for name, seed in (("here", 21), ("far", 22))]
    seen = cross_validate(formulas(*texts), markets, grid())
    strength = {one.factor: abs(cell(seen, one.factor, "here", "early").t) for one in seen.verdicts}
    best = sorted(strength, key=lambda name: -strength[name])[:100]
    assert len(cross_validate(formulas(*best), markets, grid()).passed) <= 5


# Cells


def test_a_cell_has_the_figures_of_dense_arrays() -> None:
    market = two_markets()[0]
    close = market.panel.untiled(market.panel.column("$close").values).astype(np.float64)
    value = market.panel.untiled(market.panel.column("$everywhere").values).astype(np.float64)
    report = cross_validate(formulas("$everywhere"), [market], grid(lags=(1, 3), costs_bps=(0.0, 25.0)))
    begin, end = np.searchsorted(market.panel.days, np.array(["2018-01-01", "2018-12-16"], dtype="datetime64[D]"))
    for lag in (1, 3):
        label = np.full(close.shape, np.nan)
        label[: -lag - 1] = close[lag + 1 :] / close[lag:-1] - 1.0
        rows = slice(begin, end - lag - 1)
        wanted, spread = scoring.rank_ic_and_spread(value[rows], label[rows])
        traded = 2.0 * (scoring.turnover(value) + scoring.turnover(-value))
        traded[0] = 2.0
        found = cell(report, "$everywhere", "here", "early", lag, 25.0)
        assert found.days == len(wanted)
        assert found.rank_ic == pytest.approx(wanted.mean(), abs=1e-6)
        assert found.t == pytest.approx(hac_t(wanted), rel=1e-4)
        assert found.gross == pytest.approx(spread.mean(), rel=1e-4)
        assert found.net == pytest.approx((spread - 0.0025 * traded[rows]).mean(), rel=1e-4)
        assert found.coverage == 1.0
        assert found.basis.label == lag_label(lag)
        assert found.basis.horizon == lag + 1
        assert (found.basis.start, found.basis.end) == ("2018-01-01", str(market.panel.days[end - lag - 2]))


def test_each_cell_states_its_basis_and_there_is_one_for_each_place_of_the_grid() -> None:
    report = cross_validate(formulas("$everywhere", "$there"), two_markets(), grid(lags=(1, 2), costs_bps=(0.0, 10.0)))
    table = report.table()
    assert len(table) == 2 * 2 * 2 * 2 * 2
    assert not table.duplicated(["factor", "market", "period", "lag", "cost_bps"]).any()
    assert set(table["universe"]) == {"here:all", "far:all"}
    assert table["basis"].str.contains("members of the day").all()
    assert set(table["verdict"]) == {"robust", "one market only"}


def test_bars_after_a_period_do_not_matter_to_its_cells_nor_to_states_before() -> None:
    days, fields = arrays(5, {"$everywhere": np.full(DAYS, 0.1)})
    poisoned = {name: values.copy() for name, values in fields.items()}
    last = int(np.searchsorted(days, np.datetime64("2018-09-30")))
    rng = np.random.default_rng(0)
    for values in poisoned.values():
        values[last + 1 :] = 1.0 + rng.random(values[last + 1 :].shape)
    span = grid("only=2018-02-01:2018-09-30", lags=(1, 5))
    clean, other = (
        cross_validate(formulas("$everywhere", "Mean($close,5)/$close"), [GridMarket("m", panel_of(days, one))], span)
        for one in (fields, poisoned)
    )
    assert [one.to_dict() for one in clean.cells] == [one.to_dict() for one in other.cells]
    assert [one.to_dict() for one in clean.stress] == [one.to_dict() for one in other.stress]


def test_names_count_on_the_days_on_which_they_are_members() -> None:
    days, fields = arrays(6, {"$everywhere": np.full(DAYS, 0.1)})
    member = np.ones((DAYS, NAMES), dtype=np.bool_)
    member[:, 30:] = False
    part = {name: values[:, :30] for name, values in fields.items()}
    codes = [f"S{place:03}" for place in range(NAMES)]
    whole = TiledPanel.from_arrays(days, codes, fields, member=member)
    alone = TiledPanel.from_arrays(days, codes[:30], part)
    one, other = (cross_validate(formulas("$everywhere"), [GridMarket("m", panel)], grid()) for panel in (whole, alone))
    assert [found.rank_ic for found in one.cells] == [found.rank_ic for found in other.cells]


# Formulas and periods that a market lacks


def test_a_formula_of_a_field_that_one_market_lacks_is_told_there_and_does_not_pass() -> None:
    here, far = two_markets()
    poor = GridMarket("far", far.panel, fields=frozenset({"$close"}))
    report = cross_validate(formulas("$everywhere"), [here, poor], grid())
    assert cell(report, "$everywhere", "far", "late").refused == "market 'far' has no $everywhere"
    assert cell(report, "$everywhere", "here", "late").refused == ""
    assert (report.verdicts[0].verdict, report.refused) == ("one market only", {})


def test_a_formula_that_no_market_can_compute_is_refused_and_the_others_are_not() -> None:
    report = cross_validate(formulas("$absent", "$everywhere", fields=(*FIELDS, "$absent")), two_markets(), grid())
    assert list(report.refused) == ["$absent"]
    assert [verdict.factor for verdict in report.verdicts] == ["$everywhere"]


def test_a_formula_that_cannot_be_computed_spoils_no_other_of_its_batch() -> None:
    unknown = [GridMarket(one.name, one.panel) for one in two_markets()]
    report = cross_validate(formulas("$absent", "$everywhere", fields=(*FIELDS, "$absent")), unknown, grid())
    assert list(report.refused) == ["$absent"]
    assert report.passed == ("$everywhere",)


def test_a_formula_that_the_language_refused_is_passed_on() -> None:
    bad = ReadFormula("bad", "Ref($close,-1)", None, "[look_ahead] it reads later bars")
    report = cross_validate([bad, *formulas("$everywhere")], two_markets(), grid())
    assert report.refused == {"bad": "[look_ahead] it reads later bars"}


def test_periods_may_be_of_one_market() -> None:
    spans = grid(f"here/{EARLY}", "far/early=2018-02-01:2018-11-30", LATE)
    report = cross_validate(formulas("$everywhere"), two_markets(), spans)
    assert cell(report, "$everywhere", "far", "early").basis.start == "2018-02-01"
    assert report.verdicts[0].verdict == "robust"


def test_a_period_outside_a_markets_days_has_empty_cells_and_the_rest_is_judged() -> None:
    report = cross_validate(formulas("$everywhere"), two_markets(), grid(EARLY, LATE, "gone=2025-01-01:2025-12-31"))
    assert cell(report, "$everywhere", "far", "gone").refused == "no trading day of this market in the period"
    assert report.verdicts[0].passes


def test_a_market_without_a_day_in_its_periods_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no day in its periods"):
        cross_validate(formulas("$everywhere"), two_markets(), grid("gone=2025-01-01:2025-12-31"))


@pytest.mark.parametrize(
    ("periods", "settings", "words"),
    [
        ((EARLY, "second=2018-12-15:2019-02-01"), {}, "share their name or a day"),
        ((EARLY, "early=2019-01-01:2019-02-01"), {}, "share their name or a day"),
        ((f"mars/{EARLY}", LATE), {}, "markets \\['mars'\\]"),
        ((f"here/{EARLY}",), {}, "'far' has no period"),
        ((EARLY,), {"lags": (0,)}, "from 1 on"),
        ((EARLY,), {"lags": ()}, "at least one of each"),
        ((EARLY,), {"costs_bps": (5.0, 5.0)}, "different basis points"),
    ],
)
def test_grids_that_mean_nothing_are_refused(periods: tuple[str, ...], settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        cross_validate(formulas("$everywhere"), two_markets(), grid(*periods, **settings))


def test_two_markets_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="different names"):
        cross_validate(formulas("$everywhere"), [two_markets()[0]] * 2, grid())


# Walls and ledger

WALLS = Walls.from_segments(
    {"train": ("2018-01-01", "2018-12-15"), "valid": ("2018-12-16", "2019-08-20"), "test": ("2019-08-21", "2019-12-31")}
)


@pytest.mark.parametrize("period", ["late=2019-08-01:2019-08-21", "later=2020-02-01:2020-03-01"])
def test_a_period_that_reaches_the_sealed_segment_or_lies_behind_it_is_refused(period: str, tmp_path: Path) -> None:
    ledger = TrialLedger(tmp_path)
    with pytest.raises(WallError, match="reaches the segment 'test'"):
        cross_validate(formulas("$everywhere"), two_markets(), grid(EARLY, period), walls=WALLS, ledger=ledger)
    assert ledger.count() == 0


def test_a_period_that_reaches_confirm_is_refused() -> None:
    walls = Walls.from_segments({"train": ("2018-01-01", "2018-12-15"), "confirm": ("2019-01-01", "2019-02-01")})
    with pytest.raises(WallError, match="'confirm'"):
        cross_validate(formulas("$everywhere"), two_markets(), grid(), walls=walls)


def test_each_factor_of_each_market_is_a_trial_and_each_look_at_tune_is_counted(tmp_path: Path) -> None:
    ledger = TrialLedger(tmp_path)
    spans = grid(lags=(1, 2), costs_bps=(0.0, 10.0))
    report = cross_validate(formulas(*FIELDS), two_markets(), spans, walls=WALLS, ledger=ledger, run="r1")
    assert ledger.count() == 4 * 2
    # Four factors, two markets, two lags in the one period that reaches valid.
    assert ledger.tune_reads() == 4 * 2 * 2
    assert {one.basis.trials for one in report.cells} == {8}
    recorded = ledger.series(data=two_markets()[0].data)
    wanted = [cell(report, name, "here", "early").rank_ic for name in FIELDS]
    early = recorded.loc[:"2018-12-13"]
    np.testing.assert_allclose(early.mean().to_numpy(), wanted, rtol=1e-12)
    again = cross_validate(formulas(*FIELDS), two_markets(), spans, walls=WALLS, ledger=ledger, run="r2")
    assert ledger.count() == 8
    assert ledger.tune_reads() == 32
    assert {one.basis.trials for one in again.cells} == {8}
    assert ledger.verify() == []


def test_without_a_ledger_nobody_counted() -> None:
    report = cross_validate(formulas("$everywhere"), two_markets(), grid(), walls=WALLS)
    assert "N not counted" in report.cells[0].basis.sentence


# Folders and texts

WORKFLOW = """
qlib_init: {provider_uri: nowhere}
task:
  dataset:
    class: DatasetH
    module_path: qlib.data.dataset
    kwargs:
      handler: {class: Alpha158, module_path: qlib.contrib.data.handler}
      segments: SEGMENTS
"""


def test_a_provider_gives_what_its_market_in_memory_gives(small_provider: Path) -> None:
    from tests.support.provider import INSTRUMENTS, SEED, START

    spans = grid("early=2019-06-03:2020-03-31", "late=2020-04-01:2020-12-31")
    (opened,) = open_markets([MarketFolder("m", small_provider, "csi300")], spans)
    assert opened.panel.days[-1] == np.datetime64("2020-12-31")
    memory = market_panel(
        simulate("planted", INSTRUMENTS, START, "2021-06-30", SEED), end="2020-12-31", universe="csi300"
    )
    asked = formulas("1-$close/Ref($close,5)")
    one, other = (cross_validate(asked, [market], spans) for market in (opened, GridMarket("m", memory, "csi300")))
    assert [found.to_dict() for found in one.cells] == [found.to_dict() for found in other.cells]
    assert one.notes == other.notes


def test_walls_of_a_workflow_are_checked_before_a_bar_is_read(tmp_path: Path) -> None:
    config = tmp_path / "workflow.yaml"
    config.write_text(WORKFLOW.replace("SEGMENTS", "{train: [2018-01-01, 2018-12-15], test: [2019-08-01, null]}"))
    folders = [MarketFolder("m", tmp_path / "no provider")]
    with pytest.raises(WallError, match="'test'"):
        cross_validate_folders("classic", folders, grid(), config=config)
    with pytest.raises(ProviderError):
        cross_validate_folders("classic", folders, grid(EARLY), config=config)


@pytest.mark.parametrize(
    "text", ["task: 3", WORKFLOW.replace("SEGMENTS", "5"), "a: [", WORKFLOW.replace("SEGMENTS", "{test: [1, 2, 3]}")]
)
def test_a_workflow_without_segments_is_refused(text: str, tmp_path: Path) -> None:
    config = tmp_path / "workflow.yaml"
    config.write_text(text)
    with pytest.raises(ConfigError):
        workflow_walls(config)


def test_a_list_of_survivors_is_named() -> None:
    days, fields = arrays(7, {})
    member = np.ones((DAYS, NAMES), dtype=np.bool_)
    codes = [f"S{place:03}" for place in range(NAMES)]
    kept = TiledPanel.from_arrays(days, codes, fields, member=member)
    member[100:, 0] = False
    left = TiledPanel.from_arrays(days, codes, fields, member=member)
    (survivors,), (honest,) = (
        cross_validate(formulas("$nowhere"), [GridMarket("m", panel)], grid()).notes for panel in (kept, left)
    )
    assert "survivors" in survivors
    assert "60 in between 1 left" in honest
    assert "survivors" not in honest


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("cn=DATA/cn:csi300", MarketFolder("cn", Path("DATA/cn"), "csi300")),
        ("us=DATA/us", MarketFolder("us", Path("DATA/us"), "all")),
        ("us=C:/data/us", MarketFolder("us", Path("C:/data/us"), "all")),
        ("us=C:/data/us:sp500", MarketFolder("us", Path("C:/data/us"), "sp500")),
    ],
)
def test_a_market_is_read(text: str, wanted: MarketFolder) -> None:
    assert parse_market(text) == wanted


@pytest.mark.parametrize("text", ["cn", "=DIR:all", "cn=", "cn=:all", "cn=DIR:"])
def test_a_market_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="NAME=DIR:UNIVERSE"):
        parse_market(text)


@pytest.mark.parametrize("text", ["early", "early=2018-01-01", "=2018-01-01:2018-02-01", "/x=2018-01-01:2018-02-01"])
def test_a_period_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="START:END"):
        parse_period(text)


def test_a_period_of_no_dates_or_reversed_ones_is_refused() -> None:
    with pytest.raises(ConfigError, match="two dates"):
        parse_period("p=soon:2018-01-01")
    with pytest.raises(ConfigError, match="swap them"):
        parse_period("p=2018-02-01:2018-01-01")
