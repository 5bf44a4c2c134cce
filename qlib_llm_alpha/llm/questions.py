"""The two things that a server is asked for: a chat completion and embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from qlib_llm_alpha.llm.budget import prompt_bound, text_bound
from qlib_llm_alpha.llm.dialect import Dialect
from qlib_llm_alpha.llm.models import ModelInfo
from qlib_llm_alpha.llm.request import Request, Usage
from qlib_llm_alpha.llm.transport_errors import Fault
from qlib_llm_alpha.llm.wire import Heard, Vectors, hear_chat, hear_vectors

if TYPE_CHECKING:
    from openai import AsyncOpenAI

T_co = TypeVar("T_co", bound=Heard | Vectors, covariant=True)


class Question(Protocol[T_co]):
    """What the gateway needs to know of a question; everything else is the same for all.

    ``kept`` says whether an answer takes its usage with it, so that who keeps the answer keeps what it cost.
    """

    model: str
    key: str
    kept: bool

    def most_tokens(self) -> tuple[int, int]:
        """Return the most tokens that prompt and answer can have."""

    async def post(self, client: AsyncOpenAI) -> str:
        """Send the question once and return the body of the answer."""

    def hear(self, raw: str) -> T_co | Fault:
        """Read the body of an answer."""

    def answer_in(self, outcome: Fault) -> T_co | Fault:
        """Return the answer that a fault is, where it is one, or the fault."""

    def adapts_to(self, outcome: Fault) -> bool:
        """Change how the question is put after a fault, and return whether there was something to change."""


class Chat:
    """A request, in the dialect that is changed as the server refuses it."""

    def __init__(self, request: Request, dialect: Dialect, info: ModelInfo) -> None:
        self.model = request.model
        self.key = request.key
        self.kept = True
        self.dialect = dialect
        self._request, self._info = request, info

    def most_tokens(self) -> tuple[int, int]:
        """Return the bound of the prompt and the limit of the answer."""
        return prompt_bound(self._request, self._info), self._request.max_tokens

    async def post(self, client: AsyncOpenAI) -> str:
        """Ask for a completion; the body is read by us, since the SDK fails on what servers really send."""
        reply = await client.chat.completions.with_raw_response.create(**self.dialect.body(self._request))
        return _utf8(reply.http_response.content)

    def hear(self, raw: str) -> Heard | Fault:
        """Read a completion."""
        return hear_chat(raw)

    def answer_in(self, outcome: Fault) -> Heard | Fault:
        """Take a provider's filter that speaks by a status as an answer: the same text meets it again."""
        return Heard("", "content_filter", Usage(), "", "") if outcome.kind == "filtered" else outcome

    def adapts_to(self, outcome: Fault) -> bool:
        """Step down the ladder, or name a parameter otherwise."""
        changed = self.dialect.after(outcome.status, outcome.said)
        self.dialect = changed or self.dialect
        return changed is not None


class Embedding:
    """Texts that are to become vectors."""

    def __init__(self, texts: Sequence[str], model: str) -> None:
        self.model = model
        self.key = ""
        self.kept = False
        self._texts = list(texts)

    def most_tokens(self) -> tuple[int, int]:
        """Return the bound of the texts; there is no answer."""
        return sum(map(text_bound, self._texts)), 0

    async def post(self, client: AsyncOpenAI) -> str:
        """Ask for vectors as numbers; the SDK would ask for base64, which not every server knows."""
        reply = await client.embeddings.with_raw_response.create(
            model=self.model, input=self._texts, encoding_format="float"
        )
        return _utf8(reply.http_response.content)

    def hear(self, raw: str) -> Vectors | Fault:
        """Read one vector for each text."""
        return hear_vectors(raw, len(self._texts))

    def answer_in(self, outcome: Fault) -> Vectors | Fault:
        """Return the fault: none of them holds vectors."""
        return outcome

    def adapts_to(self, outcome: Fault) -> bool:
        """Return False: there is one way to ask for vectors."""
        return False


def _utf8(body: bytes) -> str:
    # JSON is UTF-8, whatever a header says.
    return body.decode("utf-8", "replace")
