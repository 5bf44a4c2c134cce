"""Rounds of proposing and scoring on the part of search that a proposer may learn from.

A proposer that sees how its formulas did climbs on noise as well as on merit, and no test on the same days can tell
the two apart. The search wall is therefore cut: proposers learn on ``explore``, its first days, and what they arrive
at is judged on ``judge``, the days after a gap, of which they never see anything (:func:`cut`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, Protocol

import numpy as np

from qlib_llm_alpha.engine.funnel import Screened, screen
from qlib_llm_alpha.engine.tile_scoring import DailyScores
from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.evaluation.ledger import Trial, TrialLedger
from qlib_llm_alpha.evaluation.search_data import SearchData
from qlib_llm_alpha.evaluation.statistics import hac_t, mean_of
from qlib_llm_alpha.evaluation.walls import SearchWindow
from qlib_llm_alpha.factor.expression import Expression
from qlib_llm_alpha.mining.admission import Rules
from qlib_llm_alpha.mining.candidates import Candidate
from qlib_llm_alpha.mining.probes import scale_changes

Feedback = Literal["true", "none", "shuffled"]
"""What a proposer is told of its results: what they were, nothing, or those of other formulas of the same round."""

FEEDBACK: Final[tuple[Feedback, ...]] = ("true", "none", "shuffled")
EXPLORE_SHARE: Final = 0.6
SHORTLIST: Final = 50
_BARREN_ROUNDS: Final = 2


@dataclass(frozen=True, eq=False)
class Found:
    """A candidate and what it did on explore.

    Parameters
    ----------
    candidate : Candidate
    fitness : float
        ``|t|`` of the mean daily rank IC (HAC); NaN for what could not be scored or breaks a rule.
    rank_ic, t, turnover, coverage : float
        Daily means and the signed t; NaN where there is none.
    reason, detail : str
        Why it is no good: a code of ``evaluation.verdict.REASONS`` and a sentence; empty otherwise.
    round : int
        From 0.
    daily : DailyScores or None
        The daily series behind the figures; None in what a proposer is shown.
    """

    candidate: Candidate
    fitness: float = math.nan
    rank_ic: float = math.nan
    t: float = math.nan
    turnover: float = math.nan
    coverage: float = math.nan
    reason: str = ""
    detail: str = ""
    round: int = 0
    daily: DailyScores | None = field(default=None, repr=False)


class Proposer(Protocol):
    """Somebody who proposes formulas, round by round.

    Attributes
    ----------
    name : str
        ``random``, ``genetic``, or the name of a language model.
    adaptive : bool
        Whether it uses what it is told of earlier rounds.
    batch : int
        How many it likes to propose at a time.
    """

    name: str
    adaptive: bool
    batch: int

    def propose(self, count: int, history: Sequence[Found]) -> list[Candidate]:
        """Return at most ``count`` new candidates; none at all ends the search.

        Parameters
        ----------
        count : int
        history : sequence of Found
            Everything scored so far, in order, with the figures that this proposer is told.
        """
        ...


@dataclass(frozen=True, eq=False)
class Exploration:
    """What a proposer tried on explore.

    Parameters
    ----------
    found : tuple of Found
        Every distinct candidate, in order.
    rounds : int
    repeats : int
        Candidates that were proposed again, or that the library had; they cost no trial.
    """

    found: tuple[Found, ...]
    rounds: int
    repeats: int

    @property
    def scored(self) -> tuple[Found, ...]:
        """Those with a daily IC: the trials."""
        return tuple(one for one in self.found if one.daily is not None)

    def shortlist(self, most: int = SHORTLIST) -> list[Candidate]:
        """Return the fittest, best first; of equals the shorter, then the earlier."""
        fit = [one for one in self.found if math.isfinite(one.fitness)]
        fit.sort(key=lambda one: (-one.fitness, one.candidate.expression.nodes))
        return [one.candidate for one in fit[:most]]


def cut(data: SearchData, *, share: float = EXPLORE_SHARE, threads: int = 2) -> tuple[SearchData, SearchData]:
    """Cut a search wall into explore and judge.

    Parameters
    ----------
    data : SearchData
    share : float
        Share of the labelled days that are explore.

    Returns
    -------
    explore, judge : SearchData
        Explore has no bar after its own last day, so that its last labels are missing; judge begins the day after, on
        bars that explore's labels never read.

    Raises
    ------
    ConfigError
        The share leaves one of the two without days.
    """
    rows = data.rows
    stop = rows.start + int(share * (rows.stop - rows.start))
    horizon = data.label.lookahead
    if not 0 < share < 1 or stop <= rows.start + horizon or stop >= rows.stop:
        raise ConfigError(
            f"a share of {share!r} of {rows.stop - rows.start} labelled days leaves explore or judge without days; "
            "expected a share between 0 and 1, 0.6 is usual, and a search segment of some hundred days; lengthen it"
        )
    days = data.panel.days
    first = SearchData.of(
        data.panel.window(0, stop),
        SearchWindow(days[rows.start], days[stop - 1]),
        data.label,
        universe=data.universe,
        data=data.data,
        threads=threads,
    )
    return first, replace(data, window=SearchWindow(days[stop], data.window.end))


def explore(
    proposer: Proposer,
    data: SearchData,
    *,
    trials: int,
    rules: Rules | None = None,
    library: Iterable[Expression] = (),
    feedback: Feedback = "true",
    ledger: TrialLedger | None = None,
    run: str = "",
    seed: int = 0,
    threads: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Exploration:
    """Let a proposer try formulas until its trials are used up or it has nothing new to say.

    Parameters
    ----------
    proposer : Proposer
    data : SearchData
        Explore alone: everything in it may be shown to the proposer.
    trials : int
        Distinct candidates at most; a repeat costs none.
    rules : Rules, optional
        Size, coverage, variation and turnover as in admission; what breaks one has no fitness.
    library : iterable of Expression
        Known already; proposing them again is a repeat.
    feedback : {"true", "none", "shuffled"}
        The two latter are controls: whether a proposer does better with its results than without them.
    ledger, run : optional
        Every scored candidate is entered after its round, before the proposer hears of it.
    seed : int
        Of shuffled feedback; entered in the ledger.
    progress : callable, optional
        Called as ``progress(done, trials)``.
    """
    rules = rules or Rules()
    if feedback not in FEEDBACK:
        raise ConfigError(f"feedback is {feedback!r}; expected one of {list(FEEDBACK)}; correct it")
    if trials < 1:
        raise ConfigError(f"trials is {trials!r}; expected at least 1; give a number of candidates to try")
    known = {expression.id for expression in library}
    found: list[Found] = []
    shown: list[Found] = []
    rounds = repeats = barren = 0
    while len(found) < trials and barren < _BARREN_ROUNDS:
        proposed = proposer.propose(min(proposer.batch, trials - len(found)), tuple(shown))
        if not proposed:
            break
        fresh = _fresh(proposed, known)[: trials - len(found)]
        repeats += len(proposed) - len(fresh)
        barren = 0 if fresh else barren + 1
        scored = _scored(fresh, data, rules, rounds, threads)
        if ledger is not None:
            _enter(scored, data, ledger, run=run, seed=seed)
        found += scored
        shown += _as_told(scored, found[: len(found) - len(scored)], feedback, seed, rounds)
        rounds += 1
        if progress is not None:
            progress(len(found), trials)
    return Exploration(tuple(found), rounds, repeats)


def count(
    candidates: Sequence[Candidate],
    data: SearchData,
    ledger: TrialLedger,
    *,
    run: str = "",
    seed: int = 0,
    threads: int = 2,
) -> None:
    """Enter formulas in the ledger that are scored for a proposer to read of, though nobody proposes them."""
    _enter(_scored(candidates, data, Rules(), 0, threads), data, ledger, run=run, seed=seed)


def _fresh(proposed: Sequence[Candidate], known: set[str]) -> list[Candidate]:
    fresh = []
    for candidate in proposed:
        if candidate.expression.id not in known:
            known.add(candidate.expression.id)
            fresh.append(candidate)
    return fresh


def _scored(candidates: Sequence[Candidate], data: SearchData, rules: Rules, number: int, threads: int) -> list[Found]:
    """Score a round; what the rules refuse for its size is not computed."""
    early = [_too_large(candidate, rules) for candidate in candidates]
    wanted = [place for place, reason in enumerate(early) if not reason]
    screened = screen(
        [candidates[place].expression for place in wanted],
        data.panel,
        data.prepared,
        max_price_s=rules.price_s,
        threads=threads,
        warmup="strict",
        rows=data.rows,
    )
    result = [
        Found(candidate, reason=reason and "complex", detail=reason, round=number)
        for candidate, reason in zip(candidates, early, strict=True)
    ]
    for place, one in zip(wanted, screened, strict=True):
        result[place] = _measured(candidates[place], one, data, rules, number)
    return _without_scale(result, data, rules, threads)


def _without_scale(found: Sequence[Found], data: SearchData, rules: Rules, threads: int) -> list[Found]:
    """Take the fitness of what changes with the base of the adjustment factor, which admission would refuse."""
    result = list(found)
    strong = [place for place, one in enumerate(found) if one.fitness >= rules.least_t]
    if strong:
        formulas = [found[place].candidate.expression for place in strong]
        for place, change in zip(strong, scale_changes(formulas, data.panel, threads=threads), strict=True):
            if change is not None:
                detail = "it depends on the base of the adjustment factor"
                result[place] = replace(found[place], fitness=math.nan, reason="scale", detail=detail)
    return result


def _too_large(candidate: Candidate, rules: Rules) -> str:
    formula = candidate.expression
    if formula.nodes <= rules.nodes and formula.depth <= rules.depth:
        return ""
    return f"{formula.nodes} nodes, depth {formula.depth}; at most {rules.nodes} and {rules.depth}"


def _measured(candidate: Candidate, one: Screened, data: SearchData, rules: Rules, number: int) -> Found:
    daily = one.daily
    if not one.passed or daily is None or daily.rank_ic is None or daily.turnover is None:
        return Found(candidate, reason=one.reason or "failed", detail=one.detail, round=number)
    found = Found(
        candidate,
        rank_ic=mean_of(daily.rank_ic),
        t=hac_t(daily.rank_ic),
        turnover=mean_of(daily.turnover),
        coverage=mean_of(daily.coverage),
        round=number,
        daily=daily,
    )
    varied = float((~np.isnan(daily.rank_ic))[data.labelled].mean()) if data.labelled.any() else 0.0
    if not found.coverage >= rules.coverage:
        return replace(found, reason="coverage", detail=f"{found.coverage:.0%} of the members have a value")
    if varied < rules.variation:
        return replace(found, reason="variation", detail=f"an IC on {varied:.0%} of the labelled days")
    if found.turnover > rules.turnover:
        return replace(found, reason="turnover", detail=f"{found.turnover:.0%} of the top names are new each day")
    return replace(found, fitness=abs(found.t))


def _enter(scored: Sequence[Found], data: SearchData, ledger: TrialLedger, *, run: str, seed: int) -> None:
    trials = [one for one in scored if one.daily is not None and one.daily.rank_ic is not None]
    if not trials:
        return
    series = np.column_stack([one.daily.rank_ic for one in trials if one.daily and one.daily.rank_ic is not None])
    rows = [
        Trial(
            factor_id=one.candidate.expression.id,
            expression=one.candidate.expression.text,
            proposer=one.candidate.proposer,
            ic=one.rank_ic,
            t=one.t,
        )
        for one in trials
    ]
    ledger.record(rows, series, data.days, basis=data.basis(), data=data.data, run=run, seed=seed)


def _as_told(
    scored: Sequence[Found], earlier: Sequence[Found], feedback: Feedback, seed: int, number: int
) -> list[Found]:
    """Return a round as the proposer is told of it, without the series; shuffled, nobody is told its own figures."""
    if feedback == "none":
        return [Found(one.candidate, round=one.round) for one in scored]
    if feedback == "true":
        return [replace(one, daily=None) for one in scored]
    rng = np.random.default_rng([seed, number])
    if len(scored) == 1:
        # Alone in its round, it is told what another formula of an earlier one did.
        others = [earlier[int(rng.integers(len(earlier)))]] if earlier else [Found(scored[0].candidate)]
        return [replace(others[0], candidate=scored[0].candidate, round=number, daily=None)]
    # One cycle through all of the round: no formula stays where it is.
    cycle = rng.permutation(len(scored))
    source = dict(zip(cycle.tolist(), np.roll(cycle, 1).tolist(), strict=True))
    return [
        replace(scored[source[place]], candidate=one.candidate, round=number, daily=None)
        for place, one in enumerate(scored)
    ]
