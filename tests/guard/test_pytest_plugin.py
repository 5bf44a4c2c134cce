"""The plugin in a pytest session of a user's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Each builds handlers in processes of their own.
pytestmark = pytest.mark.slow

pytest_plugins = ["pytester"]


def test_a_users_test_fails_with_the_leak_and_passes_without(pytester: pytest.Pytester, small_provider: Path) -> None:
    pytester.makeconftest('pytest_plugins = ["qlib_llm_alpha.guard.pytest_plugin"]')
    pytester.makepyfile(
        my_factors="""
        from qlib.data import D

        def honest(provider):
            return D.features(D.instruments("csi300"), ["$close/Ref($close, 3)"])

        def early(provider):
            return D.features(D.instruments("csi300"), ["Ref($close, -3)/$close"])
        """,
        test_factors=f"""
        import my_factors
        from qlib_llm_alpha.errors import LeakError
        import pytest

        PROVIDER = {str(small_provider)!r}

        def test_honest(leak_guard):
            assert leak_guard.check(my_factors.honest, provider=PROVIDER, guards=["poison"], days=1).verdict == "clean"

        def test_early(leak_guard):
            with pytest.raises(LeakError, match="poison"):
                leak_guard.check(my_factors.early, provider=PROVIDER, guards=["poison"], days=1)

        def test_early_unexpected(leak_guard):
            leak_guard.check(my_factors.early, provider=PROVIDER, guards=["poison"], days=1)
        """,
    )
    result = pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*LeakError: early: LEAK found by 1 of 1 guard (poison)*"])


def test_importing_the_plugin_imports_no_qlib() -> None:
    code = "import sys, qlib_llm_alpha.guard.pytest_plugin; sys.exit('qlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
