"""Saved panels: what is written is what is opened, processes share it, and nothing half or foreign is opened."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from qlib_llm_alpha.engine.panel_store import open_saved_panel, save_panel
from qlib_llm_alpha.engine.tiles import Series, TiledPanel
from qlib_llm_alpha.errors import PanelError

ROWS, COUNT = 6, 40
NAMES = ("$close", "$open")


class Ramp:
    """Instrument n exists from row n % 3 on; values say where they stand."""

    def read(self, name: str, instruments: Sequence[str], rows: int, since: int = 0) -> Iterator[Series]:
        if name not in NAMES:
            raise PanelError(f"no {name}")
        for code in instruments:
            first = int(code[1:]) % 3
            values = np.arange(rows, dtype=np.float32) + 100 * int(code[1:]) + (name == "$open") / 2
            yield first, values[first:]


def panel(member: bool = True) -> TiledPanel:
    mask = np.random.default_rng(0).random((ROWS, COUNT)) < 0.5 if member else None
    return TiledPanel(np.datetime64("2020-01-01") + np.arange(ROWS), [f"S{n}" for n in range(COUNT)], Ramp(), mask)


def total_of(saved: TiledPanel, name: str) -> float:
    return float(np.nansum(saved.column(name).values))


@pytest.mark.parametrize("member", [True, False])
def test_what_is_saved_is_what_is_opened(tmp_path: Path, member: bool) -> None:
    given = panel(member)
    saved = open_saved_panel(save_panel(given, NAMES, tmp_path / "deep" / "panel"))
    np.testing.assert_array_equal(saved.days, given.days)
    assert saved.instruments == given.instruments
    assert saved.loaded == NAMES
    for name in NAMES:
        np.testing.assert_array_equal(saved.column(name).values, given.column(name).values)
        assert saved.column(name).spans.same_as(given.column(name).spans)
        assert saved.digest(name, 1, 4) == given.digest(name, 1, 4)
    assert saved.column("$close").spans is saved.column("$open").spans
    assert saved.member_digest(ROWS) == given.member_digest(ROWS)
    assert (saved.member is None) is not member
    np.testing.assert_array_equal(saved.window(2, 4).column("$close").values, given.column("$close").values[:, 2:4])


def test_saving_does_not_keep_columns_that_were_not_in_memory(tmp_path: Path) -> None:
    given = panel()
    given.column("$open")
    save_panel(given, NAMES, tmp_path / "panel")
    assert given.loaded == ("$open",)


def test_columns_are_pages_of_the_files_whose_changes_stay_private(tmp_path: Path) -> None:
    folder = save_panel(panel(), NAMES, tmp_path / "panel")
    saved = open_saved_panel(folder)
    values = saved.column("$close").values
    assert isinstance(values.base, np.memmap)
    assert values.flags.c_contiguous
    assert values.flags.writeable  # numba would otherwise compile every kernel once more
    values[0, 5, 0] = -1
    assert open_saved_panel(folder).column("$close").values[0, 5, 0] == 5


def test_an_opened_panel_and_its_windows_travel_as_the_path(tmp_path: Path) -> None:
    saved = open_saved_panel(save_panel(panel(), NAMES, tmp_path / "panel"))
    travelling = pickle.dumps(saved)
    assert len(travelling) < 200 + len(str(tmp_path))
    np.testing.assert_array_equal(
        pickle.loads(travelling).column("$open").values,  # noqa: S301 - our own bytes
        saved.column("$open").values,
    )
    window = pickle.loads(pickle.dumps(saved.window(1, 3)))  # noqa: S301 - our own bytes
    assert window.shape == (2, COUNT)
    with pytest.raises(PanelError, match="save_panel"):
        pickle.dumps(saved.with_members(np.ones((ROWS, COUNT), dtype=np.bool_)))
    with pytest.raises(PanelError, match="save_panel"):
        pickle.dumps(panel())


def test_a_process_that_is_started_anew_opens_it(tmp_path: Path) -> None:
    saved = open_saved_panel(save_panel(panel(), NAMES, tmp_path / "panel"))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(total_of, saved, "$close").result() == total_of(saved, "$close")


def test_a_panel_saved_anew_in_between_is_not_taken_for_the_one_handed_over(tmp_path: Path) -> None:
    folder = save_panel(panel(), NAMES, tmp_path / "panel")
    opened = open_saved_panel(folder)
    travelling = pickle.dumps(opened)
    save_panel(panel(), ["$open"], folder)
    with pytest.raises(PanelError, match="saved anew"):
        pickle.loads(travelling)  # noqa: S301 - our own bytes
    assert open_saved_panel(folder).loaded == ("$open",)
    assert opened.column("$close").values[0, 5, 1] == 105
    assert [path.name for path in tmp_path.iterdir()] == ["panel"]


def test_other_instruments_come_along_when_asked_for(tmp_path: Path) -> None:
    saved = open_saved_panel(save_panel(panel(), NAMES, tmp_path / "panel", others=["S777"]))
    expected = np.array([77700, 77701, 77702, 77703, 77704, 77705], dtype=np.float32)
    np.testing.assert_array_equal(saved.of_instrument("S777").column("$close").values[0, :, 0], expected)
    own = saved.of_instrument("S34").column("$open")
    np.testing.assert_array_equal(
        own.values[0, :, 0], np.array([np.nan, 3401.5, 3402.5, 3403.5, 3404.5, 3405.5], dtype=np.float32)
    )
    assert (own.spans.first[0, 0], own.spans.stop[0, 0]) == (1, 6)
    with pytest.raises(PanelError, match="others="):
        saved.of_instrument("S778")


def test_a_column_that_was_not_saved_is_refused_by_name(tmp_path: Path) -> None:
    saved = open_saved_panel(save_panel(panel(), ["$open"], tmp_path / "panel"))
    with pytest.raises(PanelError, match=r"'\$close'.*save it again"):
        saved.column("$close")
    saved.forget("$open")
    assert saved.loaded == ("$open",)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("dear to me")
    with pytest.raises(PanelError, match="holds no saved panel"):
        save_panel(panel(), NAMES, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failure_leaves_nothing_behind_and_the_former_panel_in_place(tmp_path: Path) -> None:
    folder = save_panel(panel(), NAMES, tmp_path / "panel")
    with pytest.raises(PanelError, match=r"no \$volume"):
        save_panel(panel(), ["$open", "$volume"], folder)
    assert [path.name for path in tmp_path.iterdir()] == ["panel"]
    assert open_saved_panel(folder).loaded == NAMES


def test_a_panel_of_another_version_is_refused(tmp_path: Path) -> None:
    folder = save_panel(panel(), NAMES, tmp_path / "panel")
    about = json.loads((folder / "panel.json").read_text())
    (folder / "panel.json").write_text(json.dumps(about | {"version": 99}))
    with pytest.raises(PanelError, match="version 99"):
        open_saved_panel(folder)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("panel.json", b"{"),
        ("panel.json", b"{}"),
        ("panel.npz", b"no archive"),
        ("column_001.npy", b"\x93NUMPY"),
    ],
)
def test_a_broken_file_is_refused_by_name(tmp_path: Path, file: str, content: bytes) -> None:
    folder = save_panel(panel(), NAMES, tmp_path / "panel")
    (folder / file).write_bytes(content)
    with pytest.raises(PanelError, match=file):
        open_saved_panel(folder)


@pytest.mark.parametrize("file", ["panel.json", "panel.npz", "column_000.npy"])
def test_a_missing_file_is_refused_by_name(tmp_path: Path, file: str) -> None:
    folder = save_panel(panel(), NAMES, tmp_path / "panel")
    (folder / file).unlink()
    with pytest.raises(PanelError, match=file):
        open_saved_panel(folder)


def test_a_column_of_another_shape_or_cut_short_is_refused(tmp_path: Path) -> None:
    folder = save_panel(panel(), NAMES, tmp_path / "panel")
    whole = (folder / "column_000.npy").read_bytes()
    (folder / "column_000.npy").write_bytes(whole[:-100])
    with pytest.raises(PanelError, match=r"column_000\.npy"):
        open_saved_panel(folder)
    np.save(folder / "column_000.npy", np.zeros((2, ROWS, 16), dtype=np.float32))
    with pytest.raises(PanelError, match="shape"):
        open_saved_panel(folder)
