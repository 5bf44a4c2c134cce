"""Frozen factor sets: what a handler's features are, by builtin name, by YAML file or by content id."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from qlib_llm_alpha.errors import ExpressionError, LibraryError
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.factor.factor import Factor
from qlib_llm_alpha.factor.fields import DAILY, GROUPS, REPORTED
from qlib_llm_alpha.library.seed import Mode, SeedFactor, seed_factors
from qlib_llm_alpha.library.sheet import sheet_rows, table3_rows
from qlib_llm_alpha.library.yaml_text import check_keys, read_mapping, shipped_text, text_of, texts_of, write_mapping

__all__ = ["FactorSet", "Mode", "Warmup", "builtin_names", "left_out", "load_factor_set", "read_factor_set"]

Warmup: TypeAlias = Literal["strict", "qlib"]


@dataclass(frozen=True)
class FactorSet:
    """An ordered, frozen selection of factors with one warm-up rule.

    Parameters
    ----------
    name : str
        What people call it; no part of the id.
    factors : tuple of Factor
        At least one; names are unique.
    warmup : {"strict", "qlib"}
        ``strict``: the first ``lookback`` bars of an instrument are NaN. ``qlib``: partial windows give values, as Qlib
        computes them.
    as_of : str or None
        The moment (ISO date) after which nothing was known when the set was chosen; None: not stated.
    repeats : tuple of (str, str)
        Pairs of a factor's name and an earlier factor's name with the same canonical form. A repeat that is not named
        here is refused, and so is a pair that is no repeat.

    Raises
    ------
    LibraryError
        No factors, a name given twice, an unknown warm-up rule, or repeats that are not named.

    Notes
    -----
    A feature dated t uses bars up to the close of t, never later.
    """

    name: str
    factors: tuple[Factor, ...]
    warmup: Warmup
    as_of: str | None = None
    repeats: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        where = f"the factor set {self.name!r}"
        if not self.factors:
            raise LibraryError(f"{where} has no factors; expected at least one. Add a factor.")
        if self.warmup not in get_args(Warmup):
            raise LibraryError(
                f"{where} has warmup: {self.warmup!r}; expected strict (the first bars are NaN) or qlib (partial "
                "windows). Write one of the two."
            )
        for position, name in enumerate(self.names):
            if name in self.names[:position]:
                raise LibraryError(f"{where} has the factor name {name!r} twice; names are unique. Rename one.")
        found = _repeats(self.factors)
        for later, earlier in found.items():
            if (later, earlier) not in self.repeats:
                raise LibraryError(
                    f"{where} has {later!r} and {earlier!r}, which are the same factor up to algebra. Remove one, or "
                    f"keep both knowingly by giving {later!r} the line `repeats: {earlier}`."
                )
        for later, earlier in self.repeats:
            if found.get(later) != earlier:
                raise LibraryError(
                    f"{where} says that {later!r} repeats {earlier!r}; expected an earlier factor with the same "
                    f"canonical form. Remove the line `repeats: {earlier}`, or correct the name."
                )

    @cached_property
    def id(self) -> str:
        """First 12 hex digits of the hash of the ordered (name, written expression) pairs and the warm-up rule."""
        content = {"factors": [[f.name, str(f.expression)] for f in self.factors], "warmup": self.warmup}
        return hashlib.sha256(json.dumps(content, ensure_ascii=True).encode("ascii")).hexdigest()[:12]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the factors in order: the columns of the features."""
        return tuple(factor.name for factor in self.factors)

    @property
    def lookback(self) -> int:
        """Bars before t that the most demanding factor needs."""
        return max(factor.expression.lookback for factor in self.factors)

    @property
    def fields(self) -> tuple[str, ...]:
        """Every field that some factor reads, sorted."""
        return tuple(sorted({field for factor in self.factors for field in factor.expression.fields}))

    def to_yaml(self) -> str:
        """Return the set as YAML text, which `load_factor_set` reads back to an equal set."""
        repeats = dict(self.repeats)
        rows = []
        for factor in self.factors:
            row: dict[str, Any] = {
                "name": factor.name,
                "expression": str(factor.expression),
                "category": factor.category,
            }
            if factor.hypothesis:
                row["hypothesis"] = factor.hypothesis
            if factor.sources:
                row["sources"] = list(factor.sources)
            if factor.origin != _USER_ORIGIN:
                row["origin"] = factor.origin
            if factor.name in repeats:
                row["repeats"] = repeats[factor.name]
            rows.append(row)
        head: dict[str, Any] = {"name": self.name, "warmup": self.warmup}
        if self.as_of is not None:
            head["as_of"] = self.as_of
        own_fields = [field for field in self.fields if field not in {*DAILY, *GROUPS, *REPORTED}]
        if own_fields:
            head["fields"] = own_fields
        return write_mapping({**head, "factors": rows})

    def save(self, path: str | Path) -> None:
        """Write `to_yaml` to a file."""
        Path(path).write_text(self.to_yaml(), encoding="utf-8", newline="\n")


