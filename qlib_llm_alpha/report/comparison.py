"""The comparison of a run in a few lines of Markdown, as a person reads it first."""

from __future__ import annotations

import pandas as pd

CAVEAT = "A backtest is no promise. Figures are of one test segment, after the choices that the run's other files show."


def describe_comparison(table: pd.DataFrame, *, gate: str, reference: str, period: str, finding: str) -> str:
    """Write a comparison of score columns as Markdown.

    Parameters
    ----------
    table : DataFrame
        One row for each score column, one column for each figure; NaN is shown as an empty cell.
    gate : str
        The row that the run trades; it is set in bold.
    reference : str
        The row against which gains are taken.
    period : str
        First and last day of the figures.
    finding : str
        What the permutation test says, or an empty text.

    Returns
    -------
    str
    """
    lines = [f"Test {period}; gains in IC are against the {reference} weights.", ""]
    if finding:
        lines += [f"On train, out of fold: {finding}", ""]
    lines += ["| score | " + " | ".join(str(name) for name in table.columns) + " |"]
    lines += ["| --- |" + " --- |" * len(table.columns)]
    for name, row in table.iterrows():
        cells = ["" if pd.isna(value) else f"{value:.4f}" for value in row]
        label = f"**{name}**" if name == gate else str(name)
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", CAVEAT])
