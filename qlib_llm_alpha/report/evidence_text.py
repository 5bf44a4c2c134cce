"""The evidence of a run as a page that a sceptic reads first: what was tried, what the figures say, what is missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

TRIALS_SHOWN = 10
CAVEATS = (
    "Everything here is measured on past data under a simulated exchange; it is evidence about the past, no promise.",
    "The ledger counts what passed through this project in this folder. What was tried elsewhere, read in a paper or "
    "seen in a chart is not in N.",
    "Probabilities of Sharpe ratios take days as independent of each other; the bootstrap interval does not.",
    "With one test segment, a configuration that was chosen after looking at it can no longer be told from luck.",
)
SPENT = (
    "**The sealed dates of this run are SPENT.** They were opened by force, now or before: whoever looked could choose "
    "by them, so that no figure on them is evidence any more."
)

KNOWS_THE_FUTURE = (
    "Something in this run knows what it could not know. No figure of it means anything until that is mended."
)


@dataclass(frozen=True)
class Figure:
    """One number with what it means.

    Parameters
    ----------
    name : str
        Also the name of its metric.
    value : float
        NaN where it could not be computed.
    shown : str
        The value as people read it, with its unit.
    meaning : str
        What it says, in a clause.
    basis : str
        Label, universe, period, cost and number of trials.
    """

    name: str
    value: float
    shown: str
    meaning: str
    basis: str


@dataclass(frozen=True)
class Missing:
    """What could not be stated, and why."""

    what: str
    why: str


def evidence_page(
    *,
    line: str,
    counts: Sequence[tuple[str, str, str]],
    figures: Sequence[Figure],
    missing: Sequence[Missing],
    trials: pd.DataFrame,
    spent: bool,
) -> str:
    """Write the page as Markdown.

    Parameters
    ----------
    line : str
        The run's evidence line.
    counts : sequence of (what, how many, remark)
        What was tried and looked at.
    figures : sequence of Figure
    missing : sequence of Missing
    trials : DataFrame
        The run's trials: ``name``, ``proposer``, ``ic``, ``t``, ``expression``, on search; the largest ``|t|`` are
        shown.
    spent : bool
        Whether the sealed dates prove nothing any more.

    Returns
    -------
    str
    """
    lines = ["# Evidence", ""]
    if spent:
        lines += [SPENT, ""]
    lines += ["## What was tried and looked at", "", *_table(("", "count", "remark"), counts), ""]
    bases = list(dict.fromkeys(figure.basis for figure in figures))
    lines += ["## What the figures say", ""]
    if figures:
        rows = [(f.name, f.shown, f.meaning, f"[{bases.index(f.basis) + 1}]") for f in figures]
        lines += [*_table(("figure", "value", "what it means", "basis"), rows), ""]
        lines += [
            f"[{number}] {basis}." + ("" if number == len(bases) else "\n") for number, basis in enumerate(bases, 1)
        ]
    else:
        lines += ["None could be computed; the next section says why."]
    lines += ["", "## What is missing, and why", ""]
    lines += [f"- **{item.what}**: {item.why}." for item in missing] or ["Nothing."]
    lines += ["", "## Strongest trials on search", "", *_strongest(trials)]
    lines += ["", "## Read with care", "", *(f"- {caveat}" for caveat in CAVEATS)]
    return "\n".join([*lines, "", "## The line of the run", "", line, ""])


def leakage_page(sentence: str, verdict: str, findings: Sequence[tuple[str, str, str, str]]) -> str:
    """Write what the leak guards said as Markdown.

    Parameters
    ----------
    sentence : str
        The verdict in one line.
    verdict : str
        ``clean`` or ``leak``.
    findings : sequence of (guard, verdict, what was asked, what was found)

    Returns
    -------
    str
    """
    lines = ["# Leakage", "", f"**{sentence}**" if verdict == "leak" else sentence, ""]
    if verdict == "leak":
        lines += [KNOWS_THE_FUTURE, ""]
    rows = [(guard, said.upper() if said == "leak" else said, asked, found) for guard, said, asked, found in findings]
    lines += _table(("guard", "verdict", "what must hold", "what was found"), rows)
    lines += ["", "A guard that finds nothing has looked at these days and names only; it proves no absence."]
    return "\n".join([*lines, ""])


def _strongest(trials: pd.DataFrame) -> list[str]:
    if trials.empty:
        return ["No candidate was scored on search in this run."]
    order = trials["t"].abs().sort_values(ascending=False, na_position="last").index
    rows = [
        (str(row["name"]), str(row["proposer"]), _number(row["ic"]), _number(row["t"], 2), f"`{row['expression']}`")
        for _, row in trials.loc[order[:TRIALS_SHOWN]].iterrows()
    ]
    said = f"{min(len(trials), TRIALS_SHOWN)} of {len(trials)}, by |t|; t is not corrected for the number of trials."
    return [said, "", *_table(("factor", "proposer", "mean rank IC", "t (HAC)", "expression"), rows)]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(header) + " |",
        "| --- |" + " --- |" * (len(header) - 1),
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows),
    ]


def _number(value: float, digits: int = 4) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"
