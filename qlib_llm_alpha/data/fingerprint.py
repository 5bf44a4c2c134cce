"""What data a figure was computed from: a hash of a provider's content, not of its path or its dates of writing."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from qlib_llm_alpha.errors import ProviderError

FOLDERS = ("calendars", "features", "financial", "instruments")
"""Where Qlib keeps what it was given; its own caches lie beside them and do not count."""
EMBEDDED_MANIFEST = "market.json"

_Stamp = tuple[tuple[str, int, int], ...]
_known: dict[Path, tuple[_Stamp, str]] = {}


def provider_fingerprint(root: Path) -> str:
    """Return the SHA-256 over names and bytes of all files of a provider.

    For the embedded market this is the ``sha256`` of its manifest. A second call in the same process reads nothing
    again unless the name, size or time of change of a file is another.

    Parameters
    ----------
    root : Path
        The provider's folder.

    Raises
    ------
    ProviderError
        The folder holds no file of a provider.
    """
    folder = Path(root).resolve()
    paths = list(_provider_files(folder))
    if not paths:
        raise ProviderError(
            f"provider {str(folder)!r} has no file in {list(FOLDERS)}; expected a Qlib provider: name another folder"
        )
    stamp = tuple(_stamp(path) for path in paths)
    if folder not in _known or _known[folder][0] != stamp:
        _known[folder] = (stamp, hash_files(folder, paths))
    return _known[folder][1]


def hash_files(root: Path, paths: Iterable[Path]) -> str:
    """Return the SHA-256 over the names (relative to ``root``), sizes and bytes of files, in order of their names."""
    digest = hashlib.sha256()
    for name, path in sorted((path.relative_to(root).as_posix(), path) for path in paths):
        data = path.read_bytes()
        digest.update(f"{name}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()


def market_name(root: Path, region: str) -> str:
    """Return the name of the market whose sealed dates are opened.

    Two providers of the same region are two pictures of one market: whoever has seen its outcomes in one has seen them.
    An embedded market is a world of its own, named after what it was made from.

    Parameters
    ----------
    root : Path
        The provider's folder.
    region : str
        Qlib's region, ``cn`` or ``us``.
    """
    manifest = Path(root) / EMBEDDED_MANIFEST
    if not manifest.is_file():
        return region
    try:
        made = json.loads(manifest.read_text(encoding="utf-8"))
        return f"embedded {made['kind']}, seed {made['seed']}, {made['sha256'][:12]}"
    except (ValueError, KeyError, TypeError) as error:
        raise ProviderError(
            f"{str(manifest)!r} does not say what market it describes ({error!r}); expected kind, seed and sha256: "
            "write the market again with `qlib-llm-alpha market --force`"
        ) from error


def _provider_files(root: Path) -> Iterator[Path]:
    for name in FOLDERS:
        for folder, _, files in os.walk(root / name):
            for file in files:
                yield Path(folder) / file


def _stamp(path: Path) -> tuple[str, int, int]:
    found = path.stat()
    return str(path), found.st_size, found.st_mtime_ns
