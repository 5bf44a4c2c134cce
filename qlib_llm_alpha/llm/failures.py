"""The ways in which a call to a model ends without a usable answer, each with what it means for the caller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from qlib_llm_alpha.errors import LLMFailure
from qlib_llm_alpha.llm.request import Usage


@dataclass(frozen=True)
class FailureKind:
    """What a kind of failure means.

    Parameters
    ----------
    meaning : str
        For people.
    retryable : bool
        The same call may work later. The gateway has already tried again by itself when it raises one of these.
    answered : bool
        The model did answer, so that the journal holds the reply and a replay ends in the same way.
    """

    meaning: str
    retryable: bool = False
    answered: bool = False


KINDS: Final[Mapping[str, FailureKind]] = MappingProxyType(
    {
        "auth": FailureKind("the server does not know the key, or the key may not do this"),
        "quota": FailureKind("the account has no money or allowance left"),
        "rate_limit": FailureKind("too many requests at once, or a longer wait than we are ready for", retryable=True),
        "timeout": FailureKind("no complete answer in time", retryable=True),
        "connection": FailureKind("the server was not reached, or it hung up", retryable=True),
        "server": FailureKind("the server failed", retryable=True),
        "bad_request": FailureKind("the server refuses the request as it is: model, length, parameter or address"),
        "refusal": FailureKind("the model declined", answered=True),
        "filtered": FailureKind("a content filter of the provider withheld the answer", answered=True),
        "malformed_reply": FailureKind("what came is no chat completion, such as a page of HTML", retryable=True),
        "truncated": FailureKind("the answer was cut at the token limit", answered=True),
        "blank": FailureKind("the answer holds nothing but white space", answered=True),
        "invalid": FailureKind("the answer does not fit the schema, after repairs too", answered=True),
        "gave_up": FailureKind("the time for the call was over before a try worked", retryable=True),
        "model_changed": FailureKind("the server now answers with another model than before"),
    }
)
ANSWERED: Final = frozenset(kind for kind, what in KINDS.items() if what.answered)
RETRYABLE: Final = frozenset(kind for kind, what in KINDS.items() if what.retryable)


def failure(kind: str, detail: str, *, usage: Usage | None = None, text: str = "") -> LLMFailure:
    """Return a failure of a kind of :data:`KINDS`; KeyError for any other, which is a mistake of ours."""
    return LLMFailure(kind, detail, usage=usage, text=text, retryable=KINDS[kind].retryable)
