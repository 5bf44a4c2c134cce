"""Chunks on several processes: what dies, what survives, and that nothing else changes."""

from __future__ import annotations

import functools
import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from qlib_llm_alpha.engine.cache import CacheReport, ColumnCache, evaluate_and_report
from qlib_llm_alpha.engine.distribute import Result, fill_cache, run_chunks, screen_chunks
from qlib_llm_alpha.engine.evaluate import evaluate
from qlib_llm_alpha.engine.funnel import prepare_label, screen
from qlib_llm_alpha.engine.panel_store import open_saved_panel, save_panel
from qlib_llm_alpha.engine.tiles import TiledPanel
from qlib_llm_alpha.errors import ConfigError, MissingExtraError
from qlib_llm_alpha.factor.expression import parse

pytestmark = pytest.mark.slow  # worker processes


def total(chunk: list[int]) -> int:
    return sum(chunk)


def process(chunk: list[int]) -> int:
    return os.getpid()


def inverse(chunk: list[int]) -> float:
    return 1 / chunk[0]


def unpicklable(chunk: list[int]) -> object:
    return (one for one in chunk) if chunk[0] == 1 else chunk


def leaving(chunk: list[int]) -> int:
    if chunk[0] == 1:
        sys.exit("enough")
    return chunk[0]


def killed_once(chunk: list[int], folder: Path) -> int:
    """Kill the worker of chunk 3 the first time, when chunk 0 was handed over; say in the folder who ran."""
    with (folder / f"runs_{chunk[0]}").open("a") as file:
        file.write("x")
    marker = folder / "killed"
    if chunk[0] == 3 and not marker.exists():
        marker.touch()
        while not (folder / "told_0").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return chunk[0] * 10


def always_killed(chunk: list[int], deadly: tuple[int, ...]) -> int:
    if chunk[0] in deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    return chunk[0] * 10


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_and_threads_give_the_same_sums_in_the_order_of_the_chunks(workers: int) -> None:
    chunks = [list(range(n, n + 3)) for n in range(9)]
    expected = [Result(sum(chunk)) for chunk in chunks]
    assert run_chunks(total, chunks, backend="loky", workers=workers) == expected
    assert run_chunks(total, chunks, backend="threading", workers=workers) == expected


def test_no_chunks_give_no_results() -> None:
    assert run_chunks(total, [], workers=2) == []


def test_even_one_worker_is_another_process() -> None:
    (result,) = run_chunks(process, [[1]], workers=1)
    assert result.value != os.getpid()


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_an_exception_fails_its_chunk_alone_and_is_not_tried_again(backend: str) -> None:
    results = run_chunks(inverse, [[1], [0], [2]], backend=backend, workers=2)  # type: ignore[arg-type]
    assert [result.value for result in results] == [1.0, None, 0.5]
    assert [result.error for result in results] == ["", "ZeroDivisionError: division by zero", ""]
    assert [result.failed for result in results] == [False, True, False]


def test_a_result_that_cannot_be_pickled_fails_its_chunk_alone() -> None:
    results = run_chunks(unpicklable, [[0], [1], [2]], workers=2)
    assert [result.value for result in results] == [[0], None, [2]]
    assert "generator" in results[1].error


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_a_chunk_that_wants_to_leave_python_fails_alone(backend: str) -> None:
    results = run_chunks(leaving, [[0], [1], [2]], backend=backend, workers=2)  # type: ignore[arg-type]
    assert [result.value for result in results] == [0, None, 2]
    assert results[1].error == "SystemExit: enough"


def test_a_killed_worker_loses_only_its_chunk_which_is_run_again(tmp_path: Path) -> None:
    told: dict[int, Result[int]] = {}

    def keep(position: int, result: Result[int]) -> None:
        told[position] = result
        (tmp_path / f"told_{position}").touch()

    results = run_chunks(functools.partial(killed_once, folder=tmp_path), [[n] for n in range(8)], workers=2, done=keep)
    assert [result.value for result in results] == [n * 10 for n in range(8)]
    assert not any(result.failed for result in results)
    assert results[3].losses == 1
    assert [told[n] for n in range(8)] == results
    assert (tmp_path / "runs_3").read_text() == "xx"
    assert (tmp_path / "runs_0").read_text() == "x", "what was finished is not run again"


def test_a_chunk_that_kills_every_worker_is_reported_and_the_others_finish() -> None:
    results = run_chunks(functools.partial(always_killed, deadly=(2,)), [[n] for n in range(6)], workers=2)
    assert [result.value for result in results] == [0, 10, None, 30, 40, 50]
    assert "its worker died" in results[2].error
    assert "SIGKILL" in results[2].error
    assert results[2].losses >= 2


def test_without_retries_only_the_killers_fail() -> None:
    deadly = functools.partial(always_killed, deadly=(0, 1))
    results = run_chunks(deadly, [[n] for n in range(4)], workers=2, retries=0)
    assert [result.failed for result in results] == [True, True, False, False]


