"""A mining session: propose, admit, count every trial, compare with chance, write it all down.

A session folder holds

=====================  =====================================================================================
``plan.json``          everything that the session depends on, written before anything is asked or computed
``session.json``       rules, basis, seeds, hashes, the test against chance, PBO, deflated Sharpe, nulls
``verdicts.parquet``   one row for each candidate: measures, verdict, reason, detail
``series.parquet``     daily rank IC of every candidate that was scored, one column for each
``explored.parquet``   where a proposer learned on a part of search: one row for each of its trials there
``library.yaml``       the admitted factors as a factor set; absent when nothing was admitted
``report.md``          the same for people
=====================  =====================================================================================
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qlib_llm_alpha.chain import Head
from qlib_llm_alpha.engine.evaluate import evaluate
from qlib_llm_alpha.engine.funnel import screen
from qlib_llm_alpha.engine.tile_scoring import PreparedLabel, Summary
from qlib_llm_alpha.engine.tiles import TiledPanel
from qlib_llm_alpha.errors import ConfigError, WallError
from qlib_llm_alpha.evaluation.basis import Basis
from qlib_llm_alpha.evaluation.ledger import Trial, TrialLedger
from qlib_llm_alpha.evaluation.max_null import BLOCK, FEWEST_BLOCKS, effective_trials
from qlib_llm_alpha.evaluation.nulls import (
    Credit,
    credited,
    draw_shifts,
    shifted_prepared_label,
    shuffled_prepared_label,
)
from qlib_llm_alpha.evaluation.overfitting import probability_of_backtest_overfitting
from qlib_llm_alpha.evaluation.scorecard import Scorecard, score_factor
from qlib_llm_alpha.evaluation.search_data import SearchData
from qlib_llm_alpha.evaluation.sharpe import deflated_sharpe, sharpe_ratio
from qlib_llm_alpha.evaluation.statistics import finite_or_none
from qlib_llm_alpha.evaluation.walls import SearchWindow, Walls
from qlib_llm_alpha.factor.expression import Expression
from qlib_llm_alpha.factor.factor import Factor
from qlib_llm_alpha.library.factor_set import FactorSet
from qlib_llm_alpha.mining.admission import Admission, Judged, Rules, admit
from qlib_llm_alpha.mining.candidates import Candidate
from qlib_llm_alpha.mining.exploring import Exploration, Found
from qlib_llm_alpha.mining.profile import match_turnover
from qlib_llm_alpha.mining.random_formulas import RandomFormulas

Array = NDArray[np.float64]

NULLS = 20
"""Labels moved in time, and as many shuffled across instruments, against which every candidate is scored too."""

PBO_BLOCKS = 16
PLAN, LIBRARY = "plan.json", "library.yaml"

_RANDOM_DRAWS, _RANDOM_FORMULAS = 19, 4000
"""How often as many random formulas are drawn, and how many are scored at most."""

_MOST_DAYS = 0.8
"""Share of days on which a candidate must have a long-short return to be compared by it."""


@dataclass(frozen=True, eq=False)
class Session:
    """What a session found; :meth:`write` keeps it.

    Parameters
    ----------
    admission : Admission
    rules : Rules
    basis : Basis
        Of every figure on search; its ``trials`` is the number of candidates with an IC.
    data : str
        Fingerprint of the provider's content.
    seed : int
    window : SearchWindow
        What was searched; nothing later was read.
    days : array, (T,) datetime64[D]
        Of the daily series: days of the window whose label is known inside it.
    shuffled, shifted : Credit or None
        The largest plain ``|t|`` of a mean rank IC in the family over what the same family reaches against labels
        shuffled across the instruments of each day, and against labels moved in time. The second credits timing alone:
        a premium on what instruments are, rather than on what they just did, survives the move.
    random : Credit or None
        The largest plain ``|t|`` among the candidates that were not random over that of as many random formulas of the
        same turnover.
    other_trials : int
        Trials on this data that the ledger holds beside this family; 0 without a ledger.
    pbo : float
        Probability of backtest overfitting among the family's long-short returns: how often the best of one half of
        the days is below the median of the other.
    deflated : Mapping
        The best candidate's long-short return before costs: Sharpe ratio a day, the one that the best of so many
        worthless trials would show, the probability that the true one is above 0 once that is deducted, effective
        trials (both directions of each, those of the ledger on this data included). Where labels of neighbouring days
        overlap, from every so many days, and then a ratio of so many days.
    tune : tuple of Scorecard
        Of the admitted factors on the tune segment, where it was read.
    exploration : Exploration or None
        What the proposer tried on the part of search before ``window``, where it learned from results; then only its
        shortlist was judged.
    before : FactorSet or None
        The library that the session extends.
    notes : tuple of str
        Sentences for the report, such as where a model's answers came from.
    audit : Head or None
        Of the audit trail when the session ended, an anchor to verify it with.
    """

    admission: Admission
    rules: Rules
    basis: Basis
    data: str
    seed: int
    window: SearchWindow
    days: NDArray[np.datetime64] = field(repr=False)
    shuffled: Credit | None
    shifted: Credit | None
    random: Credit | None
    other_trials: int
    pbo: float
    deflated: Mapping[str, float | str]
    tune: tuple[Scorecard, ...] = ()
    exploration: Exploration | None = None
    before: FactorSet | None = None
    notes: tuple[str, ...] = ()
    audit: Head | None = None

    @property
    def factor_set(self) -> FactorSet | None:
        """Those of ``before``, unchanged, then the admitted factors, the strongest first; None without any."""
        chosen = self.admission.admitted
        earlier = () if self.before is None else self.before.factors
        if not chosen and not earlier:
            return None
        names = _names(chosen, taken=[factor.name for factor in earlier])
        factors = tuple(
            Factor(
                name=name,
                expression=one.candidate.expression,
                category=one.candidate.category,
                hypothesis=one.candidate.hypothesis,
                sources=one.candidate.sources,
                origin=one.candidate.proposer,
            )
            for name, one in zip(names, chosen, strict=True)
        )
        known = "" if self.before is None else self.before.as_of or ""
        return FactorSet("mined", earlier + factors, "strict", as_of=max(str(self.window.end), known))

    def table(self) -> pd.DataFrame:
        """Return one row for each candidate, in the order in which they were proposed."""
        rows = [_row(one) for one in self.admission.judged]
        frame: pd.DataFrame = pd.DataFrame(rows)
        return frame

    def to_dict(self) -> dict[str, Any]:
        """Return what ``session.json`` holds."""
        null = self.admission.null
        reasons = Counter(one.verdict.reason or "admitted" for one in self.admission.judged)
        chosen = self.factor_set
        tried = self.exploration
        return {
            "basis": self.basis.to_dict(),
            "statement": self.basis.sentence,
            "data": self.data,
            "seed": self.seed,
            "rules": asdict(self.rules),
            "blocks": None if null is None else null.blocks,
            "candidates": len(self.admission.judged),
            "scored": len(self.admission.family),
            "admitted": len(self.admission.admitted),
            "reasons": dict(reasons.most_common()),
            "run_p": None if null is None else null.run_p,
            "sidak_p": None if null is None else null.sidak_p,
            "effective_trials": None if null is None else null.effective,
            "critical_t": None if null is None else null.critical_t,
            "other_trials": self.other_trials,
            "pbo": finite_or_none(self.pbo),
            "deflated_sharpe": {name: finite_or_none(value) for name, value in self.deflated.items()},
            "credit_over_shuffled_labels": None if self.shuffled is None else _credit_dict(self.shuffled),
            "credit_over_shifted_labels": None if self.shifted is None else _credit_dict(self.shifted),
            "credit_over_random_formulas": None if self.random is None else _credit_dict(self.random),
            "factor_set": None if chosen is None else {"id": chosen.id, "names": list(chosen.names)},
            "tune": [card.to_dict() for card in self.tune],
            "exploration": None if tried is None else _exploration_dict(tried),
            "notes": list(self.notes),
            "audit": None if self.audit is None else asdict(self.audit),
        }

    def write(self, folder: Path) -> None:
        """Write the session's folder: a new one, or one that :func:`begin` has made."""
        if not (folder / PLAN).exists():
            free_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.table().to_parquet(folder / "verdicts.parquet", index=False)
        series = pd.DataFrame(
            self.admission.series() if self.admission.family else np.empty((len(self.days), 0)),
            index=pd.DatetimeIndex(self.days.astype("datetime64[ns]"), name="datetime"),
            columns=[self.admission.judged[place].id for place in self.admission.family],
        )
        series.to_parquet(folder / "series.parquet")
        if self.exploration is not None:
            pd.DataFrame([_explored_row(one) for one in self.exploration.found]).to_parquet(
                folder / "explored.parquet", index=False
            )
        chosen = self.factor_set
        if chosen is not None:
            chosen.save(folder / LIBRARY)
        (folder / "report.md").write_text(self.report(), encoding="utf-8")
        # Last: a folder with this file is a whole session.
        write_whole(folder / "session.json", json.dumps(self.to_dict(), indent=1) + "\n")

    def report(self) -> str:
        """Return the session as Markdown."""
        facts = self.to_dict()
        null = self.admission.null
        lines = [
            "# Mining session",
            "",
            f"Every figure on search: {self.basis.sentence}. No bar after {self.window.end} was read for it.",
            "",
            f"{facts['candidates']} candidates, {facts['scored']} with an IC, {facts['admitted']} admitted.",
        ]
        if self.exploration is not None:
            tried = facts["exploration"]
            lines.append(
                f"They are the fittest of {tried['trials']} that were tried in {tried['rounds']} rounds on the days "
                f"before {self.window.start}; of the days since nothing was shown to their proposer."
            )
        lines += self.notes
        if null is not None:
            lines += [
                f"The best |t| has p {null.run_p:.3f} among all of them (alpha {self.rules.alpha:g} a run; "
                f"{null.effective:.0f} effective trials; by chance the best reaches {null.critical_t:.2f} in one run "
                f"of twenty). Sidak's p is {null.sidak_p:.3f}.",
                f"Probability of backtest overfitting {self.pbo:.2f}. Deflated Sharpe ratio of the best candidate "
                f"({self.deflated['formula']}): {self.deflated['probability']:.3f}.",
            ]
        if self.other_trials:
            lines.append(
                f"The ledger holds {self.other_trials} other trials on this data. The deflated Sharpe ratio counts "
                "them; alpha is that of this run alone."
            )
        lines += [credit.sentence for credit in (self.shuffled, self.shifted, self.random) if credit is not None]
        lines += ["", "| verdict | candidates |", "| --- | ---: |"]
        lines += [f"| {reason} | {count} |" for reason, count in facts["reasons"].items()]
        if self.admission.admitted:
            lines += ["", "| admitted | rank IC | HAC t | adjusted p | turnover | tune rank IC (t) |"]
            lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
            tune = {card.factor_id: card for card in self.tune}
            for one in self.admission.admitted:
                card = tune.get(one.id)
                shown = "not read" if card is None else f"{card.rank_ic:+.4f} ({card.t_rank_ic:+.1f})"
                lines.append(
                    f"| `{one.candidate.expression.text}` | {one.rank_ic:+.4f} | {one.t:+.2f} | {one.adjusted_p:.4f} | "
                    f"{one.turnover:.0%} | {shown} |"
                )
        return "\n".join(lines) + "\n"


