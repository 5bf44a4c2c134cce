"""From a provider to a mining session: what the command line and the handler that mines have in common."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from qlib.workflow import R

from qlib_llm_alpha import __version__
from qlib_llm_alpha.data.bars import open_panel, provider_fields
from qlib_llm_alpha.data.fingerprint import market_name, provider_fingerprint
from qlib_llm_alpha.errors import ConfigError, LibraryError
from qlib_llm_alpha.evaluation.ledger import TrialLedger
from qlib_llm_alpha.evaluation.search_data import SearchData
from qlib_llm_alpha.evaluation.walls import Walls
from qlib_llm_alpha.factor.expression import Expression, parse
from qlib_llm_alpha.library.factor_set import FactorSet, Mode, load_factor_set
from qlib_llm_alpha.llm.client import AnswersRequests
from qlib_llm_alpha.llm.recording import Recording
from qlib_llm_alpha.mining.admission import Rules
from qlib_llm_alpha.mining.candidates import (
    MINED_FIELDS,
    Candidate,
    RandomProposer,
    listed_candidates,
    random_candidates,
)
from qlib_llm_alpha.mining.chat_session import chat_with_model
from qlib_llm_alpha.mining.compare import NO_FEEDBACK, Comparison, Cost, Entry, compare
from qlib_llm_alpha.mining.exploring import Feedback, Proposer
from qlib_llm_alpha.mining.genetic import GeneticProposer, wide_profile
from qlib_llm_alpha.mining.llm_session import ModelPlan, cost_of, recording_of, run_with_model
from qlib_llm_alpha.mining.search import search
from qlib_llm_alpha.mining.session import LIBRARY, PLAN, Session, begin, free_folder, mine, read_tune, write_whole
from qlib_llm_alpha.mining.transcript import Port

_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

_known: dict[str, FactorSet] = {}


@dataclass(frozen=True)
class MiningRequest:
    """Everything that a mining session depends on.

    Parameters
    ----------
    provider : Path
    universe : str or sequence of str
    start, end : str
        The search segment.
    label : str
    proposer : {"random", "genetic", "llm", "chat"}
    trials, shortlist, feedback, alpha, seed
        As for :func:`~qlib_llm_alpha.mining.search.search`.
    formulas : tuple of str
        Files or built-in sets: judged beside random formulas, or what the genetic proposer begins with.
    library, library_mode : str or None, {"scale_free", "literal"}
        A factor set that is there already, and which of its forms.
    tune : (str, str) or None
    model : ModelPlan
        What a language model is asked with; read for the proposer ``llm`` only.
    extend : Path or None
        A session whose library is kept, and whose documents are not read again.
    threads : int
    """

    provider: Path
    universe: str | Sequence[str]
    start: str
    end: str
    label: str
    proposer: str = "random"
    trials: int = 500
    shortlist: int = 50
    feedback: Feedback = "true"
    alpha: float = 0.05
    seed: int = 0
    formulas: tuple[str, ...] = ()
    library: str | None = None
    library_mode: Mode = "scale_free"
    tune: tuple[str, str] | None = None
    model: ModelPlan = field(default_factory=ModelPlan)
    extend: Path | None = None
    threads: int = 2

    def __post_init__(self) -> None:
        if self.trials < 0 or not (self.trials or self.formulas):
            raise ConfigError(
                f"trials is {self.trials!r} and no formulas were given; expected something to judge; add some"
            )
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; expected 0 or more; give another one")

    @property
    def walls(self) -> Walls:
        """Search, and tune where it is read."""
        segments = {"train": (self.start, self.end)}
        return Walls.from_segments(segments if self.tune is None else {**segments, "valid": self.tune})


@dataclass(frozen=True, eq=False)
class Ground:
    """A provider's search data and what may be built from it.

    Parameters
    ----------
    data : SearchData
    fields : tuple of str
        Of :data:`~qlib_llm_alpha.mining.candidates.MINED_FIELDS`, those that have values in search.
    known : tuple of Expression
        The library that is there already.
    told : tuple of str
        Of it, what a model may hear of.
    before : FactorSet or None
        The library that is extended.
    """

    data: SearchData
    fields: tuple[str, ...]
    known: tuple[Expression, ...]
    told: tuple[str, ...]
    before: FactorSet | None

    @classmethod
    def of(cls, request: MiningRequest) -> Ground:
        """Open a provider up to the end of search."""
        walls = request.walls
        fields = provider_fields(request.provider)
        target = parse(request.label, allow_future=True, fields=fields)
        data = SearchData.of(
            open_panel(request.provider, request.universe, end=walls.search.end),
            walls.search,
            target,
            universe=request.universe if isinstance(request.universe, str) else f"{len(request.universe)} instruments",
            data=provider_fingerprint(request.provider),
            threads=request.threads,
        )
        if walls.tune is not None:
            # Refuses days that the calendar does not have before anything is scored.
            days = open_panel(request.provider, request.universe, end=walls.tune.end).days
            walls.purged(days, "valid", target.lookahead)
        # A field that begins after search is not there yet.
        there = [name for name in MINED_FIELDS if name in fields and np.isfinite(data.panel.column(name).values).any()]
        before = None if request.extend is None else _library_of(request.extend)
        known = None if request.library is None else load_factor_set(request.library, mode=request.library_mode)
        given = [one for one in (known, before) if one is not None]
        files = [load_factor_set(file) for file in request.formulas if file.endswith((".yaml", ".yml"))]
        for one in [*given, *files]:
            if one.as_of is not None and one.as_of > request.end:
                raise ConfigError(
                    f"the library {one.name} {one.id} was chosen with bars up to {one.as_of}, and search ends on "
                    f"{request.end}; expected one that knows no later day: search to that day, or name another library"
                )
        formulas = tuple(factor.expression for one in given for factor in one.factors)
        # That a formula passed on days of search is a figure of judge, so a model hears of dateless sets alone.
        told = () if known is None or known.as_of is not None else tuple(str(one.expression) for one in known.factors)
        return cls(data, tuple(there), formulas, told, before)

    @property
    def fingerprint(self) -> str:
        """Hash of all that mining may read."""
        return self.data.fingerprint(self.fields)


def run_mining(
    request: MiningRequest,
    out: Path,
    ledger: TrialLedger | None,
    *,
    resume: bool = False,
    gateway: AnswersRequests | None = None,
    port: Port | None = None,
    progress: Progress | None = None,
) -> FactorSet | None:
    """Run a session and write its folder, or go on with one; return the library, None when nothing was admitted.

    Parameters
    ----------
    request : MiningRequest
    out : Path
    ledger : TrialLedger or None
        Gets every trial; None: nobody counts them, as for a run that was counted before.
    resume : bool
    gateway : AnswersRequests, optional
        Asked instead of the endpoint that the environment names.
    port : Port, optional
        Where the person is, for the proposer ``chat``.
    progress : callable, optional

    Raises
    ------
    ConfigError
        The folder is taken, or holds a session with another plan.
    LLMError
        A model cannot be asked; the folder keeps what was answered, and ``resume`` goes on from there.
    """
    ground = Ground.of(request)
    # Both read what the user names, and refuse it before anything is written.
    given = [one for file in request.formulas for one in listed_candidates(file, provider_fields(request.provider))]
    whole = begin(out, _plan(request, ground, given), resume=resume)
    if whole and (ledger is None or ledger.count(run=out.name)):
        return _library_of(out) if (out / LIBRARY).exists() else None
    with _alone(out):
        session = _session(request, ground, given, out, ledger, progress, gateway=gateway, port=port)
        if request.tune is not None and session.admission.admitted:
            session = _with_tune(request, session, out, ledger)
        if not whole:
            session.write(out)
    return session.factor_set


def mined_set(request: MiningRequest, sessions: Path) -> FactorSet:
    """Return the features of a handler: the library that was there already, then what was mined on top of it.

    The session lies in a folder of ``sessions`` that is named by its plan, so that the same plan is mined once. Its
    trials enter the ledger of the run that is under way.

    Raises
    ------
    LibraryError
        Neither a library nor anything admitted, or a library with partial windows.
    """
    seeds = None if request.library is None else load_factor_set(request.library, mode=request.library_mode)
    if seeds is not None and seeds.warmup != "strict":
        raise LibraryError(
            f"the base set {request.library!r} has warmup: {seeds.warmup}; expected strict, as mined factors have it, "
            "since a set has one rule; name another base, such as starter or seed_bars"
        )
    ground = Ground.of(request)
    recording = recording_of(request.model) if request.model.mode_now() == "replay" else None
    if recording is not None and recording.header.get("data") != ground.fingerprint:
        return _joined(seeds, _frozen(request, recording), request)
    digest = hashlib.sha256(json.dumps(_plan(request, ground, ()), sort_keys=True).encode()).hexdigest()
    ledger = _ledger_of_run()
    key = f"{digest} {sessions.absolute()} {None if ledger is None else ledger.folder}"
    if key not in _known:
        folder = sessions / digest[:12]
        sessions.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            found = run_mining(request, folder, ledger, resume=True)
        admitted = 0 if found is None else len(found.factors)
        _log.info("mined by %s: %d factors admitted; the session is in %s", request.model.described(), admitted, folder)
        _known[key] = _joined(seeds, found, request)
    return _known[key]


def compare_mining(
    request: MiningRequest,
    proposers: Sequence[str],
    out: Path,
    ledger: TrialLedger,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Let proposers try as many formulas each on the same days, and write ``comparison.json`` and ``.md``.

    A proposer that learns takes part three times: with its results, without them, and with those of other formulas. A
    language model may have nothing left to say before its trials are used up; it comes first, and the others get as
    many trials as it used.

    Parameters
    ----------
    request : MiningRequest
    proposers : sequence of str
    out : Path
        Gets a folder for each search.
    """
    if len(set(proposers)) != len(proposers):
        raise ConfigError(f"proposers are {list(proposers)!r}; expected each once; leave the copies out")
    if resume and (out / "comparison.json").exists():
        raise ConfigError(f"the comparison in {str(out)!r} is whole; expected one that was stopped; read it there")
    if not resume:
        free_folder(out)
    used: list[int] = []
    entries = []
    for name in sorted(proposers, key=lambda one: one != "llm"):
        for feedback in ("true", "none", "shuffled") if name != "random" else ("true",):
            folder = out / (name if name == "random" else f"{name}_{feedback}")
            one = replace(request, proposer=name, feedback=feedback, tune=None)
            if name == "llm" and request.model.mode_now() == "replay":
                one = replace(one, model=_of_comparison(request.model, folder.name))
            entries.append(
                Entry(
                    one.model.model_now() if name == "llm" else name,
                    partial(_compared, one, folder, ledger, used, resume),
                    feedback=NO_FEEDBACK if name == "random" else feedback,
                    seed=request.seed,
                    cost=partial(cost_of, one.model, folder) if name == "llm" else Cost,
                    scripted=name == "llm" and one.model.is_scripted,
                )
            )
    table = compare(entries, progress=progress)
    write_whole(out / "comparison.json", table.to_json())
    write_whole(out / "comparison.md", table.to_markdown())
    return table


