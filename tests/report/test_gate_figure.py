from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from qlib_llm_alpha.report.gate_figure import EXPERT_COLOURS, REGIME_COLOURS, draw_growth, draw_weights

DAYS = pd.bdate_range("2022-01-04", periods=40, name="datetime")
EXPERTS = [f"{preference}_{learner}" for preference in ("low", "middle", "high") for learner in ("ridge", "trees")]


@pytest.fixture
def weights() -> pd.DataFrame:
    values = np.random.default_rng(7).random((len(DAYS), len(EXPERTS)))
    return pd.DataFrame(values / values.sum(axis=1, keepdims=True), index=DAYS, columns=EXPERTS)


def regimes(*names: str) -> pd.Series:
    return pd.Series(np.repeat(names, len(DAYS) // len(names)), index=DAYS, dtype=object)


def fits(figure: Figure) -> bool:
    """Draw the figure and say whether everything in it lies inside its edges."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box = figure.get_tightbbox(canvas.get_renderer())
    width, height = figure.get_size_inches()
    return bool(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height)


def test_the_experts_fill_the_figure_and_their_legend_reads_from_the_top(weights: pd.DataFrame) -> None:
    figure = draw_weights(weights, regimes("bull", "bear"), title="Weights")
    top, _ = figure.axes
    assert top.get_ylim() == (0, 1)
    assert [text.get_text() for text in top.get_legend().get_texts()] == EXPERTS[::-1]
    assert len({to_hex(layer.get_facecolor()[0]) for layer in top.collections}) == len(EXPERTS)


def test_the_band_shows_each_spell_of_a_regime_once_and_to_the_last_day(weights: pd.DataFrame) -> None:
    figure = draw_weights(weights, regimes("bull", "sideways", "bear", "bull"), title="Weights")
    _, band = figure.axes
    colours = [to_hex(span.get_facecolor()) for span in band.patches]
    assert colours == [REGIME_COLOURS[name] for name in ("bull", "sideways", "bear", "bull")]
    edges = [(span.get_x(), span.get_x() + span.get_width()) for span in band.patches]
    assert all(before[1] == after[0] for before, after in pairwise(edges))
    assert (edges[0][0], edges[-1][1]) == tuple(band.convert_xunits(DAYS[[0, -1]]))


def test_days_without_a_regime_stay_white(weights: pd.DataFrame) -> None:
    figure = draw_weights(weights, regimes("bull", "bear").iloc[20:], title="Weights")
    assert to_hex(figure.axes[1].patches[0].get_facecolor()) == "#ffffff"


def test_a_single_day_can_be_drawn(weights: pd.DataFrame) -> None:
    draw_weights(weights.iloc[:1], regimes("bull").iloc[:1], title="Weights").savefig(io.BytesIO())


def test_nothing_is_cut_off_and_the_names_of_regimes_stand_apart(weights: pd.DataFrame) -> None:
    figure = draw_weights(weights, regimes("bull", "bear"), title="Weights of the trailing_ic gate on test")
    assert fits(figure)
    band = figure.axes[1]
    boxes = sorted((text.get_window_extent() for text in band.texts), key=lambda box: box.x0)
    assert len(boxes) == len(REGIME_COLOURS)
    assert boxes[0].x0 > band.get_window_extent().x1
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_growth_is_the_running_sum_with_missing_days_as_none() -> None:
    daily = pd.DataFrame({"gate": [0.01, np.nan, -0.03], "one": [0.0, 0.01, 0.01]}, index=DAYS[:3])
    figure = draw_growth(daily, title="Excess", ylabel="sum")
    lines = figure.axes[0].get_lines()
    np.testing.assert_allclose(lines[0].get_ydata(), [0.01, 0.01, -0.02])
    np.testing.assert_allclose(lines[1].get_ydata(), [0.0, 0.01, 0.02])


def test_experts_have_the_same_colours_in_both_figures(weights: pd.DataFrame) -> None:
    daily = pd.DataFrame(0.001, index=DAYS, columns=["softmax", "equal", "static", *EXPERTS])
    figure = draw_growth(daily, title="Excess", ylabel="sum", comparisons=("equal", "static", "softmax"))
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert [lines[name].get_color() for name in EXPERTS] == list(EXPERT_COLOURS[: len(EXPERTS)])
    assert {lines[name].get_color() for name in ("softmax", "equal", "static")} == {"black"}
    assert lines["softmax"].get_linewidth() > lines["equal"].get_linewidth()
    assert lines["equal"]._dash_pattern != lines["static"]._dash_pattern
    assert fits(figure)
