"""Bars in Parquet files.

Layout: ``daily_*.parquet`` with columns ``date instrument open high low close volume [amount] factor`` (raw prices in
currency, shares, currency, cumulative factor), optional ``index_daily.parquet`` (no factor), ``calendars/day.txt``,
``instruments/*.txt`` and ``instrument_info.parquet`` (``instrument``, ``list_date``, ``industry`` or ``sector``).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from qlib_llm_alpha.data.provider_files import Span, read_calendar, read_instruments
from qlib_llm_alpha.data.sources.bars import PRICES, Bars
from qlib_llm_alpha.data.sources.codes import is_index
from qlib_llm_alpha.data.sources.reading import BarSource, days_of
from qlib_llm_alpha.errors import ProviderError

_CHUNK_ROWS = 131_072
_KEYS = ("date", "instrument")
_NEEDED = (*_KEYS, *PRICES, "volume")
_OPTIONAL = ("amount", "factor", "st")


class ParquetSource(BarSource):
    """A folder in the Parquet layout.

    Parameters
    ----------
    root : Path
        The folder.
    market : str
        ``"cn"`` or ``"us"``; only written into the provider's manifest.

    Raises
    ------
    ProviderError
        No ``daily_*.parquet``, a missing column, a daily file without ``factor``.
    """

    kind = "parquet"
    layout = "parquet"

    def __init__(self, root: Path, *, market: str = "cn") -> None:
        self.root = root
        self.market = market
        daily = tuple(sorted(root.glob("daily_*.parquet")))
        if not daily:
            found = sorted(path.name for path in root.iterdir())[:10] if root.is_dir() else "no such folder"
            raise ProviderError(
                f"no daily_*.parquet in {str(root)!r} (found {found!r}); expected files of daily bars; "
                "give the folder that holds them with --from"
            )
        index = root / "index_daily.parquet"
        self.files = (*daily, *((index,) if index.exists() else ()))
        for path in self.files:
            names = _column_names(path)
            needed = _NEEDED if path == index else (*_NEEDED, "factor")
            missing = [name for name in needed if name not in names]
            if missing:
                raise ProviderError(
                    f"{str(path)!r} lacks the columns {missing!r} (it has {names!r}); expected {list(needed)!r}; "
                    "add them, or use --source csv for a vendor's files"
                )

    def chunks(self, path: Path, *, keys_only: bool) -> Iterator[pd.DataFrame]:
        """Yield row batches of one file."""
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns = [name for name in (_KEYS if keys_only else (*_NEEDED, *_OPTIONAL)) if name in names]
            for batch in file.iter_batches(batch_size=_CHUNK_ROWS, columns=columns):
                table = pa.Table.from_batches([batch])
                yield table.to_pandas(date_as_object=False, strings_to_categorical=True)

    def bars(self, instrument: str, rows: pd.DataFrame) -> Bars:
        """Turn an instrument's rows into raw bars."""
        names = [name for name in (*PRICES, "volume", *_OPTIONAL) if name in rows and not rows[name].isna().all()]
        columns = {name: rows[name].to_numpy(dtype=np.float64) for name in {*names, *PRICES, "volume"}}
        if is_index(instrument):
            columns.pop("factor", None)
        return Bars(instrument, days_of(rows), columns)

    def calendar(self) -> NDArray[np.datetime64] | None:
        """Return ``calendars/day.txt`` when it is there."""
        return read_calendar(self.root) if (self.root / "calendars" / "day.txt").exists() else None

    def markets(self) -> dict[str, list[Span]]:
        """Return every ``instruments/*.txt``."""
        return {path.stem: read_instruments(self.root, path.stem) for path in self._market_files()}

    def listings(self) -> dict[str, np.datetime64]:
        """Return ``list_date`` of ``instrument_info.parquet``."""
        info = self._info()
        if info is None or "list_date" not in info:
            return {}
        dated = info.dropna(subset=["list_date"])
        days = np.asarray(dated["list_date"].to_numpy(), dtype="datetime64[D]")
        return dict(zip(dated["instrument"].astype(str), days, strict=True))

    def industries(self) -> dict[str, str]:
        """Return ``industry`` (or ``sector``) of ``instrument_info.parquet``."""
        info = self._info()
        column = next((name for name in ("industry", "sector") if info is not None and name in info), None)
        if info is None or column is None:
            return {}
        named = info.dropna(subset=[column])
        return dict(zip(named["instrument"].astype(str), named[column].astype(str), strict=True))

    def identity_files(self) -> tuple[Path, ...]:
        """Return bars, calendar, membership and instrument table."""
        extras = (self.root / "calendars" / "day.txt", self.root / "instrument_info.parquet")
        return (*self.files, *(path for path in extras if path.exists()), *self._market_files())

    def _market_files(self) -> list[Path]:
        return sorted((self.root / "instruments").glob("*.txt"))

    def _info(self) -> pd.DataFrame | None:
        path = self.root / "instrument_info.parquet"
        return pq.read_table(path).to_pandas(date_as_object=False) if path.exists() else None


def _column_names(path: Path) -> list[str]:
    try:
        names: list[str] = pq.read_schema(path).names
    except pa.ArrowInvalid as error:
        raise ProviderError(
            f"{str(path)!r} is no complete Parquet file ({error}); expected one; copy or download it again"
        ) from error
    return names
