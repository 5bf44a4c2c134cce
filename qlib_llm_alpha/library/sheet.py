"""The 37 factors that the released experiment ran, and the twelve of the paper's Table 3, with what was published."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from qlib_llm_alpha.errors import LibraryError
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.factor.factor import Factor
from qlib_llm_alpha.library.seed import PAPER, Mode, SeedFactor, seed_factor
from qlib_llm_alpha.library.yaml_text import check_keys, read_mapping, shipped_text, text_of


@dataclass(frozen=True)
class SheetRow:
    """One row of the released sheet.

    Parameters
    ----------
    id : int
        The published row number, 1 to 37.
    label, executed : str
        The printed label, and what the released code computes; in some rows they differ (see ``note``).
    name, category : str
        Of what is executed.
    literal, scale_free : str
        Executable expressions, as in `SeedFactor`.
    published_ic, published_ir : float
        Mean daily rank IC and its information ratio as published: facts about the sheet, no results of ours.
    selected : bool
        Whether the row was selected there.
    note : str
        What does not fit, and what was chosen here.
    """

    id: int
    label: str
    executed: str
    name: str
    category: str
    literal: str
    scale_free: str
    published_ic: float
    published_ir: float
    selected: bool
    note: str

    def factor(self, mode: Mode) -> Factor:
        """Return the row as a `Factor` in one mode."""
        return Factor(
            name=self.name,
            expression=parse({"scale_free": self.scale_free, "literal": self.literal}[mode]),
            category=self.category,
            hypothesis=f"{self.label}: {self.executed}",
            sources=(PAPER,),
            origin="seed",
        )


@dataclass(frozen=True)
class Table3Row:
    """One line of Table 3: a row of the sheet with the weight and the IC printed there (test-year figures)."""

    row: SheetRow
    published_weight: float
    published_ic: float


@cache
def sheet_rows() -> tuple[SheetRow, ...]:
    """Return the 37 rows in the order of their ids."""
    return read_sheet(shipped_text("sheet37.yaml"))


@cache
def table3_rows() -> tuple[Table3Row, ...]:
    """Return the twelve lines of Table 3 in its order; sheet rows 10 and 13 among them are one factor."""
    by_id = {row.id: row for row in sheet_rows()}
    lines = check_keys(read_mapping(shipped_text("table3.yaml"), "table3.yaml"), "table3.yaml", ("rows",))["rows"]
    return tuple(
        Table3Row(by_id[line["sheet_id"]], line["published"]["weight"], line["published"]["ic"]) for line in lines
    )


def read_sheet(text: str) -> tuple[SheetRow, ...]:
    """Read rows from YAML text; `LibraryError` names the row and the key that are wrong."""
    rows = check_keys(read_mapping(text, "sheet37.yaml"), "sheet37.yaml", ("rows",))["rows"]
    return tuple(_row(row, f"sheet37.yaml, row {number}") for number, row in enumerate(rows, start=1))


_REQUIRED = ("id", "label", "executed", "published", "selected")
_OWN = ("name", "category", "literal", "scale_free")


def _row(row: object, where: str) -> SheetRow:
    known = check_keys(row, where, _REQUIRED, ("seed", *_OWN, "note"))
    source = _seed_forms(seed_factor(known["seed"])) if "seed" in known else known
    missing = [key for key in _OWN if key not in source]
    if missing or ("seed" in known and known.keys() & set(_OWN)):
        raise LibraryError(f"{where} needs either seed, or all of {', '.join(_OWN)}. Give one or the other.")
    return SheetRow(
        id=known["id"],
        label=text_of(known, "label", where),
        executed=text_of(known, "executed", where),
        name=text_of(source, "name", where),
        category=text_of(source, "category", where),
        literal=text_of(source, "literal", where),
        scale_free=text_of(source, "scale_free", where),
        published_ic=known["published"]["ic"],
        published_ir=known["published"]["ir"],
        selected=known["selected"],
        note=text_of(known, "note", where),
    )


def _seed_forms(entry: SeedFactor) -> dict[str, Any]:
    return {
        "name": entry.name,
        "category": entry.category,
        "literal": entry.text("literal"),
        "scale_free": entry.text("scale_free"),
    }
