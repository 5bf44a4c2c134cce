from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from qlib_llm_alpha.engine.tiles import TiledPanel
from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.evaluation.search_data import SearchData
from qlib_llm_alpha.evaluation.walls import SearchWindow
from qlib_llm_alpha.factor.expression import Expression, Field, Limits, Number, parse
from qlib_llm_alpha.factor.operators import OPERATORS
from qlib_llm_alpha.factor.printing import to_text
from qlib_llm_alpha.factor.units import MONEY, PRICE, RATIO, SHARES
from qlib_llm_alpha.mining.candidates import Candidate
from qlib_llm_alpha.mining.exploring import Found, Proposer, explore
from qlib_llm_alpha.mining.genetic import LADDER, Breeding, GeneticProposer, crossed, wide_profile
from qlib_llm_alpha.mining.profile import Profile
from qlib_llm_alpha.mining.random_formulas import RandomFormulas
from qlib_llm_alpha.mining.tree_units import adjustment_matters, parts_of, replaced

BARS = ["$open", "$high", "$low", "$close", "$volume"]
# A small profile makes a fast proposer.
SMALL = Profile.of(
    [
        parse("Mean($close,5)/Ref($close,5)"),
        parse("If($high>$low,$open/$close,Std($close/Ref($close,1)-1,20))"),
        parse("Corr($volume,Max($high,10),10)"),
        parse("Quantile($volume,20,0.8)/$volume"),
    ]
)
TEXTS = [
    "$close/Ref($close,5)-1",
    "Mean($volume,10)/$volume",
    "Corr($close,$volume,10)",
    "If($close>$open,Std($high,5)/$close,0)",
    "CSRank($high/$low)",
    "P($$eps_q)/$close",
]


def proposer(seed: int = 1, **changes: object) -> GeneticProposer:
    return GeneticProposer(BARS, seed=seed, **{"batch": 20, "profile": SMALL, **changes})  # type: ignore[arg-type]


def result(formula: Expression, fitness: float, number: int = 0) -> Found:
    return Found(Candidate(formula, "genetic"), fitness, fitness / 300, fitness, 0.3, 1.0, round=number)


def scored(formulas: Sequence[Candidate], seed: int, number: int) -> list[Found]:
    """Give each formula a fitness that depends on nothing but its text; some have none."""
    found = []
    for one in formulas:
        rng = np.random.default_rng([seed, int(one.expression.id[:8], 16)])
        fitness = float(rng.gamma(2.0))
        found.append(
            result(one.expression, fitness, number)
            if rng.random() < 0.8
            else Found(one, reason="turnover", round=number)
        )
    return found


def searched(breeder: GeneticProposer, rounds: int, *, at_once: int = 10_000, seed: int = 3) -> list[str]:
    """Return the texts of some generations, asked for in pieces and told of each piece at once."""
    history: list[Found] = []
    for number in range(rounds):
        waiting = breeder.batch
        while waiting:
            given_now = breeder.propose(min(at_once, waiting), history)
            waiting -= len(given_now)
            history += scored(given_now, seed, number)
    return [one.candidate.expression.text for one in history]


def kinds(text: str) -> list[tuple[str, object]]:
    root = parse(text).root
    return [(to_text(part.node), part.kind) for part in parts_of(root)]


def test_every_part_of_a_formula_has_its_unit() -> None:
    assert kinds("If($close>0,$amount/$volume,$close)/Var($high,5)") == [
        ("If($close>0,$amount/$volume,$close)/Var($high,5)", (-1.0, 0.0, 0.0)),
        ("If($close>0,$amount/$volume,$close)", PRICE),
        ("$close>0", "boolean"),
        ("$close", PRICE),
        ("0", RATIO),
        ("$amount/$volume", PRICE),
        ("$amount", MONEY),
        ("$volume", SHARES),
        ("$close", PRICE),
        ("Var($high,5)", (2.0, 0.0, 0.0)),
        ("$high", PRICE),
    ]
    assert kinds("P($$eps_q)/$close") == [("P($$eps_q)/$close", RATIO), ("P($$eps_q)", PRICE), ("$close", PRICE)]
    assert kinds("Sqrt($close*$open)/Cov($close,$volume,5)*Power($volume,2)")[0][1] == (0.0, 1.0, 0.0)
    assert kinds("Log($close/$open)+Greater(0,Reciprocal($volume)*$volume)")[-1] == ("$volume", SHARES)


