"""A simulated market as the engine's panel, without writing files: for nulls and proofs that need many markets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.data.embedded.simulate import Market
from qlib_llm_alpha.data.embedded.write import INDEX_CODE, fields, index_fields
from qlib_llm_alpha.engine.panel import DayLike, as_day
from qlib_llm_alpha.engine.tiles import Series, TiledPanel
from qlib_llm_alpha.errors import ConfigError, PanelError

Array = NDArray[np.float64]
Universe = Literal["all", "csi300"]

_NONE: Series = (0, np.empty(0, dtype=np.float32))


def market_panel(market: Market, *, end: DayLike | None = None, universe: Universe = "all") -> TiledPanel:
    """Return a simulated market as a panel, bit for bit that of the provider which it would be written to.

    Parameters
    ----------
    market : Market
        Its arrays are kept, not copied; do not change them while the panel is in use.
    end : date, optional
        Last row; default the market's last day. Operators that read ahead, as labels do, find nothing after it.
    universe : "all" or "csi300"
        Members of the day: what is listed, or what is in the index.

    Returns
    -------
    TiledPanel
        Instruments sorted by code: all that are members on some row. The columns are ``$open``, ``$high``, ``$low``,
        ``$close``, ``$volume``, ``$vwap``, ``$amount``, ``$factor``, ``$change``, ``$shares``, ``$industry`` and
        ``$st``, float32, known at the close of their row; NaN on suspended days and outside of the listing. The index
        ``SH000300`` is there by code. Quarterly accounts are not: write the market for those.

    Raises
    ------
    ConfigError
        An unknown universe, or no trading day or member up to ``end``.
    """
    if universe not in ("all", "csi300"):
        raise ConfigError(f"universe={universe!r}; expected 'all' (what is listed) or 'csi300'; choose one")
    rows = len(market.days) if end is None else int(np.searchsorted(market.days, as_day(end), side="right"))
    member = (market.listed if universe == "all" else market.member)[:rows]
    kept = np.flatnonzero(member.any(axis=0))
    if not len(kept):
        raise ConfigError(
            f"no member of {universe!r} up to {end!r}; the market's first day is {market.days[0]}; give a later end"
        )
    kept = kept[np.argsort(market.codes[kept])]
    codes = [str(code) for code in market.codes[kept]]
    return TiledPanel(market.days[:rows], codes, _MarketSource(market), member[:, kept])


class _MarketSource:
    """Columns of a market in memory; a field is a row of one array, an instrument a column of it."""

    def __init__(self, market: Market) -> None:
        self.fields: Mapping[str, Array] = {f"${name}": values for name, values in fields(market).items()}
        self.index: Mapping[str, Array] = {f"${name}": line for name, line in index_fields(market).items()}
        self.column = {str(code): place for place, code in enumerate(market.codes)}
        # A series runs from the first to the last day of listing; a name that was never listed has none.
        listed, days = market.listed, len(market.days)
        self.first = np.argmax(listed, axis=0)
        self.stop = np.where(listed.any(axis=0), days - np.argmax(listed[::-1], axis=0), 0)

    def read(self, name: str, instruments: Sequence[str], rows: int, since: int = 0) -> Iterator[Series]:
        if name not in self.fields:
            raise PanelError(
                f"column {name!r} is not in the simulated market, which has {sorted(self.fields)}; ask for one of "
                "them, or write the market as a provider if a report is wanted"
            )
        return (self._series(name, code, rows, since) for code in instruments)

    def stamp(self, name: str, instruments: Sequence[str]) -> bytes:
        return b""  # a market never changes

    def _series(self, name: str, code: str, rows: int, since: int) -> Series:
        if code == INDEX_CODE:
            if name not in self.index:
                return _NONE
            line, first, stop = self.index[name], 0, len(self.index[name])
        elif code in self.column:
            place = self.column[code]
            line, first, stop = self.fields[name][:, place], int(self.first[place]), int(self.stop[place])
        else:
            return _NONE
        first, stop = max(first, since), min(stop, rows)
        return (first, line[first:stop].astype(np.float32)) if first < stop else _NONE