def _of_comparison(model: ModelPlan, search: str) -> ModelPlan:
    """Return the plan with the recording that a comparison has written for one of its searches."""
    folder = None if model.recording is None else Path(model.recording) / search
    if folder is None or not folder.is_dir():
        raise ConfigError(
            f"recording {model.recording!r} holds no answers for the search {search}: one that is told nothing, or "
            "other formulas' results, asks other questions; expected the folder of a comparison that was made with "
            "--mode record: name that one"
        )
    return replace(model, recording=str(folder))


def _compared(request: MiningRequest, folder: Path, ledger: TrialLedger, used: list[int], resume: bool) -> Session:
    """Make one search of a comparison and write its folder."""
    if request.proposer != "llm" and used:
        # Of a model that had nothing to say there is nothing to be equal to.
        request = replace(request, trials=min(request.trials, max(used)) or request.trials)
    ground = Ground.of(request)
    given = [one for file in request.formulas for one in listed_candidates(file, provider_fields(request.provider))]
    whole = begin(folder, {**_plan(request, ground, given), "compared": True}, resume=resume)
    with _alone(folder):
        session = _session(request, ground, given, folder, ledger, None, split=True)
        if not whole:
            session.write(folder)
    if request.proposer == "llm" and session.exploration is not None:
        used.append(len(session.exploration.found))
    return session


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second process out of a session: it would ask for, and pay for, what the first is asking for."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(
            f"another process is at work on the session in {str(folder)!r}; expected one at a time: wait for it, or "
            "name another folder with --out"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _plan(request: MiningRequest, ground: Ground, given: Sequence[Candidate]) -> dict[str, Any]:
    """Return everything that could change the outcome, as JSON values; how answers are come by is none of it."""
    plan: dict[str, Any] = {
        "proposer": request.proposer,
        "search": ground.fingerprint,
        "universe": request.universe if isinstance(request.universe, str) else list(request.universe),
        "start": request.start,
        "end": request.end,
        "tune": None if request.tune is None else list(request.tune),
        "label": request.label,
        "fields": list(ground.fields),
        "trials": request.trials,
        "shortlist": request.shortlist,
        "feedback": request.feedback,
        "alpha": request.alpha,
        "code": __version__,
        "seed": request.seed,
        "formulas": [one.expression.id for one in given],
        "known": [formula.id for formula in ground.known],
        "extends": None if ground.before is None else ground.before.id,
    }
    return {**plan, "model": request.model.to_dict()} if request.proposer in ("llm", "chat") else plan


