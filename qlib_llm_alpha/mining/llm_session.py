"""A mining session that asks a language model: its documents, journal, audit trail, budget and recording."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any, Final

from qlib_llm_alpha.chain import Chain
from qlib_llm_alpha.documents.clocks import end_of_day
from qlib_llm_alpha.documents.document import Document
from qlib_llm_alpha.documents.masking import Names
from qlib_llm_alpha.documents.reading import read_folder
from qlib_llm_alpha.documents.store import DocumentStore
from qlib_llm_alpha.documents.view import DocumentView
from qlib_llm_alpha.errors import ConfigError, DocumentError, ReplayError
from qlib_llm_alpha.evaluation.search_data import SearchData
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.library.factor_set import FactorSet
from qlib_llm_alpha.llm.audit import (
    AUDIT,
    JOURNAL,
    ModelFacts,
    audit_candidates,
    audit_documents,
    audit_session,
)
from qlib_llm_alpha.llm.budget import Budget
from qlib_llm_alpha.llm.client import AnswersRequests, Client, ClientMode
from qlib_llm_alpha.llm.gateway import Gateway
from qlib_llm_alpha.llm.journal import Journal
from qlib_llm_alpha.llm.models import ModelInfo, ModelRegistry
from qlib_llm_alpha.llm.recording import Recording
from qlib_llm_alpha.llm.request import Usage
from qlib_llm_alpha.llm.settings import LLMSettings
from qlib_llm_alpha.mining.asking import Asking
from qlib_llm_alpha.mining.blind import Blind
from qlib_llm_alpha.mining.candidates import Candidate
from qlib_llm_alpha.mining.charts import chart_images
from qlib_llm_alpha.mining.compare import Cost
from qlib_llm_alpha.mining.drafts import InnerLoop
from qlib_llm_alpha.mining.exploring import count
from qlib_llm_alpha.mining.factory import SeedFactory
from qlib_llm_alpha.mining.knowledge import KnowledgeBase
from qlib_llm_alpha.mining.llm_proposer import LLMProposer
from qlib_llm_alpha.mining.market_profile import MarketProfile, market_profile
from qlib_llm_alpha.mining.search import search
from qlib_llm_alpha.mining.session import Session, write_whole
from qlib_llm_alpha.mining.session_audit import DOCUMENTS, candidate_rows, document_rows, written_files
from qlib_llm_alpha.mining.steps import StepStore
from qlib_llm_alpha.mining.value_check import ComputedValues

_log = logging.getLogger(__name__)

EMBEDDED: Final = "embedded"
SHIPPED: Final = Path(__file__).parent / "recordings"
RECORDING, DRAFTS = "recording.jsonl", "drafts.json"
BUDGET_TOKENS: Final = 500_000


@dataclass(frozen=True)
class ModelPlan:
    """What a language model is asked with.

    Parameters
    ----------
    mode : {"live", "record", "replay"} or None
        None: what ``LLM_MODE`` says, else replay.
    model : str or None
        None: that of the recording in replay, else ``OPENAI_MODEL``.
    documents : str or None
        A folder, or ``embedded``: the notes that are shipped for the embedded market. None: no documents.
    recording : str or None
        A file or the folder of a session; ``embedded``: the one that is shipped.
    budget_usd, budget_tokens : float, int or None
        Hard stops; None: none in that unit.
    models : Path or None
        A model registry of the user.
    names : Path or None
        A text with one company or other name a line, which blind prompts mask beside instruments and indices.
    charts : int
        Charts that the model is shown.
    blind : bool
        Mask dates, codes and names, and refuse prompts that still hold any.
    rounds : int
        Rounds of learning after the documents at most.
    """

    mode: str | None = None
    model: str | None = None
    documents: str | None = None
    recording: str | None = None
    budget_usd: float | None = None
    budget_tokens: int | None = BUDGET_TOKENS
    models: Path | None = None
    names: Path | None = None
    charts: int = 0
    blind: bool = True
    rounds: int = 10

    def mode_now(self) -> ClientMode:
        """Return the mode, the environment's where none is given."""
        said = self.mode or LLMSettings.from_environment().mode or "replay"
        if said not in ("live", "record", "replay"):
            raise ConfigError(f"mode is {said!r}; expected live, record or replay; correct it, or LLM_MODE")
        mode: ClientMode = said  # type: ignore[assignment]  # one of the three
        return mode

    def recording_folder(self) -> Path:
        """Return the folder that the recording lies in."""
        return _recording_file(self.recording).parent

    def model_now(self) -> str:
        """Return the model's name."""
        if self.model:
            return self.model
        recording = recording_of(self) if self.mode_now() == "replay" else None
        return LLMSettings.from_environment().model if recording is None else recording.header["model"]

    @property
    def is_scripted(self) -> bool:
        """Whether the answers are made by a stated rule: the model's name, or the recording's note, says so."""
        note = recording_of(self).header["note"] if self.mode_now() == "replay" else ""
        return "scripted" in f"{self.model_now()} {note}".lower()

    def described(self) -> str:
        """Return the model and the mode in words."""
        mode = self.mode_now()
        return f"{self.model_now()} ({'replayed' if mode == 'replay' else mode})"

    def to_dict(self) -> dict[str, Any]:
        """Return what could change the outcome, as JSON values."""
        replayed = self.mode_now() == "replay"
        return {
            "model": self.model_now(),
            "answers": _digest(_recording_file(self.recording)) if replayed else "asked",
            "documents": [document.id for document in documents_of(self.documents)],
            "names": None if self.names is None else _digest(self.names),
            "charts": self.charts,
            "blind": self.blind,
            "rounds": self.rounds,
        }


