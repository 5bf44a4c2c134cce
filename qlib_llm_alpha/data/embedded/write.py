"""Write the embedded market as a Qlib provider: all or nothing, and never over something else."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.data.embedded.simulate import GENERATOR, Kind, Market, simulate
from qlib_llm_alpha.data.fingerprint import EMBEDDED_MANIFEST as MANIFEST
from qlib_llm_alpha.data.fingerprint import hash_files
from qlib_llm_alpha.data.provider_files import (
    Span,
    write_calendar,
    write_feature,
    write_instruments,
    write_period_records,
)
from qlib_llm_alpha.errors import ProviderError

Array = NDArray[np.float64]

INDEX_CODE = "SH000300"
_ARGUMENTS = ("kind", "instruments", "start", "end", "seed", "generator")


@dataclass(frozen=True)
class WrittenMarket:
    """Where a market lies, what its manifest says, and whether it was written now or found there."""

    path: Path
    manifest: dict[str, Any]
    written: bool


def ensure_market(
    out: Path,
    *,
    kind: Kind = "planted",
    instruments: int = 100,
    start: str = "2017-01-03",
    end: str = "2023-12-29",
    seed: int = 7,
    force: bool = False,
) -> WrittenMarket:
    """Write a market to ``out``, or verify the one that is there.

    Parameters
    ----------
    out : Path
        Folder of the provider. Its files appear all at once, by a rename.
    kind, instruments, start, end, seed
        As for :func:`~qlib_llm_alpha.data.embedded.simulate.simulate`.
    force : bool
        Replace an embedded market with other arguments, or a damaged one. Never replaces any other folder.

    Raises
    ------
    ProviderError
        ``out`` holds something else, another market, or a market whose files were changed.
    """
    out = Path(out)
    wanted = {
        "kind": kind,
        "instruments": instruments,
        "start": start,
        "end": end,
        "seed": seed,
        "generator": GENERATOR,
    }
    found = _present(out)
    if found is not None and not force:
        return _verified(out, found, wanted)
    market = simulate(kind, instruments, start, end, seed)
    manifest = _replace(out, market, wanted)
    return WrittenMarket(out, manifest, written=True)


def write_market(market: Market, root: Path) -> None:
    """Write the files of a provider below ``root``, without a manifest.

    Calendar, ``all`` and ``csi300``, the bars of every instrument that was ever listed, the index SH000300, and the
    accounts in Qlib's point-in-time form. Rows run from the day of listing to the last day of listing; NaN on
    suspended days, except ``shares``, ``industry`` and ``st``.
    """
    days = market.days
    write_calendar(root, list(days))
    write_instruments(root, "all", _spans(market, market.listed))
    write_instruments(root, "csi300", _spans(market, market.member))
    for name, values in fields(market).items():
        for column, (first, last) in _extents(market).items():
            write_feature(root, str(market.codes[column]), name, first, values[first : last + 1, column])
    for name, line in index_fields(market).items():
        write_feature(root, INDEX_CODE, name, 0, line)
    _write_accounts(market, root)


def fields(market: Market) -> dict[str, Array]:
    """Return every field of the instruments as it is written, (days, instruments) each."""
    industry = np.where(market.listed, market.industry.astype(np.float64), np.nan)
    return {
        "open": market.open,
        "high": market.high,
        "low": market.low,
        "close": market.close,
        "volume": market.volume,
        "vwap": market.vwap,
        "amount": market.amount,
        "factor": market.factor,
        "change": _change(market.close),
        "shares": market.shares,
        "industry": industry,
        "st": market.st,
    }


def index_fields(market: Market) -> dict[str, Array]:
    """Return every field of the index as it is written, (days,) each."""
    index = market.index
    return {
        "open": index.open,
        "high": index.high,
        "low": index.low,
        "close": index.close,
        "volume": index.volume,
        "vwap": index.vwap,
        "amount": index.amount,
        "factor": np.ones(len(index.close)),
        "change": _change(index.close[:, None])[:, 0],
    }


def fingerprint(market: Market) -> str:
    """Return the SHA-256 of all arrays of a market as they would be written, without writing them."""
    digest = hashlib.sha256()
    for text in (*market.days.astype(str), *market.codes):
        digest.update(str(text).encode())
    arrays: list[NDArray[Any]] = [*fields(market).values(), *index_fields(market).values()]
    accounts = market.accounts
    arrays += [market.listed, market.member, market.regime, accounts.periods, accounts.announced.astype(np.int64)]
    arrays += [accounts.restated.astype(np.int64), accounts.correction, *accounts.values.values()]
    for array in arrays:
        kind = "<f4" if array.dtype.kind == "f" else "<i8"
        digest.update(np.ascontiguousarray(array, dtype=kind).tobytes())
    return digest.hexdigest()


def content_hash(root: Path) -> tuple[str, int]:
    """Return the SHA-256 over names and bytes of all files below ``root`` but the manifest, and their number."""
    paths = list(_files(root))
    return hash_files(root, paths), len(paths)


def _present(out: Path) -> dict[str, Any] | None:
    """Return the manifest of the market at ``out``, or None when nothing is there."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    manifest = out / MANIFEST
    if not out.is_dir() or not manifest.is_file():
        raise ProviderError(
            f"{str(out)!r} exists and is no embedded market (it has no {MANIFEST}); it was left alone: "
            "choose another --out, or remove it yourself"
        )
    try:
        loaded = json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError:
        loaded = None
    return loaded if isinstance(loaded, dict) else {}