def _session(
    request: MiningRequest,
    ground: Ground,
    given: Sequence[Candidate],
    out: Path,
    ledger: TrialLedger | None,
    progress: Progress | None,
    *,
    split: bool = False,
    gateway: AnswersRequests | None = None,
    port: Port | None = None,
) -> Session:
    rules = Rules(alpha=request.alpha)
    judging: dict[str, Any] = {
        "rules": rules,
        "library": ground.known,
        "null_fields": ground.fields,
        "ledger": ledger,
        "run": out.name,
        "seed": request.seed,
        "threads": request.threads,
        "progress": progress,
    }
    if request.proposer == "random" and not split:
        taken = {one.expression.id for one in given} | {one.id for one in ground.known}
        proposed = random_candidates(request.trials, ground.fields, seed=request.seed, known=taken)
        return replace(mine([*given, *proposed], ground.data, **judging), before=ground.before)
    exploring: dict[str, Any] = {"trials": request.trials, "shortlist": request.shortlist, "feedback": request.feedback}
    if request.proposer == "chat":
        if port is None:
            raise ConfigError(
                "a chat was asked for without a person; expected a port; use `qlib-llm-alpha mine --chat`"
            )
        del exploring["feedback"]
        session = chat_with_model(
            request.model,
            ground.data,
            out,
            port,
            fields=ground.fields,
            data_fingerprint=ground.fingerprint,
            gateway=gateway,
            **exploring,
            **judging,
        )
    elif request.proposer == "llm":
        session = run_with_model(
            request.model,
            ground.data,
            out,
            fields=ground.fields,
            data_fingerprint=ground.fingerprint,
            market=market_name(request.provider, ""),
            told=ground.told,
            extend=request.extend,
            before=ground.before,
            gateway=gateway,
            **exploring,
            **judging,
        )
    else:
        session = search(partial(_proposer, request, ground, given), ground.data, **exploring, **judging)
    return replace(session, before=ground.before)


