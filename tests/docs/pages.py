"""The pages of the repository, and the blocks of code in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = tuple(
    sorted(
        [
            *ROOT.glob("*.md"),
            *(ROOT / "docs").rglob("*.md"),
            *(ROOT / "benchmarks").glob("*.md"),
            *(ROOT / "examples").rglob("*.md"),
        ]
    )
)
NAMES = tuple(page.relative_to(ROOT).as_posix() for page in PAGES)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: the page and line where it stands, its language, its text."""

    place: str
    language: str
    text: str


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(*languages: str) -> Iterator[Block]:
    for name in NAMES:
        text = text_of(name)
        for found in FENCE.finditer(text):
            if found[1] in languages:
                yield Block(f"{name}:{text.count(chr(10), 0, found.start()) + 1}", found[1], found[2])


def prose_of(name: str) -> str:
    """Return a page without its fenced blocks."""
    return FENCE.sub("", text_of(name))
