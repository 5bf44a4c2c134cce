"""Each import contract fails when it is broken: a violating module is written into a copy of the package."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RULE = "Contracts: {kept} kept, {broken} broken."

VIOLATIONS = {
    "a lower room imports a higher one": (
        "Rooms depend downwards only",
        {"factor/upward.py": "import qlib_llm_alpha.gating\n"},
    ),
    "rooms beside each other import each other": (
        "Rooms depend downwards only",
        {"record/sideways.py": "import qlib_llm_alpha.strategy\n"},
    ),
    "a room that the diagram does not know": (
        "Rooms depend downwards only",
        {"attic.py": "WHAT = 1\n"},
    ),
    "a research room imports Qlib": (
        "Research rooms never import qlib, mlflow or torch",
        {"gating/impure.py": "import qlib\n"},
    ),
    "a research room imports MLflow inside a function": (
        "Research rooms never import qlib, mlflow or torch",
        {"report/impure.py": "def late() -> None:\n    import mlflow\n"},
    ),
    **{
        f"{room} opens the sealed segment": (
            "Only records open the sealed segment",
            {f"{room}/peeking.py": "from qlib_llm_alpha.evaluation.sealed import open_sealed\n"},
        )
        for room in ("mining", "library", "agents", "gating", "model", "guard", "strategy", "data")
    },
    "what a miner uses opens the sealed segment inside a function": (
        "Only records open the sealed segment",
        {"evaluation/statistics.py": "def late() -> None:\n    import qlib_llm_alpha.evaluation.sealed\n"},
    ),
    "one agent imports another": (
        "Agents do not import each other across features",
        {"agents/confidence.py": "import qlib_llm_alpha.agents.context\n"},
    ),
    "two modules of a room import each other": (
        "No cycle inside a room",
        {
            "library/hen.py": "import qlib_llm_alpha.library.egg\n",
            "library/egg.py": "import qlib_llm_alpha.library.hen\n",
        },
    ),
}


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """Return a folder that holds a copy of the package and the contracts."""
    shutil.copytree(ROOT / "qlib_llm_alpha", tmp_path / "qlib_llm_alpha", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_copy_itself_keeps_every_contract(copied: Path) -> None:
    done = lint(copied)
    assert done.returncode == 0, done.stdout
    assert RULE.format(kept=5, broken=0) in done.stdout


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_a_violation_is_found(copied: Path, violation: str) -> None:
    contract, files = VIOLATIONS[violation]
    for name, text in files.items():
        with (copied / "qlib_llm_alpha" / name).open("a", encoding="utf-8") as file:
            file.write(text)
    done = lint(copied)
    assert done.returncode != 0, done.stdout
    assert f"{contract} BROKEN" in done.stdout
