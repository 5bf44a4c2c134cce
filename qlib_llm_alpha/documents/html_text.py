"""The words of an HTML page that a reader of the page sees."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Final

from qlib_llm_alpha.errors import DocumentError

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag

DEEPEST: Final = 3000
"""Elements within each other at most: to read a page takes the square of it."""

_EMPTY_TAGS: Final = frozenset(
    ("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr")
)
_UNSEEN_TAGS: Final = (
    "script", "style", "noscript", "template", "head", "iframe", "object", "svg", "canvas", "select", "input",
    "textarea", "audio", "video", "datalist",
)  # fmt: skip
_BLOCKS: Final = (
    "p", "div", "section", "article", "header", "footer", "main", "aside", "nav", "table", "tr", "ul", "ol", "li",
    "blockquote", "pre", "br", "hr", "figure", "figcaption", "dl", "dt", "dd", "h1", "h2", "h3", "h4", "h5", "h6",
)  # fmt: skip

_HIDING: Final = re.compile(
    r"display\s*:\s*none|visibility\s*:\s*(?:hidden|collapse)|content-visibility\s*:\s*hidden"
    r"|(?<![\w-])opacity\s*:\s*0?\.?0*(?![.\d]*[1-9])(?![\d.])"
    r"|font-size\s*:\s*(?:0+(?:\.0+)?(?:p[xt]|r?em|%)?|[01](?:\.\d+)?p[xt]|0?\.\d+p[xt]|0?\.[0-2]\d*r?em|\d%)"
    r"(?=\s*(?:;|!|$))"
    r"|(?<![\w-])(?:max-)?(?:width|height)\s*:\s*[01](?:\.0+)?(?:px|pt|em|rem|%)?(?=\s*(?:;|!|$))"
    r"|(?:text-indent|left|right|top|bottom|margin(?:-left|-top)?)\s*:\s*-\s*\d{3,}"
    r"|clip\s*:\s*rect\(\s*[01](?:px)?[\s,]+[01](?:px)?[\s,]+[01](?:px)?[\s,]+[01](?:px)?\s*\)|clip-path\s*:\s*inset\(\s*(?:50|100)%"
    r"|transform\s*:\s*scale\(\s*0(?:\.0+)?\s*[,)]"
    r"|(?<![\w-])color\s*:\s*(?:transparent|white|#fff(?:fff)?(?:f{1,2})?(?![0-9a-f])|rgba?\(\s*255\s*,\s*255\s*,\s*255\b"
    r"|rgba\([^)]*,\s*0(?:\.0+)?\s*\))",
    re.IGNORECASE,
)
_HIDING_MARKUP: Final = re.compile(
    r"<!--|<(?:script|style|template)\b|<\w[^<>]*\s(?:hidden|style|class|aria-hidden|color)\b", re.IGNORECASE
)


def visible_text(page: bytes | str) -> tuple[str, str]:
    """Return the text of a page and its title.

    Left out are scripts, comments, forms, and elements that are hidden by attribute, by style (no display, no size,
    no colour, outside the page, white letters) or by a rule of the page's own style sheet. Headings begin with ``#``.

    Parameters
    ----------
    page : bytes or str
        Bytes are decoded as the page says.

    Raises
    ------
    DocumentError
        More than ``DEEPEST`` elements stand within each other.
    """
    from bs4 import BeautifulSoup
    from bs4.element import PreformattedString

    _check_depth(page)
    soup = BeautifulSoup(page, "html.parser")
    title = soup.title.get_text(" ", strip=True) if soup.title else ""
    for element in _hidden_by_sheet(soup):
        element.decompose()
    for element in soup.find_all(True):
        if not element.decomposed and (element.name in _UNSEEN_TAGS or _is_hidden(element)):
            element.decompose()
    # Comments, doctypes, CDATA and processing instructions.
    for text in soup.find_all(string=lambda found: isinstance(found, PreformattedString)):
        text.extract()
    for element in soup.find_all(_BLOCKS):
        level = int(element.name[1]) if re.fullmatch("h[1-6]", element.name) else 0
        element.insert(0, "\n\n" + "#" * level + " " * bool(level))
        element.append("\n\n" if element.name != "br" else "\n")
    return soup.get_text(), title


class _Depth(HTMLParser):
    """Counts how many elements are open at once, at most."""

    def __init__(self) -> None:
        super().__init__()
        self._open: list[str] = []
        self._counts: dict[str, int] = {}
        self.most = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in _EMPTY_TAGS:
            self._open.append(tag)
            self._counts[tag] = self._counts.get(tag, 0) + 1
            self.most = max(self.most, len(self._open))

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        """Open nothing: it is closed at once."""

    def handle_endtag(self, tag: str) -> None:
        while self._counts.get(tag, 0):
            closed = self._open.pop()
            self._counts[closed] -= 1
            if closed == tag:
                break


def _check_depth(page: bytes | str) -> None:
    depth = _Depth()
    # Tags are ASCII, whatever the encoding of the words between them is.
    depth.feed(page if isinstance(page, str) else page.decode("latin-1"))
    if depth.most > DEEPEST:
        raise DocumentError(
            f"a page has {depth.most} elements within each other; expected at most {DEEPEST}; give its text alone"
        )


def has_markup_that_hides(text: str) -> bool:
    """Whether Markdown holds HTML that could hide words from its reader."""
    return bool(
        re.search(r"<!--|<(?:script|style|template)\b|<\w[^<>]*\s(?:hidden|style|class|aria-hidden)\b", text, re.I)
    )


def _is_hidden(element: Tag) -> bool:
    if element.has_attr("hidden") or str(element.get("aria-hidden", "")).lower() == "true":
        return True
    if element.name == "font" and str(element.get("color", "")).lower() in ("white", "#fff", "#ffffff"):
        return True
    return bool(_HIDING.search(_uncommented(str(element.get("style", "")))))


def _hidden_by_sheet(soup: BeautifulSoup) -> list[Tag]:
    from soupsieve import SelectorSyntaxError

    found: list[Tag] = []
    for sheet in soup.find_all("style"):
        for rule in _uncommented(sheet.get_text()).split("}"):
            before, _, declarations = rule.rpartition("{")
            selector = before.rpartition("{")[2]  # within @media, what stands last
            if not _HIDING.search(declarations):
                continue
            try:
                found += soup.select(selector.strip())
            except (SelectorSyntaxError, NotImplementedError):
                continue  # no rule for elements
    return [element for element in found if element.name not in ("html", "body")]


def _uncommented(style: str) -> str:
    first, *rest = style.split("/*")
    return first + "".join(part.partition("*/")[2] for part in rest)
