"""The 92 seed factors of the paper, each with its printed formula, its executable forms and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias, TypeVar, get_args

from qlib_llm_alpha.errors import LibraryError
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.factor.factor import Factor
from qlib_llm_alpha.library.yaml_text import check_keys, read_mapping, shipped_text, text_of, texts_of

Mode: TypeAlias = Literal["scale_free", "literal"]
Needs: TypeAlias = Literal["bars", "shares", "accounts", "quotes", "macro"]

Category: TypeAlias = Literal[
    "momentum",
    "mean_reversion",
    "volatility",
    "fundamental",
    "liquidity",
    "quality",
    "growth",
    "technical",
    "macro_economics",
]
CATEGORIES: tuple[Category, ...] = get_args(Category)
"""The nine categories of the paper, in its order."""

PAPER = "Automate Strategy Finding with LLM in Quant Investment"


@dataclass(frozen=True)
class Duplicate:
    """Says that one entry repeats another.

    Parameters
    ----------
    of : str
        Name of the entry that stays.
    kind : {"same", "affine", "monotone"}
        Equal values (or the same concept); equal up to a factor and a constant; equal in rank, forwards or backwards.
    mode : {"scale_free", "literal"} or None
        The mode in which it holds; None: in both.
    """

    of: str
    kind: Literal["same", "affine", "monotone"]
    mode: Mode | None = None


@dataclass(frozen=True)
class SeedFactor:
    """One seed factor as printed and as it can be run.

    Parameters
    ----------
    name, title, category : str
        Our name (snake_case, unique), the printed name, and one of `CATEGORIES`.
    source_formula : str
        As printed.
    literal, scale_free : str or None
        Executable expressions. ``literal`` is on the raw price ``$close/$factor`` (CNY) and the raw volume
        ``$volume*$factor`` (shares); ``scale_free`` has no unit. The same text where the printed formula has no unit;
        None where nothing can be run.
    printed_scale_free : bool or None
        Whether the printed formula is free of units; None where nothing can be run.
    needs : {"bars", "shares", "accounts", "quotes", "macro"}
        The most demanding data that it reads.
    fields : tuple of str
        Every field of either form.
    duplicates : tuple of Duplicate
        Entries that it repeats.
    degenerate, unavailable : str or None
        Why it cannot rank stocks; why it cannot be run.
    note : str
        Parameters chosen by us, and departures from the printed formula.

    Notes
    -----
    A value dated t uses bars up to the close of t and accounts announced up to t. The first ``lookback`` bars of an
    instrument are meant to be NaN (``warmup: strict``).
    """

    name: str
    title: str
    category: str
    source_formula: str
    literal: str | None
    scale_free: str | None
    printed_scale_free: bool | None
    needs: Needs
    fields: tuple[str, ...]
    duplicates: tuple[Duplicate, ...]
    degenerate: str | None
    unavailable: str | None
    note: str

    def text(self, mode: Mode) -> str:
        """Return the executable expression of a mode; `LibraryError` with the reason when there is none."""
        text = {"scale_free": self.scale_free, "literal": self.literal}[mode]
        if text is None:
            raise LibraryError(f"the seed factor {self.name!r} cannot be run: it {self.unavailable}. Choose another.")
        return text

    def factor(self, mode: Mode) -> Factor:
        """Return the entry as a `Factor` in one mode."""
        return Factor(
            name=self.name,
            expression=parse(self.text(mode)),
            category=self.category,
            hypothesis=f"{self.title}: {self.source_formula}",
            sources=(PAPER,),
            origin="seed",
        )

    def obstacle(self, mode: Mode) -> str | None:
        """Say why the entry is in no executable set of this mode, whatever data there are; None when it may be."""
        if self.unavailable is not None:
            degenerate = f"; degenerate: {self.degenerate}" if self.degenerate else ""
            return f"unavailable: {self.unavailable}{degenerate}"
        for duplicate in self.duplicates:
            if duplicate.mode in (None, mode):
                return f"duplicate: {_KIND_IN_WORDS[duplicate.kind]} {duplicate.of}"
        return None


@cache
def seed_factors() -> tuple[SeedFactor, ...]:
    """Return all 92 seed factors in the order of the paper, those that cannot be run included."""
    return read_seed_factors(shipped_text("seed.yaml"))


def read_seed_factors(text: str) -> tuple[SeedFactor, ...]:
    """Read seed factors from YAML text; `LibraryError` names the entry and the key that are wrong."""
    rows = check_keys(read_mapping(text, "seed.yaml"), "seed.yaml", ("factors",))["factors"]
    entries = tuple(_entry(row, f"seed.yaml, entry {number}") for number, row in enumerate(rows, start=1))
    names = [entry.name for entry in entries]
    for position, entry in enumerate(entries):
        if entry.name in names[:position]:
            raise LibraryError(f"seed.yaml has the name {entry.name!r} twice; names are unique. Rename one.")
        for duplicate in entry.duplicates:
            if duplicate.of not in names:
                raise LibraryError(
                    f"seed.yaml calls {entry.name!r} a duplicate of {duplicate.of!r}, which is not there."
                )
    return entries


def seed_factor(name: str) -> SeedFactor:
    """Return one seed factor by name; `LibraryError` when there is none."""
    for entry in seed_factors():
        if entry.name == name:
            return entry
    raise LibraryError(f"there is no seed factor {name!r}; seed_factors() lists the names. Correct the spelling.")


_Choice = TypeVar("_Choice")
_KIND_IN_WORDS: dict[Literal["same", "affine", "monotone"], str] = {
    "same": "the same as",
    "affine": "an affine copy of",
    "monotone": "in rank a copy of",
}
_REQUIRED = ("name", "title", "category", "source_formula", "needs", "fields")
_OPTIONAL = ("literal", "scale_free", "printed_scale_free", "duplicates", "degenerate", "unavailable", "note")


def _entry(row: object, where: str) -> SeedFactor:
    known = check_keys(row, where, _REQUIRED, _OPTIONAL)
    where = f"{where} ({known['name']!r})"
    runnable = {"literal", "scale_free", "printed_scale_free"} & known.keys()
    if len(runnable) not in (0, 3) or (not runnable) != ("unavailable" in known):
        raise LibraryError(
            f"{where} has {', '.join(sorted(runnable)) or 'no form'}; expected literal, scale_free and "
            "printed_scale_free together, or unavailable with the reason."
        )
    return SeedFactor(
        name=text_of(known, "name", where),
        title=text_of(known, "title", where),
        category=_one_of(text_of(known, "category", where), CATEGORIES, "category", where),
        source_formula=text_of(known, "source_formula", where),
        literal=text_of(known, "literal", where) or None,
        scale_free=text_of(known, "scale_free", where) or None,
        printed_scale_free=known.get("printed_scale_free"),
        needs=_one_of(text_of(known, "needs", where), get_args(Needs), "needs", where),
        fields=texts_of(known, "fields", where),
        duplicates=tuple(_duplicate(item, where) for item in known.get("duplicates", [])),
        degenerate=text_of(known, "degenerate", where) or None,
        unavailable=text_of(known, "unavailable", where) or None,
        note=text_of(known, "note", where),
    )


def _duplicate(row: object, where: str) -> Duplicate:
    known = check_keys(row, f"{where}, duplicates", ("of", "kind"), ("mode",))
    return Duplicate(
        of=text_of(known, "of", where),
        kind=_one_of(known["kind"], tuple(_KIND_IN_WORDS), "kind", where),
        mode=_one_of(known["mode"], get_args(Mode), "mode", where) if "mode" in known else None,
    )


def _one_of(value: object, allowed: Sequence[_Choice], key: str, where: str) -> _Choice:
    for choice in allowed:
        if choice == value:
            return choice
    raise LibraryError(f"{where} has {key}: {value!r}; expected one of {', '.join(map(str, allowed))}.")
