from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import NAMES, ROOT, prose_of, text_of

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def headings(text: str) -> set[str]:
    """Return the anchors of a page as code hosts make them."""
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", NAMES)
def test_every_relative_link_leads_somewhere(name: str) -> None:
    broken = []
    for target in LINK.findall(prose_of(name)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (ROOT / name).parent / path if path else ROOT / name
        if not place.exists() or (anchor and anchor not in headings(place.read_text(encoding="utf-8"))):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("name", NAMES)
def test_a_file_named_in_a_page_exists(name: str) -> None:
    mentioned = re.findall(
        r"`((?:qlib_llm_alpha|docs|tests|workflows|benchmarks|examples|\.ci)/[\w./-]+)`", text_of(name)
    )
    missing = [
        path for path in mentioned if not (ROOT / path).exists() and not Path(path).match("benchmarks/proofs/out")
    ]
    assert missing == []
