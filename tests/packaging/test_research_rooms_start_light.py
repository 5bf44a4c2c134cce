from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import qlib_llm_alpha

RESEARCH_ROOMS = (
    "errors",
    "chain",
    "factor",
    "engine",
    "evaluation",
    "llm",
    "documents",
    "library",
    "mining",
    "agents",
    "gating",
    "report",
)
HEAVY = ("qlib", "mlflow", "torch")
IMPORT_ALL = """
import importlib, pkgutil, sys
room = importlib.import_module("qlib_llm_alpha." + sys.argv[1])
for module in pkgutil.walk_packages(getattr(room, "__path__", []), room.__name__ + "."):
    importlib.import_module(module.name)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def modules_after(code: str, *arguments: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("room", RESEARCH_ROOMS)
def test_a_fresh_interpreter_that_imports_all_of_a_research_room_has_no_qlib_mlflow_or_torch(room: str) -> None:
    loaded = modules_after(IMPORT_ALL, room)
    assert "qlib_llm_alpha" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_the_command_line_answers_without_qlib() -> None:
    code = (
        "import sys, qlib_llm_alpha.cli as cli; cli.build_parser(); print(*{m.partition('.')[0] for m in sys.modules})"
    )
    assert modules_after(code).isdisjoint(HEAVY)


def test_every_room_is_named_by_the_contract_of_purity_or_is_one_that_needs_qlib() -> None:
    """A new research room has to be added to the contract, and here."""
    rooms = {module.name for module in pkgutil.iter_modules(qlib_llm_alpha.__path__)}
    needs_qlib = {"ops", "data", "model", "guard", "strategy", "record", "desk", "wiring", "cli"}
    assert rooms - needs_qlib == set(RESEARCH_ROOMS)
    contract = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8").partition('id = "pure"')[2]
    named = contract.partition("forbidden_modules")[0]
    assert [room for room in RESEARCH_ROOMS if f'"qlib_llm_alpha.{room}"' not in named] == []
