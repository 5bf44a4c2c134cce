"""Bars in the CSV files that data vendors and their Python packages write.

The layout is found by the header of each file; units become shares and currency; the adjustment factor comes from
whatever the layout offers. One file may hold one instrument (its name is then the code) or many.

* ``qlib``: ``date open high low close volume`` (and ``symbol factor ...``); already adjusted, ``factor`` as given.
* ``tushare``: ``ts_code trade_date open high low close vol``; hands, thousand CNY; ``adj_factor``, else ``pre_close``.
* ``akshare``: ``日期 开盘 收盘 最高 最低 成交量``; hands; factor from ``涨跌额``.
* ``baostock``: ``date code open high low close volume preclose``; factor from ``preclose``.
* ``yfinance``: ``Date Open High Low Close Volume``; factor ``Adj Close / Close``.

Files with only ``ts_code trade_date adj_factor`` are joined to the Tushare bars. Rows without volume are days without
trading (some vendors fill suspended days) and are left out.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from qlib_llm_alpha.data.sources.bars import PRICES, Bars, factor_from_reference
from qlib_llm_alpha.data.sources.codes import is_index, normalise_code
from qlib_llm_alpha.data.sources.reading import BarSource, days_of
from qlib_llm_alpha.errors import ProviderError

_CHUNK_ROWS = 200_000
_ENCODINGS = ("utf-8-sig", "gb18030")


@dataclass(frozen=True)
class Layout:
    """How one vendor writes bars.

    Parameters
    ----------
    name : str
        Shown to the user.
    needed : mapping of str to str
        Header to our column; every header must be there.
    optional : mapping of str to str
        Header to our column, where present.
    volume_unit, amount_unit : float
        Shares in one unit of volume (100 when the vendor counts hands), currency in one unit of amount.
    adjusted : bool
        Whether prices are already multiplied by the factor.
    """

    name: str
    needed: Mapping[str, str]
    optional: Mapping[str, str] = field(default_factory=dict)
    volume_unit: float = 1.0
    amount_unit: float = 1.0
    adjusted: bool = False

    def matches(self, header: list[str]) -> bool:
        """Tell whether a header has every needed column."""
        return set(self.needed) <= set(header)

    def columns(self, header: list[str]) -> dict[str, str]:
        """Return header-to-ours for the columns that are read."""
        return {name: ours for name, ours in {**self.needed, **self.optional}.items() if name in header}


_SAME = {name: name for name in (*PRICES, "volume")}
_FACTORS_ONLY = Layout("tushare adj_factor", {"ts_code": "instrument", "trade_date": "date", "adj_factor": "factor"})
# The first that matches wins, so the more particular ones come first.
LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "tushare",
        {
            "ts_code": "instrument",
            "trade_date": "date",
            **{name: name for name in PRICES},
            "vol": "volume",
        },
        {"amount": "amount", "adj_factor": "factor", "pre_close": "pre_close"},
        volume_unit=100.0,
        amount_unit=1000.0,
    ),
    _FACTORS_ONLY,
    Layout(
        "akshare",
        {"日期": "date", "开盘": "open", "收盘": "close", "最高": "high", "最低": "low", "成交量": "volume"},
        {"成交额": "amount", "涨跌额": "move", "股票代码": "instrument"},
        volume_unit=100.0,
    ),
    Layout(
        "baostock",
        {"date": "date", "code": "instrument", **_SAME, "preclose": "pre_close"},
        {"amount": "amount", "isST": "st", "adjustflag": "adjustflag", "tradestatus": "tradestatus"},
    ),
    Layout(
        "yfinance",
        {"Date": "date", "Open": "open", "High": "high", "Low": "low", "Close": "close", "Volume": "volume"},
        {"Adj Close": "adjusted_close", "Ticker": "instrument", "Symbol": "instrument"},
    ),
    Layout(
        "qlib",
        {"date": "date", **_SAME},
        {"symbol": "instrument", "factor": "factor", "amount": "amount", "money": "amount", "vwap": "vwap"},
        adjusted=True,
    ),
)


def detect_layout(header: list[str], path: Path) -> Layout:
    """Return the layout whose needed columns a header has.

    Raises
    ------
    ProviderError
        No layout fits; the message names the header and every known layout.
    """
    for layout in LAYOUTS:
        if layout.matches(header):
            return layout
    known = "; ".join(f"{layout.name}: {', '.join(layout.needed)}" for layout in LAYOUTS)
    raise ProviderError(
        f"{str(path)!r} has the columns {header!r}, which is no known layout; expected one of: {known}; "
        "rename the columns to the `qlib` layout"
    )


class VendorCsvSource(BarSource):
    """A folder (or one file) of vendor CSV files.

    Parameters
    ----------
    root : Path
        A folder that is searched for ``*.csv``, deeper folders included, or one file.
    market : str
        ``"cn"`` places bare six-digit codes on their exchange; ``"us"`` takes tickers as they are.

    Raises
    ------
    ProviderError
        No CSV file, an unknown header, two different layouts in one folder.
    """

    kind = "csv"

    def __init__(self, root: Path, *, market: str = "cn") -> None:
        self.root = root
        self.market = market
        self.files = (root,) if root.is_file() else tuple(sorted(root.rglob("*.csv")))
        if not self.files:
            raise ProviderError(f"no *.csv in {str(root)!r}; expected a vendor's files; give their folder with --from")
        self._encodings: dict[Path, str] = {}
        self._headers: dict[Path, list[str]] = {}
        self._layouts: dict[Path, Layout] = {}
        for path in self.files:
            self._headers[path], self._encodings[path] = _read_header(path)
            self._layouts[path] = detect_layout(self._headers[path], path)
        kinds = {layout.name: path for path, layout in reversed(self._layouts.items()) if layout is not _FACTORS_ONLY}
        if len(kinds) != 1:
            shown = {name: path.name for name, path in kinds.items()} or "factors only"
            raise ProviderError(
                f"{str(root)!r} holds {shown!r}; expected the bars of one vendor layout; "
                "import each vendor from its own folder"
            )
        self.layout = next(iter(kinds))
        self._bars_layout = next(layout for layout in self._layouts.values() if layout.name == self.layout)

    def notes(self) -> tuple[str, ...]:
        """Say where the adjustment factor comes from, or that there is none."""
        offered = {name for path in self.files for name in self._layouts[path].columns(self._headers[path]).values()}
        if "factor" in offered:
            return ("factor: taken from the source",)
        if {"pre_close", "move"} & offered:
            return ("factor: derived from the exchange's reference prices, 1.0 on each first row",)
        if "adjusted_close" in offered:
            return ("factor: Adj Close / Close",)
        return (
            "factor: none found, 1.0 everywhere; if prices are not adjusted, splits and dividends look like losses",
        )

    def chunks(self, path: Path, *, keys_only: bool) -> Iterator[pd.DataFrame]:
        """Yield pieces of one file in our column names and units."""
        layout = self._layouts[path]
        columns = layout.columns(self._headers[path])
        if keys_only:
            columns = {name: ours for name, ours in columns.items() if ours in {"instrument", "date"}}
        text = {name: str for name, ours in columns.items() if ours in {"instrument", "date"}}
        reader = pd.read_csv(
            path, usecols=list(columns), dtype=text, chunksize=_CHUNK_ROWS, encoding=self._encodings[path]
        )
        for piece in reader:
            rows = piece.rename(columns=lambda name: columns[str(name)])
            codes = rows["instrument"] if "instrument" in rows else pd.Series(path.stem, index=rows.index)
            spelt = {code: normalise_code(code, market=self.market) for code in codes.unique()}
            out = {"instrument": codes.map(spelt), "date": _parse_dates(rows["date"], path)}
            for name in rows.columns.difference(["instrument", "date"]):
                out[name] = _parse_numbers(rows[name], path)
            yield pd.DataFrame(out)

    def bars(self, instrument: str, rows: pd.DataFrame) -> Bars:
        """Turn an instrument's rows into bars: join factor files, drop untraded days, derive the factor."""
        layout = self._bars_layout
        factors = None
        if "close" not in rows:
            return Bars(instrument, days_of(rows)[:0], {})
        if "factor" in rows and any(kind is _FACTORS_ONLY for kind in self._layouts.values()):
            alone = rows["close"].isna() & rows["factor"].notna()
            factors = rows.loc[alone].drop_duplicates("date").set_index("date")["factor"]
            rows = rows.loc[~alone]
        traded = rows["close"].notna()
        if not is_index(instrument):
            traded &= rows["volume"] > 0
        if "tradestatus" in rows:
            traded &= rows["tradestatus"] != 0
        rows = rows.loc[traded]
        self._refuse_adjusted(instrument, rows)
        columns = {name: rows[name].to_numpy(dtype=np.float64) for name in PRICES}
        columns["volume"] = rows["volume"].to_numpy(dtype=np.float64) * layout.volume_unit
        for name in ("amount", "vwap", "st", "pre_close"):
            if name in rows and rows[name].notna().any():
                columns[name] = rows[name].to_numpy(dtype=np.float64)
        if "amount" in columns:
            columns["amount"] = columns["amount"] * layout.amount_unit
        if "move" in rows:
            columns["pre_close"] = columns["close"] - rows["move"].to_numpy(dtype=np.float64)
        relative = False
        if factors is not None and len(factors):
            columns["factor"] = factors.reindex(rows["date"]).to_numpy(dtype=np.float64)
        elif "factor" in rows and rows["factor"].notna().any():
            columns["factor"] = rows["factor"].to_numpy(dtype=np.float64)
        elif "adjusted_close" in rows:
            columns["factor"] = rows["adjusted_close"].to_numpy(dtype=np.float64) / columns["close"]
        elif "pre_close" in columns:
            columns["factor"] = factor_from_reference(columns["close"], columns["pre_close"])
            relative = True
        if is_index(instrument):
            columns.pop("factor", None)
        return Bars(instrument, days_of(rows), columns, adjusted=layout.adjusted, relative_factor=relative)

    def _refuse_adjusted(self, instrument: str, rows: pd.DataFrame) -> None:
        if "adjustflag" not in rows or is_index(instrument):
            return
        other = rows["adjustflag"].notna() & (rows["adjustflag"] != 3)
        if other.any():
            raise ProviderError(
                f"{instrument!r} has adjustflag {rows.loc[other, 'adjustflag'].iloc[0]:.0f}; expected 3 (raw prices), "
                "because limits and lots need raw prices; download again with adjustflag='3'"
            )


