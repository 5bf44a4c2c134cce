"""Factor sets for people and other programs: which there are, what one holds, how two differ, as Qlib takes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from qlib_llm_alpha.errors import LibraryError
from qlib_llm_alpha.factor.expression import Call
from qlib_llm_alpha.factor.factor import Factor
from qlib_llm_alpha.factor.operators import OPERATORS
from qlib_llm_alpha.factor.tree import walk
from qlib_llm_alpha.library.factor_set import FactorSet, builtin_names, load_factor_set
from qlib_llm_alpha.library.yaml_text import write_mapping

__all__ = [
    "Change",
    "Listed",
    "LoaderConfig",
    "SetDiff",
    "compare_sets",
    "listed_sets",
    "loader_config",
    "open_set",
    "set_to_dict",
]

SESSION_FILE: Final = "library.yaml"
"""What a mining session calls the set that it admitted."""

_HEAD_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Listed:
    """A factor set in a list.

    Parameters
    ----------
    ref : str
        What to write to have it: a built-in name or a path.
    name, id : str
        Empty where it cannot be read.
    factors : int
    categories : tuple of (str, int)
        Factors of each category, most first.
    lookback : int
        Bars before the day.
    as_of : str or None
        Moment after which nothing was known when it was chosen.
    fault : str
        Why it cannot be read; empty otherwise.
    """

    ref: str
    name: str = ""
    id: str = ""
    factors: int = 0
    categories: tuple[tuple[str, int], ...] = ()
    lookback: int = 0
    as_of: str | None = None
    fault: str = ""

    @classmethod
    def of(cls, ref: str, found: FactorSet) -> Listed:
        """Describe a set in one row."""
        counts = Counter(factor.category or "no category" for factor in found.factors)
        return cls(
            ref=ref,
            name=found.name,
            id=found.id,
            factors=len(found.factors),
            categories=tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
            lookback=found.lookback,
            as_of=found.as_of,
        )


@dataclass(frozen=True)
class Change:
    """A factor that two sets have in different forms: under ``before`` in the old set, under ``after`` in the new."""

    before: Factor
    after: Factor


@dataclass(frozen=True)
class SetDiff:
    """How a new set differs from an old one.

    Parameters
    ----------
    added, removed : tuple of Factor
        Formulas that only the new, or only the old set has, under names that the other has not.
    changed : tuple of Change
        The same name with another formula.
    rewritten : tuple of Change
        The same formula up to algebra, under another name or in another spelling.
    described : tuple of Change
        The same name and formula with another category, hypothesis, source or origin.
    unchanged : int
        Factors that are the same in every respect.
    settings : tuple of str
        What else differs: warm-up, order, the moment of choice.
    """

    added: tuple[Factor, ...]
    removed: tuple[Factor, ...]
    changed: tuple[Change, ...]
    rewritten: tuple[Change, ...]
    described: tuple[Change, ...]
    unchanged: int
    settings: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        parts = (self.added, self.removed, self.changed, self.rewritten, self.described, self.settings)
        return not any(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        pairs = {"changed": self.changed, "rewritten": self.rewritten, "described": self.described}
        return {
            "same": self.same,
            "added": [_factor_dict(one) for one in self.added],
            "removed": [_factor_dict(one) for one in self.removed],
            **{
                name: [{"before": _factor_dict(one.before), "after": _factor_dict(one.after)} for one in changes]
                for name, changes in pairs.items()
            },
            "unchanged": self.unchanged,
            "settings": list(self.settings),
        }


@dataclass(frozen=True)
class LoaderConfig:
    """A set as plain Qlib expressions.

    Parameters
    ----------
    expressions, names : tuple of str
        In the order of the set.
    operators : tuple of str
        Operators of ours that have to be registered with Qlib before stock Qlib reads the expressions.
    need_engine : tuple of str
        Names of factors that stock Qlib cannot compute, whatever is registered: they read all instruments of the day.
    notes : tuple of str
        What a reader has to know, for people.
    """

    expressions: tuple[str, ...]
    names: tuple[str, ...]
    operators: tuple[str, ...]
    need_engine: tuple[str, ...]
    notes: tuple[str, ...]

    def to_yaml(self) -> str:
        """Return the ``data_loader`` of a handler as YAML: Qlib's own class, expressions and names."""
        config = {"feature": [list(self.expressions), list(self.names)]}
        loader = {
            "class": "QlibDataLoader",
            "module_path": "qlib.data.dataset.loader",
            "kwargs": {"config": config},
        }
        head = "".join(f"# {note}\n" for note in self.notes)
        return head + write_mapping({"data_loader": loader})

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def open_set(ref: str | Path) -> FactorSet:
    """Load a factor set by built-in name, id, file, or the folder of a session.

    Raises
    ------
    LibraryError
        As :func:`~qlib_llm_alpha.library.factor_set.load_factor_set`; or the folder has no ``library.yaml``, as that
        of a session that admitted nothing.
    """
    folder = Path(ref)
    if str(ref) in builtin_names() or not folder.is_dir():
        return load_factor_set(ref)
    if not (folder / SESSION_FILE).is_file():
        raise LibraryError(
            f"the folder {str(folder)!r} has no {SESSION_FILE}; expected that of a session that admitted something, a "
            "factor set (.yaml) or a built-in name; `qlib-llm-alpha library list FOLDER` shows what is there"
        )
    return load_factor_set(folder / SESSION_FILE)


