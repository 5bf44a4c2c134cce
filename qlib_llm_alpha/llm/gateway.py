"""The one way out: questions go to an OpenAI-compatible server, within a budget; an answer or one failure comes back.

What may not be sent is stopped first: the offline switch, private text for a remote endpoint, a budget that could be
passed, a remote endpoint without a key. Then one level of retries, with the waits that servers ask for, jitter and a
deadline for the whole call. What the answer says is not looked at here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, TypeVar
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import numpy as np

from qlib_llm_alpha.errors import BudgetError, OfflineError, PrivacyError
from qlib_llm_alpha.llm.budget import Budget, Charge, Reservation
from qlib_llm_alpha.llm.dialect import Dialect
from qlib_llm_alpha.llm.failures import failure
from qlib_llm_alpha.llm.models import ModelInfo, ModelRegistry
from qlib_llm_alpha.llm.questions import Chat, Embedding, Question
from qlib_llm_alpha.llm.request import Reply, Request, Usage
from qlib_llm_alpha.llm.settings import LLMSettings, redact
from qlib_llm_alpha.llm.transport_errors import Fault, fault, fault_of
from qlib_llm_alpha.llm.wire import Heard, Vectors, read_bounded

if TYPE_CHECKING:
    from openai import AsyncOpenAI

FIRST_BACKOFF_S: Final = 0.5
EMBEDDED_AT_ONCE: Final = 10
"""Texts in one HTTP request: the most that DashScope takes; others take more."""

_NO_KEY: Final = "none"  # the SDK wants one, servers on this machine do not
_LOG = logging.getLogger(__name__)
_T = TypeVar("_T", Heard, Vectors)


class Gateway:
    """Asks models of one endpoint.

    Parameters
    ----------
    settings : LLMSettings
    registry : ModelRegistry
    budget : Budget
    timeout_s : float
        Seconds for one attempt, from its first byte to the last of the answer.
    deadline_s : float
        Seconds for one call with all its attempts and waits.
    retries : int
        Attempts after the first that failed in a way that may pass. A step down the ladder is none of them.
    retry_cap_s : float
        Longest wait: of the back-off, and of what a server may ask for. One that asks for more ends the call.
    concurrency : int
        Calls at once.
    seed : int
        Of the jitter.
    pause : callable
        Waits so many seconds; for tests.

    Attributes
    ----------
    charged : callable
        Told at once of each attempt that may have cost something and gave no reply: a timeout, a connection that broke
        after the request had left, a call that was cancelled; and of each for embeddings. What it cost is then kept
        wherever replies are kept, and a resumed session does not forget it. By default nobody listens.

    Notes
    -----
    What a model and server were found to take is remembered for the life of the gateway, and so is the name under which
    the server embeds for a model. One gateway serves any number of event loops, one after another or at once.
    """

    def __init__(
        self,
        settings: LLMSettings,
        registry: ModelRegistry,
        budget: Budget,
        *,
        timeout_s: float = 60.0,
        deadline_s: float = 300.0,
        retries: int = 5,
        retry_cap_s: float = 60.0,
        concurrency: int = 8,
        seed: int = 0,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.concurrency = concurrency
        self.charged: Callable[[Charge], None] = lambda charge: None
        self._settings, self._registry, self._budget = settings, registry, budget
        self._timeout_s, self._deadline_s = timeout_s, deadline_s
        self._retries, self._retry_cap_s = retries, retry_cap_s
        self._pause = pause
        self._jitter = np.random.default_rng(seed)
        self._dialects: dict[str, Dialect] = {}
        self._answers_as: dict[str, str] = {}
        self._places: WeakKeyDictionary[asyncio.AbstractEventLoop, _Place] = WeakKeyDictionary()

    async def answer(self, request: Request) -> Reply:
        """Ask one question.

        Returns
        -------
        Reply
            Every readable HTTP answer is one, however strange its content: refusals, filtered, cut and blank ones too.
            Its usage is that of the answer; what attempts before it cost was told to ``charged``.

        Raises
        ------
        OfflineError, PrivacyError, BudgetError
            Nothing was sent, or nothing more.
        LLMFailure
            No answer; with the usage of attempts that were counted, all of which were told to ``charged``.
        """
        info = self._permitted(request.model, private=request.private)
        question = Chat(request, self._dialects.get(request.model) or Dialect.of(info), info)
        told = await self._ask(question, info)
        if question.dialect != self._dialects.get(request.model, Dialect.of(info)):
            _LOG.info("%s answers on rung %s of the ladder", request.model, question.dialect.mode)
        self._dialects[request.model] = question.dialect
        heard = told.heard
        return Reply(
            text=self._clean(heard.text),
            finish=self._clean(heard.finish),
            usage=heard.usage,
            model=self._clean(heard.model),
            mode=question.dialect.mode,
            attempts=told.attempts,
            seconds=told.seconds,
            reasoning=self._clean(heard.reasoning),
        )

    async def embed(self, texts: Sequence[str], model: str, *, private: bool = False) -> list[list[float]]:
        """Return one vector for each text, all of one length.

        Parameters
        ----------
        texts : sequence of str
        model : str
        private : bool
            The texts must not leave this machine.

        Raises
        ------
        OfflineError, PrivacyError, BudgetError, LLMFailure
            As :meth:`answer` does.
        """
        info = self._permitted(model, private=private)
        parts = [texts[at : at + EMBEDDED_AT_ONCE] for at in range(0, len(texts), EMBEDDED_AT_ONCE)]
        asked = (self._ask(Embedding(part, model), info) for part in parts)
        vectors: list[list[float]] = []
        for told in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(told, BaseException):
                raise told
            self._expect_same_model(model, self._clean(told.heard.model), told.heard.usage)
            vectors += told.heard.values
        if len({len(vector) for vector in vectors}) > 1:
            raise failure("malformed_reply", f"vectors of {model!r} differ in length; expected one; check the server")
        return vectors

    async def close(self) -> None:
        """Close the connections of the running event loop; a later question opens new ones."""
        place = self._places.pop(asyncio.get_running_loop(), None)
        if place is not None and place.client is not None:
            await place.client.close()

    def _permitted(self, model: str, *, private: bool) -> ModelInfo:
        info = self._registry.get(model, self._settings.base_url)
        if self._settings.offline:
            raise OfflineError(
                f"{model!r} was to be asked while LLM_OFFLINE is set; nothing was sent; unset it, or replay a recording"
            )
        if private and info.privacy != "local":
            raise PrivacyError(
                f"private text was to go to {self._host}, which is not known as local; nothing was sent; use a server "
                f"on this machine, or state 'privacy: local' for {model!r} in a model registry of your own"
            )
        if not self._settings.has_key and not self._settings.is_local:
            raise failure(
                "auth",
                f"no key for {self._host}; nothing was sent; set OPENAI_API_KEY, to any word if the server needs none",
            )
        return info

    async def _ask(self, question: Question[_T], info: ModelInfo) -> _Told[_T]:
        place = self._place()
        async with place.slots:
            client = self._client(place)
            began = time.monotonic()
            usage, sent, failed = None, 0, 0
            last: Fault | None = None
            while True:
                left = self._deadline_s - (time.monotonic() - began)
                try:
                    outcome = await self._attempt(question, info, place, client, min(self._timeout_s, left))
                    sent += 1
                except BudgetError as error:
                    if last is None or (last.free and usage is None):
                        raise
                    # What went wrong before is what the budget was spent on: both are told.
                    outcome = Fault(last.kind, f"{last.detail}; no other attempt: {error}")
                if not isinstance(outcome, Fault):
                    return _Told(outcome, sent, time.monotonic() - began)
                usage = _sum(usage, outcome.usage)
                if question.adapts_to(outcome):
                    continue
                failed, last = failed + 1, outcome
                left = self._deadline_s - (time.monotonic() - began)
                wait = self._wait(outcome, failed, left)
                if isinstance(wait, Fault):
                    raise failure(
                        wait.kind, f"{wait.detail} ({question.model!r} at {self._host}, {sent} sent)", usage=usage
                    )
                await self._pause(wait)

    async def _attempt(
        self, question: Question[_T], info: ModelInfo, place: _Place, client: AsyncOpenAI, seconds: float
    ) -> _T | Fault:
        """Send one HTTP request, with its worst case set aside meanwhile."""
        reservation = await self._reserve(question, info, place)
        outcome: _T | Fault | None = None
        try:
            outcome = await self._send(question, client, seconds)
        finally:
            try:
                self._book(question, reservation, outcome)
            finally:
                place.let_go()
        return outcome

    def _book(self, question: Question[_T], reservation: Reservation, outcome: _T | Fault | None) -> None:
        """Book what an attempt cost; a cancelled one left no outcome and may have cost all that was set aside."""
        if isinstance(outcome, Fault) and outcome.free:
            self._budget.release(reservation)
            return
        usage = None if outcome is None else outcome.usage
        self._budget.settle(reservation, usage)
        ended = "answered" if outcome is not None else "cancelled"
        ended = outcome.kind if isinstance(outcome, Fault) else ended
        if ended != "answered" or not question.kept:
            most = (reservation.prompt, reservation.answer)
            self.charged(Charge.within(question.key, question.model, ended, usage, most))

    async def _reserve(self, question: Question[_T], info: ModelInfo, place: _Place) -> Reservation:
        """Set aside the worst case; while others hold theirs, wait for what they leave."""
        while True:
            try:
                reservation = self._budget.reserve_tokens(*question.most_tokens(), info)
            except BudgetError:
                if not place.held:
                    raise
                await place.freed.wait()
            else:
                place.held += 1
                return reservation

    async def _send(self, question: Question[_T], client: AsyncOpenAI, seconds: float) -> _T | Fault:
        sending = asyncio.ensure_future(question.post(client))
        try:
            await asyncio.wait((sending,), timeout=max(0.0, seconds))
            if not sending.done():
                return fault("timeout", f"no complete answer within {max(0.0, seconds):.3g} s")
            # Asked for as a value: whatever a library raises ends here, and not only what we thought of.
            error = sending.exception()
        finally:
            if not sending.done():
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        if isinstance(error, Exception):
            return question.answer_in(fault_of(error, (self._settings.key,)))
        return question.hear(self._clean(sending.result()))

    def _client(self, place: _Place) -> AsyncOpenAI:
        """Return the client of an event loop; a proxy or certificates that the SDK cannot use are a failure."""
        words = ""
        if place.client is None:
            try:
                place.client = self._new_client()
            except (ImportError, OSError, ValueError, RuntimeError) as error:
                words = redact(f"{type(error).__name__}: {error}", (self._settings.key,))
        if place.client is None:
            raise failure(
                "connection",
                f"no client can be made ({words}); nothing was sent; mend the proxy and certificate variables of the "
                "environment (HTTPS_PROXY, SSL_CERT_FILE)",
            )
        return place.client

    def _new_client(self) -> AsyncOpenAI:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        # Redirects would carry text elsewhere, and so would a proxy between us and this machine.
        past_proxies = {"http://": None, "https://": None} if self._settings.is_local else None
        http = DefaultAsyncHttpxClient(
            follow_redirects=False, mounts=past_proxies, event_hooks={"response": [read_bounded]}
        )
        return AsyncOpenAI(
            api_key=self._settings.key.reveal() or _NO_KEY,
            base_url=self._settings.base_url,
            max_retries=0,
            timeout=self._timeout_s,
            http_client=http,
        )

    def _wait(self, outcome: Fault, failed: int, left: float) -> float | Fault:
        """Return the seconds before the next attempt, or the fault that ends the call."""
        if not outcome.again or failed > self._retries:
            return outcome
        if outcome.wait_s is not None and outcome.wait_s > self._retry_cap_s:
            asked = f"the server asks to wait {outcome.wait_s:.0f} s, more than the {self._retry_cap_s:g} s that we do"
            return Fault(outcome.kind, f"{outcome.detail}; {asked}; resume later")
        spread = min(self._retry_cap_s, FIRST_BACKOFF_S * 2.0 ** (failed - 1))
        wait = (outcome.wait_s or 0.0) + float(self._jitter.uniform(0.0, spread))
        if wait < left:
            return wait
        kind = "timeout" if outcome.kind == "timeout" else "gave_up"
        return Fault(kind, f"the {self._deadline_s:g} s for one call are over; the last fault: {outcome.detail}")

    def _expect_same_model(self, asked: str, answered: str, usage: Usage) -> None:
        """Refuse vectors of two models; which model gave a completion is remembered by the session's journal."""
        before = self._answers_as.setdefault(asked, answered) if answered else ""
        if before != answered:
            raise failure(
                "model_changed",
                f"{self._host} answered for {asked!r} as {before[:80]!r} and now as {answered[:80]!r}; expected one "
                "model throughout; ask for it by its dated name, or begin a new session",
                usage=usage,
            )

    def _place(self) -> _Place:
        loop = asyncio.get_running_loop()
        if loop not in self._places:
            self._places[loop] = _Place(asyncio.Semaphore(self.concurrency))
        return self._places[loop]

    def _clean(self, text: str) -> str:
        return redact(text, (self._settings.key,), lookalikes=False)

    @property
    def _host(self) -> str:
        return urlsplit(self._settings.base_url).netloc


@dataclass
class _Place:
    """What belongs to one event loop: its connections, its queue, and who has set tokens aside."""

    slots: asyncio.Semaphore
    freed: asyncio.Event = field(default_factory=asyncio.Event)
    held: int = 0
    client: AsyncOpenAI | None = None

    def let_go(self) -> None:
        self.held -= 1
        self.freed.set()
        self.freed = asyncio.Event()


@dataclass(frozen=True)
class _Told(Generic[_T]):
    """An answer with what it took: HTTP requests and seconds."""

    heard: _T
    attempts: int
    seconds: float


def _sum(one: Usage | None, two: Usage | None) -> Usage | None:
    return one + two if one is not None and two is not None else one or two
