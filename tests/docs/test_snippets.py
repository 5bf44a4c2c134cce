"""Names in the pages' Python and YAML exist: modules, attributes, classes and their keywords."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.docs.pages import Block, blocks

PYTHON = list(blocks("python"))
YAML = list(blocks("yaml"))


def places(found: list[Block]) -> list[str]:
    return [block.place for block in found]


def built(node: Any) -> Iterator[dict[str, Any]]:
    """Yield each mapping that tells Qlib to build something."""
    if isinstance(node, dict):
        if "class" in node and "module_path" in node:
            yield node
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from built(child)


def keywords_of(kind: type[Any]) -> set[str] | None:
    """Return what a constructor takes, through parents it hands ``**kwargs`` to; None if all is taken."""
    names: set[str] = set()
    for parent in kind.__mro__:
        if "__init__" not in vars(parent):
            continue
        parameters = inspect.signature(parent.__init__).parameters.values()
        names |= {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
        if not any(one.kind is one.VAR_KEYWORD for one in parameters):
            return names
    return None


@pytest.mark.parametrize("block", PYTHON, ids=places(PYTHON))
def test_python_in_a_page_is_python_and_imports_what_exists(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
        elif isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)


@pytest.mark.parametrize("block", YAML, ids=places(YAML))
def test_yaml_in_a_page_is_yaml_and_names_classes_and_keywords_that_exist(block: Block) -> None:
    for config in built(yaml.safe_load(block.text)):
        kind = getattr(importlib.import_module(config["module_path"]), config["class"])
        allowed = keywords_of(kind)
        given = set(config.get("kwargs") or {})
        assert allowed is None or given <= allowed, f"{config['class']} does not take {sorted(given - allowed)}"


def test_the_pages_hold_snippets_of_both_kinds() -> None:
    assert PYTHON
    assert any(list(built(yaml.safe_load(block.text))) for block in YAML)


def test_a_misspelt_keyword_would_be_found() -> None:
    from qlib_llm_alpha.record.tracking import VerifiedExpManager

    allowed = keywords_of(VerifiedExpManager)
    assert allowed is not None
    assert "uri" in allowed
    assert "url" not in allowed
