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
    ├── MissingArtifactError (LookupError)   a record needs an artifact that no earlier record wrote
    └── MissingExtraError (ImportError)  an optional dependency is not installed

Each message says what was given, what was expected and what to do.
"""

from __future__ import annotations


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
