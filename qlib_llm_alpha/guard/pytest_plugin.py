"""Leak guards as a pytest fixture.

In ``conftest.py``::

    pytest_plugins = ["qlib_llm_alpha.guard.pytest_plugin"]

and in a test::

    def test_my_factors_know_no_later_day(leak_guard):
        leak_guard.check(handler_config, provider="~/.qlib/qlib_data/cn_data", segments=segments)

Qlib is not imported before a check is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import pandas as pd

    from qlib_llm_alpha.guard.finding import GuardReport


class LeakGuard:
    """Run leak guards and fail with all that they found."""

    def check(
        self,
        subject: Mapping[str, Any] | Callable[[str], pd.DataFrame],
        *,
        provider: str | Path,
        segments: Mapping[str, Any] | None = None,
        model: Mapping[str, Any] | None = None,
        qlib_settings: Mapping[str, Any] | None = None,
        guards: Sequence[str] | None = None,
        with_model: bool = False,
        days: int = 2,
        seed: int = 0,
    ) -> GuardReport:
        """Check a handler's settings, or a function that makes a signal from a provider.

        Parameters
        ----------
        subject : mapping or callable
            ``class``, ``module_path`` and ``kwargs`` of a handler, or a function of the provider's path that returns a
            frame indexed (datetime, instrument).
        provider : path
            A daily Qlib provider.
        segments, model : mapping, optional
            Of the task; for a handler.
        qlib_settings : mapping, optional
            Settings of ``qlib.init``. Default: region cn, one kernel.
        guards, with_model, days, seed
            See ``qlib_llm_alpha.guard.suite.run_guards``.

        Returns
        -------
        GuardReport

        Raises
        ------
        LeakError
            With every leak.
        """
        from qlib_llm_alpha.guard.suite import check_signal, run_guards

        settings = {"region": "cn", "kernels": 1} if qlib_settings is None else qlib_settings
        if isinstance(subject, Mapping):
            report = run_guards(
                subject,
                settings,
                segments,
                provider,
                guards=guards,
                model_config=model,
                with_model=with_model,
                days=days,
                seed=seed,
            )
        else:
            report = check_signal(subject, provider, qlib_settings=settings, guards=guards, days=days, seed=seed)
        report.raise_for_leaks()
        return report


@pytest.fixture(scope="session")
def leak_guard() -> LeakGuard:
    """Return what checks a handler or a signal for leaks."""
    return LeakGuard()
