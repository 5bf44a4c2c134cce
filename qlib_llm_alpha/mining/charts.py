"""Charts for models that see: candles and volume as PNG, without a name, a date or a number in them.

An image is part of the key of the request that carries it, so its bytes must be the same with every release of every
library: pixels are set one by one, no line is smoothed, no font is used, and the file is written uncompressed here.
A plotting library would give other bytes with another release of its fonts or of its compression, and a recorded
answer would no longer be found.
"""

from __future__ import annotations

import math
import struct
import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.engine.evaluate import evaluate
from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.evaluation.search_data import SearchData
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.mining.market_profile import coarse

__all__ = ["BARS", "GRID", "chart_images", "draw_chart"]

Array = NDArray[np.float64]
Pixels = NDArray[np.uint8]

BARS: Final = 60
GRID: Final = 5
"""Grey lines are this many percent of the first close apart; the dark one is the first close."""

_FIELDS: Final = ("$open", "$high", "$low", "$close", "$volume")
_WHITE, _GREY, _RISING, _FALLING = range(4)
_PALETTE: Final = bytes.fromhex("ffffffbdbdbd2e7d32c62828")
_BAR_WIDTH: Final = 8
_MARGIN: Final = 8
_PRICE_ROWS: Final = 240
_VOLUME_ROWS: Final = 64
_GAP_ROWS: Final = 16
_MOST_STORED: Final = 65535


def chart_images(data: SearchData, count: int = 4, seed: int = 0) -> tuple[bytes, ...]:
    """Draw stretches of instruments that the seed chooses.

    Parameters
    ----------
    data : SearchData
        Bars of its days alone are drawn.
    count : int
        Charts at most. A stretch is :data:`BARS` days on which an instrument is a member and has all of its bars;
        instruments differ as long as there are enough.
    seed : int

    Returns
    -------
    tuple of bytes
        PNG files, see :func:`draw_chart`; fewer than ``count``, or none, where there are too few whole stretches.

    Raises
    ------
    ConfigError
        A count below 1 or a seed below 0.
    """
    if count < 1 or seed < 0:
        raise ConfigError(f"{count!r} charts with seed {seed!r}; expected at least 1 and a seed of 0 or more")
    bars = _bars(data)
    whole = np.isfinite(bars).all(axis=0) & (bars[:4] > 0).all(axis=0)
    # starts[t, n]: the BARS days from t on are whole.
    ends = np.cumsum(np.vstack([np.zeros((1, whole.shape[1]), dtype=np.int64), whole]), axis=0)
    starts = ends[BARS:] - ends[:-BARS] == BARS if len(ends) > BARS else np.zeros((0, whole.shape[1]), dtype=np.bool_)
    rng = np.random.default_rng(seed)
    images = []
    for name in rng.permutation(np.flatnonzero(starts.any(axis=0)))[:count]:
        start = int(rng.choice(np.flatnonzero(starts[:, name])))
        images.append(draw_chart(bars[:, start : start + BARS, name]))
    return tuple(images)


def draw_chart(bars: Array) -> bytes:
    """Draw candles above volume.

    Parameters
    ----------
    bars : array, (5, T)
        Open, high, low, close (above 0) and volume, all finite, oldest first. Prices are shown relative to the first
        close, volumes relative to the largest: the picture is the same for ten times the price.

    Returns
    -------
    bytes
        A PNG file. Green bars close at or above their open as far as the picture can tell, red ones
        below. Grey lines are :data:`GRID` percent of the
        first close apart, or twice, four times, ... that where they would lie too close; the thick one is the first
        close itself.

    Raises
    ------
    ConfigError
        Another shape, no bar, or values that cannot be drawn.
    """
    if bars.ndim != 2 or bars.shape[0] != len(_FIELDS) or not bars.shape[1]:
        raise ConfigError(f"bars have shape {bars.shape}; expected (5, T): open, high, low, close, volume")
    if not np.isfinite(bars).all() or (bars[:4] <= 0).any() or (bars[4] < 0).any():
        raise ConfigError("some bars are missing or not above 0; expected whole bars; choose another stretch")
    width = 2 * _MARGIN + _BAR_WIDTH * bars.shape[1]
    image = np.full((2 * _MARGIN + _PRICE_ROWS + _GAP_ROWS + _VOLUME_ROWS, width), _WHITE, dtype=np.uint8)
    rising = _draw_prices(image[_MARGIN : _MARGIN + _PRICE_ROWS, _MARGIN:-_MARGIN], bars[:4] / bars[3, 0] * 100)
    _draw_volume(image[-_MARGIN - _VOLUME_ROWS : -_MARGIN, _MARGIN:-_MARGIN], bars[4], rising)
    return _png(image)


