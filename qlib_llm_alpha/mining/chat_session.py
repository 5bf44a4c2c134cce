"""A chat inside a session's folder: its journal, transcript, audit trail and recording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from qlib_llm_alpha.chain import Chain
from qlib_llm_alpha.documents.masking import Names
from qlib_llm_alpha.evaluation.search_data import SearchData
from qlib_llm_alpha.llm.audit import AUDIT, audit_candidates, audit_session
from qlib_llm_alpha.llm.client import AnswersRequests
from qlib_llm_alpha.mining.asking import Asking
from qlib_llm_alpha.mining.blind import Blind
from qlib_llm_alpha.mining.chat import ChatProposer, hold_chat
from qlib_llm_alpha.mining.drafts import InnerLoop
from qlib_llm_alpha.mining.llm_session import (
    ModelPlan,
    count_profile,
    listed_names,
    open_client,
    settings_hash,
    write_recording,
)
from qlib_llm_alpha.mining.market_profile import market_profile
from qlib_llm_alpha.mining.session import Session
from qlib_llm_alpha.mining.session_audit import candidate_rows, written_files
from qlib_llm_alpha.mining.transcript import Port, Transcript
from qlib_llm_alpha.mining.value_check import ComputedValues

__all__ = ["TRANSCRIPT", "chat_with_model"]

TRANSCRIPT: Final = "chat.json"


def chat_with_model(
    plan: ModelPlan,
    data: SearchData,
    out: Path,
    port: Port,
    *,
    fields: Sequence[str],
    data_fingerprint: str,
    gateway: AnswersRequests | None = None,
    seed: int = 0,
    threads: int = 2,
    **searching: Any,
) -> Session:
    """Hold a chat in a session's folder, and judge what it arrived at.

    Parameters
    ----------
    plan : ModelPlan
        Documents and charts are not read: the ideas are the person's.
    data : SearchData
        The search wall; person and model see figures of explore alone.
    out : Path
        The session's folder, there already. A transcript in it is gone through again, and goes on from its end; in
        replay that of the recording's folder is, where there is none yet.
    port : Port
    fields : sequence of str
        That formulas may read.
    data_fingerprint : str
        Of all that mining may read.
    gateway : AnswersRequests, optional
        Asked instead of the endpoint that the environment names.
    seed, threads, searching
        As for :func:`~qlib_llm_alpha.mining.chat.hold_chat`.

    Raises
    ------
    ReplayError
        The transcript, or the recording, does not fit what is said now.
    LLMError
        The model cannot be asked; everything that was said is kept.
    """
    blind = Blind(Names.of(instruments=data.panel.instruments, companies=listed_names(plan.names)), blind=plan.blind)
    with open_client(plan, out, gateway=gateway) as client:
        source = plan.recording_folder() / TRANSCRIPT if client.mode == "replay" else None

        def chat_on(first: SearchData) -> ChatProposer:
            asking = Asking(client, blind, as_of=str(first.window.end))
            profile = market_profile(first, fields=fields, threads=threads)
            count_profile(profile, first, searching, seed=seed, threads=threads)
            return ChatProposer(
                asking,
                InnerLoop(asking, fields, check_values=ComputedValues(first, searching.get("rules"), threads=threads)),
                port,
                Transcript(out / TRANSCRIPT, model=client.model, data=data_fingerprint, source=source),
                market=profile.text,
                known=searching.get("library", ()),
            )

        session, chat = hold_chat(chat_on, data, seed=seed, threads=threads, **searching)
        rows = candidate_rows(session, chat.name, chat.rejections, left_out=chat.left_out)
        audit_candidates(Chain(out / AUDIT), rows)
        found = session.factor_set
        head = audit_session(
            Chain(out / AUDIT),
            data=data_fingerprint,
            settings=settings_hash(plan),
            library="" if found is None else found.id,
            files=written_files(out, found, TRANSCRIPT),
        )
        note = f"answers of {client.model} to a person; what the person said is in {TRANSCRIPT}"
        write_recording(client, out, data=data_fingerprint, made_by="mine --chat --mode record", note=note)
    vetoes = f"Ruled out by the person: {chat.vetoes.text}."
    return replace(session, notes=(f"Arrived at by a person and {client.model} in {TRANSCRIPT}. {vetoes}",), audit=head)