def shipped_recordings() -> tuple[Path, ...]:
    """Return the recordings that come with the package."""
    return tuple(sorted(SHIPPED.glob(f"*/{RECORDING}")))


def recording_of(plan: ModelPlan) -> Recording:
    """Read the recording of a plan; LLMError when there is none."""
    return Recording.load(_recording_file(plan.recording))


def documents_of(place: str | None) -> tuple[Document, ...]:
    """Read the documents of a folder, or those that are shipped."""
    if place is None:
        return ()
    folder = SHIPPED / EMBEDDED / "documents" if place == EMBEDDED else Path(place)
    return _documents(folder, _stamp(folder))


def run_with_model(
    plan: ModelPlan,
    data: SearchData,
    out: Path,
    *,
    fields: Sequence[str],
    data_fingerprint: str,
    market: str = "",
    told: Sequence[str] = (),
    extend: Path | None = None,
    before: FactorSet | None = None,
    gateway: AnswersRequests | None = None,
    seed: int,
    threads: int = 2,
    **searching: Any,
) -> Session:
    """Run a search whose proposer is a language model, inside a session's folder.

    Parameters
    ----------
    plan : ModelPlan
    data : SearchData
    out : Path
        The session's folder, there already.
    fields : sequence of str
        That formulas may read.
    data_fingerprint, market : str
        Of all that mining may read, which is what a recording is bound to; and the name of a simulated market.
    told : sequence of str
        Formulas of the library that the model may hear of: none that was chosen with days of judge.
    extend, before : Path, FactorSet, optional
        A session whose documents are not read again, and its library, which stays as it is.
    gateway : AnswersRequests, optional
        Asked instead of the endpoint that the environment names.
    seed, threads, searching
        As for :func:`~qlib_llm_alpha.mining.search.search`.

    Raises
    ------
    DocumentError
        Documents were named and none of them was available by the last day of explore.
    LLMError
        The model cannot be asked; everything that was answered is kept.
    """
    _check_binding(plan, data_fingerprint)
    _check_sight(plan)
    documents = _new_documents(plan, extend)
    made: list[tuple[LLMProposer, DocumentView]] = []
    with DocumentStore(out / DOCUMENTS) as store, open_client(plan, out, gateway=gateway) as client:
        store.add_all(documents)
        audit_documents(Chain(out / AUDIT), document_rows(store))
        names = _names(plan, data, documents)
        blind = Blind(names, blind=plan.blind)

        def proposer_on(explore: SearchData) -> LLMProposer:
            profile = market_profile(explore, fields=fields, threads=threads)
            count_profile(profile, explore, searching, seed=seed, threads=threads)
            view = store.as_of(end_of_day(explore.window.end.astype(object)))
            _check_view(view, documents, plan, str(explore.window.end))
            asking = Asking(client, blind, as_of=str(explore.window.end))
            factory = SeedFactory(
                asking,
                InnerLoop(
                    asking, fields, check_values=ComputedValues(explore, searching.get("rules"), threads=threads)
                ),
                StepStore(out / "steps"),
                market=profile.text,
                known=told,
                data=data_fingerprint,
            )
            proposer = LLMProposer(
                factory,
                view,
                KnowledgeBase(out / "knowledge.sqlite"),
                day=str(explore.window.end),
                charts=chart_images(explore, plan.charts, seed) if plan.charts else (),
                rounds=plan.rounds,
            )
            made.append((proposer, view))
            return proposer

        session = replace(search(proposer_on, data, seed=seed, threads=threads, **searching), before=before)
        ((proposer, view),) = made
        write_whole(out / DRAFTS, json.dumps(_drafts(proposer), indent=1, ensure_ascii=False) + "\n")
        found = session.factor_set
        audit_candidates(Chain(out / AUDIT), candidate_rows(session, proposer.name, proposer.rejections, view.text_of))
        head = audit_session(
            Chain(out / AUDIT),
            data=data_fingerprint,
            settings=settings_hash(plan),
            library="" if found is None else found.id,
            files=written_files(out, found, DOCUMENTS, DRAFTS),
            extends="" if extend is None else extend.name,
        )
        note = f"answers of {client.model}"
        write_recording(client, out, data=data_fingerprint, made_by="mine --mode record", note=note, market=market)
        return replace(session, notes=_notes(proposer, documents, plan, extends=before is not None), audit=head)


