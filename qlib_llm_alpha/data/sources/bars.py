"""One instrument's bars as a vendor gives them, and the provider fields made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.data.sources.codes import is_index
from qlib_llm_alpha.errors import ProviderError

PRICES = ("open", "high", "low", "close")


@dataclass(frozen=True)
class Bars:
    """The bars of one instrument, oldest first, traded days only.

    Parameters
    ----------
    instrument : str
        Code in the provider's spelling.
    days : numpy.ndarray of datetime64[D], shape (n,)
        Trading days, increasing.
    columns : mapping of str to numpy.ndarray of float64, shape (n,)
        ``open high low close`` in currency, ``volume`` in shares; optional ``amount`` in currency, ``vwap``,
        ``factor``, ``pre_close`` (the exchange's reference price of the day) and ``st``. NaN where the vendor has no
        value.
    adjusted : bool
        Whether prices and volume are already multiplied and divided by the factor (Qlib's own CSV form).
    relative_factor : bool
        Whether the factor starts at 1 on the first row and only its changes mean something.
    """

    instrument: str
    days: NDArray[np.datetime64]
    columns: Mapping[str, NDArray[np.float64]]
    adjusted: bool = False
    relative_factor: bool = False

    def cut(self, first: np.datetime64, last: np.datetime64) -> Bars:
        """Return the bars from first to last, both included."""
        return self.pick((self.days >= first) & (self.days <= last))

    def pick(self, wanted: NDArray[np.bool_]) -> Bars:
        """Return the bars of the wanted rows."""
        return replace(
            self, days=self.days[wanted], columns={name: values[wanted] for name, values in self.columns.items()}
        )

    def scale_factor(self, scale: float) -> Bars:
        """Return the same bars with every factor multiplied by one number."""
        return replace(self, columns={**self.columns, "factor": self.columns["factor"] * scale})


def factor_from_reference(
    close: NDArray[np.float64], reference: NDArray[np.float64], tick: float = 0.01
) -> NDArray[np.float64]:
    """Return the cumulative factor that the exchange's reference prices imply, 1.0 on the first row.

    ``factor[t] / factor[t-1] = close[t-1] / reference[t]``; differences under half a tick are no event.

    Parameters
    ----------
    close, reference : numpy.ndarray, shape (n,)
        Raw close and the reference price (``pre_close``) of each traded day. A NaN reference means no event.
    tick : float
        Price step.
    """
    ratio = np.ones(len(close), dtype=np.float64)
    event = np.abs(close[:-1] - reference[1:]) >= tick / 2
    ratio[1:][event] = close[:-1][event] / reference[1:][event]
    return np.asarray(np.cumprod(ratio), dtype=np.float64)


def provider_fields(bars: Bars, *, previous_close: float = np.nan) -> dict[str, NDArray[np.float32]]:
    """Return the fields that go into a provider, each of shape (n,).

    Prices times factor, volume over factor, amount as it is, ``vwap`` from amount over volume (adjusted), ``factor``,
    ``change`` against the adjusted close of the previous *traded* day (NaN on the first bar unless ``previous_close``
    is given). Amount and vwap are left out when the vendor has no amount at all; an index has factor 1 and no vwap,
    because its amount over volume is no index level.

    Parameters
    ----------
    bars : Bars
        Not empty.
    previous_close : float
        Adjusted close before the first bar, for appending.
    """
    columns = bars.columns
    index = is_index(bars.instrument)
    factor = np.ones(len(bars.days)) if index else columns.get("factor", np.ones(len(bars.days)))
    scale = np.ones(len(bars.days)) if bars.adjusted else factor
    fields = {name: _float32(columns[name] * scale) for name in PRICES}
    fields["volume"] = _float32(columns["volume"] / scale)
    amount = columns.get("amount")
    if amount is not None and not np.isnan(amount).all():
        fields["amount"] = _float32(amount)
        if not index and "vwap" not in columns:
            shares = columns["volume"] * (factor if bars.adjusted else 1.0)
            price = np.divide(amount, shares, out=np.full(len(shares), np.nan), where=shares > 0)
            fields["vwap"] = _float32(price * factor)
    if "vwap" in columns and not index:
        fields["vwap"] = _float32(columns["vwap"] * scale)
    fields["factor"] = _float32(factor)
    # Taken from what is stored, so that appending gives the same bytes as importing at once.
    close = fields["close"].astype(np.float64)
    before = np.concatenate([[previous_close], close[:-1]])
    fields["change"] = _float32(close / before - 1)
    if "st" in columns:
        fields["st"] = _float32(columns["st"])
    return fields


def lay_out(values: NDArray[np.float32], positions: NDArray[np.intp], start: int, length: int) -> NDArray[np.float32]:
    """Return values placed on a stretch of the calendar, NaN on days without a bar."""
    laid = np.full(length, np.nan, dtype=np.float32)
    laid[positions - start] = values
    return laid


def check_bars(bars: Bars) -> None:
    """Raise `ProviderError` when a day occurs twice or a price is not positive."""
    repeated = bars.days[1:][bars.days[1:] == bars.days[:-1]]
    if len(repeated):
        raise ProviderError(
            f"{bars.instrument!r} has more than one bar on {repeated[0]!s}; expected one bar a day; "
            "remove the duplicates from the source"
        )
    factor = bars.columns.get("factor")
    if factor is not None and not (factor > 0).all():
        day = bars.days[~(factor > 0)][0]
        raise ProviderError(
            f"{bars.instrument!r} has no positive adjustment factor on {day!s}; expected one for every bar; "
            "complete the factor column or file"
        )


def _float32(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return values.astype(np.float32)
