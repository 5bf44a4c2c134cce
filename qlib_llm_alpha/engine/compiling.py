"""Say when kernels are compiled: it happens once for a machine, takes seconds, and must not look like a hang."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from qlib_llm_alpha.engine.kernels.registry import HAVE_NUMBA

_LOG = logging.getLogger(__name__)


@functools.cache
def announce_first_compilation() -> None:
    """From now on log one warning when a kernel of ours is compiled rather than read from disk."""
    if HAVE_NUMBA:
        from numba.core import event

        event.register("numba:compile", _listener(_Once()))  # type: ignore[no-untyped-call]


@contextmanager
def listening(tell: Callable[[str], None]) -> Iterator[None]:
    """Inside the block call ``tell`` with the name of each kernel of ours that is compiled."""
    if not HAVE_NUMBA:
        yield
        return
    from numba.core import event

    listener = _listener(tell)
    event.register("numba:compile", listener)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        event.unregister("numba:compile", listener)  # type: ignore[no-untyped-call]


class _Once:
    """A telling that happens once."""

    def __init__(self) -> None:
        self.told = False

    def __call__(self, name: str) -> None:
        if not self.told:
            self.told = True
            _LOG.warning(
                "compiling the engine's kernels for this machine, beginning with %s: this happens once, takes up to "
                "a minute and is kept on disk; `qlib-llm-alpha warmup` does it beforehand",
                name,
            )


def _listener(tell: Callable[[str], None]) -> Any:
    from numba.core import event

    class Ours(event.Listener):
        def on_start(self, happened: Any) -> None:
            function = happened.data["dispatcher"].py_func
            if function.__module__.startswith("qlib_llm_alpha."):
                tell(f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}")

        def on_end(self, happened: Any) -> None:
            """Nothing: what was said at the start is enough."""

    return Ours()
