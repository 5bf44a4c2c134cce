"""A grid of market, period, cost and lag as text that a terminal shows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from qlib_llm_alpha.evaluation.cross import Cell, GridVerdict, Stress


def describe_cross(
    verdicts: Sequence[GridVerdict],
    cells: Sequence[Cell],
    stress: Sequence[Stress],
    *,
    notes: Iterable[str] = (),
    refused: Mapping[str, str] | None = None,
    brief: bool = False,
) -> str:
    """Write what a grid says, factor by factor.

    Parameters
    ----------
    verdicts : sequence of GridVerdict
    cells : sequence of Cell
    stress : sequence of Stress
    notes : iterable of str
    refused : mapping of str to str, optional
        Formulas without a verdict, and why.
    brief : bool
        Leave out the tables of cells and stress.

    Returns
    -------
    str
        Lines of plain text: a table of verdicts, one of cells, one of stress, then what the figures are of.
    """
    parts = [verdict_table(verdicts)]
    if cells and not brief:
        parts.append(cell_table(cells))
    if stress and not brief:
        parts.append(stress_table(stress))
    foot = [f"note: {note}" for note in notes]
    foot += [f"refused {name}: {why}" for name, why in (refused or {}).items()]
    foot += _bases(cells)
    return "\n\n".join([*parts, "\n".join(foot)])


def verdict_table(verdicts: Sequence[GridVerdict]) -> str:
    """Write one line for each factor: verdict, sign, agreement, p, decay a year in each market, reason."""
    markets = list(dict.fromkeys(market for verdict in verdicts for market in verdict.decay))
    rows = [["factor", "verdict", "sign", "agree", "p sign", "p", "q", *(f"decay {m} (t)" for m in markets), "because"]]
    for one in verdicts:
        decay = [one.decay.get(market) for market in markets]
        rows.append(
            [
                one.factor,
                one.verdict,
                f"{one.sign:+d}",
                f"{one.agreeing}/{one.cells}",
                _number(one.sign_p, 3),
                _number(one.p, 3),
                _number(one.q, 3),
                *("" if slope is None else f"{_number(slope.slope, 4)} ({_number(slope.t, 1)})" for slope in decay),
                one.detail,
            ]
        )
    return _aligned(rows, left=(0, 1, len(rows[0]) - 1))


def cell_table(cells: Sequence[Cell]) -> str:
    """Write one line for each factor, market, period and lag, with the annual net return at each cost.

    The Sharpe ratio is that of the last cost.
    """
    costs = list(dict.fromkeys(cell.basis.cost_bps for cell in cells))
    heads = [f"net a year at {cost:g} bps" if cost is not None else "gross a year" for cost in costs]
    rows = [["factor", "market", "period", "lag", "days", "cover", "rank IC", "interval", "t", "ICIR", "traded"]]
    rows[0] += [*heads, "Sharpe of the last"]
    lines: dict[tuple[str, str, str, int], list[Cell]] = {}
    for cell in cells:
        lines.setdefault((cell.factor, cell.market, cell.period, cell.lag), []).append(cell)
    for (factor, market, period, lag), line in lines.items():
        first = line[0]
        if first.refused:
            rows.append([factor, market, period, str(lag), first.refused])
            continue
        rows.append(
            [factor, market, period, str(lag), str(first.days), _number(first.coverage, 2), _number(first.rank_ic, 4)]
            + [f"{_number(first.rank_ic_low, 3)} to {_number(first.rank_ic_high, 3)}", _number(first.t, 2)]
            + [_number(first.icir, 3), _number(first.traded, 2)]
            + [f"{_number(100 * cell.net_annual, 1)}%" for cell in line]
            + [_number(line[-1].sharpe, 2)]
        )
    return _aligned(rows, left=(0, 1, 2))


def stress_table(stress: Sequence[Stress]) -> str:
    """Write one line for each factor, market and state: days and rank IC inside and outside, and their difference."""
    rows = [["factor", "market", "state", "days in", "days out", "rank IC in", "t", "out", "t", "difference", "t"]]
    for one in stress:
        found = one.rank_ic
        days = [str(found.days_inside), str(found.days_outside)]
        means = (found.inside, found.outside, found.difference)
        ts = (found.t_inside, found.t_outside, found.t_difference)
        figures = [text for mean, t in zip(means, ts, strict=True) for text in (_number(mean, 4), _number(t, 2))]
        rows.append([one.factor, one.market, one.state, *days, *figures])
    return _aligned(rows, left=(0, 1, 2))


def _bases(cells: Sequence[Cell]) -> list[str]:
    """Say what the figures are of, one line for each market, period and lag; a cost is at its column."""
    return list(
        dict.fromkeys(
            f"{cell.market}/{cell.period}, lag {cell.lag}: {cell.basis.sentence.replace(_cost(cell), '')}"
            for cell in cells
        )
    )


def _cost(cell: Cell) -> str:
    cost = cell.basis.cost_bps
    return ", no cost" if cost is None else f", cost {cost:g} bps"


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _aligned(rows: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """Set columns under each other; a row that is shorter than the head ends in free text."""
    count = len(rows[0])
    whole = [row for row in rows if len(row) == count]
    width = [max(len(row[place]) for row in whole) for place in range(count)]
    lines = []
    for row in rows:
        short = len(row) < count
        cells = [
            text
            if short and place == len(row) - 1
            else text.ljust(width[place])
            if place in left
            else text.rjust(width[place])
            for place, text in enumerate(row)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