def _proposer(request: MiningRequest, ground: Ground, given: Sequence[Candidate], explore: SearchData) -> Proposer:
    if request.proposer == "random":
        # Of the same language as the genetic proposer draws from, so that only the breeding differs.
        return RandomProposer(ground.fields, seed=request.seed, profile=wide_profile())
    return GeneticProposer(
        ground.fields,
        seed=request.seed,
        ancestors=[one.expression for one in given],
        known=[formula.id for formula in ground.known],
    )


def _with_tune(request: MiningRequest, session: Session, out: Path, ledger: TrialLedger | None) -> Session:
    walls, chosen = request.walls, session.admission.admitted
    if walls.tune is None:
        return session
    basis = replace(session.basis, start=str(walls.tune.start), end=str(walls.tune.end), trials=len(chosen))
    if ledger is not None:
        # Counted before it is done: what breaks off in between has still looked.
        ledger.record_tune_reads({"admitted factors": len(chosen)}, basis=basis, data=session.data, run=out.name)
    panel = open_panel(request.provider, request.universe, end=walls.tune.end)
    target = parse(request.label, allow_future=True, fields=provider_fields(request.provider))
    return replace(session, tune=read_tune(chosen, panel, walls, target))


def _library_of(folder: Path) -> FactorSet:
    if not (folder / PLAN).exists() or not (folder / LIBRARY).exists():
        raise ConfigError(
            f"{str(folder)!r} holds no finished session with a library; expected the folder of `qlib-llm-alpha mine "
            "--out`; name that one"
        )
    return load_factor_set(folder / LIBRARY)