def _read_header(path: Path) -> tuple[list[str], str]:
    for encoding in _ENCODINGS:
        try:
            with path.open(encoding=encoding, newline="") as stream:
                header = next(csv.reader(stream), [])
        except UnicodeDecodeError:
            continue
        return [name.strip() for name in header], encoding
    raise ProviderError(f"{str(path)!r} is neither UTF-8 nor GB18030 text; expected a CSV file; save it as UTF-8")


def _parse_dates(text: pd.Series, path: Path) -> pd.Series:
    days = text.str.strip().str.slice(0, 10).str.replace("/", "-", regex=False)
    compact = days.str.fullmatch(r"\d{8}")
    days = days.where(~compact, days.str.slice(0, 4) + "-" + days.str.slice(4, 6) + "-" + days.str.slice(6, 8))
    parsed: pd.Series = pd.to_datetime(days, format="%Y-%m-%d", errors="coerce")
    if parsed.isna().any():
        raise ProviderError(
            f"{str(path)!r} has the date {text[parsed.isna()].iloc[0]!r}; expected YYYY-MM-DD, YYYYMMDD or YYYY/MM/DD; "
            "mend the row"
        )
    return parsed


def _parse_numbers(values: pd.Series, path: Path) -> pd.Series:
    numbers: pd.Series = pd.to_numeric(values, errors="coerce")
    wrong = numbers.isna() & values.notna() & (values.astype(str).str.strip() != "")
    if wrong.any():
        raise ProviderError(
            f"{str(path)!r} has {values[wrong].iloc[0]!r} in the column for {values.name!r}; expected a number; "
            "mend the row"
        )
    return numbers
