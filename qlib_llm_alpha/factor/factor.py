"""A factor: a formula with a name and where it comes from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from qlib_llm_alpha.errors import LibraryError
from qlib_llm_alpha.factor.expression import Expression

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,79}", re.ASCII)


@dataclass(frozen=True)
class Factor:
    """A named expression.

    Parameters
    ----------
    name : str
        Unique within a factor set; the name of its column. A letter, then letters, digits, ``_ . -``, at most 80.
    expression : Expression
        The formula; its value dated t uses bars up to the close of t.
    category : str
        Such as ``momentum``; agents choose by category.
    hypothesis : str
        Why it should say something about later returns.
    sources : tuple of str
        Papers, books, links.
    origin : str
        Who made it: ``seed``, ``human``, ``genetic``, or the name of a language model.
    """

    name: str
    expression: Expression
    category: str = ""
    hypothesis: str = ""
    sources: tuple[str, ...] = ()
    origin: str = "human"

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise LibraryError(
                f"factor name {self.name!r:.100}: expected a letter, then letters, digits or _ . - (at most 80), "
                "because it becomes the name of a column; rename the factor"
            )
        if not isinstance(self.sources, tuple):
            raise LibraryError(f"factor {self.name}: sources={self.sources!r:.100}, expected a tuple of texts")

    @property
    def id(self) -> str:
        """The id of the expression: factors that are the same up to algebra share it, whatever their names."""
        return self.expression.id
