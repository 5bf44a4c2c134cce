"""Compilation is announced once; without numba nothing is said and nothing is different but the speed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A function of a module that is called like one of ours: kernels of the package need seconds to compile.
KERNELS = """
import importlib.util, logging, pathlib, sys
sys.path.insert(0, {folder!r})
import numba
from qlib_llm_alpha.engine.compiling import announce_first_compilation, listening
def module(name):
    path = pathlib.Path({folder!r}) / "kernels.py"
    spec = importlib.util.spec_from_file_location(name, path)
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made
"""
SOURCE = """
import numba

@numba.njit(cache=True)
def one(x):
    return x + 1

@numba.njit(cache=True)
def two(x):
    return one(x) + 1
"""


def run(code: str, folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    (folder / "kernels.py").write_text(SOURCE)
    return subprocess.run(
        [sys.executable, "-c", KERNELS.format(folder=str(folder)) + code],
        cwd=ROOT,
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder / "cache"), **settings},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_first_compilation_is_announced_once_and_not_at_all_when_all_is_on_disk(tmp_path: Path) -> None:
    code = """
logging.basicConfig(level=logging.WARNING, format="%(message)s")
announce_first_compilation()
announce_first_compilation()
ours = module("qlib_llm_alpha.engine.kernels.kernels")
assert ours.two(1) == 3
assert ours.two(1.0) == 3
"""
    first = run(code, tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stderr.count("compiling the engine's kernels for this machine") == 1
    assert "kernels.two" in first.stderr
    assert "qlib-llm-alpha warmup" in first.stderr
    again = run(code, tmp_path)
    assert (again.returncode, again.stderr) == (0, "")


def test_compiling_of_others_is_none_of_our_business(tmp_path: Path) -> None:
    code = """
logging.basicConfig(level=logging.WARNING, format="%(message)s")
announce_first_compilation()
assert module("their_kernels").two(1) == 3
"""
    assert run(code, tmp_path).stderr == ""


def test_listening_tells_each_kernel_and_ends_with_the_block(tmp_path: Path) -> None:
    code = """
told = []
ours = module("qlib_llm_alpha.engine.kernels.kernels")
with listening(told.append):
    ours.two(1)
ours.two(1.0)
print(*told)
"""
    assert run(code, tmp_path).stdout.split() == ["kernels.two", "kernels.one"]


def test_without_numba_nothing_is_said_and_nothing_is_compiled(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["numba"] = None
import logging
logging.basicConfig(level=logging.WARNING)
from qlib_llm_alpha.engine.compiling import announce_first_compilation, listening
from qlib_llm_alpha.engine.warmup import warm_up
announce_first_compilation()
told = []
with listening(told.append):
    done = warm_up(lambda *_: told.append("step"))
assert (done.compiled, told) == ((), [])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["factor", "engine", "evaluation", "library", "agents", "gating", "report"])
def test_every_research_room_imports_without_numba(name: str) -> None:
    code = f"""
import importlib, pkgutil, sys
sys.modules["numba"] = None
room = importlib.import_module("qlib_llm_alpha.{name}")
for found in pkgutil.walk_packages(room.__path__, room.__name__ + "."):
    importlib.import_module(found.name)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