def mine(
    candidates: Sequence[Candidate],
    data: SearchData,
    *,
    rules: Rules | None = None,
    library: Iterable[Expression] = (),
    null_fields: Sequence[str] = (),
    ledger: TrialLedger | None = None,
    run: str = "",
    seed: int = 0,
    nulls: int = NULLS,
    threads: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Session:
    """Judge candidates, compare them with chance and enter every trial in the ledger.

    Parameters
    ----------
    candidates, data, rules, library, seed, threads, progress
        As for :func:`~qlib_llm_alpha.mining.admission.admit`.
    null_fields : sequence of str
        Fields of random formulas that the candidates are held against, where these were proposed by anyone else: as
        many as there are candidates, of the same turnover, several times. Nothing of them is admitted, and they are no
        trials, since nothing is chosen from them. Empty: no such null.
    ledger : TrialLedger, optional
        Gets every candidate that was scored. Without one nobody can count the trials afterwards.
    run : str
        Name of the run in the ledger.
    nulls : int
        Labels shuffled across instruments (where labels of neighbouring days do not overlap), and as many moved in
        time, that every candidate is scored against; 0: none.

    Returns
    -------
    Session
    """
    rules = rules or Rules()
    labels: list[PreparedLabel] = []
    # Shuffled anew each day, labels that overlap would lose what neighbouring days share, and any t would look large.
    shuffles = nulls if _stride(data) == 1 else 0
    if nulls:
        moved = draw_shifts(len(data.days), nulls, minimum=_farthest(data), seed=seed)
        labels += [shuffled_prepared_label(data.prepared, seed=seed + draw) for draw in range(shuffles)]
        labels += [shifted_prepared_label(data.prepared, data.rows, int(days)) for days in moved]
    found = admit(
        candidates,
        data,
        rules=rules,
        library=library,
        null_labels=labels,
        seed=seed,
        threads=threads,
        progress=progress,
    )
    basis = data.basis(trials=len(found.family))
    if ledger is not None and found.family:
        enter(found, data, ledger, basis=basis, run=run, seed=seed)
    random = _credit_over_random(found, data, null_fields, seed, threads) if null_fields else None
    long_short = _long_short(found, stride=_stride(data))
    return Session(
        admission=found,
        rules=rules,
        basis=basis,
        data=data.data,
        seed=seed,
        window=data.window,
        days=data.days,
        shuffled=_credit(found, slice(shuffles), "labels shuffled across instruments") if shuffles else None,
        shifted=_credit(found, slice(shuffles, None), "labels moved in time") if nulls else None,
        random=random,
        other_trials=0 if ledger is None else _other_trials(found, data, ledger),
        pbo=_pbo(*long_short),
        deflated=_deflated(*long_short, seed, 0.0 if ledger is None else _directed_trials(ledger, data, seed)),
    )


def enter(found: Admission, data: SearchData, ledger: TrialLedger, *, basis: Basis, run: str, seed: int) -> int:
    """Enter the family of a run in the ledger; return how many trials were new to it."""
    trials = [
        Trial(
            factor_id=one.id,
            expression=one.candidate.expression.text,
            proposer=one.candidate.proposer,
            verdict=one.verdict.word,
            reason=one.verdict.reason,
            ic=one.rank_ic,
            t=one.t,
        )
        for one in _of_family(found)
    ]
    return ledger.record(trials, found.series(), data.days, basis=basis, data=data.data, run=run, seed=seed)


def read_tune(
    admitted: Sequence[Judged], panel: TiledPanel, walls: Walls, label: Expression, *, threads: int = 2
) -> tuple[Scorecard, ...]:
    """Score admitted factors on the tune segment; the caller enters the reading in the ledger.

    Parameters
    ----------
    admitted : sequence of Judged
    panel : TiledPanel
        Bars up to the last day of tune.
    walls : Walls
        With a ``valid`` segment.
    label : Expression

    Raises
    ------
    WallError
        The panel has days after tune, or there is no tune.
    """
    if walls.tune is None or panel.days[-1] > walls.tune.end:
        end = "nowhere" if walls.tune is None else str(walls.tune.end)
        raise WallError(f"the panel ends on {panel.days[-1]}, tune {end}; expected no later bars; open the panel anew")
    formulas = [one.candidate.expression for one in admitted]
    if not formulas:
        return ()
    values = evaluate(formulas, panel, warmup="strict", threads=threads).values
    values[~np.isfinite(values)] = np.nan
    outcome = panel.untiled(evaluate([label], panel, threads=threads).values[0]).astype(np.float64)
    outcome[~np.isfinite(outcome)] = np.nan
    member = None if panel.member is None else panel.untiled(panel.member).astype(np.bool_)
    return tuple(
        score_factor(
            panel.untiled(values[place]).astype(np.float64),
            outcome,
            panel.days,
            walls,
            factor=one.candidate.name or one.candidate.expression.text,
            factor_id=one.id,
            segment="valid",
            horizon=label.lookahead,
            label_name=label.text,
            member=member,
        )
        for place, one in enumerate(admitted)
    )


def begin(folder: Path, plan: Mapping[str, Any], *, resume: bool = False) -> bool:
    """Make a session's folder and write down what the session depends on, or enter it again.

    Parameters
    ----------
    folder : Path
    plan : mapping
        JSON values: whatever could change the outcome.
    resume : bool
        The folder may be there, if its plan is the same.

    Returns
    -------
    bool
        Whether the session is whole already.

    Raises
    ------
    ConfigError
        The folder is taken; to resume, it has no plan or another one.
    """
    known = json.loads(json.dumps(plan))
    place = folder / PLAN
    if not resume or not folder.exists():
        free_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(place, json.dumps(known, indent=1) + "\n")
        return False
    if not place.exists():
        # What a kill left of the plan itself; nothing else is written before the plan.
        for draft in folder.glob(f"{PLAN}.*.draft"):
            draft.unlink()
        free_folder(folder)
        write_whole(place, json.dumps(known, indent=1) + "\n")
        return False
    before = json.loads(place.read_text(encoding="utf-8"))
    changed = sorted(name for name in {*before, *known} if before.get(name) != known.get(name))
    if changed:
        was = {name: before.get(name) for name in changed}
        now = {name: known.get(name) for name in changed}
        raise ConfigError(
            f"the session in {str(folder)!r} was begun with {was!r:.300}, and is to go on with {now!r:.300}; expected "
            "the same: repeat the call as it was, or name a new folder with --out"
        )
    return (folder / "session.json").exists()


def write_whole(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all, whenever the process ends."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def free_folder(folder: Path) -> None:
    """Refuse a place that is taken; called before anything is computed."""
    if (folder / "session.json").exists():
        raise ConfigError(f"{str(folder)!r} holds a session; expected a new folder: name another with --out")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "holds other things" if folder.is_dir() else "is a file"
        raise ConfigError(f"{str(folder)!r} {what}; expected a new folder: name another with --out")


def _credit_dict(credit: Credit) -> dict[str, Any]:
    return {name: finite_or_none(value) for name, value in asdict(credit).items() if not isinstance(value, np.ndarray)}


def _farthest(data: SearchData) -> int:
    """Days that a label is moved at least: a quarter of a year, less where the segment is short."""
    return min(60, max(data.label.lookahead + 1, len(data.days) // 4))


def _credit(found: Admission, labels: slice, name: str) -> Credit | None:
    # A mean over a few odd days is large whatever the label.
    judged = [one for one in _of_family(found) if one.verdict.reason not in ("coverage", "variation")]
    if not judged:
        return None
    nulls = np.vstack([one.null_t[labels] for one in judged if one.null_t is not None])
    best = np.nanmax(np.abs(nulls), axis=0)
    observed = float(np.nanmax(np.abs([Summary.of(one.rank_ic_series).t for one in judged])))
    return credited(observed, best, name="largest plain |t| of a mean rank IC", null_name=name)


def _of_family(found: Admission) -> list[Judged]:
    return [found.judged[place] for place in found.family]


def _credit_over_random(
    found: Admission, data: SearchData, fields: Sequence[str], seed: int, threads: int
) -> Credit | None:
    given = [one for one in _of_family(found) if one.candidate.proposer != "random" and np.isfinite(one.turnover)]
    if not given:
        return None
    wanted = len(given)
    draws = max(1, min(_RANDOM_DRAWS, _RANDOM_FORMULAS // (2 * wanted)))
    known = {one.id for one in found.judged}
    # Twice as many as wanted, from which those of the right turnover are taken.
    formulas = RandomFormulas(fields, seed=seed).propose(2 * wanted * draws, known=known)
    screened = screen(formulas, data.panel, data.prepared, threads=threads, warmup="strict", rows=data.rows)
    usable = [one for one in screened if one.daily is not None and np.isfinite(one.turnover.mean)]
    target, best = [one.turnover for one in given], []
    for draw in range(draws):
        part = usable[draw::draws]
        if len(part) >= wanted:
            chosen = match_turnover([one.turnover.mean for one in part], target, wanted, seed=seed + draw)
            best.append(float(np.nanmax([abs(part[place].rank_ic.t) for place in chosen], initial=0.0)))
    if not best:
        return None
    observed = float(np.nanmax([abs(Summary.of(one.rank_ic_series).t) for one in given]))
    name = f"largest plain |t| of the {wanted} candidates given"
    return credited(observed, best, name=name, null_name=f"{wanted} random formulas of the same turnover")


def _stride(data: SearchData) -> int:
    """Days after which labels no longer share a day's return."""
    return max(1, data.label.lookahead - 1)


def _other_trials(found: Admission, data: SearchData, ledger: TrialLedger) -> int:
    own = [one.id for one in _of_family(found)]
    return int((~ledger.trials(data=data.data)["factor_id"].isin(own)).sum())


def _directed_trials(ledger: TrialLedger, data: SearchData, seed: int) -> float:
    """Effective trials of the ledger on this data, both directions of each."""
    series = ledger.series(data=data.data).to_numpy(np.float64)
    if len(series) < BLOCK * FEWEST_BLOCKS:
        return 0.0
    return effective_trials(np.hstack([series, -series]), two_sided=False, seed=seed)


def _long_short(found: Admission, *, stride: int) -> tuple[list[Judged], Array]:
    """Return candidates with a long-short return on most days, and these returns, one in ``stride`` days, (T, K).

    A ratio of a handful of days may be anything; such a candidate is never admitted and must not pass for the best.
    """
    spread = found.series("spread")[::stride]
    known = (~np.isnan(spread)).mean(axis=0) if len(spread) else np.empty(0)
    kept = np.flatnonzero(known >= _MOST_DAYS)
    return [_of_family(found)[place] for place in kept], spread[:, kept] if len(kept) else np.empty((len(spread), 0))


def _pbo(judged: Sequence[Judged], spread: Array) -> float:
    if len(judged) < 2 or len(spread) < 2 * PBO_BLOCKS:
        return float("nan")
    # Each half chooses the direction by itself: chosen on all days, it would let the halves see each other.
    return float(probability_of_backtest_overfitting(np.hstack([spread, -spread]), blocks=PBO_BLOCKS).pbo)


def _deflated(judged: Sequence[Judged], spread: Array, seed: int, in_ledger: float) -> dict[str, float | str]:
    block = min(BLOCK, len(spread) // FEWEST_BLOCKS)
    if not judged or not block:
        return {"formula": "", "sharpe": np.nan, "threshold": np.nan, "probability": np.nan, "trials": np.nan}
    sharpe = np.array([sharpe_ratio(column) for column in spread.T])
    best = int(np.nanargmax(np.abs(sharpe)))
    # Whoever turns a factor by the sign of its IC has tried both directions of each.
    both = np.hstack([spread, -spread])
    trials = max(effective_trials(both, two_sided=False, block=block, seed=seed), in_ledger, 1.0)
    result = deflated_sharpe(
        spread[:, best] * np.sign(sharpe[best]),
        trials=trials,
        sharpe_deviation=(len(spread) - 1) ** -0.5,
    )
    return {
        "formula": judged[best].candidate.expression.text,
        "sharpe": result.sharpe,
        "threshold": result.threshold,
        "probability": result.probability,
        "trials": trials,
    }


def _names(chosen: Sequence[Judged], taken: Sequence[str]) -> list[str]:
    """Name the admitted factors; of two with the same name the later one also carries its id."""
    names = list(taken)
    for one in chosen:
        name = one.candidate.name or f"{one.candidate.proposer}_{one.id}"
        names.append(name if name not in names else f"{name[:60]}_{one.id}")
    return names[len(taken) :]


def _exploration_dict(tried: Exploration) -> dict[str, Any]:
    fitness = [one.fitness for one in tried.found if np.isfinite(one.fitness)]
    return {
        "trials": len(tried.found),
        "scored": len(tried.scored),
        "rounds": tried.rounds,
        "repeats": tried.repeats,
        "best_t": max(fitness) if fitness else None,
        "reasons": dict(Counter(one.reason or "scored" for one in tried.found).most_common()),
    }


def _explored_row(one: Found) -> dict[str, Any]:
    return {
        "id": one.candidate.expression.id,
        "formula": one.candidate.expression.text,
        "proposer": one.candidate.proposer,
        "name": one.candidate.name,
        "round": one.round,
        "rank_ic": one.rank_ic,
        "t": one.t,
        "turnover": one.turnover,
        "coverage": one.coverage,
        "reason": one.reason,
        "detail": one.detail,
    }


def _row(one: Judged) -> dict[str, Any]:
    formula = one.candidate.expression
    return {
        "id": one.id,
        "formula": formula.text,
        "proposer": one.candidate.proposer,
        "name": one.candidate.name,
        "verdict": one.verdict.word,
        "reason": one.verdict.reason,
        "detail": one.verdict.detail,
        "ic": one.ic,
        "rank_ic": one.rank_ic,
        "icir": one.icir,
        "t": one.t,
        "block_t": one.block_t,
        "adjusted_p": one.adjusted_p,
        "turnover": one.turnover,
        "coverage": one.coverage,
        "nodes": formula.nodes,
        "depth": formula.depth,
        "lookback": formula.lookback,
        "nearest": one.nearest,
        "nearest_correlation": one.nearest_correlation,
    }
