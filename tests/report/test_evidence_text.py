from __future__ import annotations

import math

import pandas as pd

from qlib_llm_alpha.report.evidence_text import Figure, Missing, evidence_page, leakage_page

FIGURES = (
    Figure("Sharpe", 1.5, "1.50", "a year", "the first basis"),
    Figure("PBO", 0.2, "0.20", "a share, |t| in it", "the second basis"),
    Figure("deflated Sharpe", 0.8, "0.800", "a probability", "the first basis"),
)
TRIALS = pd.DataFrame(
    {
        "name": [f"factor_{number}" for number in range(12)],
        "proposer": "seed",
        "ic": [0.01] * 11 + [math.nan],
        "t": [*range(11), math.nan],
        "expression": "$close|$open",
    }
)


def page(**changes: object) -> str:
    given: dict[str, object] = {
        "line": "the line",
        "counts": [("trials", "12", "a remark")],
        "figures": FIGURES,
        "missing": [Missing("SPA", "arch is not installed")],
        "trials": TRIALS,
        "spent": False,
    }
    return evidence_page(**(given | changes))  # type: ignore[arg-type]


def test_every_figure_stands_with_its_meaning_and_a_number_of_its_basis() -> None:
    text = page()
    assert "| Sharpe | 1.50 | a year | [1] |" in text
    assert "| PBO | 0.20 | a share, \\|t\\| in it | [2] |" in text
    assert "| deflated Sharpe | 0.800 | a probability | [1] |" in text
    assert "[1] the first basis." in text
    assert "[2] the second basis." in text
    assert "| trials | 12 | a remark |" in text
    assert text.rstrip().endswith("the line")


def test_the_strongest_trials_come_first_and_the_others_are_counted() -> None:
    rows = [line for line in page().splitlines() if line.startswith("| factor_")]
    assert [row.split(" | ")[0] for row in rows] == [f"| factor_{number}" for number in range(10, 0, -1)]
    assert "10 of 12, by |t|" in page()
    assert "No candidate was scored" in page(trials=TRIALS[:0])


def test_a_trial_without_figures_has_empty_cells() -> None:
    assert "| factor_11 | seed |  |  |" in page(trials=TRIALS[-1:])


def test_what_is_missing_is_named_and_nothing_missing_is_said() -> None:
    assert "- **SPA**: arch is not installed." in page()
    assert "why\n\nNothing." in page(missing=[])
    assert "None could be computed" in page(figures=[])


def test_spent_dates_are_told_before_anything_else() -> None:
    assert page(spent=True).splitlines()[2].startswith("**The sealed dates of this run are SPENT.**")
    assert "SPENT" not in page()


def test_a_leak_is_told_loudly_and_its_absence_without_promise() -> None:
    leak = leakage_page("x: LEAK found", "leak", [("poison", "leak", "asked", "found")])
    assert "**x: LEAK found**" in leak
    assert "No figure of it means anything" in leak
    assert "| poison | LEAK | asked | found |" in leak
    clean = leakage_page("x: no leak found", "clean", [("poison", "clean", "asked", "found")])
    assert "proves no absence" in clean
    assert "No figure" not in clean