def test_each_result_is_handed_over_before_the_next_death(tmp_path: Path) -> None:
    seen: list[int] = []
    progress: list[tuple[int, int]] = []
    run_chunks(
        functools.partial(always_killed, deadly=(3,)),
        [[n] for n in range(4)],
        workers=1,
        retries=0,
        done=lambda position, result: seen.append(position),
        progress=lambda finished, of: progress.append((finished, of)),
    )
    assert seen[0] == 0
    assert sorted(seen) == [0, 1, 2, 3]
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_an_error_of_the_caller_ends_the_run_and_the_next_run_works() -> None:
    def full(position: int, result: Result[int]) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run_chunks(total, [[1], [2], [3]], workers=2, done=full)
    assert run_chunks(total, [[1]], workers=2) == [Result(1)]


@pytest.mark.parametrize(("backend", "module"), [("ray", "ray"), ("dask", "distributed")])
def test_an_extra_that_is_missing_is_named_with_the_command(backend: str, module: str) -> None:
    if importlib.util.find_spec(module) is not None:
        pytest.skip(f"{module} is installed")
    with pytest.raises(MissingExtraError, match=rf"pip install 'qlib_llm_alpha\[{backend}\]'"):
        run_chunks(total, [[1]], backend=backend, workers=2)  # type: ignore[arg-type]


@pytest.mark.parametrize(("backend", "module"), [("ray", "ray"), ("dask", "distributed")])
@pytest.mark.slow
def test_a_cluster_gives_the_same_sums_and_survives_a_killer(backend: str, module: str) -> None:
    pytest.importorskip(module)
    chunks = [list(range(n, n + 3)) for n in range(5)]
    expected = [Result(sum(chunk)) for chunk in chunks]
    assert run_chunks(total, chunks, backend=backend, workers=2) == expected  # type: ignore[arg-type]
    deadly = functools.partial(always_killed, deadly=(2,))
    results = run_chunks(deadly, [[n] for n in range(4)], backend=backend, workers=2)  # type: ignore[arg-type]
    assert [result.value for result in results] == [0, 10, None, 30]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"backend": "spark", "workers": 2}, "'spark' is not known"),
        ({"workers": 0}, "workers is 0"),
        ({"workers": 1, "retries": -1}, "retries is -1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(setting: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_chunks(total, [[1]], **setting)  # type: ignore[arg-type]


def small_panel(folder: Path) -> tuple[TiledPanel, Path]:
    random = np.random.default_rng(1)
    days = np.datetime64("2020-01-01") + np.arange(400)
    close = 10 * np.exp(np.cumsum(random.normal(0, 0.02, (400, 40)), axis=0))
    values = {"$close": close, "$volume": random.lognormal(10, 1, (400, 40))}
    panel = TiledPanel.from_arrays(days, [f"N{n:02d}" for n in range(40)], values)
    return panel, save_panel(panel, ["$close", "$volume"], folder / "panel")


CANDIDATES = [f"Mean($close,{n})/$close" for n in range(2, 8)] + [f"Std($volume,{n})" for n in range(5, 8)]


def test_candidates_screened_in_chunks_have_the_scores_of_one_screening(tmp_path: Path) -> None:
    panel, folder = small_panel(tmp_path)
    label = parse("Ref($close,-2)/Ref($close,-1)-1", allow_future=True)
    expected = screen(CANDIDATES, panel, prepare_label(label, panel))
    for backend in ("loky", "threading"):
        results = screen_chunks(CANDIDATES, folder, label, chunk=4, backend=backend, workers=2)  # type: ignore[arg-type]
        assert [len(result.value or []) for result in results] == [4, 4, 1]
        found = [one for result in results for one in result.value or []]
        assert [one.candidate for one in found] == CANDIDATES
        for one, other in zip(found, expected, strict=True):
            assert one.stage == other.stage == "scored"
            assert one.ic == other.ic
            assert one.rank_ic == other.rank_ic


def test_workers_fill_one_cache_from_which_everybody_reads(tmp_path: Path) -> None:
    _, folder = small_panel(tmp_path)
    formulas = [parse(text) for text in CANDIDATES]
    results = fill_cache(formulas, folder, tmp_path / "cache", chunk=5, workers=2)
    assert [result.value for result in results] == [CacheReport(computed=10), CacheReport(computed=8)]
    _, report = evaluate_and_report(formulas, open_saved_panel(folder), ColumnCache(tmp_path / "cache"))
    assert report == CacheReport(read=18)


def test_two_processes_that_compute_the_same_columns_at_once_do_not_harm_each_other(tmp_path: Path) -> None:
    panel, folder = small_panel(tmp_path)
    formulas = [parse(text) for text in CANDIDATES]
    results = fill_cache(formulas * 4, folder, tmp_path / "cache", chunk=len(formulas), workers=2)
    assert not any(result.failed for result in results)
    found, report = evaluate_and_report(formulas, open_saved_panel(folder), ColumnCache(tmp_path / "cache"))
    assert report == CacheReport(read=18)
    np.testing.assert_array_equal(found.values, evaluate(formulas, panel).values)
    assert not list((tmp_path / "cache").rglob("*.tmp"))
