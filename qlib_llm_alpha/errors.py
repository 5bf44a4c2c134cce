"""Every error that a user can meet.

::

    QlibLLMAlphaError
    ├── ExpressionError (ValueError)     a formula was refused; carries a reason code
    ├── LibraryError (ValueError)        a factor or a factor set is unknown, empty or inconsistent
    ├── PanelError (ValueError)          arrays whose shapes, dates or contents do not fit together
    ├── ConfigError (ValueError)         a workflow, segment, date or keyword cannot mean anything
    ├── ProviderError (ValueError)       a Qlib provider or a source file is missing or malformed
    ├── RecordingError (RuntimeError)    something logged did not arrive in the store
    ├── ChainError (RuntimeError)        an append-only log was changed, cut or cannot be read
    ├── WallError (RuntimeError)         something reaches beyond its wall, or opens the sealed segment again
    ├── LeakError (AssertionError)       a leak guard found that the future is known
    ├── DocumentError (ValueError)       a document cannot be read, found or cited
    ├── PromptError (ValueError)         a prompt lacks a value, or a blind one still says when, who or where
    ├── LLMError (RuntimeError)          a language model was asked, or was to be asked
    │   ├── LLMFailure                   a call ended without a usable answer; carries kind, usage and text
    │   ├── BudgetError                  the next call would pass the budget; nothing was sent
    │   ├── OfflineError                 a real call was about to start while the offline switch is set
    │   ├── PrivacyError                 private text was about to leave for a remote endpoint
    │   └── ReplayError                  the recording has no answer for a request
    ├── MissingArtifactError (LookupError)   a record needs an artifact that no earlier record wrote
    └── MissingExtraError (ImportError)  an optional dependency is not installed

Each message says what was given, what was expected and what to do.
"""

from __future__ import annotations

from collections.abc import Callable


class QlibLLMAlphaError(Exception):
    """The root: catching it catches everything this package raises on purpose."""


class ExpressionError(QlibLLMAlphaError, ValueError):
    """A formula was refused.

    Parameters
    ----------
    reason : str
        A stable code from ``qlib_llm_alpha.factor.reasons``, for programs.
    detail : str
        A sentence for people that shows the place.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"[{reason}] {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[ExpressionError], tuple[str, str]]:
        return type(self), (self.reason, self.detail)


class LibraryError(QlibLLMAlphaError, ValueError):
    """A factor or a factor set is unknown, empty or inconsistent."""


class PanelError(QlibLLMAlphaError, ValueError):
    """Arrays whose shapes, dates or contents do not fit together."""


class ConfigError(QlibLLMAlphaError, ValueError):
    """A workflow, segment, date or keyword cannot mean anything."""


class ProviderError(QlibLLMAlphaError, ValueError):
    """A Qlib provider or a source file is missing or malformed."""


class RecordingError(QlibLLMAlphaError, RuntimeError):
    """Something that was logged did not arrive in the tracking store."""


class ChainError(QlibLLMAlphaError, RuntimeError):
    """An append-only log was changed, cut short, or cannot be read."""


class WallError(QlibLLMAlphaError, RuntimeError):
    """Something reaches beyond its wall, or opens the sealed segment a second time undeclared."""


class LeakError(QlibLLMAlphaError, AssertionError):
    """A leak guard found that a value knows what it could not know."""


class MissingArtifactError(QlibLLMAlphaError, LookupError):
    """A record needs an artifact that no earlier record of the run wrote."""


class MissingExtraError(QlibLLMAlphaError, ImportError):
    """An optional dependency is not installed."""


class DocumentError(QlibLLMAlphaError, ValueError):
    """A document cannot be read, found or cited."""


class PromptError(QlibLLMAlphaError, ValueError):
    """A prompt lacks a value or was given one too many, or a blind one still says when, who or where."""


class LLMError(QlibLLMAlphaError, RuntimeError):
    """The root of what can go wrong between us and a language model."""


class LLMFailure(LLMError):
    """A call ended without a usable answer.

    Parameters
    ----------
    kind : str
        A code of ``llm.failures.KINDS``.
    detail : str
        What was asked for, what came, and what to do; never a secret.
    usage : object, optional
        Tokens that the server reported (``llm.request.Usage``); None when it never answered.
    text : str
        What the model wrote, as far as anything came.
    retryable : bool
        Whether the same call may work later.
    """

    def __init__(
        self, kind: str, detail: str, *, usage: object | None = None, text: str = "", retryable: bool = False
    ) -> None:
        super().__init__(f"[{kind}] {detail}")
        self.kind = kind
        self.detail = detail
        self.usage = usage
        self.text = text
        self.retryable = retryable

    def __reduce__(self) -> tuple[Callable[..., LLMFailure], tuple[str, str, object | None, str, bool]]:
        return _failure, (self.kind, self.detail, self.usage, self.text, self.retryable)


def _failure(kind: str, detail: str, usage: object | None, text: str, retryable: bool) -> LLMFailure:
    return LLMFailure(kind, detail, usage=usage, text=text, retryable=retryable)


class BudgetError(LLMError):
    """The next call would pass the budget; nothing was sent, and raising it resumes the session."""


class OfflineError(LLMError):
    """A real call was about to start while the offline switch is set."""


class PrivacyError(LLMError):
    """Private text was about to leave for a remote endpoint."""


class ReplayError(LLMError):
    """The recording has no answer for a request; in replay nothing is ever asked."""