def count_profile(
    profile: MarketProfile, explore: SearchData, searching: Mapping[str, Any], *, seed: int, threads: int
) -> None:
    """Enter in the ledger what a model reads of in the market's profile: it was scored, though nobody proposed it."""
    if searching.get("ledger") is not None:
        traced = [Candidate(parse(one.formula), "profile") for one in profile.traces]
        count(traced, explore, searching["ledger"], run=searching.get("run", ""), seed=seed, threads=threads)


@contextmanager
def open_client(plan: ModelPlan, out: Path, *, gateway: AnswersRequests | None = None) -> Iterator[Client]:
    """Open the client of a session's folder; it is closed at the end."""
    mode, model = plan.mode_now(), plan.model_now()
    settings = replace(LLMSettings.from_environment(), model=model)
    registry = ModelRegistry.of(plan.models)
    recording = recording_of(plan) if mode == "replay" else None

    def facts(name: str, usage: Usage) -> ModelFacts:
        info = registry.get(name, settings.base_url)
        cutoff = None if info.knowledge_cutoff is None else info.knowledge_cutoff.isoformat()
        return ModelFacts(cutoff, cost_usd(info, usage))

    with Journal(out / JOURNAL) as journal:
        if gateway is None and mode != "replay":
            gateway = Gateway(settings, registry, _budget(plan, journal, registry, settings.base_url))
        with Client(
            mode=mode,
            model=model,
            revision=registry.get(model, settings.base_url).revision,
            journal=journal,
            gateway=gateway,
            recording=recording,
            audit=Chain(out / AUDIT),
            facts=facts,
            endpoint="" if mode == "replay" else ("local" if settings.is_local else "remote"),
        ) as client:
            yield client


