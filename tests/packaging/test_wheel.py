"""The built wheel holds what an installation needs and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDED_SETUPTOOLS = 77
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        int(version("setuptools").partition(".")[0]) < NEEDED_SETUPTOOLS,
        reason=f"builds offline with the environment's setuptools {version('setuptools')}; needs {NEEDED_SETUPTOOLS}",
    ),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build from a copy, so that the repository gets no build folder, and without the network."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("qlib_llm_alpha", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=tree, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def metadata_file(wheel: Path, ending: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(f".dist-info/{ending}")]
        return archive.read(name).decode()


def test_the_wheel_holds_the_marker_of_types_and_every_factor_set(wheel: Path) -> None:
    sets = {
        f"qlib_llm_alpha/library/sets/{path.name}" for path in (ROOT / "qlib_llm_alpha/library/sets").glob("*.yaml")
    }
    assert sets
    assert {"qlib_llm_alpha/py.typed", *sets} <= set(names(wheel))


def test_the_wheel_holds_every_module(wheel: Path) -> None:
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "qlib_llm_alpha").rglob("*.py")}
    assert modules <= set(names(wheel))


def test_the_wheel_installs_nothing_but_the_package(wheel: Path) -> None:
    tops = {name.partition("/")[0] for name in names(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"qlib_llm_alpha"}


def test_the_wheel_tells_licence_python_and_command(wheel: Path) -> None:
    text = metadata_file(wheel, "METADATA")
    assert "License-Expression: MIT" in text
    assert "Requires-Python: <3.13,>=3.10" in text
    assert "qlib-llm-alpha = qlib_llm_alpha.cli:main" in metadata_file(wheel, "entry_points.txt")


def test_a_factor_set_loads_from_the_unpacked_wheel(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import qlib_llm_alpha; "
        "from qlib_llm_alpha.library.factor_set import load_factor_set; "
        "print(qlib_llm_alpha.__file__, len(load_factor_set('starter').factors))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    where, count = done.stdout.split()
    assert Path(where).is_relative_to(tmp_path)
    assert int(count) == 12
