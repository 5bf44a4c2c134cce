"""Where the command line's requests meet the rooms; each function serves one command."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from qlib_llm_alpha.data.check import CheckReport
    from qlib_llm_alpha.data.sources.writing import ImportReport


def import_market_data(
    kind: str,
    folder: Path,
    out: Path,
    *,
    market: str = "cn",
    start: str | None = None,
    end: str | None = None,
    update: bool = False,
    progress: bool = True,
) -> ImportReport:
    """Write a provider from a folder of Parquet or CSV files, or append its new days to one."""
    import numpy as np

    from qlib_llm_alpha.data.sources.parquet import ParquetSource
    from qlib_llm_alpha.data.sources.updating import update_bars
    from qlib_llm_alpha.data.sources.vendor_csv import VendorCsvSource
    from qlib_llm_alpha.data.sources.writing import import_bars
    from qlib_llm_alpha.errors import ConfigError

    def day(name: str, text: str | None) -> np.datetime64 | None:
        try:
            return None if text is None else np.datetime64(text, "D")
        except ValueError as error:
            raise ConfigError(f"{name} is {text!r}; expected YYYY-MM-DD; give a date like 2018-01-02") from error

    first, last = day("--start", start), day("--end", end)
    if update and first is not None:
        raise ConfigError(f"--start {start} was given with --update; a provider's start is fixed; leave --start out")
    source = ParquetSource(folder, market=market) if kind == "parquet" else VendorCsvSource(folder, market=market)
    if update:
        return update_bars(source, out, end=last, progress=progress)
    return import_bars(source, out, start=first, end=last, progress=progress)


def check_market_data(provider: Path) -> CheckReport:
    """Look for everything that is wrong with a provider."""
    from qlib_llm_alpha.data.check import check_provider

    return check_provider(provider)
