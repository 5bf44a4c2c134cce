from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def matrix(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / ".ci" / "matrix"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_matrix_has_both_ends_of_what_is_declared() -> None:
    cells = matrix("--list").stdout.split()
    ends = {f"{name}-{end}" for name in ("pandas", "mlflow", "openai") for end in ("lowest", "newest")}
    assert ends | {"python3.10", "python3.12"} <= set(cells)


def test_the_matrix_refuses_a_cell_that_it_does_not_have_and_names_those_it_has() -> None:
    done = matrix("pandas-oldest")
    assert done.returncode == 2
    assert "pandas-oldest" in done.stderr
    assert "pandas-lowest" in done.stderr


@pytest.mark.parametrize("name", ["run", "matrix"])
def test_the_script_may_be_executed(name: str) -> None:
    assert os.access(ROOT / ".ci" / name, os.X_OK)


def test_the_run_is_valid_bash_that_stops_at_the_first_failure() -> None:
    script = ROOT / ".ci" / "run"
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "set -euo pipefail" in script.read_text(encoding="utf-8")


def test_the_run_calls_targets_that_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    called = re.findall(r"^(?:run_make|offline) (\w+)", script, flags=re.MULTILINE)
    assert called == ["setup", "check", "demo", "test"]
    assert set(called) <= set(targets)


def test_every_target_says_what_it_does() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)
    explained = re.findall(r"^([a-z]+):.*## \w", makefile, flags=re.MULTILINE)
    assert sorted(explained) == sorted(phony.split())