def _frozen(request: MiningRequest, recording: Recording) -> FactorSet:
    """Return the set that was mined where the recording was made, for data to which its answers do not belong."""
    found = load_factor_set(request.model.recording_folder() / LIBRARY)
    # What was chosen in another world knows nothing of this one.
    elsewhere = recording.header.get("market", "") != market_name(request.provider, "")
    if not elsewhere and (found.as_of is None or found.as_of > request.end):
        raise LibraryError(
            f"the recorded answers belong to other data, and the set that was mined with them knows bars up to "
            f"{found.as_of}, while the fit window ends on {request.end}; expected none later: end the fit window there "
            "or later, or set OPENAI_API_KEY and LLM_MODE=live to mine this window"
        )
    _log.warning(
        "The recorded answers belong to other data (%s), so nothing is mined here: the %d factors that were mined with "
        "them stand in, frozen. To mine this data, set OPENAI_API_KEY and LLM_MODE=live",
        recording.header.get("note", "no note"),
        len(found.factors),
    )
    return found


def _joined(seeds: FactorSet | None, found: FactorSet | None, request: MiningRequest) -> FactorSet:
    first = () if seeds is None else seeds.factors
    ids = {factor.id for factor in first}
    mined = () if found is None else tuple(factor for factor in found.factors if factor.id not in ids)
    if not first and not mined:
        raise LibraryError(
            f"mining on {request.start} to {request.end} admitted nothing, and there is no base set; expected at least "
            "one factor: name a base, such as base: starter, or mine with more documents and trials"
        )
    as_of = max(day for one in (seeds, found) for day in (request.end, "" if one is None else one.as_of or ""))
    repeats = () if seeds is None else seeds.repeats
    return FactorSet("mined", first + mined, "strict", as_of=as_of, repeats=repeats)


def _ledger_of_run() -> TrialLedger | None:
    """Return the ledger of the experiment manager that Qlib was opened with, where it is one of ours."""
    try:
        rules = getattr(R.exp_manager, "rules", None)
    except AttributeError:  # Qlib was opened without a recorder
        return None
    folder = getattr(rules, "ledger", None)
    return TrialLedger(folder) if isinstance(folder, Path) else None
