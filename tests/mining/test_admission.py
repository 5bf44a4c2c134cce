from __future__ import annotations

import numpy as np
import pytest

from qlib_llm_alpha.engine.tiles import TiledPanel
from qlib_llm_alpha.errors import ConfigError, WallError
from qlib_llm_alpha.evaluation.search_data import SearchData
from qlib_llm_alpha.evaluation.verdict import REASONS, Verdict
from qlib_llm_alpha.evaluation.walls import SearchWindow
from qlib_llm_alpha.factor.expression import Expression, parse
from qlib_llm_alpha.mining.admission import Admission, Rules, admit
from qlib_llm_alpha.mining.candidates import Candidate

DAYS, NAMES = 320, 40
LABEL = parse("Ref($close,-2)/Ref($close,-1)-1", allow_future=True)
RULES = Rules(draws=400)


def calendar(days: int) -> np.ndarray:
    return np.datetime64("2020-01-01", "D") + np.arange(days)


def market(seed: int = 0, edge: float = 0.0) -> TiledPanel:
    """Return independent returns; the day's volume moves the return from the next close to the one after by `edge`."""
    rng = np.random.default_rng(seed)
    volume = np.exp(rng.normal(0, 0.5, (DAYS, NAMES)))
    returns = rng.normal(0, 0.02, (DAYS, NAMES))
    signal = np.log(volume)
    signal = (signal - signal.mean(axis=1, keepdims=True)) / signal.std(axis=1, keepdims=True)
    returns[2:] += edge * 0.02 * signal[:-2]
    close = 10 * np.exp(np.cumsum(returns, axis=0))
    spread = np.abs(rng.normal(0, 0.01, (DAYS, NAMES))) + 0.001
    fields = {
        "$close": close,
        "$open": close * (1 + rng.normal(0, 0.01, (DAYS, NAMES))),
        "$high": close * (1 + 2 * spread),
        "$low": close * (1 - 2 * spread),
        "$volume": volume * 1e6,
    }
    codes = [f"SH{600000 + number}" for number in range(NAMES)]
    return TiledPanel.from_arrays(calendar(DAYS), codes, fields)


def data_of(panel: TiledPanel, start: int = 40) -> SearchData:
    window = SearchWindow(panel.days[start], panel.days[-1])
    return SearchData.of(panel, window, LABEL, universe="all", data="test")


def run(formulas: list[str], panel: TiledPanel, **settings: object) -> Admission:
    candidates = [Candidate(parse(text), "human") for text in formulas]
    return admit(candidates, data_of(panel), **{"rules": RULES, **settings})


PLANTED = "$volume/Mean($volume,10)"
IDLE = [
    "$close/Ref($close,5)-1",
    "$close/Ref($close,20)-1",
    "Std($close/Ref($close,1),10)",
    "$open/$close-1",
    "($high-$low)/$close",
    "($close-$low)/($high-$low)",
    "Corr($close/Ref($close,1),$high/$low,10)",
    "Mean($close,5)/Mean($close,20)",
]


def test_the_planted_factor_is_admitted_and_idle_ones_are_not() -> None:
    found = run([*IDLE, PLANTED], market(1, edge=0.25))
    assert [one.candidate.expression.text for one in found.admitted] == [PLANTED]
    planted = found.admitted[0]
    assert planted.rank_ic > 0.1
    assert planted.adjusted_p <= 0.05
    assert planted.t > 4
    assert len(found.family) == len(IDLE) + 1
    assert found.series().shape == (DAYS - 42, len(IDLE) + 1)


def test_a_difference_of_comparisons_is_judged_like_any_formula() -> None:
    strong = "($volume>Mean($volume,10))-($volume<0.7*Mean($volume,10))"
    found = run([*IDLE, strong], market(1, edge=0.5))
    assert [one.candidate.expression.text for one in found.admitted] == [parse(strong).text]


def test_without_an_edge_nothing_is_admitted() -> None:
    assert not run([*IDLE, PLANTED], market(1)).admitted


def test_alpha_is_an_error_rate_of_runs() -> None:
    admitted = sum(bool(run([*IDLE, PLANTED], market(seed)).admitted) for seed in range(60))
    assert admitted <= 8  # 3 expected; 8 or more has a chance of 1 in 100


def test_more_worthless_trials_make_it_harder_for_the_same_factor() -> None:
    panel = market(2, edge=0.03)
    few = run([PLANTED], panel)
    many = run([PLANTED, *[f"Ref($close,{n})/Ref($close,{n + 3})" for n in range(1, 60)]], panel)
    assert many.judged[0].adjusted_p > few.judged[0].adjusted_p
    assert many.judged[0].block_t == pytest.approx(few.judged[0].block_t)


@pytest.mark.parametrize(
    ("formula", "reason"),
    [
        ("$volume/Mean($volume,10)", "known"),
        ("$volume/(2*Mean($volume,10))*2", "known"),
        ("$volume/Mean($volume,11)", "correlated"),
    ],
)
def test_what_repeats_or_resembles_the_library_is_rejected(formula: str, reason: str) -> None:
    library = [parse("$volume/Mean($volume,10)")]
    found = run([formula], market(1, edge=0.3), library=library)
    assert found.judged[0].verdict.reason == reason
    if reason == "correlated":
        assert found.judged[0].nearest.startswith("library")
        assert abs(found.judged[0].nearest_correlation) > 0.7


