from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from qlib_llm_alpha.engine.evaluate import evaluate
from qlib_llm_alpha.engine.funnel import Screened, Thresholds, prepare_label, screen
from qlib_llm_alpha.engine.price import price
from qlib_llm_alpha.engine.tile_scoring import DailyScores, Pool, UnitRows, score_columns
from qlib_llm_alpha.engine.tiles import TiledPanel
from qlib_llm_alpha.errors import PanelError
from qlib_llm_alpha.factor.expression import parse

LABEL = parse("Ref($close,-2)/Ref($close,-1)-1", allow_future=True)
REVERSAL = "$close/Mean($close,5)-1"
MOMENTUM = "$close/Ref($close,10)-1"
GOOD = (REVERSAL, MOMENTUM, "$volume/Mean($volume,20)")


def market(days: int = 400, names: int = 70, *, members: bool = False) -> TiledPanel:
    rng = np.random.default_rng(5)
    close = 10 * np.exp(np.cumsum(rng.standard_normal((days, names)) * 0.02, axis=0))
    volume = np.exp(rng.standard_normal((days, names)) + 12)
    close[rng.random(close.shape) < 0.01] = np.nan
    spans = {f"S{at}": (0 if at % 3 else at, days) for at in range(names)}
    for at, (first, _) in enumerate(spans.values()):
        close[:first, at] = volume[:first, at] = np.nan
    return TiledPanel.from_arrays(
        np.datetime64("2020-01-01") + np.arange(days),
        tuple(spans),
        {"$close": close, "$volume": volume},
        spans=spans,
        member=rng.random((days, names)) < 0.8 if members else None,
    )


PANEL = market()


def one(candidate: str, **options: object) -> Screened:
    (found,) = screen([candidate], PANEL, LABEL, **options)
    return found


def test_candidates_come_back_in_their_order_with_the_stage_they_reached() -> None:
    given = [
        REVERSAL,
        "Mean($close",
        "Sign($close)",
        "Log(-1*$close)",
        "$vwap/$close",
        "Rank($close,400)",
        MOMENTUM,
    ]
    dear = price(parse("Rank($close,400)"), len(PANEL.instruments), len(PANEL.days))
    found = screen(given, PANEL, LABEL, max_price_s=dear / 2, batch=3)
    assert [one.candidate for one in found] == given
    assert [(one.stage, one.reason) for one in found] == [
        ("scored", ""),
        ("read", "syntax_error"),
        ("priced", "constant"),
        ("priced", "all_missing"),
        ("priced", "failed"),
        ("parsed", "too_dear"),
        ("scored", ""),
    ]
    assert [one.passed for one in found] == [True, False, False, False, False, False, True]
    assert all(one.detail for one in found if not one.passed)


def test_scores_are_those_of_the_whole_panel() -> None:
    panel = market(members=True)
    label = prepare_label(LABEL, panel)
    values = evaluate([parse(text) for text in GOOD], panel).values
    expected = score_columns(values, label)
    for found, daily in zip(screen(GOOD, panel, label, batch=2), expected, strict=True):
        assert found.daily is not None
        for name in ("ic", "rank_ic", "autocorrelation", "turnover", "spread", "coverage", "names"):
            np.testing.assert_array_equal(getattr(found.daily, name), getattr(daily, name))
        assert found.ic.mean == pytest.approx(np.nanmean(daily.ic))
        assert found.rank_ic.days == np.sum(~np.isnan(found.daily.rank_ic))


def test_batches_and_threads_change_nothing() -> None:
    whole = screen(GOOD, PANEL, LABEL, batch=32, threads=2)
    single = screen(GOOD, PANEL, LABEL, batch=1, threads=1)
    for left, right in zip(whole, single, strict=True):
        np.testing.assert_array_equal(left.daily.rank_ic, right.daily.rank_ic)