def _bars(data: SearchData) -> Array:
    """Return open, high, low, close and volume on the days of the data, (5, T, N); NaN for who is no member."""
    columns = evaluate([parse(name) for name in _FIELDS], data.panel, warmup="qlib").values
    bars = data.panel.untiled(columns)[:, data.rows].astype(np.float64)
    if data.panel.member is not None:
        bars[:, ~data.panel.untiled(data.panel.member).astype(np.bool_)[data.rows]] = np.nan
    return bars


def _draw_prices(area: Pixels, prices: Array) -> list[bool]:
    """Draw candles of prices around 100 in a view of the image, row 0 the top; return which of them rise."""
    rows = len(area)
    # Whole steps, so that the frame does not breathe with the last digits of a price.
    lowest, highest = (coarse(float(edge), 1.0) for edge in (prices.min() - 1, prices.max() + 1))
    row = [[_row(float(price), lowest, highest, rows) for price in line] for line in prices]
    spacing = GRID
    while (highest - lowest) / spacing > 12:
        spacing *= 2
    for line in range(math.ceil(lowest / spacing), math.floor(highest / spacing) + 1):
        area[_row(line * spacing, lowest, highest, rows), :] = _GREY
    middle = _row(100.0, lowest, highest, rows)
    area[max(0, middle - 1) : middle + 2, :] = _GREY
    rising = [closed <= opened for opened, closed in zip(row[0], row[3], strict=True)]
    for place, (opened, high, low, closed) in enumerate(zip(*row, strict=True)):
        colour = _RISING if rising[place] else _FALLING
        left = place * _BAR_WIDTH
        area[high : low + 1, left + 3 : left + 5] = colour
        area[min(opened, closed) : max(opened, closed) + 1, left + 1 : left + 7] = colour
    return rising


def _draw_volume(area: Pixels, volume: Array, rising: list[bool]) -> None:
    most = float(volume.max())
    area[-1, :] = _GREY
    for place, value in enumerate(volume):
        height = int(coarse(float(value) / most * len(area), 1.0)) if most else 0
        left = place * _BAR_WIDTH
        area[len(area) - height :, left + 1 : left + 7] = _RISING if rising[place] else _FALLING


def _row(price: float, lowest: float, highest: float, rows: int) -> int:
    return min(rows - 1, max(0, int(coarse((highest - price) / (highest - lowest) * (rows - 1), 1.0))))


def _png(image: Pixels) -> bytes:
    """Return an image of palette colours, (rows, columns), as a PNG of 2 bits a pixel, stored without compression."""
    rows, columns = image.shape
    padded = np.zeros((rows, -(-columns // 4) * 4), dtype=np.uint8)
    padded[:, :columns] = image
    packed = padded[:, 0::4] << 6 | padded[:, 1::4] << 4 | padded[:, 2::4] << 2 | padded[:, 3::4]
    # Each line begins with the number of its filter: 0, none.
    lines = np.hstack([np.zeros((rows, 1), dtype=np.uint8), packed]).tobytes()
    head = struct.pack(">IIBBBBB", columns, rows, 2, 3, 0, 0, 0)
    parts = (_part(b"IHDR", head), _part(b"PLTE", _PALETTE), _part(b"IDAT", _stored(lines)), _part(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _part(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _stored(content: bytes) -> bytes:
    """Return a zlib stream of stored blocks (RFC 1950 and 1951), which is the same whoever's zlib is installed."""
    blocks = [content[start : start + _MOST_STORED] for start in range(0, len(content), _MOST_STORED)]
    stream = b"\x78\x01"
    for number, block in enumerate(blocks, start=1):
        stream += struct.pack("<BHH", number == len(blocks), len(block), len(block) ^ 0xFFFF) + block
    return stream + struct.pack(">I", zlib.adler32(content))
