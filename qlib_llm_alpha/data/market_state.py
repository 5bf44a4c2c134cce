"""Read the state of the market from a Qlib provider."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from qlib.data import D

from qlib_llm_alpha.agents.context import MarketContext, board_limit_moves, market_context
from qlib_llm_alpha.data.preflight import check_universe, provider_root
from qlib_llm_alpha.engine.panel import Panel
from qlib_llm_alpha.errors import ProviderError


def load_market_context(instruments: Any, benchmark: str, end_time: Any, freq: str = "day") -> MarketContext:
    """Describe the market on every day from the provider's first to `end_time`.

    The whole history is read, so that the state of a day never depends on where a study begins. Bars of names outside
    the universe on a day serve its trailing means but are not counted.

    Parameters
    ----------
    instruments : str, list or dict
        The universe whose breadth, dispersion and turnover count.
    benchmark : str
        Code of the index, such as ``SH000300``.
    end_time : date
        Last day; nothing later is read.

    Raises
    ------
    ProviderError
        If the universe or the benchmark has no bars.
    """
    codes = check_universe(instruments, freq=freq)
    days = pd.DatetimeIndex(D.calendar(end_time=end_time, freq=freq))
    index_close = _field([benchmark], "$close", days, freq)
    if not index_close.notna().to_numpy().any():
        raise ProviderError(
            f"benchmark {benchmark!r} has no $close up to {days[-1].date()}; name an index that the provider has "
            "(features/<code in lower case>) or import its bars"
        )
    fields = {name: _field(codes, name, days, freq) for name in ("$close", "$change", "$amount", "$volume")}
    # Column-major, so that sums over names run name by name: one that joins later, empty so far, changes not even the
    # order of a sum.
    present = {
        name: np.asfortranarray(frame.to_numpy(np.float64))
        for name, frame in fields.items()
        if frame.notna().to_numpy().any()
    }
    if "$amount" in present:
        del present["$volume"]
    names = tuple(fields["$close"].columns)
    dates = days.to_numpy().astype("datetime64[D]")
    bars = Panel(dates, names, present, _members(instruments, names, days, freq))
    special = _field(list(names), "$st", days, freq).to_numpy(np.float64) if _has_st(names, freq) else None
    # The index trades on every day of the calendar; a hole in its bars is not a return of its own.
    closes = index_close[benchmark].ffill().to_numpy(np.float64)
    return market_context(bars, closes, limit_moves=board_limit_moves(names, dates, special))


def _field(codes: list[str], field: str, days: pd.DatetimeIndex, freq: str) -> pd.DataFrame:
    frame = D.features(codes, [field], days[0], days[-1], freq=freq)
    wide = frame[field].unstack(level="instrument") if len(frame) else pd.DataFrame()
    aligned: pd.DataFrame = wide.reindex(index=days, columns=sorted(codes))
    return aligned


def _members(instruments: Any, names: tuple[str, ...], days: pd.DatetimeIndex, freq: str) -> NDArray[np.bool_]:
    mask = np.zeros((len(days), len(names)), dtype=np.bool_, order="F")
    if not isinstance(instruments, (str, dict)):
        return ~mask
    spans: dict[str, Any]
    if isinstance(instruments, dict) and "market" not in instruments:
        spans = instruments
    else:
        config = D.instruments(instruments) if isinstance(instruments, str) else instruments
        spans = D.list_instruments(config, start_time=days[0], end_time=days[-1], freq=freq)
    for column, name in enumerate(names):
        for first, last in spans.get(name, []):
            mask[:, column] |= (days >= pd.Timestamp(first)) & (days <= pd.Timestamp(last))
    return mask


def _has_st(names: tuple[str, ...], freq: str) -> bool:
    root = provider_root(freq) / "features"
    return any((root / name.lower() / f"st.{freq}.bin").is_file() for name in names)