def test_what_falls_short_of_the_thresholds_gets_no_dear_measures() -> None:
    found = one(MOMENTUM, keep=Thresholds(ic=0.9))
    assert (found.stage, found.reason) == ("valued", "low_ic")
    assert found.daily is not None
    assert found.daily.rank_ic is None
    assert found.rank_ic.days == 0
    assert one(MOMENTUM, keep=lambda daily: bool(np.isfinite(daily.ic).any())).passed


@pytest.mark.parametrize(
    ("thresholds", "kept"),
    [
        (Thresholds(), True),
        (Thresholds(ic=0.1), True),
        (Thresholds(ic=0.11), False),
        (Thresholds(ratio=0.5), True),
        (Thresholds(ratio=0.6), False),
        (Thresholds(days=4), False),
        (Thresholds(coverage=0.5), True),
        (Thresholds(coverage=0.6), False),
    ],
)
def test_thresholds_by_hand(thresholds: Thresholds, kept: bool) -> None:
    # mean -0.1, deviation 0.2, 3 days, coverage 0.5
    daily = DailyScores(np.array([-0.1, np.nan, -0.3, 0.1]), np.full(4, 9), np.full(4, 0.5))
    assert thresholds(daily) is kept


def test_a_candidate_without_an_ic_is_not_kept() -> None:
    empty: NDArray[np.float64] = np.full(3, np.nan)
    assert not Thresholds()(DailyScores(empty, np.zeros(3, dtype=np.int64), empty))


def test_likeness_to_the_pool_is_told() -> None:
    label = prepare_label(LABEL, PANEL)
    values = evaluate([parse(text) for text in GOOD], PANEL).values
    rows = UnitRows.of(values, label.universe)
    pool = Pool.empty().add("reversal", rows, 0).add("volume", rows, 2)
    found = screen(GOOD, PANEL, label, pool=pool)
    assert [one.alike.shape for one in found if one.alike is not None] == [(2,)] * 3
    assert found[0].alike[0] == pytest.approx(1, abs=1e-5)
    assert found[2].alike[1] == pytest.approx(1, abs=1e-5)
    assert abs(found[1].alike[1]) < 0.2
    assert one(REVERSAL).alike is None


def test_a_long_look_back_is_not_taken_for_missing_on_the_corner() -> None:
    assert one("$close/Ref($close,350)-1").passed


def test_rows_limit_what_is_scored() -> None:
    found = one(REVERSAL, rows=slice(100, 200))
    assert found.daily is not None
    assert found.daily.ic.shape == (100,)


def test_progress_counts_every_candidate() -> None:
    seen: list[tuple[int, int]] = []
    screen([*GOOD, "nonsense("], PANEL, LABEL, batch=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 4), (4, 4)]
    assert screen([], PANEL, LABEL) == []


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(PanelError, match="batch"):
        screen(GOOD, PANEL, LABEL, batch=0)
    with pytest.raises(PanelError, match="prepare the label on this panel"):
        screen(GOOD, market(days=80), prepare_label(LABEL, PANEL))


def test_null_labels_get_the_t_of_the_rank_ic_against_them() -> None:
    rng = np.random.default_rng(11)
    days, names = 80, 40
    close = np.exp(np.cumsum(rng.normal(0, 0.02, (days, names)), axis=0)).astype(np.float32)
    close[rng.random(close.shape) < 0.05] = np.nan
    panel = TiledPanel.from_arrays(
        np.datetime64("2020-01-01", "D") + np.arange(days), [f"S{n}" for n in range(names)], {"$close": close}
    )
    label = prepare_label(parse("Ref($close,-2)/Ref($close,-1)-1", allow_future=True), panel)
    rows = slice(10, 70)
    found = screen([parse("$close/Ref($close,3)")], panel, label, null_labels=[label, label], rows=rows)[0]
    assert found.null_t is not None
    assert found.null_t.shape == (2,)
    # Where both sides lack different names the product of unit ranks is near the joint rank correlation, not equal.
    assert found.null_t == pytest.approx([found.rank_ic.t] * 2, abs=0.25)
    assert screen([parse("$close/Ref($close,3)")], panel, label, rows=rows)[0].null_t is None