def _verified(out: Path, found: dict[str, Any], wanted: dict[str, Any]) -> WrittenMarket:
    other = [name for name in _ARGUMENTS if found.get(name) != wanted[name]]
    if other:
        there = ", ".join(f"{name}={found.get(name)!r}" for name in other)
        asked = ", ".join(f"{name}={wanted[name]!r}" for name in other)
        raise ProviderError(
            f"{str(out)!r} holds another embedded market: there {there}; asked for {asked}: "
            "choose another --out, or give --force to replace it"
        )
    digest, _ = content_hash(out)
    if digest != found.get("sha256"):
        raise ProviderError(
            f"{str(out)!r} is an embedded market whose files were changed since it was written "
            f"(content {digest[:12]}, manifest {str(found.get('sha256'))[:12]}): give --force to write it again"
        )
    return WrittenMarket(out, found, written=False)


def _replace(out: Path, market: Market, wanted: dict[str, Any]) -> dict[str, Any]:
    out.parent.mkdir(parents=True, exist_ok=True)
    with _scratch(out) as scratch:
        fresh = scratch / "fresh"
        fresh.mkdir()
        write_market(market, fresh)
        digest, count = content_hash(fresh)
        manifest = {
            **wanted,
            "trading_days": len(market.days),
            "first_day": str(market.days[0]),
            "last_day": str(market.days[-1]),
            "listed": len(_extents(market)),
            "delisted": int((market.listed.any(axis=0) & ~market.listed[-1]).sum()),
            "files": count,
            "sha256": digest,
        }
        (fresh / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        if out.exists():
            _present(out)  # refuses what came to lie there meanwhile and is no market
            out.rename(scratch / "old")
        try:
            fresh.rename(out)
        except OSError as error:
            # Another process was faster; that is well when it wrote the same market.
            if _present(out) != manifest:
                raise ProviderError(
                    f"{str(out)!r} was taken by something else while the market was being written: choose another --out"
                ) from error
    return manifest


@contextlib.contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """Give a folder beside ``out``, on the same file system, and remove it in the end."""
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _files(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        for name in names:
            if not (name == MANIFEST and Path(folder) == root):
                yield Path(folder) / name


def _extents(market: Market) -> dict[int, tuple[int, int]]:
    """Return column to first and last position of listing, for the names that were ever listed."""
    length = len(market.days)
    extents = {}
    for column in np.flatnonzero(market.listed.any(axis=0)).tolist():
        listed = market.listed[:, column]
        extents[column] = (int(np.argmax(listed)), length - 1 - int(np.argmax(listed[::-1])))
    return extents


def _spans(market: Market, mask: NDArray[np.bool_]) -> list[Span]:
    spans: list[Span] = []
    for column, code in enumerate(market.codes):
        edges = np.diff(np.concatenate([[0], mask[:, column].astype(np.int8), [0]]))
        for first, after in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True):
            spans.append((str(code), market.days[first], market.days[after - 1]))
    return spans


def _change(close: Array) -> Array:
    """Return the close over the previous close that was made, minus 1; NaN on the first bar and on suspended days."""
    change = np.full_like(close, np.nan)
    last = np.full(close.shape[1], np.nan)
    for t in range(len(close)):
        change[t] = close[t] / last - 1.0
        last = np.where(np.isfinite(close[t]), close[t], last)
    return change


def _write_accounts(market: Market, root: Path) -> None:
    accounts = market.accounts
    for column, code in enumerate(market.codes):
        known = np.flatnonzero(~np.isnat(accounts.announced[:, column]))
        if not len(known):
            continue
        again = np.flatnonzero(~np.isnat(accounts.restated[:, column]))
        for name, values in accounts.values.items():
            when, periods, told = accounts.announced[known, column], accounts.periods[known], values[known, column]
            if name in ("eps", "net_income") and len(again):
                corrected = np.round(values[again, column] * accounts.correction[again, column], 4)
                when = np.concatenate([when, accounts.restated[again, column]])
                periods = np.concatenate([periods, accounts.periods[again]])
                told = np.concatenate([told, corrected])
            write_period_records(root, str(code), f"{name}_q", when, periods, told)