def listed_sets(folder: Path | None = None) -> tuple[Listed, ...]:
    """List the built-in sets, then those in a folder and in its folders, by path.

    Parameters
    ----------
    folder : Path, optional
        Such as one that holds sessions, or a session. YAML files that are no factor sets (without the keys ``warmup``
        and ``factors``) are left out; a factor set that cannot be read is listed with its fault.

    Raises
    ------
    LibraryError
        No such folder.
    """
    rows = [Listed.of(name, load_factor_set(name)) for name in builtin_names()]
    if folder is None:
        return tuple(rows)
    if not folder.is_dir():
        raise LibraryError(f"{str(folder)!r} is no folder; expected one with factor sets or sessions; check the path")
    for pattern in ("*.yaml", "*.yml", "*/*.yaml", "*/*.yml"):
        rows += [_listed_file(path) for path in sorted(folder.glob(pattern)) if _may_be_set(path)]
    return tuple(rows)


def set_to_dict(found: FactorSet) -> dict[str, Any]:
    """Return a set with all that is known of its factors, as plain values for JSON."""
    return {
        "name": found.name,
        "id": found.id,
        "warmup": found.warmup,
        "as_of": found.as_of,
        "lookback": found.lookback,
        "fields": list(found.fields),
        "factors": [_factor_dict(factor) for factor in found.factors],
    }


def compare_sets(old: FactorSet, new: FactorSet) -> SetDiff:
    """Say how a new set differs from an old one: by name first, then by formula up to algebra."""
    before = {factor.name: factor for factor in old.factors}
    after = {factor.name: factor for factor in new.factors}
    changed: list[Change] = []
    rewritten: list[Change] = []
    described: list[Change] = []
    unchanged = 0
    for name in (name for name in before if name in after):
        pair = Change(before[name], after[name])
        if pair.before.id != pair.after.id:
            changed.append(pair)
        elif str(pair.before.expression) != str(pair.after.expression):
            rewritten.append(pair)
        elif pair.before != pair.after:
            described.append(pair)
        else:
            unchanged += 1
    removed = [factor for factor in old.factors if factor.name not in after]
    added = []
    for factor in (factor for factor in new.factors if factor.name not in before):
        known = next((one for one in removed if one.id == factor.id), None)
        if known is None:
            added.append(factor)
        else:
            removed.remove(known)
            rewritten.append(Change(known, factor))
    return SetDiff(
        added=tuple(added),
        removed=tuple(removed),
        changed=tuple(changed),
        rewritten=tuple(rewritten),
        described=tuple(described),
        unchanged=unchanged,
        settings=_settings(old, new),
    )


def loader_config(found: FactorSet) -> LoaderConfig:
    """Return a set as Qlib's own data loader takes it, with what has to be said about it.

    A value dated t uses bars up to the close of t.
    """
    need_engine = tuple(factor.name for factor in found.factors if factor.expression.needs_engine)
    called = {node.op for factor in found.factors for node in walk(factor.expression.root) if isinstance(node, Call)}
    operators = tuple(sorted(name for name in called if OPERATORS[name].ours or OPERATORS[name].cross_sectional))
    notes = [f"{len(found.factors)} factors of set {found.id}, written for Qlib's own data loader."]
    if found.warmup == "strict":
        notes.append(
            f"Stock Qlib fills the first bars of an instrument from shorter windows; the set means them to be missing "
            f"({found.lookback} bars at most)."
        )
    if operators:
        notes.append(
            f"Register first: {', '.join(operators)}, with custom_ops of qlib_init (module_path "
            "qlib_llm_alpha.ops.ours)."
        )
    if need_engine:
        notes.append(
            f"Stock Qlib cannot compute {', '.join(need_engine)}: they read all instruments of a day. Drop them, or "
            "load the set with FactorSetHandler."
        )
    return LoaderConfig(
        expressions=tuple(factor.expression.qlib for factor in found.factors),
        names=found.names,
        operators=operators,
        need_engine=need_engine,
        notes=tuple(notes),
    )


def _factor_dict(factor: Factor) -> dict[str, Any]:
    return {
        "name": factor.name,
        "id": factor.id,
        "category": factor.category,
        "formula": str(factor.expression),
        "lookback": factor.expression.lookback,
        "fields": list(factor.expression.fields),
        "hypothesis": factor.hypothesis,
        "sources": list(factor.sources),
        "origin": factor.origin,
    }


def _listed_file(path: Path) -> Listed:
    try:
        return Listed.of(str(path), load_factor_set(path))
    except LibraryError as error:
        return Listed(str(path), fault=str(error))


def _may_be_set(path: Path) -> bool:
    """Say whether a file looks like a factor set, or claims to be one by its name."""
    if path.name == SESSION_FILE:
        return True
    try:
        if path.stat().st_size > _HEAD_BYTES:
            return False
        content = yaml.safe_load(path.read_bytes())
    except (OSError, yaml.YAMLError):
        return False
    return isinstance(content, dict) and {"warmup", "factors"} <= set(content)


def _settings(old: FactorSet, new: FactorSet) -> tuple[str, ...]:
    found = []
    if old.warmup != new.warmup:
        found.append(f"warm-up {old.warmup} became {new.warmup}")
    if old.as_of != new.as_of:
        found.append(f"chosen as of {old.as_of or 'no stated day'} became {new.as_of or 'no stated day'}")
    if _shared_order(old.names, new.names) != _shared_order(new.names, old.names):
        found.append("the factors that both have stand in another order")
    return tuple(found)


def _shared_order(names: Sequence[str], others: Sequence[str]) -> list[str]:
    return [name for name in names if name in others]