@pytest.mark.parametrize(
    ("text", "matters"),
    [
        ("$volume/$shares", True),
        ("Corr($close,$volume-$shares,10)", True),
        ("Mean($volume,5)>$shares", True),
        ("If($close>$open,$volume,$shares)/$volume", True),
        ("Log($volume/$shares)", True),
        ("CSRank($close*$shares)", True),
        ("$shares/Ref($shares,60)", False),
        ("Corr($volume,$shares,20)", False),
        ("Sign($shares*$close-Ref($shares*$close,5))", False),
        ("$amount/($close*$volume)", False),
        ("Greater($close/$open,1)", False),
    ],
)
def test_shares_outstanding_are_kept_apart_from_adjusted_volumes(text: str, matters: bool) -> None:
    assert adjustment_matters(parse(text).root) is matters


def test_no_proposal_depends_on_the_base_of_the_adjustment() -> None:
    fields = ["$close", "$volume", "$shares"]
    breeder = GeneticProposer(fields, seed=3, profile=SMALL, batch=25)
    history: list[Found] = []
    for number in range(4):
        history += scored(breeder.propose(25, history), 2, number)
    formulas = [one.candidate.expression for one in history]
    assert any("$shares" in one.fields for one in formulas)
    assert not any(adjustment_matters(one.root) for one in formulas)


def test_a_part_is_replaced_where_its_path_leads() -> None:
    root = parse("Mean($close,5)/Ref($open,2)").root
    place = next(part for part in parts_of(root) if part.node == Field("$open"))
    assert to_text(replaced(root, place.path, Field("$high"))) == "Mean($close,5)/Ref($high,2)"
    assert replaced(root, (), Number(1)) == Number(1)
    with pytest.raises(IndexError, match="nothing at"):
        replaced(Field("$open"), (0,), Field("$high"))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from(TEXTS), st.sampled_from(TEXTS))
def test_crossing_keeps_every_formula_a_plain_ratio(seed: int, one: str, two: str) -> None:
    child = crossed(parse(one).root, parse(two).root, np.random.default_rng(seed))
    if child is not None:
        assert parts_of(child)[0].kind == RATIO


