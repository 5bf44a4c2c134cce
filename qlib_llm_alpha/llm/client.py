"""The client that all other rooms ask: journal first, then a recording, then the server; every answer kept at once."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol, TypeVar, get_args

from qlib_llm_alpha.chain import Chain
from qlib_llm_alpha.errors import ConfigError, LLMError, LLMFailure, OfflineError, QlibLLMAlphaError, ReplayError
from qlib_llm_alpha.llm.audit import CallFacts, audit_call, audit_failure, reconcile
from qlib_llm_alpha.llm.budget import Charge
from qlib_llm_alpha.llm.conversation import Conversation, converse
from qlib_llm_alpha.llm.failures import failure
from qlib_llm_alpha.llm.gateway import EMBEDDED_AT_ONCE
from qlib_llm_alpha.llm.journal import Journal, embedding_key
from qlib_llm_alpha.llm.recording import Recording, described
from qlib_llm_alpha.llm.request import Completion, Reply, Request, Usage

ClientMode = Literal["live", "record", "replay"]

_DROPPED_WITHIN_S: Final = 10.0
_LOG = logging.getLogger(__name__)
T = TypeVar("T")


class AnswersRequests(Protocol):
    """What is asked of a server's side; :class:`qlib_llm_alpha.llm.gateway.Gateway` does it over HTTP.

    It calls ``charged``, which a client sets, for every attempt that may have cost something and gave no reply: only
    there is it known what left this machine.
    """

    concurrency: int
    charged: Callable[[Charge], None]

    async def answer(self, request: Request) -> Reply:
        """Return the reply of a server; an LLMError when there is none."""

    async def embed(self, texts: Sequence[str], model: str, *, private: bool = False) -> list[list[float]]:
        """Return one vector for each text; private ones may not leave this machine."""

    async def close(self) -> None:
        """Let go of connections."""


class Client:
    """Asks a language model, or remembers what it answered.

    Parameters
    ----------
    mode : {"live", "record", "replay"}
        In ``replay`` nothing is asked: what neither journal nor recording has is a ReplayError. ``record`` asks as
        ``live`` does; whoever ends the session writes the recording of :attr:`used_keys`.
    model, revision : str
        For those who build requests.
    journal : Journal
        Of the session.
    gateway : AnswersRequests, optional
        Needed once something has to be asked; closed by :meth:`close`.
    recording : Recording, optional
        Asked second, in every mode: a recorded session may be extended.
    audit : Chain, optional
        Gets a row for every answer that is new to the journal, and, at once, for those of which a killed process left
        none.
    repairs : int
        Turns in which the model may mend an answer that cannot be used.
    progress : callable, optional
        Called with how many of the requests of one :meth:`complete` are done, and how many there are.
    facts : callable, optional
        Gives what the audit row says of a model: its declared knowledge cut-off and the cost of a usage.
    embedding_model : str
        For :meth:`embed`; ``model`` when empty.
    endpoint : str
        ``local`` or ``remote``, for the journal.

    Attributes
    ----------
    calls_asked, calls_replayed : int
        Answers of this client that came from a server, and that were known already.
    """

    def __init__(
        self,
        *,
        mode: ClientMode,
        model: str,
        revision: str = "",
        journal: Journal,
        gateway: AnswersRequests | None = None,
        recording: Recording | None = None,
        audit: Chain | None = None,
        repairs: int = 2,
        progress: Callable[[int, int], None] | None = None,
        facts: CallFacts | None = None,
        embedding_model: str = "",
        endpoint: str = "",
    ) -> None:
        if mode not in get_args(ClientMode):
            raise ConfigError(f"mode is {mode!r}; expected live, record or replay; name one of them")
        if repairs < 0:
            raise ConfigError(f"repairs is {repairs}; expected 0 or more; name how often an answer may be mended")
        self.mode, self.model, self.revision = mode, model, revision
        self.calls_asked = self.calls_replayed = 0
        self._journal, self._gateway, self._recording, self._audit = journal, gateway, recording, audit
        self._repairs, self._progress, self._facts = repairs, progress, facts
        self._embedding_model, self._endpoint = embedding_model or model, endpoint
        self._used: set[str] = set()
        self._loop: _Loop | None = None
        if gateway is not None:
            gateway.charged = journal.spend
        if audit is not None:
            reconcile(journal, audit, facts)

    @property
    def used_keys(self) -> frozenset[str]:
        """Keys of all answers that this client gave, for :meth:`Recording.write`."""
        return frozenset(self._used)

    def complete(self, requests: Sequence[Request]) -> list[Completion | LLMFailure]:
        """Ask everything, many at a time.

        Parameters
        ----------
        requests : sequence of Request
            The same request twice is asked once.

        Returns
        -------
        list of Completion or LLMFailure
            In the order of the requests. A failure stands for a model that did answer, but with nothing that can be
            used after the repairs: refusal, filtered, truncated, blank, invalid.

        Raises
        ------
        LLMFailure
            The server could not be asked, or answers with another model than before.
        BudgetError, PrivacyError, OfflineError
            A call was not to be made.
        ReplayError
            In replay, an answer is not known.

        Notes
        -----
        Before anything is raised, what is in flight is finished and kept; nothing new is begun. So it is when the user
        interrupts; a second interrupt cancels what is in flight, and the journal has what that may have cost.
        """
        talks = {request.key: _Talk.begin(request, self._repairs) for request in requests}
        report = self._reporter(len(talks))
        for talk in talks.values():
            self._advance(talk)
            if talk.outcome is not None:
                report()
        waiting = [talk for talk in talks.values() if talk.outcome is None]
        if waiting:
            if self.mode == "replay":
                raise ReplayError(self._missing([talk.due for talk in waiting]))
            asking = _Asking(self, self._asked_gateway(), waiting, report)
            self._on_loop(asking.run(), asking.begin_nothing_more)
        return [_ended(talks[request.key]) for request in requests]

    def embed(self, texts: Sequence[str], *, private: bool = False) -> list[list[float]]:
        """Return one vector for each text, from the journal, the recording, or the server.

        Parameters
        ----------
        texts : sequence of str
        private : bool
            They must not leave this machine.

        Raises
        ------
        LLMError
            As for :meth:`complete`.
        """
        model = self._embedding_model
        found: dict[str, list[float]] = {}
        for text in texts:
            vector = self._known_vector(model, text)
            if vector is not None:
                found[text] = vector
        lacking = [text for text in dict.fromkeys(texts) if text not in found]
        if lacking and self.mode == "replay":
            raise ReplayError(
                f"{len(lacking)} of {len(set(texts))} embeddings by {model!r} are not recorded, the first is "
                f"{embedding_key(model, lacking[0])[:12]}; {self._what_is_recorded()}"
            )
        if lacking:
            found |= self._on_loop(self._embedded(self._asked_gateway(), model, lacking, private))
        self._used |= {embedding_key(model, text) for text in texts}
        return [found[text] for text in texts]

    def close(self) -> None:
        """Close the gateway's connections; the journal stays open."""
        if self._loop is not None:
            try:
                if self._gateway is not None:
                    self._loop.run(self._gateway.close())
            finally:
                self._loop.stop()
                self._loop = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _advance(self, talk: _Talk) -> None:
        """Carry a conversation as far as its replies are known."""
        while talk.outcome is None:
            reply = self._known(talk.due)
            if reply is None:
                return
            self.calls_replayed += 1
            talk.hear(reply)

    def _known(self, request: Request) -> Reply | None:
        reply = self._journal.get(request.key)
        if reply is None and self._recording is not None:
            reply = self._recording.get(request.key)
            if reply is not None:
                self._keep(request, reply, asked=False)
        if reply is not None:
            self._used.add(request.key)
        return reply

    def _known_vector(self, model: str, text: str) -> list[float] | None:
        vector = self._journal.get_vector(model, text)
        if vector is None and self._recording is not None:
            vector = self._recording.vector(embedding_key(model, text))
            if vector is not None:
                self._journal.put_vectors(model, {text: vector})
        return vector

    async def _embedded(
        self, gateway: AnswersRequests, model: str, texts: Sequence[str], private: bool
    ) -> dict[str, list[float]]:
        """Ask for vectors in the portions in which they are sent; each is kept when it comes, whatever others do."""
        found: dict[str, list[float]] = {}

        async def ask(part: Sequence[str]) -> None:
            vectors = await gateway.embed(part, model, private=private)
            if len(vectors) != len(part):
                raise failure("malformed_reply", f"{len(vectors)} vectors came for {len(part)} texts")
            new = dict(zip(part, vectors, strict=True))
            self._journal.put_vectors(model, new)
            found.update(new)

        starts = range(0, len(texts), EMBEDDED_AT_ONCE)
        asked = (ask(texts[start : start + EMBEDDED_AT_ONCE]) for start in starts)
        for end in await asyncio.gather(*asked, return_exceptions=True):
            if end is not None:
                raise end
        return found

    def _keep(self, request: Request, reply: Reply, *, asked: bool) -> Reply:
        """Commit a reply, then audit it; return the reply that counts."""
        kept = self._journal.put(request, reply, asked=asked, endpoint=self._endpoint if asked else "")
        row = self._journal.row(request.key)
        if self._audit is not None and row is not None:
            audit_call(self._audit, row, self._facts)
        self._used.add(request.key)
        return kept

    def _take(self, request: Request, reply: Reply) -> Reply:
        """Keep what a server answered, unless it is another model than the one that answered before."""
        self.calls_asked += 1
        if reply.model:
            name = f"answered as, asked for {request.model} {request.revision}".strip()
            before = self._journal.fact(name) or self._journal.note(name, reply.model)
            if before != reply.model:
                self._journal.spend(Charge.of(request, "model_changed", reply.usage))
                raise failure(
                    "model_changed",
                    f"asked for {request.model!r}, {reply.model!r} answered; expected {before!r} as before in this "
                    "session; name a dated model or start a new session, so that one session has one model",
                    usage=reply.usage,
                )
        return self._keep(request, reply, asked=True)

    def _lose(self, request: Request, error: LLMFailure) -> None:
        """Audit a call that gave nothing to keep; what it cost is in the journal already."""
        if self._audit is not None:
            usage = error.usage if isinstance(error.usage, Usage) else None
            audit_failure(self._audit, request, error.kind, usage, self._facts)

    def _asked_gateway(self) -> AnswersRequests:
        if self._gateway is None:
            raise OfflineError(
                f"something has to be asked of {self.model!r}, and there is no endpoint; expected OPENAI_API_KEY, or a "
                "local OPENAI_BASE_URL, or LLM_MODE=replay with a recording; set one of them"
            )
        return self._gateway

    def _on_loop(self, work: Coroutine[Any, Any, T], wind_up: Callable[[], None] | None = None) -> T:
        # One loop for the life of the client, in a thread of its own: connections belong to a loop, and the caller,
        # such as a notebook, may be running one already.
        if self._loop is None:
            self._loop = _Loop()
        return self._loop.run(work, wind_up)

    def _reporter(self, total: int) -> Callable[[], None]:
        done = 0

        def report() -> None:
            nonlocal done
            done += 1
            if self._progress is not None:
                self._progress(done, total)

        return report

    def _missing(self, requests: Sequence[Request]) -> str:
        first = requests[0]
        stamp = "no prompt" if first.prompt is None else f"prompt {described(first.prompt)}"
        more = f" ({len(requests)} requests lack one)" if len(requests) > 1 else ""
        return (
            f"no recorded answer for {first.purpose} ({stamp}), call {first.key[:12]}{more}; {self._what_is_recorded()}"
        )

    def _what_is_recorded(self) -> str:
        if self._recording is None:
            return (
                "there is no recording, only this session's journal; expected the same inputs as before: mend them, or "
                "mine with LLM_MODE=live"
            )
        return (
            f"{self._recording.path.name!r} holds {self._recording.summary}; expected the model, data, prompts and "
            "release it was made with: use them, or record again with LLM_MODE=record"
        )


