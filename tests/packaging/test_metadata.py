"""What the package is stands in setup.cfg and nowhere else."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points, metadata
from pathlib import Path

import qlib_llm_alpha

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "qlib_llm_alpha"
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "base", "core"}
# Distributions whose import has another name.
IMPORTED_AS = {"beautifulsoup4": "bs4", "pyqlib": "qlib", "pyyaml": "yaml", "ruamel.yaml": "ruamel"}
# Imported by modules that only the package itself loads.
THERE_WHEN_LOADED = {"pytest": "guard/pytest_plugin.py is loaded by pytest"}
# Declared before anything imports it, and why.
NOT_YET_IMPORTED: dict[str, str] = {}


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def required() -> dict[str, str]:
    lines = setup()["options"]["install_requires"].split()
    return {re.split(r"[<>=!~]", line)[0].lower(): line for line in lines}


def python_files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from (ROOT / folder).rglob("*.py")


def third_party_imports() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.append(node.module)
            found.update({name.partition(".")[0]: path for name in names})
    return {name: path for name, path in found.items() if name not in {*sys.stdlib_module_names, "qlib_llm_alpha"}}


def test_pyproject_has_no_project_table() -> None:
    """Beside our setup.cfg even a two-line table stops the build."""
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    tables = [line.strip("[] ").partition(".")[0] for line in lines if line.startswith("[")]
    assert set(tables) == {"build-system", "tool"}


def test_there_is_no_setup_script() -> None:
    assert not (ROOT / "setup.py").exists()


def test_setup_cfg_holds_no_settings_of_tools() -> None:
    assert {section.partition(".")[0] for section in setup().sections()} == {"metadata", "options"}


def test_the_command_is_installed_under_its_name() -> None:
    (command,) = entry_points(group="console_scripts", name="qlib-llm-alpha")
    assert command.load() is __import__("qlib_llm_alpha.cli", fromlist=["main"]).main


def test_the_installed_metadata_tell_the_version_that_the_package_tells() -> None:
    assert metadata("qlib_llm_alpha")["Version"] == qlib_llm_alpha.__version__


def test_the_licence_is_mit() -> None:
    assert setup()["metadata"]["license_expression"] == "MIT"
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.startswith("MIT License")
    assert "Permission is hereby granted, free of charge" in text


def test_everything_imported_is_declared() -> None:
    declared = {IMPORTED_AS.get(name, name) for name in required()}
    undeclared = {name: str(path.relative_to(ROOT)) for name, path in third_party_imports().items()}
    assert {name: path for name, path in undeclared.items() if name not in {*declared, *THERE_WHEN_LOADED}} == {}


def test_everything_declared_is_imported_or_has_a_reason() -> None:
    imported = third_party_imports()
    idle = {name for name in required() if IMPORTED_AS.get(name, name) not in imported}
    assert idle == set(NOT_YET_IMPORTED)


def test_every_requirement_has_a_lower_bound() -> None:
    assert [line for line in required().values() if ">=" not in line] == []


def test_the_declared_pythons_are_those_that_qlib_has_wheels_for() -> None:
    assert setup()["options"]["python_requires"] == ">=3.10,<3.13"


def test_no_file_has_a_name_that_says_nothing() -> None:
    vague = [
        str(path.relative_to(ROOT))
        for path in python_files("qlib_llm_alpha", "tests", "benchmarks", "examples")
        if VAGUE_NAMES & {path.stem, path.parent.name}
    ]
    assert vague == []


def test_every_folder_of_tests_is_a_package_so_that_two_files_may_share_a_name() -> None:
    folders = {path.parent for path in python_files("tests")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_every_folder_of_the_package_that_holds_modules_is_a_package() -> None:
    folders = {path.parent for path in python_files("qlib_llm_alpha")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []
