from __future__ import annotations

import re
from functools import cache

import pytest

from tests.docs.pages import NAMES, ROOT, text_of

ROWS = re.findall(r"^\| ([^|]+?) \| ([^|]+?) \| ([^|]*?) ?\|$", text_of("docs/glossary.md"), flags=re.MULTILINE)[1:]
TERMS = [row[0].strip("`") for row in ROWS if not set(row[0]) <= {"-", " "}]


@cache
def everything_else() -> str:
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "qlib_llm_alpha").rglob("*.py"))
    pages = (text_of(name) for name in NAMES if name != "docs/glossary.md")
    return " ".join(" ".join([*sources, *pages]).lower().split())


def test_the_glossary_is_a_table_of_words() -> None:
    assert len(TERMS) > 20
    assert len(set(TERMS)) == len(TERMS)


@pytest.mark.parametrize("term", TERMS)
def test_a_word_of_the_glossary_is_used(term: str) -> None:
    spelling = r"[ _-]".join(map(re.escape, re.split(r"[ _-]", term)))
    assert re.search(rf"(?<![a-z]){spelling}(?:s|es)?(?![a-z])", everything_else())