def test_of_two_that_rank_alike_the_stronger_is_admitted_whatever_the_order() -> None:
    panel = market(1, edge=0.3)
    pair = ["$volume/Mean($volume,10)", "$volume/Mean($volume,60)"]
    for order in (pair, pair[::-1]):
        found = run(order, panel)
        assert len(found.admitted) == 1
        rejected = next(one for one in found.judged if not one.verdict.admitted)
        assert rejected.verdict.reason == "correlated"
        assert abs(found.admitted[0].block_t) >= abs(rejected.block_t)


def reason_of(formula: Expression, panel: TiledPanel, rules: Rules = RULES) -> str:
    return admit([Candidate(formula, "human")], data_of(panel), rules=rules).judged[0].verdict.reason


def test_look_ahead_is_rejected_before_anything_is_computed() -> None:
    leak = parse("Ref($close,-2)/Ref($close,-1)", allow_future=True)
    found = admit([Candidate(leak, "human")], data_of(market(1)), rules=RULES)
    assert found.judged[0].verdict.reason == "look_ahead"
    assert found.family == ()
    assert found.null is None


def test_each_screen_rejects_for_its_own_reason() -> None:
    panel = market(1, edge=0.3)
    assert reason_of(parse("Log($volume)", units="warn"), panel) == "scale"
    assert reason_of(parse("CSRank($volume)"), panel) == "scale"
    assert reason_of(parse(PLANTED), panel, Rules(draws=400, nodes=3)) == "complex"
    assert reason_of(parse("$volume/Mean($volume,240)"), panel) == "coverage"
    assert reason_of(parse(PLANTED), panel, Rules(draws=400, turnover=0.01)) == "turnover"
    assert reason_of(parse(PLANTED), panel, Rules(draws=400, price_s=1e-9)) == "too_dear"
    assert reason_of(parse("Ref($close,310)/$close"), panel) in {"all_missing", "low_ic", "coverage"}
    assert reason_of(parse("Gt($close,0)"), panel) == "constant"
    assert reason_of(parse("$open/$close"), panel) == "weak"


def test_a_factor_that_says_something_only_on_few_days_is_rejected() -> None:
    rare = "If(Gt($volume/Mean($volume,10),3),1,0)"
    assert reason_of(parse(rare), market(1, edge=0.3)) == "variation"


def test_rejections_keep_their_measures_and_reasons_are_documented() -> None:
    found = run([*IDLE, PLANTED], market(1, edge=0.25))
    for one in found.judged:
        assert one.verdict.admitted or one.verdict.reason in REASONS
        assert one.verdict.admitted or one.verdict.detail
        assert np.isfinite([one.ic, one.rank_ic, one.t, one.block_t, one.turnover, one.coverage]).all()


def test_the_same_run_twice_gives_the_same_verdicts() -> None:
    first, second = (run([*IDLE, PLANTED], market(1, edge=0.2), seed=5) for _ in range(2))
    assert [one.verdict for one in first.judged] == [one.verdict for one in second.judged]
    np.testing.assert_array_equal(first.series(), second.series())


def test_search_data_has_no_later_days() -> None:
    panel = market(0)
    with pytest.raises(WallError, match="expected no later bars"):
        SearchData.of(panel, SearchWindow(panel.days[40], panel.days[-2]), LABEL, universe="all", data="x")
    data = data_of(panel)
    assert data.days[-1] == panel.days[-3]  # the last label that is known by the end of search
    assert data.labelled.all()
    assert not np.isfinite(data.prepared.values[-2:]).any()


def test_a_label_that_looks_nowhere_or_a_window_without_days_is_refused() -> None:
    panel = market(0)
    window = SearchWindow(panel.days[40], panel.days[-1])
    with pytest.raises(WallError, match="reads no later day"):
        SearchData.of(panel, window, parse("$close/Ref($close,1)"), universe="all", data="x")
    with pytest.raises(WallError, match="lengthen"):
        SearchData.of(panel, SearchWindow(panel.days[-2], panel.days[-1]), LABEL, universe="all", data="x")


def test_a_search_too_short_for_the_test_says_so() -> None:
    panel = market(0)
    with pytest.raises(ConfigError, match="begin search earlier"):
        admit([Candidate(parse(PLANTED), "human")], data_of(panel, start=DAYS - 60), rules=RULES)


@pytest.mark.parametrize("setting", [{"alpha": 0.0}, {"alpha": 1.5}, {"coverage": -1}, {"draws": 5}])
def test_rules_that_mean_nothing_are_refused(setting: dict) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Rules(**setting)


def test_a_verdict_is_either_admitted_or_has_a_reason() -> None:
    with pytest.raises(ConfigError, match="reason"):
        Verdict(True, "weak")
    with pytest.raises(ConfigError, match="reason"):
        Verdict(False)
