from __future__ import annotations

import pandas as pd

from qlib_llm_alpha.report.comparison import CAVEAT, describe_comparison


def test_the_description_is_a_table_with_the_traded_row_in_bold_and_no_number_for_nan() -> None:
    table = pd.DataFrame({"IC": [0.012345, 0.01], "gain": [0.002345, float("nan")]}, index=["softmax", "static"])

    text = describe_comparison(table, gate="softmax", reference="static", period="2022 to 2023", finding="It helped.")

    assert text.splitlines() == [
        "Test 2022 to 2023; gains in IC are against the static weights.",
        "",
        "On train, out of fold: It helped.",
        "",
        "| score | IC | gain |",
        "| --- | --- | --- |",
        "| **softmax** | 0.0123 | 0.0023 |",
        "| static | 0.0100 |  |",
        "",
        CAVEAT,
    ]


def test_without_a_finding_there_is_no_line_about_train() -> None:
    table = pd.DataFrame({"IC": [0.1]}, index=["equal"])
    assert "train" not in describe_comparison(table, gate="x", reference="static", period="p", finding="").split("|")[0]
