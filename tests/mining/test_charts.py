"""Charts show bars and nothing else, the same bytes each time, and nothing that comes later."""

from __future__ import annotations

import io
import struct
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from qlib_llm_alpha.data.embedded.in_memory import market_panel
from qlib_llm_alpha.data.embedded.simulate import Market, simulate
from qlib_llm_alpha.engine.tiles import TiledPanel
from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.evaluation.search_data import SearchData
from qlib_llm_alpha.evaluation.walls import Walls
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.mining.charts import BARS, chart_images, draw_chart
from tests.support.poison import poisoned

LABEL = parse("Ref($close,-2)/Ref($close,-1)-1", allow_future=True)
WALLS = Walls.from_segments({"train": ["2018-01-02", "2019-12-31"]})
WHITE, GREY, GREEN, RED = (255, 255, 255), (189, 189, 189), (46, 125, 50), (198, 40, 40)


@pytest.fixture(scope="module")
def market() -> Market:
    return simulate("planted", 40, "2017-06-01", "2020-06-30", 3)


def searched(market: Market) -> SearchData:
    panel = market_panel(market, end=WALLS.search.end)
    return SearchData.of(panel, WALLS.search, LABEL, universe="csi300", data="planted 3")


def pixels(png: bytes) -> np.ndarray:
    """Read a PNG with somebody else's reader."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def column(image: np.ndarray, place: int) -> set[tuple[int, ...]]:
    """Return the colours in the middle of one candle, prices only."""
    return {tuple(int(one) for one in pixel) for pixel in image[8:248, 8 + 8 * place + 4]}


def test_a_chart_is_a_png_that_others_can_read_with_four_parts_and_no_more(market: Market) -> None:
    first = chart_images(searched(market))[0]
    assert pixels(first).shape == (336, 16 + 8 * BARS, 3)
    names, place = [], 8
    while place < len(first):
        (length,) = struct.unpack(">I", first[place : place + 4])
        names.append(first[place + 4 : place + 8])
        place += 12 + length
    assert names == [b"IHDR", b"PLTE", b"IDAT", b"IEND"]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(market: Market) -> None:
    images = chart_images(searched(market), count=3, seed=4)
    assert len(set(images)) == 3
    assert chart_images(searched(market), count=3, seed=4) == images
    assert set(chart_images(searched(market), count=3, seed=5)).isdisjoint(images)


def test_what_comes_after_the_window_moves_no_pixel(market: Market) -> None:
    cut = int(np.searchsorted(market.days, WALLS.search.end, side="right"))
    missing = {name: getattr(market, name).copy() for name in ("open", "high", "low", "close", "volume")}
    for values in missing.values():
        values[cut:] = np.nan
    images = chart_images(searched(market))
    assert chart_images(searched(poisoned(market, str(WALLS.search.end)))) == images
    assert chart_images(searched(replace(market, **missing))) == images


def test_a_rising_bar_is_green_a_falling_one_red_and_volume_is_below() -> None:
    bars = np.array([[10.0, 11.0], [11.2, 11.1], [9.9, 9.8], [11.0, 10.0], [100.0, 50.0]])
    image = pixels(draw_chart(bars))
    assert column(image, 0) - {WHITE, GREY} == {GREEN}
    assert column(image, 1) - {WHITE, GREY} == {RED}
    volume = image[-8 - 64 : -8]
    green = (volume[:, 8 + 4] == GREEN).all(axis=-1).sum()
    red = (volume[:, 16 + 4] == RED).all(axis=-1).sum()
    assert (green, red) == (64, 32)


def test_the_body_spans_open_to_close_and_the_wick_low_to_high() -> None:
    # The frame reaches one percent beyond 90 and 120, so a percent is 239 / 32 rows.
    bars = np.array([[100.0, 110.0], [120.0, 112.0], [90.0, 98.0], [100.0, 100.0], [1.0, 1.0]])
    image = pixels(draw_chart(bars))
    red = (image[8:248, 16 + 1] == RED).all(axis=-1)
    wick = (image[8:248, 16 + 4] == RED).all(axis=-1)
    assert np.flatnonzero(red)[[0, -1]] == pytest.approx([11 * 239 / 32, 21 * 239 / 32], abs=1)
    assert np.flatnonzero(wick)[[0, -1]] == pytest.approx([9 * 239 / 32, 23 * 239 / 32], abs=1)


def test_ten_times_the_price_is_the_same_picture(market: Market) -> None:
    rng = np.random.default_rng(0)
    close = 10 * np.exp(np.cumsum(rng.normal(0, 0.02, BARS)))
    bars = np.array([close, close * 1.01, close * 0.99, close * 1.003, rng.lognormal(10, 1, BARS)])
    assert draw_chart(bars * np.array([[10.0]] * 4 + [[3.0]])) == draw_chart(bars)
    assert draw_chart(bars * (1 + 1e-9 * rng.standard_normal(bars.shape))) == draw_chart(bars)


def test_a_price_that_stands_still_and_a_stretch_without_volume_are_drawn() -> None:
    bars = np.full((5, BARS), 7.0)
    bars[4] = 0.0
    image = pixels(draw_chart(bars))
    assert column(image, 30) == {WHITE, GREY, GREEN}
    assert not (image[-8 - 64 : -8] == GREEN).all(axis=-1).any()


def test_a_wild_stretch_keeps_few_lines() -> None:
    close = np.geomspace(1, 40, BARS)
    image = pixels(draw_chart(np.array([close, close, close, close, close])))
    assert (image[8:248, 2 + 8] == GREY).all(axis=-1).sum() < 20


def test_stretches_with_holes_or_outside_the_universe_are_not_drawn() -> None:
    days = np.busday_offset("2018-01-02", np.arange(BARS + 10), roll="forward")
    bars = np.full((BARS + 10, 12), 10.0)
    bars += np.random.default_rng(0).normal(0, 0.1, bars.shape)
    member = np.ones(bars.shape, dtype=np.bool_)
    member[30, 1:6] = False
    close = bars.copy()
    close[20, 6:] = np.nan
    values = {"$open": bars, "$high": bars, "$low": bars, "$close": close, "$volume": bars}
    panel = TiledPanel.from_arrays(days, [f"SH6000{place:02d}" for place in range(12)], values, member=member)
    data = SearchData.of(panel, WALLS.search, LABEL, universe="all", data="")
    assert len(chart_images(data, count=4)) == 1


def test_bars_that_cannot_be_drawn_and_counts_that_mean_nothing_are_refused(market: Market) -> None:
    for bars in (np.ones((4, 3)), np.ones((5, 0)), np.full((5, 3), np.nan), np.full((5, 3), -1.0)):
        with pytest.raises(ConfigError):
            draw_chart(bars)
    for count, seed in ((0, 0), (1, -1)):
        with pytest.raises(ConfigError, match="charts with seed"):
            chart_images(searched(market), count=count, seed=seed)