@dataclass
class _Talk:
    """A conversation, the request that is due, and how it ended."""

    talk: Conversation
    due: Request
    asked: bool = False
    outcome: Completion | LLMFailure | None = None

    @classmethod
    def begin(cls, request: Request, repairs: int) -> _Talk:
        talk = converse(request, repairs)
        return cls(talk, next(talk))

    def hear(self, reply: Reply, *, asked: bool = False) -> None:
        self.asked = self.asked or asked
        try:
            self.due = self.talk.send(reply)
        except StopIteration as end:
            ended: Completion | LLMFailure = end.value
            self.outcome = replace(ended, replayed=not self.asked) if isinstance(ended, Completion) else ended


def _ended(talk: _Talk) -> Completion | LLMFailure:
    if talk.outcome is None:
        raise LLMError(f"call {talk.due.key[:12]} did not end; expected a value or a failure; report this as a mistake")
    return talk.outcome


class _Asking:
    """Asks a server for what several conversations lack, within one call of :meth:`Client.complete`."""

    def __init__(
        self, client: Client, gateway: AnswersRequests, talks: Sequence[_Talk], report: Callable[[], None]
    ) -> None:
        self._client, self._gateway, self._talks, self._report = client, gateway, talks, report
        self._free = asyncio.Semaphore(gateway.concurrency)
        self._flights: dict[str, asyncio.Task[Reply | None]] = {}
        self._error: QlibLLMAlphaError | None = None

    async def run(self) -> None:
        ends = await asyncio.gather(*(self._carry(talk) for talk in self._talks), return_exceptions=True)
        for error in (self._error, *ends):
            if error is not None:
                raise error

    def begin_nothing_more(self) -> None:
        """Let what is in flight end, and begin nothing new."""
        if self._error is None:
            self._error = LLMError("the user interrupted; what was answered is kept: resume the session to go on")

    async def _carry(self, talk: _Talk) -> None:
        while talk.outcome is None:
            key = talk.due.key
            # A longer answer to one request may be the same request as another one.
            if key not in self._flights:
                self._flights[key] = asyncio.ensure_future(self._ask(talk.due))
            reply = await self._flights[key]
            if reply is None:
                return
            talk.hear(reply, asked=True)
            if talk.outcome is None:
                self._client._advance(talk)
        self._report()

    async def _ask(self, request: Request) -> Reply | None:
        """Return the reply, or None once something has failed; the first failure is kept, the others are logged."""
        async with self._free:
            if self._error is not None:
                return None
            try:
                return self._client._take(request, await self._gateway.answer(request))
            except QlibLLMAlphaError as error:
                if isinstance(error, LLMFailure):
                    self._client._lose(request, error)
                self._note(request, error)
                return None

    def _note(self, request: Request, error: QlibLLMAlphaError) -> None:
        if self._error is None:
            self._error = error
        else:
            _LOG.warning("call %s failed too: %s", request.key[:12], error)


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qlib_llm_alpha.llm", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], wind_up: Callable[[], None] | None = None) -> T:
        """Return what the work gives; an interrupt calls ``wind_up`` and waits, a second one cancels the work."""
        ended = threading.Event()
        # Nothing is asked before this thread is where an interrupt is taken care of.
        ready = asyncio.Event()

        async def told() -> T:
            try:
                await ready.wait()
                return await work
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(told(), self._loop)
        try:
            self._loop.call_soon_threadsafe(ready.set)
            return future.result()
        except KeyboardInterrupt:
            if wind_up is not None:
                self._loop.call_soon_threadsafe(wind_up)
                _LOG.warning("interrupted: answers on their way are waited for; interrupt again to drop them")
                with suppress(KeyboardInterrupt):
                    ended.wait()
            raise
        finally:
            if not ended.is_set():
                future.cancel()
                # What was dropped is booked before this thread goes on and closes the journal.
                ended.wait(_DROPPED_WITHIN_S)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
