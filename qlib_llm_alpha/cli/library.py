"""``qlib-llm-alpha library``: which factor sets there are, what one holds, how two differ, and one as Qlib takes it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlib_llm_alpha import wiring
from qlib_llm_alpha.cli.printing import shown

if TYPE_CHECKING:
    from qlib_llm_alpha.factor.factor import Factor
    from qlib_llm_alpha.library.describe import Change, Listed, SetDiff
    from qlib_llm_alpha.library.factor_set import FactorSet

_SET = "name of a built-in set, its id, a factor set (.yaml), or the folder of a session"


def add_parser(commands: Any) -> None:
    """Add ``library`` and its sub-commands."""
    parser = commands.add_parser(
        "library",
        help="list, show, compare and export factor sets",
        description="Factor sets: those that are built in, those of files, those that mining sessions admitted. Exit "
        "codes: 0 done; 1 some set of the list cannot be read; 2 a bad call.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="the built-in sets, and those found in a folder")
    listing.add_argument(
        "path", nargs="?", type=Path, metavar="PATH", help="look in this folder and in its folders as well"
    )
    _add_json(listing, _list)
    show = actions.add_parser("show", help="every factor of a set: category, formula, hypothesis, sources, origin")
    show.add_argument("path", metavar="PATH", help=_SET)
    _add_json(show, _show)
    diff = actions.add_parser("diff", help="what a new set adds, removes, changes and rewrites")
    diff.add_argument("path", metavar="PATH", help=f"the old set: {_SET}")
    diff.add_argument("new", metavar="NEW", help="the new set, likewise")
    _add_json(diff, _diff)
    export = actions.add_parser(
        "export",
        help="a set as expressions and names for Qlib's own data loader",
        description="Print the data_loader of a handler as YAML, with notes on what stock Qlib needs to read it.",
    )
    export.add_argument("path", metavar="PATH", help=_SET)
    _add_json(export, _export)


def _add_json(parser: argparse.ArgumentParser, run: Any) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def _list(args: argparse.Namespace) -> int:
    rows = wiring.list_factor_sets(args.path)
    _print(args.json, [_row_dict(row) for row in rows], _list_lines(rows))
    return 1 if any(row.fault for row in rows) else 0


def _show(args: argparse.Namespace) -> int:
    from qlib_llm_alpha.library.describe import set_to_dict

    found = wiring.open_factor_set(args.path)
    _print(args.json, set_to_dict(found), _set_lines(found))
    return 0


def _diff(args: argparse.Namespace) -> int:
    found = wiring.compare_factor_sets(args.path, args.new)
    _print(args.json, found.to_dict(), _diff_lines(found))
    return 0


def _export(args: argparse.Namespace) -> int:
    config = wiring.export_factor_set(args.path)
    if args.json:
        print(json.dumps(config.to_dict(), indent=1))
    else:
        print(config.to_yaml(), end="")
    return 0


def _print(as_json: bool, value: object, lines: Iterable[str]) -> None:
    if as_json:
        print(json.dumps(value, indent=1))
        return
    for line in lines:
        print(shown(line))


def _row_dict(row: Listed) -> dict[str, Any]:
    return {**asdict(row), "categories": dict(row.categories)}


def _list_lines(rows: Iterable[Listed]) -> Iterator[str]:
    for row in rows:
        if row.fault:
            yield f"{row.ref}: cannot be read: {row.fault}"
            continue
        chosen = f", chosen as of {row.as_of}" if row.as_of else ""
        name = "" if row.name == row.ref else f" ({row.name})"
        yield f"{row.ref}{name}: {row.factors} factors, id {row.id}, look-back {row.lookback}{chosen}"
        yield "    " + ", ".join(f"{category} {count}" for category, count in row.categories)


def _set_lines(found: FactorSet) -> Iterator[str]:
    chosen = f", chosen as of {found.as_of}" if found.as_of else ""
    yield (
        f"{found.name}: {len(found.factors)} factors, id {found.id}, warm-up {found.warmup}, look-back "
        f"{found.lookback}{chosen}"
    )
    for factor in found.factors:
        yield ""
        yield f"{factor.name} ({factor.category or 'no category'}; {factor.origin})"
        yield f"    {factor.expression}"
        if factor.hypothesis:
            yield f"    {factor.hypothesis}"
        if factor.sources:
            yield f"    from {'; '.join(factor.sources)}"


def _diff_lines(found: SetDiff) -> Iterator[str]:
    yield from _with_sign("+", found.added)
    yield from _with_sign("-", found.removed)
    for one in found.changed:
        yield f"! {one.after.name}: {one.before.expression} became {one.after.expression}"
    for one in found.rewritten:
        yield f"= {_renamed(one)}: {_rewritten(one)}"
    for one in found.described:
        yield f"~ {one.after.name}: {', '.join(_redescribed(one))}"
    yield from (f"* {setting}" for setting in found.settings)
    yield (
        f"{len(found.added)} added, {len(found.removed)} removed, {len(found.changed)} changed, "
        f"{len(found.rewritten)} the same up to algebra, {len(found.described)} described anew, "
        f"{found.unchanged} unchanged"
    )


def _with_sign(sign: str, factors: Iterable[Factor]) -> Iterator[str]:
    return (f"{sign} {factor.name} ({factor.category}): {factor.expression}" for factor in factors)


def _renamed(change: Change) -> str:
    before, after = change.before.name, change.after.name
    return after if before == after else f"{before} is now {after}"


def _rewritten(change: Change) -> str:
    before, after = str(change.before.expression), str(change.after.expression)
    return before if before == after else f"{before} is {after} up to algebra"


def _redescribed(change: Change) -> Iterator[str]:
    for name in ("category", "hypothesis", "sources", "origin"):
        before, after = getattr(change.before, name), getattr(change.after, name)
        if before != after:
            yield f"{name} {before!r} became {after!r}"
