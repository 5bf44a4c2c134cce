"""Admission: every candidate is scored and counted, and only what chance does not explain enters the library.

Screens run from cheap to dear and each gives a reason; the one that carries the weight is ``chance``. All candidates
of a run that have an IC form one family, and a candidate is admitted only when its ``|t|`` is beyond what the best of
the whole family reaches by chance (:func:`~qlib_llm_alpha.evaluation.max_null.max_null`). A run that tries a thousand
worthless formulas therefore admits something with a chance of at most ``alpha``, not of one.

Everything is taken from the search wall: the data has no later day (:class:`SearchData`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.engine.evaluate import evaluate
from qlib_llm_alpha.engine.funnel import Screened, screen
from qlib_llm_alpha.engine.graph import NATIVE
from qlib_llm_alpha.engine.tile_scoring import DailyScores, Pool, PreparedLabel, UnitRows
from qlib_llm_alpha.engine.tiles import TiledPanel
from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.evaluation.max_null import BLOCK, FEWEST_BLOCKS, MaxNull, max_null
from qlib_llm_alpha.evaluation.search_data import SearchData
from qlib_llm_alpha.evaluation.statistics import hac_t, icir, mean_of
from qlib_llm_alpha.evaluation.verdict import Verdict
from qlib_llm_alpha.factor.expression import Expression
from qlib_llm_alpha.factor.printing import lower
from qlib_llm_alpha.factor.tree import Call
from qlib_llm_alpha.mining.candidates import Candidate
from qlib_llm_alpha.mining.probes import future_changes, scale_changes

_log = logging.getLogger(__name__)

Array = NDArray[np.float64]

_CUTS = (0.35, 0.6, 0.85)
"""Where in the search segment the future is replaced."""


@dataclass(frozen=True)
class Rules:
    """What a candidate has to pass.

    Parameters
    ----------
    alpha : float
        Chance at which a run without any merit may admit something.
    least_t : float
        Least absolute HAC t of the mean daily rank IC on search: a cheap first sieve, not the test.
    coverage : float
        Least mean share of the members that have a value.
    variation : float
        Least share of the labelled days on which the candidate tells instruments apart.
    turnover : float
        Largest mean daily share of new names in the top fifth.
    correlation : float
        Largest absolute mean daily rank correlation with an admitted factor.
    nodes, depth : int
        Largest size of the tree.
    price_s : float or None
        Largest predicted seconds of one core; None: any.
    block : int
        Days whose signs turn together in the test against chance; twice the label's horizon, where that is more.
    draws : int
        Turnings of that test.

    Raises
    ------
    ConfigError
        A value that cannot mean anything.
    """

    alpha: float = 0.05
    least_t: float = 2.0
    coverage: float = 0.6
    variation: float = 0.8
    turnover: float = 0.95
    correlation: float = 0.7
    nodes: int = 40
    depth: int = 10
    price_s: float | None = None
    block: int = BLOCK
    draws: int = 2000

    def __post_init__(self) -> None:
        for name in ("alpha", "coverage", "variation", "turnover", "correlation"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise ConfigError(f"rule {name} is {value!r}; expected more than 0 and at most 1; alpha 0.05 is usual")
        if self.draws < 1 / self.alpha:
            raise ConfigError(
                f"rule draws is {self.draws!r}; expected at least 1 / alpha = {1 / self.alpha:.0f}, as p is never "
                "smaller than 1 / draws; 2000 are usual"
            )


@dataclass(frozen=True, eq=False)
class Judged:
    """A candidate, its measures on search and the verdict.

    ``ic``, ``rank_ic`` are daily means, ``icir`` is of the rank IC, ``t`` its HAC t, ``block_t`` and ``adjusted_p``
    those of the test against chance, ``turnover`` and ``coverage`` daily means; NaN where nothing was computed.
    ``daily`` holds the series over ``SearchData.days``; None for what was never valued. ``nearest`` names the admitted
    factor or library member that it ranks most alike, ``nearest_correlation`` how much.
    """

    candidate: Candidate
    verdict: Verdict
    ic: float = np.nan
    rank_ic: float = np.nan
    icir: float = np.nan
    t: float = np.nan
    block_t: float = np.nan
    adjusted_p: float = np.nan
    turnover: float = np.nan
    coverage: float = np.nan
    nearest: str = ""
    nearest_correlation: float = np.nan
    daily: DailyScores | None = field(default=None, repr=False)
    null_t: Array | None = field(default=None, repr=False)

    @property
    def id(self) -> str:
        """Id of the formula."""
        return self.candidate.expression.id

    @property
    def rank_ic_series(self) -> Array:
        """Daily rank IC, (T,); empty for what was never valued."""
        series = None if self.daily is None else self.daily.rank_ic
        return np.empty(0) if series is None else series


@dataclass(frozen=True, eq=False)
class Admission:
    """What became of a run.

    Parameters
    ----------
    judged : tuple of Judged
        In the order of the candidates.
    null : MaxNull or None
        The test of the family; None when no candidate had an IC.
    family : tuple of int
        Positions in ``judged`` of those in the family, the columns of ``null``.
    """

    judged: tuple[Judged, ...]
    null: MaxNull | None
    family: tuple[int, ...]

    @property
    def admitted(self) -> tuple[Judged, ...]:
        """Those admitted, the strongest first."""
        chosen = [one for one in self.judged if one.verdict.admitted]
        return tuple(sorted(chosen, key=lambda one: (one.adjusted_p, -abs(one.block_t))))

    def series(self, measure: str = "rank_ic") -> Array:
        """Return the daily series of the family, (T, K): ``rank_ic``, ``ic``, ``spread`` or ``turnover``."""
        columns = [getattr(self.judged[place].daily, measure) for place in self.family]
        return np.column_stack(columns) if columns else np.empty((0, 0))


def admit(
    candidates: Sequence[Candidate],
    data: SearchData,
    *,
    rules: Rules | None = None,
    library: Iterable[Expression] = (),
    null_labels: Sequence[PreparedLabel] = (),
    seed: int = 0,
    threads: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Admission:
    """Judge candidates on the search wall.

    Parameters
    ----------
    candidates : sequence of Candidate
        Everything that was proposed in this run: what is left out here is not counted against chance.
    data : SearchData
    rules : Rules, optional
    library : iterable of Expression
        Factors that are there already; nothing that repeats or resembles them is admitted.
    null_labels : sequence of PreparedLabel
        Labels that cannot be forecast (``evaluation.nulls``); each judged candidate gets the t of its rank IC against
        them.
    seed : int
        Of the test against chance and of the experiments.
    threads : int
    progress : callable, optional
        Called as ``progress(done, total)``.

    Returns
    -------
    Admission
        One ``Judged`` for each candidate; the rejected ones with their reason.
    """
    rules = rules or Rules()
    known = tuple(library)
    early = _early(candidates, rules, known)
    open_places = [place for place, verdict in enumerate(early) if verdict is None]
    screened = screen(
        [candidates[place].expression for place in open_places],
        data.panel,
        data.prepared,
        null_labels=null_labels,
        max_price_s=rules.price_s,
        threads=threads,
        warmup="strict",
        rows=data.rows,
        progress=progress,
    )
    judged: list[Judged] = [
        Judged(candidate, verdict or Verdict(False, "failed", "not scored"))
        for candidate, verdict in zip(candidates, early, strict=True)
    ]
    for place, found in zip(open_places, screened, strict=True):
        judged[place] = _measured(candidates[place], found)
    family = tuple(place for place in open_places if judged[place].daily is not None)
    null = _family_test([judged[place] for place in family], rules, data.label.lookahead, seed)
    if null is not None:
        for column, place in enumerate(family):
            tested = replace(judged[place], block_t=float(null.t[column]), adjusted_p=float(null.adjusted_p[column]))
            judged[place] = replace(tested, verdict=_statistical(tested, rules, data.labelled, null))
    alive = [place for place in family if judged[place].verdict.admitted]
    alive.sort(key=lambda place: (judged[place].adjusted_p, -abs(judged[place].block_t)))
    _check_values(judged, alive, known, data, rules, seed, threads)
    result = Admission(tuple(judged), null, family)
    _log.info("%d candidates, %d scored, %d admitted", len(judged), len(family), len(result.admitted))
    return result


def _early(candidates: Sequence[Candidate], rules: Rules, known: Sequence[Expression]) -> list[Verdict | None]:
    """Reject what needs no data to be rejected."""
    library = {expression.id: expression.text for expression in known}
    seen: dict[str, int] = {}
    verdicts: list[Verdict | None] = []
    for place, candidate in enumerate(candidates):
        formula = candidate.expression
        verdict = None
        if formula.lookahead > 0:
            verdict = Verdict(False, "look_ahead", f"it reads {formula.lookahead} bars after its day")
        elif formula.id in library:
            verdict = Verdict(False, "known", f"the library has {library[formula.id]:.120}")
        elif formula.id in seen:
            verdict = Verdict(False, "duplicate", f"the same as candidate {seen[formula.id]}")
        elif formula.nodes > rules.nodes or formula.depth > rules.depth:
            verdict = Verdict(
                False,
                "complex",
                f"{formula.nodes} nodes, depth {formula.depth}; at most {rules.nodes} and {rules.depth}",
            )
        seen.setdefault(formula.id, place)
        verdicts.append(verdict)
    return verdicts


def _measured(candidate: Candidate, found: Screened) -> Judged:
    daily = found.daily
    if not found.passed or daily is None or daily.rank_ic is None or daily.turnover is None:
        return Judged(candidate, Verdict(False, found.reason or "failed", found.detail))
    return Judged(
        candidate,
        Verdict(True),
        ic=mean_of(daily.ic),
        rank_ic=mean_of(daily.rank_ic),
        icir=icir(daily.rank_ic),
        t=hac_t(daily.rank_ic),
        turnover=mean_of(daily.turnover),
        coverage=mean_of(daily.coverage),
        daily=daily,
        null_t=found.null_t,
    )


def _family_test(family: Sequence[Judged], rules: Rules, horizon: int, seed: int) -> MaxNull | None:
    if not family:
        return None
    series = np.column_stack([one.rank_ic_series for one in family])
    block = max(rules.block, 2 * horizon)
    if len(series) <= block * (FEWEST_BLOCKS - 1):
        raise ConfigError(
            f"search has {len(series)} days with a label of horizon {horizon}; expected more than "
            f"{block * (FEWEST_BLOCKS - 1)}, so that there are {FEWEST_BLOCKS} blocks of {block}: begin search earlier"
        )
    return max_null(series, block=block, draws=rules.draws, seed=seed)


def _statistical(one: Judged, rules: Rules, labelled: NDArray[np.bool_], null: MaxNull) -> Verdict:
    varied = float((~np.isnan(one.rank_ic_series))[labelled].mean()) if labelled.any() else 0.0
    if not one.coverage >= rules.coverage:
        detail = f"{one.coverage:.0%} of the members have a value; at least {rules.coverage:.0%}"
        return Verdict(False, "coverage", detail)
    if varied < rules.variation:
        detail = f"an IC on {varied:.0%} of the labelled days; at least {rules.variation:.0%}"
        return Verdict(False, "variation", detail)
    if not abs(one.t) >= rules.least_t:
        return Verdict(False, "weak", f"rank IC {one.rank_ic:+.4f}, HAC t {one.t:.2f}; at least {rules.least_t:g}")
    if one.turnover > rules.turnover:
        return Verdict(
            False, "turnover", f"{one.turnover:.0%} of the top names are new each day; at most {rules.turnover:.0%}"
        )
    if one.adjusted_p > rules.alpha:
        return Verdict(
            False,
            "chance",
            f"|t| {abs(one.block_t):.2f} among {len(null.t)} candidates ({null.effective:.0f} independent ones): "
            f"adjusted p {one.adjusted_p:.3f}, at most {rules.alpha:g}",
        )
    return Verdict(True)


def _check_values(
    judged: list[Judged],
    alive: Sequence[int],
    known: Sequence[Expression],
    data: SearchData,
    rules: Rules,
    seed: int,
    threads: int,
) -> None:
    """Look at the values of those that are left, the strongest first, and reject in place."""
    if not alive:
        return
    formulas = [judged[place].candidate.expression for place in alive]
    rows = data.rows
    cuts = [rows.start + int(share * (rows.stop - rows.start)) for share in _CUTS]
    future = future_changes(formulas, data.panel, cuts=cuts, seed=seed, threads=threads)
    rebased = scale_changes(formulas, data.panel, seed=seed, threads=threads)
    pool = Pool.empty()
    for formula in known:
        pool = _added(pool, f"library: {formula.text:.80}", _rank_rows(formula, data, threads))
    for place, moved, rescaled in zip(alive, future, rebased, strict=True):
        one = judged[place]
        verdict: Verdict | None = None
        if moved is not None:
            verdict = Verdict(
                False,
                "unstable",
                f"{moved.instrument} on {moved.day}: {moved.before:.6g} became {moved.after:.6g} when later bars did",
            )
        elif rescaled is not None:
            verdict = Verdict(
                False,
                "scale",
                f"{rescaled.instrument} on {rescaled.day}: {rescaled.before:.6g} became {rescaled.after:.6g} with "
                "another base of the adjustment factor",
            )
        else:
            ranks = _rank_rows(one.candidate.expression, data, threads)
            name, alike = _nearest(pool, ranks, threads)
            judged[place] = one = replace(one, nearest=name, nearest_correlation=alike)
            if abs(alike) > rules.correlation:
                verdict = Verdict(False, "correlated", f"rank correlation {alike:+.2f} with {name}")
            else:
                pool = _added(pool, one.candidate.expression.text, ranks)
        if verdict is not None:
            judged[place] = replace(one, verdict=verdict)


def _rank_rows(formula: Expression, data: SearchData, threads: int) -> UnitRows:
    """Return the daily ranks on search, scaled so that products are rank correlations; each fifth day will do."""
    panel: TiledPanel = data.panel
    # Lowered as a whole: a difference of comparisons is one of numbers only where it is an argument.
    ranked = lower(Call("CSRank", (formula.root,)), NATIVE)
    ranks = evaluate([ranked], panel, warmup="qlib", threads=threads).values
    return UnitRows.of(
        np.ascontiguousarray(ranks[:, :, data.rows]), data.prepared.universe.window(data.rows), every=5, threads=threads
    )


def _added(pool: Pool, name: str, rows: UnitRows) -> Pool:
    return pool if name in pool.names else pool.add(name, rows)


def _nearest(pool: Pool, rows: UnitRows, threads: int) -> tuple[str, float]:
    if not pool.names:
        return "", np.nan
    alike = np.nan_to_num(pool.correlations(rows, threads=threads)[0], nan=0.0)
    place = int(np.argmax(np.abs(alike)))
    return pool.names[place], float(alike[place])
