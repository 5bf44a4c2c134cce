"""Every command of the CLI is shown in a page, and every command shown in a page exists."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator

import pytest

from qlib_llm_alpha.cli import build_parser
from tests.docs.pages import NAMES, ROOT, blocks, text_of

CALL = re.compile(r"qlib-llm-alpha ([a-z][a-z-]*(?: [a-z][a-z-]*)?)")


def leaves(
    parser: argparse.ArgumentParser, words: tuple[str, ...] = ()
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield " ".join(words), parser
    for group in groups:
        for name, child in group.choices.items():
            yield from leaves(child, (*words, name))


COMMANDS = dict(leaves(build_parser()))
EVERYTHING = "\n".join(text_of(name) for name in NAMES)


def shown() -> list[tuple[str, str]]:
    """Return (place, call) of each call in a fenced block, continued lines joined."""
    calls = []
    for block in blocks("", "console", "bash", "sh", "shell"):
        for line in block.text.replace("\\\n", " ").splitlines():
            found = re.match(r"(?:\$ )?(?:.* \| )?(?:\S*/)?(qlib-llm-alpha .*)$", line.strip())
            if found:
                calls.append((block.place, found[1].partition("  #")[0]))
    return calls


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_shown_in_a_page(command: str) -> None:
    assert f"qlib-llm-alpha {command}" in EVERYTHING


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_told_in_a_page(command: str) -> None:
    options = {option for action in COMMANDS[command]._actions for option in action.option_strings}
    told = {option for option in options if re.search(rf"{re.escape(option)}(?![\w-])", EVERYTHING)}
    assert sorted(options - told - {"-h", "--help"}) == []


def test_pages_show_calls() -> None:
    assert len(shown()) >= len(COMMANDS)


@pytest.mark.parametrize(("place", "call"), shown())
def test_a_call_shown_in_a_page_names_a_command_and_its_options(place: str, call: str) -> None:
    words = [word.strip("[]|") for word in shlex.split(call)[1:]]
    command = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
    assert command in COMMANDS or words[0] in {"--help", "--version"}, place
    known = {option for action in COMMANDS[command]._actions for option in action.option_strings}
    assert [word for word in words if word.startswith("--") and word.partition("=")[0] not in known] == [], place


@pytest.mark.parametrize("name", NAMES)
def test_a_command_named_in_a_sentence_exists(name: str) -> None:
    inline = [call for call in re.findall(r"`([^`\n]+)`", text_of(name)) if call.startswith("qlib-llm-alpha ")]
    named = [found[1] for call in inline if (found := CALL.match(call))]
    known = {words for command in COMMANDS for words in (command, command.split()[0])}
    assert [call for call in named if call not in known and call.split()[0] not in COMMANDS] == []


def test_pages_name_make_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = set(re.findall(r"(?:`|^\$ )make ([a-z]+)", EVERYTHING, flags=re.MULTILINE))
    assert named <= targets
    assert {"demo", "test", "check"} <= named
