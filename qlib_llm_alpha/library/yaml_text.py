"""Read and write the library's YAML: one key a line, no key twice, no key that nobody reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import yaml

from qlib_llm_alpha.errors import LibraryError


def shipped_text(file: str) -> str:
    """Return the text of a file of ``library/sets``."""
    return (resources.files("qlib_llm_alpha.library") / "sets" / file).read_text(encoding="utf-8")


def read_mapping(text: str, where: str) -> dict[str, Any]:
    """Parse YAML text whose top level is a mapping.

    Parameters
    ----------
    text : str
        The YAML.
    where : str
        A file or a set, for messages.

    Raises
    ------
    LibraryError
        The text is not YAML, holds a key twice, or is not a mapping.
    """
    try:
        document = yaml.load(text, Loader=_OnceLoader)  # noqa: S506 - a subclass of the safe loader
    except yaml.YAMLError as error:
        raise LibraryError(f"{where} is not readable YAML: {error}. Mend the file at that place.") from error
    if not isinstance(document, dict):
        raise LibraryError(f"{where} holds {document!r:.80} at its top level; expected a mapping of keys to values.")
    return document


def check_keys(row: object, where: str, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """Return ``row`` as a mapping that has every required key and no unknown one, or say what is wrong."""
    if not isinstance(row, dict):
        raise LibraryError(f"{where} is {row!r:.80}; expected a mapping with the keys {', '.join(required)}.")
    unknown = [str(key) for key in row if key not in (*required, *optional)]
    if unknown:
        allowed = ", ".join((*required, *optional))
        raise LibraryError(f"{where} has the unknown key {unknown[0]!r}; the keys are {allowed}. Correct or remove it.")
    missing = [key for key in required if key not in row]
    if missing:
        raise LibraryError(f"{where} lacks the key {missing[0]!r}; it needs {', '.join(required)}.")
    return row


def text_of(row: Mapping[str, Any], key: str, where: str, default: str = "") -> str:
    """Return a text value, or say that YAML read something else (a bare ``on`` is a truth value, ``1`` a number)."""
    value = row.get(key, default)
    if not isinstance(value, str):
        raise LibraryError(f"{where} has {key}: {value!r}, which is no text; put it in quotation marks.")
    return value


def texts_of(row: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    """Return a list of texts as a tuple; empty when the key is absent."""
    value = row.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise LibraryError(f"{where} has {key}: {value!r:.80}; expected a list of texts.")
    return tuple(value)


def write_mapping(document: Mapping[str, Any]) -> str:
    """Return YAML text in the given key order, never folding a line, so that a change of one value is one line."""
    return yaml.dump(dict(document), Dumper=_IndentedDumper, sort_keys=False, width=10**6, allow_unicode=True)


# libyaml's reader where PyYAML was built with it: the same rules, ten times sooner.
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _OnceLoader(_SafeLoader):  # type: ignore[misc]
    """The safe loader, except that a key given twice is an error instead of the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.start_mark)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


class _IndentedDumper(yaml.SafeDumper):
    """The safe dumper, with list items indented under their key."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)
