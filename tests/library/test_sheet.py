from __future__ import annotations

import pytest
import yaml

from qlib_llm_alpha.errors import LibraryError
from qlib_llm_alpha.library.seed import CATEGORIES
from qlib_llm_alpha.library.sheet import read_sheet, sheet_rows, table3_rows

ROW = {"id": 1, "label": "L", "executed": "E", "published": {"ic": 0.1, "ir": 1.0}, "selected": False}
OWN = {"name": "n", "category": "momentum", "literal": "$close", "scale_free": "$close/$open"}


def test_the_sheet_has_37_rows_with_their_ids_and_published_figures() -> None:
    rows = sheet_rows()
    assert [row.id for row in rows] == list(range(1, 38))
    assert (rows[0].published_ic, rows[0].published_ir) == (0.0209, 0.1651)
    assert (rows[36].published_ic, rows[36].published_ir) == (-0.003, -0.0289)
    assert sum(row.published_ic for row in rows) == pytest.approx(-0.0701, abs=1e-9)
    assert sum(row.published_ir for row in rows) == pytest.approx(-0.4227, abs=1e-9)
    assert all(row.category in CATEGORIES for row in rows)


def test_the_selected_rows_are_the_twelve_of_table_3_with_the_same_ic() -> None:
    selected = {row.id: row.published_ic for row in sheet_rows() if row.selected}
    table = {line.row.id: line.published_ic for line in table3_rows()}
    assert len(table) == 12
    assert table == selected


def test_table_3_keeps_its_printed_weights_in_order() -> None:
    weights = [line.published_weight for line in table3_rows()]
    assert weights == [-0.1459, -1.027, -0.198, 0.056, -0.945, -0.405, -0.320, 3.619, -0.183, -3.215, -0.006, -1.835]


def test_rows_run_what_was_executed_not_what_the_label_says() -> None:
    by_id = {row.id: row for row in sheet_rows()}
    assert by_id[25].label == "P/CF"
    assert by_id[25].literal == "$volume*$factor"
    assert "Wilder(Abs($close-Ref($close,1)),10)" in by_id[3].scale_free
    assert by_id[12].scale_free == "Mean($close,20)/$close"


def test_rows_4_and_5_and_10_and_13_are_one_factor_each() -> None:
    ids = {row.id: row.factor("literal").id for row in sheet_rows()}
    assert ids[4] == ids[5]
    assert ids[10] == ids[13]
    assert len(set(ids.values())) == 35


def test_a_row_has_a_seed_or_its_own_forms() -> None:
    (own,) = read_sheet(yaml.safe_dump({"rows": [{**ROW, **OWN}]}))
    assert own.scale_free == "$close/$open"
    for row in (ROW, {**ROW, **OWN, "seed": "z_score"}, {**ROW, "name": "n"}):
        with pytest.raises(LibraryError, match="row 1 needs either seed, or all of name"):
            read_sheet(yaml.safe_dump({"rows": [row]}))
