"""Save a panel to a folder that any number of processes open by memory map.

Workers that open the same folder share its pages: the system reads a column once, whoever asks first, and nothing is
pickled or copied. An opened panel travels to another process as its path.

Layout: ``panel.json`` (version, sizes, names of the columns), ``panel.npz`` (days, codes, membership, spans),
``column_000.npy`` and so on, ``(tiles, T, LANES)`` float32, and ``other_000/`` and so on, panels of other instruments.
"""

from __future__ import annotations

import json
import logging
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile

import numpy as np

from qlib_llm_alpha.engine.kernels.registry import LANES
from qlib_llm_alpha.engine.tiles import Column, Rows, Series, Spans, TiledPanel
from qlib_llm_alpha.errors import PanelError

_VERSION: Final = 1
_BLOCK: Final = 64 * 2**20
_FILE: Final = "column_{:03d}.npy"
_log = logging.getLogger(__name__)


def save_panel(panel: TiledPanel, names: Sequence[str], folder: Path | str, *, others: Sequence[str] = ()) -> Path:
    """Save columns of a panel.

    Parameters
    ----------
    panel : TiledPanel
    names : sequence of str
        The columns to save; those that are not in memory are read, in blocks of instruments when they are large.
    folder : path
        Written under another name and moved in place, so that nobody opens half a panel. A panel that was saved there
        is replaced; processes that have it open keep what they opened.
    others : sequence of str
        Codes of further instruments whose columns are saved, as far as they exist, for operators that read another
        instrument, such as an index.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    PanelError
        The folder holds something else, or a column cannot be read.
    """
    target = Path(folder).expanduser().absolute()
    if target.exists() and not (target / "panel.json").is_file() and (not target.is_dir() or any(target.iterdir())):
        raise PanelError(
            f"{str(target)!r} exists and holds no saved panel; expected a new or empty folder, or one that "
            "save_panel wrote; name another"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(8)
    draft = target.with_name(f".{target.name}.{token}.tmp")
    draft.mkdir()
    try:
        _write(panel, tuple(dict.fromkeys(names)), draft, tuple(dict.fromkeys(others)), token)
        _move(draft, target, token)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def open_saved_panel(folder: Path | str) -> TiledPanel:
    """Open a saved panel by memory map.

    Parameters
    ----------
    folder : path

    Returns
    -------
    TiledPanel
        Its columns are pages of the files, taken when they are touched and shared between processes. Changing them
        changes a private copy, never the files. It pickles as its path; unpickling refuses a folder that was saved
        anew in between.

    Raises
    ------
    PanelError
        No saved panel there, another version, or files whose shapes do not fit together.
    """
    return _SavedPanel(Path(folder).expanduser().absolute())


class _SavedPanel(TiledPanel):
    """A panel whose columns are files."""

    def __init__(self, folder: Path) -> None:
        about, parts = _about(folder), _parts(folder)
        names: dict[str, int] = about["columns"]
        super().__init__(parts["days"], [str(code) for code in parts["instruments"]], _Saved(folder, tuple(names)))
        self.folder, self.token = folder, str(about["token"])
        self.other_folders = dict(zip(about["others"], _numbered("other_{:03d}", len(about["others"])), strict=True))
        if "member" in parts:
            self.member = self._checked(parts["member"], np.dtype(np.bool_), "panel.npz: member")
        known = self._known_spans(parts["first"], parts["stop"])
        for (name, place), file in zip(names.items(), _numbered(_FILE, len(names)), strict=True):
            values = self._checked(_mapped(folder / file), np.dtype(np.float32), file)
            self._columns[name] = Column(values, known[place])

    def __reduce__(self) -> Any:
        return _open_same, (str(self.folder), self.token)

    def forget(self, name: str) -> None:
        """Keep it: pages are the system's to drop, and there is nothing else to read from."""

    def _checked(self, array: Any, dtype: np.dtype[Any], what: str) -> Any:
        expected = (self.tile_count, len(self.days), LANES)
        if array.shape != expected or array.dtype != dtype:
            raise _refusal(self.folder, f"{what} has shape {array.shape} and type {array.dtype}", f"{expected} {dtype}")
        return array

    def _known_spans(self, first: Rows, stop: Rows) -> list[Spans]:
        expected = (len(first), self.tile_count, LANES)
        if first.shape != expected or stop.shape != expected:
            raise _refusal(self.folder, f"spans have shapes {first.shape} and {stop.shape}", f"{expected} twice")
        return [Spans(begin, end, len(self.days)) for begin, end in zip(first, stop, strict=True)]

    def _alone(self, code: str) -> TiledPanel:
        if code in self.other_folders:
            return _SavedPanel(self.folder / self.other_folders[code])
        if code not in self.instruments:
            raise PanelError(
                f"instrument {code!r} is not in the panel saved in {str(self.folder)!r}; expected one of its "
                f"{len(self.instruments)} or of {sorted(self.other_folders)}; save it again with others=[{code!r}]"
            )
        tile, lane = divmod(self.instruments.index(code), LANES)
        alone = TiledPanel(self.days, (code,), self.source)
        for name, column in self._columns.items():
            alone.put(name, _one_lane(column, tile, lane))
        return alone


class _Saved:
    """The source of a saved panel: there is nothing behind what was saved."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self.folder, self.names = folder, names

    def read(self, name: str, instruments: Sequence[str], rows: int, since: int = 0) -> list[Series]:
        raise PanelError(
            f"column {name!r} is not in the panel saved in {str(self.folder)!r}, which has {list(self.names)}; save it "
            "again with this column"
        )


def _open_same(folder: str, token: str) -> TiledPanel:
    panel = _SavedPanel(Path(folder))
    if panel.token != token:
        raise PanelError(
            f"the panel in {folder!r} was saved anew since it was handed over; expected the same one; open it again "
            "and hand that over"
        )
    return panel


def _write(panel: TiledPanel, names: tuple[str, ...], folder: Path, others: tuple[str, ...], token: str) -> None:
    _log.info("saving %d columns, %.1f MB", len(names), panel.bytes_for(len(names)) / 1e6)
    known: list[Spans] = []
    columns: dict[str, int] = {}
    for name, file in zip(names, _numbered(_FILE, len(names)), strict=True):
        spans = _write_column(panel, name, folder / file)
        columns[name] = next((place for place, other in enumerate(known) if other.same_as(spans)), len(known))
        if columns[name] == len(known):
            known.append(spans)
    sides = (len(known), panel.tile_count, LANES)
    arrays: dict[str, Any] = {
        "days": panel.days,
        "instruments": np.array(panel.instruments),
        "first": np.array([spans.first for spans in known], dtype=np.int64).reshape(sides),
        "stop": np.array([spans.stop for spans in known], dtype=np.int64).reshape(sides),
    }
    if panel.member is not None:
        arrays["member"] = np.asarray(panel.member, dtype=np.bool_)
    np.savez_compressed(folder / "panel.npz", **arrays)
    for code, place in zip(others, _numbered("other_{:03d}", len(others)), strict=True):
        (folder / place).mkdir()
        _write(panel.of_instrument(code), names, folder / place, (), token)
    about = {"version": _VERSION, "token": token, "columns": columns, "others": list(others)}
    # Last: a folder with this file is whole.
    (folder / "panel.json").write_text(json.dumps(about, indent=1), encoding="utf-8")


def _write_column(panel: TiledPanel, name: str, path: Path) -> Spans:
    """Write one column and return its spans; what was not in memory is not kept there."""
    shape = (panel.tile_count, len(panel.days), LANES)
    budget = max(_BLOCK, panel.bytes_for(1) // panel.tile_count)
    was_loaded = name in panel.loaded
    values = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    first, stop = [], []
    for begin, end, part in panel.blocks([name], budget):
        column = part.column(name)
        values[begin:end] = column.values
        first.append(column.spans.first)
        stop.append(column.spans.stop)
    values.flush()
    if not was_loaded:
        panel.forget(name)
    return Spans(np.concatenate(first), np.concatenate(stop), len(panel.days))


def _move(draft: Path, target: Path, token: str) -> None:
    if not target.exists():
        draft.replace(target)
        return
    former = target.with_name(f".{target.name}.{token}.old")
    target.replace(former)
    draft.replace(target)
    shutil.rmtree(former, ignore_errors=True)


def _numbered(pattern: str, count: int) -> list[str]:
    return [pattern.format(position) for position in range(count)]


def _about(folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / "panel.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _refusal(folder, "panel.json is missing", "a panel written by save_panel") from error
    except ValueError as error:
        raise _refusal(folder, f"panel.json cannot be read ({error})", "a panel written by save_panel") from error
    version = about.get("version") if isinstance(about, dict) else about
    if version != _VERSION:
        raise _refusal(folder, f"panel.json has version {version!r}", f"version {_VERSION}")
    missing = sorted({"token", "columns", "others"} - about.keys())
    if missing:
        raise _refusal(folder, f"panel.json lacks {missing}", "a panel written by save_panel")
    whole: dict[str, Any] = about
    return whole


def _parts(folder: Path) -> dict[str, Any]:
    try:
        with np.load(folder / "panel.npz", allow_pickle=False) as stored:
            parts = dict(stored)
    except (OSError, ValueError, BadZipFile) as error:
        raise _refusal(folder, f"panel.npz cannot be read ({error})", "a panel written by save_panel") from error
    missing = sorted({"days", "instruments", "first", "stop"} - parts.keys())
    if missing:
        raise _refusal(folder, f"panel.npz lacks {missing}", "a panel written by save_panel")
    return parts


def _mapped(path: Path) -> Any:
    try:
        # Copy-on-write rather than read-only: the pages are shared just the same, and numba would compile every kernel
        # once more for arrays that cannot be written.
        return np.asarray(np.load(path, mmap_mode="c", allow_pickle=False))
    except (OSError, ValueError) as error:
        raise _refusal(path.parent, f"{path.name} cannot be read ({error})", "a whole file") from error


def _one_lane(column: Column, tile: int, lane: int) -> Column:
    values = np.full((1, column.values.shape[1], LANES), np.nan, dtype=np.float32)
    values[0, :, 0] = column.values[tile, :, lane]
    first, stop = np.zeros((1, LANES), dtype=np.int64), np.zeros((1, LANES), dtype=np.int64)
    first[0, 0], stop[0, 0] = column.spans.first[tile, lane], column.spans.stop[tile, lane]
    return Column(values, Spans(first, stop, column.spans.rows))


def _refusal(folder: Path, given: str, expected: str) -> PanelError:
    return PanelError(f"{str(folder)!r}: {given}; expected {expected}; save the panel again with save_panel")