@settings(deadline=None, max_examples=6, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(st.integers(0, 10_000), st.integers(1, 45))
def test_children_parse_stay_within_limits_and_never_repeat(seed: int, at_once: int) -> None:
    limits = Limits(depth=6, nodes=18, lookback=80)
    breeder = proposer(seed, limits=limits)
    texts = searched(breeder, 3, at_once=at_once, seed=seed)
    formulas = [parse(text) for text in texts]
    assert len(formulas) == 60
    assert all(one.depth <= 6 and one.nodes <= 18 and one.lookback <= 80 for one in formulas)
    assert all(one.lookahead == 0 for one in formulas)
    assert all(parts_of(one.root)[0].kind == RATIO for one in formulas)
    negatives = [parse(f"0-({one.text})").id for one in formulas]
    assert len({one.id for one in formulas}) == 60
    assert not {one.id for one in formulas} & set(negatives)


def test_the_same_seed_and_history_give_the_same_formulas_however_a_generation_is_split() -> None:
    whole = searched(proposer(5), 3)
    assert searched(proposer(5), 3, at_once=7) == whole
    assert searched(proposer(5), 3, at_once=1) == whole
    assert searched(proposer(6), 1) != whole[:20]
    # What it is told decides what comes after the first generation.
    other = searched(proposer(5), 3, seed=4)
    assert other[:20] == whole[:20]
    assert other != whole


def test_a_call_never_reaches_into_the_next_generation() -> None:
    breeder = proposer()
    assert len(breeder.propose(15, [])) == 15
    assert len(breeder.propose(15, [])) == 5
    assert breeder.propose(0, []) == []


def test_ancestors_come_first_and_what_is_known_never() -> None:
    first = parse("$close/Ref($close,5)")
    banned = {parse(text).id for text in searched(proposer(2), 1)}
    breeder = proposer(2, ancestors=[first, first], known=banned)
    found = breeder.propose(20, [])
    assert found[0].expression == first
    assert len({one.expression.id for one in found}) == 20
    assert not banned & {one.expression.id for one in found}
    assert {one.proposer for one in found} == {"genetic"}


def test_children_resemble_the_fittest_and_some_are_random() -> None:
    fit = parse("Corr($close,$volume,10)")
    others = RandomFormulas(BARS, operators=["Div", "Mean", "Ref"], seed=4).propose(60)
    history = [result(fit, 9.0), *(result(one, 0.5 + place / 100) for place, one in enumerate(others))]
    breeder = proposer(batch=60, breeding=Breeding(random=0.2, tournament=200, crossover=0.0))
    children = [one.expression.text for one in breeder.propose(60, history)]
    # Of two hundred draws from sixty-one the fittest is nearly always one; some variations leave nothing of it.
    assert sum("Corr(" in text or "Cov(" in text for text in children[:48]) > 24
    assert sum("Corr(" in text for text in children[48:]) < 8
    assert "Corr($close,$volume,10)" not in children


def test_of_formulas_nearly_as_fit_the_smaller_has_the_children() -> None:
    small, large = parse("$open/$close"), parse("Corr(Mean($high,3),Mean($low,4)+Mean($low,7),10)")
    history = [result(small, 3.9), result(large, 4.0)]
    every = Breeding(tournament=30, crossover=0.0, random=0.1, near_tie=0.2)
    texts = [one.expression.text for one in proposer(breeding=every).propose(18, history)]
    assert not any("Mean($low,4)" in text for text in texts)
    strict = Breeding(tournament=30, crossover=0.0, random=0.1, near_tie=0.0)
    texts = [one.expression.text for one in proposer(breeding=strict).propose(18, history)]
    assert any("Mean($low,4)" in text for text in texts)


def test_windows_move_by_steps_and_operators_keep_their_arguments() -> None:
    history = [result(parse("Std($close,2)/$close"), 5.0)]
    breeder = proposer(batch=60, breeding=Breeding(crossover=0.0, random=0.01))
    children = [one.expression for one in breeder.propose(60, history)]
    windows = {
        argument.value
        for child in children
        for part in parts_of(child.root)
        for argument in getattr(part.node, "args", ())
        if isinstance(argument, Number) and getattr(part.node, "op", "") == "Std"
    }
    assert 3 in windows
    assert all(parse(child.text) == child for child in children)
    assert set(LADDER) >= {1, 5, 10, 20, 60, 250}
    assert all(OPERATORS["Std"].min_window <= window for window in windows if isinstance(window, int))


@pytest.mark.parametrize("told", [math.nan, 2.0])
def test_without_figures_or_with_equal_ones_it_goes_on(told: float) -> None:
    breeder = proposer()
    history = [result(one.expression, told) for one in breeder.propose(20, [])]
    assert len(breeder.propose(20, history)) == 20


def test_what_was_refused_has_no_children_while_anything_is_fit() -> None:
    fit, refused = parse("$open/$close"), parse("Quantile($volume,20,0.8)/$volume")
    history = [result(fit, 2.0), *[Found(Candidate(refused, "genetic"), reason="turnover")] * 30]
    breeder = proposer(breeding=Breeding(random=0.1, crossover=0.5))
    assert not any("Quantile($volume,20" in one.expression.text for one in breeder.propose(10, history))


def test_a_family_and_the_same_figures_have_a_limited_number_of_parents() -> None:
    breeder = proposer(batch=200, breeding=Breeding(family=1, random=0.1, tournament=1, crossover=0.0))
    founder, other = parse("$open/$close"), parse("Corr($high,$volume,10)")
    children = breeder.propose(200, [result(founder, 3.0)])
    history = [result(founder, 3.0), result(other, 1.0)]
    history += [result(one.expression, 2.0 + place / 1000) for place, one in enumerate(children[:170])]
    # One parent of the family of the founder, and the other: half of the next generation comes from it.
    born = [one.expression.text for one in breeder.propose(100, history)]
    assert sum("Corr(" in text for text in born) > 30


def test_few_fields_and_operators_run_dry_without_an_error() -> None:
    breeder = GeneticProposer(["$open", "$close"], seed=1, operators=["Div"], profile=SMALL, batch=20)
    history: list[Found] = []
    for _ in range(3):
        history += [result(one.expression, 1.0) for one in breeder.propose(20, history)]
    assert 2 <= len(history) < 60
    assert len({one.candidate.expression.id for one in history}) == len(history)


def test_fields_and_operators_are_those_that_were_given() -> None:
    names = ["Div", "Mean", "Std", "Sub", "Corr"]
    breeder = GeneticProposer(["$close", "$high", "$$eps_q", "$turn"], seed=4, operators=names, profile=SMALL, batch=25)
    history: list[Found] = []
    for number in range(4):
        history += scored(breeder.propose(25, history), 1, number)
    formulas = [one.candidate.expression for one in history]
    assert {name for one in formulas for name in one.fields} == {"$close", "$high", "$$eps_q", "$turn"}
    called = {getattr(part.node, "op", "P") for one in formulas for part in parts_of(one.root)}
    assert called == {*names, "P"}


def test_the_wide_profile_knows_operators_of_two_formulas() -> None:
    assert {"Corr", "Mean", "Div"} <= set(wide_profile().operators)


@pytest.mark.parametrize("changes", [{"parents": 0}, {"tournament": 0}, {"random": 0.0}, {"crossover": 1.5}])
def test_breeding_that_cannot_be_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Breeding(**changes)  # type: ignore[arg-type]


def test_a_batch_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch is 0"):
        proposer(batch=0)


class Random:
    name, adaptive, batch = "random", False, 50

    def __init__(self, seed: int) -> None:
        self.formulas = RandomFormulas(BARS, profile=wide_profile(), seed=seed)

    def propose(self, count: int, history: Sequence[Found]) -> list[Candidate]:
        return [Candidate(one, self.name) for one in self.formulas.propose(count)]


def small_market(seed: int, *, reversal: float) -> SearchData:
    """Return a small market in which the return of five days moves that from the next close to the one after."""
    rng = np.random.default_rng(seed)
    days, names = 260, 24
    calendar = np.datetime64("2019-01-01") + np.arange(days)
    change = 0.02 * rng.standard_normal((days, names))
    for day in range(7, days):
        change[day] -= reversal * change[day - 6 : day - 1].sum(axis=0)
    close = np.exp(np.cumsum(change, axis=0))
    spread = np.exp(0.01 * np.abs(rng.standard_normal((2, days, names))))
    bars = {
        "$open": close * np.exp(0.01 * rng.standard_normal((days, names))),
        "$high": close * spread[0],
        "$low": close / spread[1],
        "$close": close,
        "$volume": np.exp(rng.standard_normal((days, names))),
    }
    panel = TiledPanel.from_arrays(calendar, [f"S{name:03d}" for name in range(names)], bars)
    window = SearchWindow(calendar[20], calendar[-1])
    label = parse("Ref($close,-2)/Ref($close,-1)-1", allow_future=True)
    return SearchData.of(panel, window, label, universe="all", data="small", threads=1)


def fittest(one: Proposer, data: SearchData, trials: int, most: int = 1) -> list[float]:
    found = explore(one, data, trials=trials, threads=1).found
    return sorted((item.fitness for item in found if math.isfinite(item.fitness)), reverse=True)[:most]


class Listed:
    name, adaptive, batch = "listed", False, 10

    def __init__(self, *texts: str) -> None:
        self.waiting = [Candidate(parse(text), "human") for text in texts]

    def propose(self, count: int, history: Sequence[Found]) -> list[Candidate]:
        given_now, self.waiting = self.waiting[:count], self.waiting[count:]
        return given_now


@pytest.mark.slow
def test_a_planted_reversal_is_found_in_few_trials() -> None:
    data = small_market(1, reversal=0.08)
    planted = fittest(Listed("1-$close/Ref($close,5)"), data, 1)[0]
    assert fittest(proposer(1, batch=30), data, 180)[0] > 0.8 * planted > 4


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_its_shortlist_is_fitter_than_that_of_as_many_formulas_at_random(seed: int) -> None:
    data = small_market(seed, reversal=0.08)
    wide = proposer(seed, batch=30, profile=wide_profile())
    bred, random = (fittest(one, data, 240, 20) for one in (wide, Random(seed)))
    assert np.mean(bred) > 1.05 * np.mean(random)