def load_factor_set(ref: str | Path, *, mode: Mode = "scale_free") -> FactorSet:
    """Load a factor set.

    Parameters
    ----------
    ref : str or Path
        The name of a builtin set (`builtin_names`), the 12-digit id of one, or the path of a YAML file (anything that
        ends in ``.yaml`` or ``.yml`` or holds a path separator).
    mode : {"scale_free", "literal"}, default "scale_free"
        Which of the two forms the seed and sheet sets take: without units, or on raw prices and volumes. Files,
        ``alpha158``, ``starter``, ``classic`` and ``textbook`` hold one form, used in either mode; an id fixes the mode
        by itself.

    Raises
    ------
    LibraryError
        Unknown name or id, unreadable file, unknown key, no factors, a name twice, an unnamed repeat, or an expression
        that the factor language refuses (the message carries its reason code).
    """
    if mode not in get_args(Mode):
        raise LibraryError(f"the mode is {mode!r}; expected one of {', '.join(get_args(Mode))}.")
    text = str(ref)
    if isinstance(ref, Path) or text.endswith((".yaml", ".yml")) or "/" in text or "\\" in text:
        return _load_file(Path(ref))
    if text in _BUILTIN:
        return _builtin(text, mode)
    if re.fullmatch(r"[0-9a-f]{12}", text):
        for known_mode in get_args(Mode):
            for name in _BUILTIN:
                if _builtin(name, known_mode).id == text:
                    return _builtin(name, known_mode)
    raise LibraryError(
        f"there is no factor set {text!r}; expected one of {', '.join(_BUILTIN)}, the id of one of these, or the path "
        "of a YAML file. Correct the spelling or give a path that ends in .yaml."
    )


def builtin_names() -> tuple[str, ...]:
    """Return the names of the builtin sets."""
    return tuple(_BUILTIN)


def read_factor_set(text: str, where: str = "the factor set") -> FactorSet:
    """Read a factor set from YAML text; ``where`` names the text in messages.

    The keys are ``name``, ``warmup`` and ``factors``, a list of ``name``, ``expression``, ``category`` and optionally
    ``hypothesis``, ``sources``, ``origin`` and ``repeats``; and optionally ``as_of`` and ``fields``, which lists fields
    of the provider that the factor language does not know, such as ``$turn``.

    Raises
    ------
    LibraryError
        As `load_factor_set`.
    """
    document = check_keys(read_mapping(text, where), where, ("name", "warmup", "factors"), ("as_of", "fields"))
    rows = document["factors"]
    if not isinstance(rows, list):
        raise LibraryError(f"{where} has factors: {rows!r:.80}; expected a list of factors.")
    fields = texts_of(document, "fields", where)
    factors = tuple(_factor(row, f"{where}, factor {number}", fields) for number, row in enumerate(rows, start=1))
    return FactorSet(
        name=text_of(document, "name", where),
        factors=factors,
        warmup=document["warmup"],
        # YAML reads a bare 2024-06-28 as a date, which is what it is.
        as_of=str(document["as_of"]) if "as_of" in document else None,
        repeats=tuple((row["name"], row["repeats"]) for row in rows if "repeats" in row),
    )