def write_recording(client: Client, out: Path, *, data: str, made_by: str, note: str, **more: str) -> None:
    """Write the recording of a session in mode ``record``; nothing in another mode.

    Parameters
    ----------
    client : Client
        Of the session.
    out : Path
        The session's folder.
    data : str
        Fingerprint of the data that the answers are bound to; empty: none.
    made_by, note, more
        For the header: the command, and what is to be known of the answers.
    """
    if client.mode != "record":
        return
    header = {"model": client.model, "data": data, "made_by": f"qlib-llm-alpha {made_by}", "note": note, **more}
    with Journal(out / JOURNAL) as journal:
        # Of all runs of the session: a finished step asks for nothing again.
        Recording.write(out / RECORDING, journal, {*journal.reply_keys(), *client.used_keys}, header)


def cost_of(plan: ModelPlan, out: Path) -> Cost:
    """Return what the answers that a session's folder holds cost, or would have cost where they were replayed."""
    settings, registry = LLMSettings.from_environment(), ModelRegistry.of(plan.models)
    calls, usage, usd = 0, Usage(), 0.0
    known = True
    with Journal(out / JOURNAL) as journal:
        for row in journal.rows():
            calls, usage = calls + 1, usage + row.reply.usage
            cost = cost_usd(registry.get(str(row.request["model"]), settings.base_url), row.reply.usage)
            known, usd = known and cost is not None, usd + (cost or 0.0)
    return Cost(calls, (usage.prompt or 0) + (usage.answer or 0), usd if known else None)


def cost_usd(info: ModelInfo, usage: Usage) -> float | None:
    """Return what a usage costs; None where the price or the usage is not known."""
    if info.price_per_million is None or usage.prompt is None or usage.answer is None:
        return None
    prompt, answer = info.price_per_million
    return (usage.prompt * prompt + usage.answer * answer) / 1e6


def _budget(plan: ModelPlan, journal: Journal, registry: ModelRegistry, base_url: str) -> Budget:
    """Return what is left of the budget after all runs of this session."""
    spent = journal.spent()
    costs = [cost_usd(registry.get(model, base_url), one.bound) for model, one in spent.items()]
    known = [cost for cost in costs if cost is not None]
    return Budget(
        usd=plan.budget_usd,
        tokens=plan.budget_tokens,
        spent_usd=sum(known) if len(known) == len(costs) else None,
        spent_tokens=sum((one.bound.prompt or 0) + (one.bound.answer or 0) for one in spent.values()),
    )


def _recording_file(given: str | None) -> Path:
    place = SHIPPED / EMBEDDED if given in (None, EMBEDDED) else Path(str(given))
    return place / RECORDING if place.is_dir() else place


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read ({error}); expected a file; name another") from error


def _names(plan: ModelPlan, data: SearchData, documents: Sequence[Document]) -> Names:
    """Return what blind prompts mask: codes of the market, indices, and the names given."""
    if plan.blind and documents and plan.names is None:
        _log.warning("no names of companies are given (--names), so that documents are shown with those they hold")
    return Names.of(instruments=data.panel.instruments, companies=listed_names(plan.names))


def _check_sight(plan: ModelPlan) -> None:
    """Refuse to show charts to a model that may not see them, though its server would take them."""
    settings = LLMSettings.from_environment()
    if plan.mode_now() == "replay":
        return
    if plan.charts and not ModelRegistry.of(plan.models).get(plan.model_now(), settings.base_url).images:
        raise ConfigError(
            f"{plan.charts} charts are to be shown to {plan.model_now()}, which is not known to see images; expected a "
            "model that does: leave --charts out, or state `images: true` for it in a registry of yours (--models)"
        )


def listed_names(path: Path | None) -> tuple[str, ...]:
    """Read names, one a line; ConfigError when the file cannot be read."""
    if path is None:
        return ()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"names {str(path)!r} cannot be read ({error}); expected one name a line; mend it") from error
    return tuple(line.strip() for line in lines if line.strip())


