"""Figures of a gate: its weights by date over the regimes, and what each combination earned."""

from __future__ import annotations

from collections.abc import Collection
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

REGIME_COLOURS = {"bull": "#c4e8c4", "bear": "#f5c6c6", "sideways": "#e2e2e2"}
# Told apart by most colour-blind readers; in both figures an expert has the colour of its place.
EXPERT_COLOURS = (
    *("#4053d3", "#ddb310", "#b51d14", "#00beff", "#fb49b0", "#00b25d"),
    *("#795548", "#c0ca33", "#7e57c2", "#ff8a65", "#26a69a", "#90a4ae"),
    *("#1b5e20", "#f8bbd0"),
)
COMPARISON_DASHES: tuple[tuple[int, tuple[float, ...]], ...] = ((0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))


def draw_weights(weights: pd.DataFrame, regime: pd.Series, *, title: str) -> Figure:
    """Stack the weights of the experts by date, above a band that shows the regime.

    Parameters
    ----------
    weights : DataFrame
        Indexed by datetime (decision days), one column for each expert; rows sum to 1.
    regime : Series
        ``bull``, ``bear`` or ``sideways`` of the same days, known at their close.
    title : str

    Returns
    -------
    Figure
    """
    figure = Figure(figsize=(11, 5), layout="constrained")
    top, band = figure.subplots(2, 1, sharex=True, height_ratios=[12, 1])
    columns = [str(name) for name in weights.columns]
    top.stackplot(
        weights.index, weights.to_numpy().T, labels=columns, colors=EXPERT_COLOURS[: len(columns)], linewidth=0
    )
    top.set_ylim(0, 1)
    for axes in (top, band):
        axes.margins(x=0)
    top.set_ylabel("gate weight")
    top.set_title(title, loc="left")
    top.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, reverse=True)
    _draw_band(band, regime.reindex(weights.index))
    return figure


def draw_growth(daily: pd.DataFrame, *, title: str, ylabel: str, comparisons: Collection[str] = ()) -> Figure:
    """Draw running sums of daily returns, one line for each column, the first one thick and black.

    Parameters
    ----------
    daily : DataFrame
        Indexed by datetime; daily returns, not compounded, as Qlib sums them. NaN counts as 0.
    title, ylabel : str
    comparisons : collection of str
        Columns drawn in black dashes; the others have the colours of experts, in their order.

    Returns
    -------
    Figure
    """
    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplots()
    dashes, colours = cycle(COMPARISON_DASHES), cycle(EXPERT_COLOURS)
    for position, name in enumerate(daily.columns):
        style: dict[str, Any] = {"linewidth": 1.1}
        if position == 0:
            style |= {"color": "black", "linewidth": 2.2, "zorder": 3}
        elif name in comparisons:
            style |= {"color": "black", "linestyle": next(dashes)}
        else:
            style |= {"color": next(colours)}
        axes.plot(daily.index, daily[name].fillna(0.0).cumsum(), label=str(name), **style)
    axes.margins(x=0)
    axes.axhline(0.0, color="grey", linewidth=0.6)
    axes.set_title(title, loc="left")
    axes.set_ylabel(ylabel)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return figure


def _draw_band(axes: Axes, regime: pd.Series) -> None:
    days = regime.index.to_numpy()
    names = regime.to_numpy()
    starts = np.flatnonzero(np.concatenate([[True], names[1:] != names[:-1]]))
    ends = [*starts[1:], len(names) - 1]
    for start, end in zip(starts, ends, strict=True):
        axes.axvspan(days[start], days[end], color=REGIME_COLOURS.get(str(names[start]), "white"), linewidth=0)
    axes.set_yticks([])
    axes.set_ylabel("regime", rotation=0, ha="right", va="center")
    for position, (name, colour) in enumerate(REGIME_COLOURS.items()):
        axes.text(1.02 + 0.07 * position, 0.5, name, transform=axes.transAxes, va="center", backgroundcolor=colour)