def left_out(name: str, *, mode: Mode = "scale_free") -> dict[str, str]:
    """Return the seed factors that a builtin seed set leaves out, each with the reason.

    Parameters
    ----------
    name : str
        ``seed``, ``seed_bars`` or ``seed_accounts``.
    mode : {"scale_free", "literal"}, default "scale_free"
        Some entries repeat others only when they are made scale-free.
    """
    if name not in _NEEDS_OF_SEED_SET:
        raise LibraryError(f"{name!r} leaves out nothing by rule; expected one of {', '.join(_NEEDS_OF_SEED_SET)}.")
    reasons = {entry.name: _reason(entry, name, mode) for entry in seed_factors()}
    return {entry: reason for entry, reason in reasons.items() if reason is not None}


_USER_ORIGIN = "human"
_NEEDS_OF_SEED_SET = {
    "seed": ("bars", "shares"),
    "seed_bars": ("bars",),
    "seed_accounts": ("bars", "shares", "accounts"),
}


def _reason(entry: SeedFactor, set_name: str, mode: Mode) -> str | None:
    obstacle = entry.obstacle(mode)
    if obstacle is None and entry.needs not in _NEEDS_OF_SEED_SET[set_name]:
        return f"data: needs {entry.needs}, and {set_name} is for {' and '.join(_NEEDS_OF_SEED_SET[set_name])} only"
    return obstacle


def _seed_set(name: str, mode: Mode) -> FactorSet:
    chosen = tuple(entry.factor(mode) for entry in seed_factors() if _reason(entry, name, mode) is None)
    return FactorSet(name=name, factors=chosen, warmup="strict")


def _published_set(name: str, mode: Mode) -> FactorSet:
    rows = sheet_rows() if name == "sheet37" else tuple(line.row for line in table3_rows())
    factors = tuple(row.factor(mode) for row in rows)
    # What was published is kept whole: repeats are named instead of removed.
    return FactorSet(name=name, factors=factors, warmup="strict", repeats=tuple(_repeats(factors).items()))


def _file_set(name: str, mode: Mode) -> FactorSet:
    return read_factor_set(shipped_text(f"{name}.yaml"), f"{name}.yaml")


_BUILTIN: Mapping[str, Callable[[str, Mode], FactorSet]] = {
    "starter": _file_set,
    "classic": _file_set,
    "textbook": _file_set,
    "seed": _seed_set,
    "seed_bars": _seed_set,
    "seed_accounts": _seed_set,
    "sheet37": _published_set,
    "table3": _published_set,
    "alpha158": _file_set,
}


@cache
def _builtin(name: str, mode: Mode) -> FactorSet:
    return _BUILTIN[name](name, mode)


def _load_file(path: Path) -> FactorSet:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LibraryError(f"the factor set file {str(path)!r} cannot be read: {error}. Check the path.") from error
    return read_factor_set(text, str(path))


def _factor(row: object, where: str, more_fields: tuple[str, ...]) -> Factor:
    known = check_keys(row, where, ("name", "expression", "category"), ("hypothesis", "sources", "origin", "repeats"))
    name = text_of(known, "name", where)
    text_of(known, "repeats", where)
    try:
        return Factor(
            name=name,
            expression=parse(text_of(known, "expression", where), fields=more_fields),
            category=text_of(known, "category", where),
            hypothesis=text_of(known, "hypothesis", where),
            sources=texts_of(known, "sources", where),
            origin=text_of(known, "origin", where, default=_USER_ORIGIN),
        )
    except ExpressionError as error:
        raise LibraryError(f"{where} ({name!r}) has an expression that is refused: {error}") from error


def _repeats(factors: tuple[Factor, ...]) -> dict[str, str]:
    first: dict[str, str] = {}
    repeats: dict[str, str] = {}
    for factor in factors:
        if factor.id in first:
            repeats[factor.name] = first[factor.id]
        else:
            first[factor.id] = factor.name
    return repeats