@cache
def _documents(folder: Path, stamp: tuple[tuple[str, int, int], ...]) -> tuple[Document, ...]:
    return tuple(read_folder(folder))


def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Return names, sizes and times of a folder's files: whoever changes one is read anew."""
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)


def _check_binding(plan: ModelPlan, data: str) -> None:
    """Refuse to replay answers that were given about other data: their questions would not be found one by one."""
    if plan.mode_now() != "replay":
        return
    header = recording_of(plan).header
    if header["data"] != data:
        raise ReplayError(
            f"the recording ({header['note']}) belongs to other data, {header['data'][:12]}, than what is searched, "
            f"{data[:12]}; expected the same bars, members, label and dates: use those, or ask a model of yours with "
            "--mode record"
        )


def _new_documents(plan: ModelPlan, extend: Path | None) -> tuple[Document, ...]:
    """Return the documents that no extended session has read yet."""
    documents = documents_of(plan.documents)
    read: set[str] = set()
    if extend is not None and (extend / DOCUMENTS).exists():
        with DocumentStore(extend / DOCUMENTS) as store:
            read = {document.id for document in store.as_of(datetime.max.replace(tzinfo=timezone.utc)).documents()}
    return tuple(document for document in documents if document.id not in read)


def _check_view(view: DocumentView, documents: Sequence[Document], plan: ModelPlan, day: str) -> None:
    """Say which documents nobody could have read by the last day of explore."""
    late = {document.id for document in documents} - {document.id for document in view.documents()}
    if not late:
        return
    told = ", ".join(f"{one.source} ({one.available_at:%Y-%m-%d})" for one in documents if one.id in late)
    if len(late) == len(documents):
        raise DocumentError(
            f"none of the {len(documents)} documents of {plan.documents!r} was there by {day}, the last day that "
            f"proposers may see: {told:.300}; expected older ones; state when each was published, in its front matter "
            "or in documents.yaml (`published: 2015-06-12`)"
        )
    _log.warning("%d documents were not there by %s and are left out: %s", len(late), day, told)


def _drafts(proposer: LLMProposer) -> dict[str, Any]:
    seeds = proposer.seeds
    return {
        "irrelevant": [] if seeds is None else list(seeds.irrelevant),
        "dropped_quotes": 0 if seeds is None else seeds.dropped_quotes,
        "repaired": 0 if seeds is None else seeds.repaired,
        "rejections": [one.to_json() for one in proposer.rejections],
    }


def _notes(proposer: LLMProposer, documents: Sequence[Document], plan: ModelPlan, *, extends: bool) -> tuple[str, ...]:
    """Return what the report says of the model's part."""
    seeds = proposer.seeds
    irrelevant = 0 if seeds is None else len(seeds.irrelevant)
    reasons = Counter(one.reason for one in proposer.rejections)
    told = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "none"
    notes = [
        f"Proposed by {plan.model_now()} from {len(documents)} documents, {irrelevant} of them without an idea. "
        f"Drafts that never became candidates: {told}."
    ]
    if seeds is not None and seeds.dropped_quotes:
        notes.append(f"{seeds.dropped_quotes} quotes were not in the documents they named and were dropped.")
    if plan.mode_now() == "replay":
        header = recording_of(plan).header
        notes.append(f"All answers are replayed: {header['note']} (made by {header['made_by']}).")
    elif not plan.is_scripted:
        notes.append(
            "The model may have read about these days when it was trained, and nothing here excludes it; "
            "`guard memory` asks it."
        )
    if extends:
        notes.append(
            "The library that is extended was judged on the same days: alpha is that of this session alone, and two "
            "sessions err twice as often."
        )
    return tuple(notes)


def settings_hash(plan: ModelPlan) -> str:
    """Return the SHA-256 of what a model was asked with."""
    return hashlib.sha256(json.dumps(plan.to_dict(), sort_keys=True).encode()).hexdigest()
