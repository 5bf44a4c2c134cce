"""``qlib-llm-alpha warmup``: says what it does, does it once, does all of it, and does not mind company."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = "import sys; from qlib_llm_alpha.cli import main; sys.exit(main())"

pytestmark = pytest.mark.slow


def begin(cache: Path, *call: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *call],
        cwd=ROOT,
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_first_run_says_what_it_does_and_the_second_compiles_nothing(tmp_path: Path) -> None:
    first = begin(tmp_path, "-c", RUN, "warmup")
    out, said = first.communicate(timeout=900)
    assert first.returncode == 0, said
    assert "what this machine lacks is compiled now, once" in said
    assert "compiled " in out
    assert any(tmp_path.rglob("*.nbi"))
    again = begin(tmp_path, "-c", RUN, "warmup")
    out, said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    assert "nothing to compile" in out


def test_two_that_fill_one_empty_cache_at_once_both_succeed_and_the_cache_is_good(tmp_path: Path) -> None:
    both = [begin(tmp_path, "-c", RUN, "warmup") for _ in range(2)]
    ends = [process.communicate(timeout=900) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    assert sorted("nothing to compile" in out for out, _ in ends) == [False, True], "one compiles, the other waits"
    assert sum("another process is compiling" in said for _, said in ends) == 1
    third = begin(tmp_path, "-c", RUN, "warmup")
    out, said = third.communicate(timeout=300)
    assert third.returncode == 0, said
    assert "nothing to compile" in out


def test_after_a_warm_up_nothing_that_the_engine_does_compiles_more(small_provider: Path) -> None:
    """In a process of its own, where no other test has called a kernel: no kernel meets types that are new to it."""
    code = f"from tests.cli.test_warmup import types_beyond; print(*types_beyond({str(small_provider)!r}), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def types_beyond(provider: str) -> list[str]:
    """Warm up, call all that uses kernels, and return what met types that the warm-up did not."""
    import qlib

    from qlib_llm_alpha.engine.warmup import warm_up

    warm_up()
    known, found = signatures(), list[str]()
    for step in (_operators, _sets_and_scores, _saved_panel):
        step(provider)
        found += _new(known, step.__name__)
    qlib.init(
        provider_uri=provider,
        region="cn",
        kernels=1,
        dataset_provider={
            "class": "PanelDatasetProvider",
            "module_path": "qlib_llm_alpha.data.provider",
            "kwargs": {"qlib_window": True},
        },
    )
    _through_qlib()
    return found + _new(known, "provider")


def signatures() -> dict[str, set[str]]:
    """Return for each compiled function of ours the types that it was called with."""
    from numba.core.dispatcher import Dispatcher

    found: dict[str, set[str]] = {}
    for one in gc.get_objects():
        if isinstance(one, Dispatcher) and one.py_func.__module__.startswith("qlib_llm_alpha."):
            name = f"{one.py_func.__module__}.{one.py_func.__qualname__}:{one.py_func.__code__.co_firstlineno}"
            found[name] = set(map(str, one.signatures))
    return found


def _new(known: dict[str, set[str]], what: str) -> list[str]:
    now = signatures()
    return [f"{what}: {name} {new}" for name, types in now.items() for new in types - known.get(name, set())]


SAMPLES = {
    "number": "2",
    "count": "5",
    "fraction": "0.3",
    "tail": "0.1",
    "window": "7",
    "shift": "2",
    "group": "$industry",
    "instrument": "'SH000300'",
}
SERIES = (
    ("$close", "$open"),
    ("Mean($close,5)", "Std($open,4)"),
    ("$close/$open-1", "Mean($open,5)"),
    ("Ref($close>$open,1)", "$close"),
    ("($close>$open)", "($high>$low)"),
)


def _operators(provider: str) -> None:
    import numpy as np

    from qlib_llm_alpha.data.bars import open_panel
    from qlib_llm_alpha.engine.evaluate import Batch, evaluate
    from qlib_llm_alpha.engine.execution import Cells
    from qlib_llm_alpha.factor.limits import Limits
    from qlib_llm_alpha.factor.operators import OPERATORS
    from qlib_llm_alpha.factor.parser import read

    members = open_panel(provider, "csi300")
    everybody = open_panel(provider, list(members.instruments))
    for panel in (members, everybody, members.window(100, 400)):
        for one in OPERATORS.values():
            if one.lookback == "reported":
                continue
            for pair in SERIES:
                series = iter(pair)
                arguments = [
                    "($close>$open)" if kind == "boolean" else SAMPLES.get(kind) or next(series)
                    for _, kind in one.arguments
                ]
                if one.name == "Clip":
                    arguments[2] = "3"
                tree = read(f"{one.name}({','.join(arguments)})", Limits())
                batch = _or_none(lambda tree=tree, panel=panel: Batch([tree], panel, threads=1))
                if batch is not None:
                    cells = Cells.by_instrument(np.ones(panel.shape[::-1], dtype=np.bool_))
                    _or_none(lambda batch=batch, cells=cells: batch.write_cells(cells, _empty(len(cells))))
                    _or_none(lambda tree=tree, panel=panel: evaluate([tree], panel, threads=2))
    evaluate([read("P($$eps_q)/$close", Limits()), read("CSRank(P($$eps_q))", Limits())], members)


def _empty(cells: int):
    import numpy as np

    return np.empty((1, cells), dtype=np.float32)


def _or_none(call):
    """Not every operator takes every kind of series."""
    from qlib_llm_alpha.errors import ExpressionError

    try:
        return call()
    except (ExpressionError, NotImplementedError):
        return None


def _sets_and_scores(provider: str) -> None:
    from qlib_llm_alpha.data.bars import open_panel
    from qlib_llm_alpha.data.formula_values import formula_frame, formula_scores
    from qlib_llm_alpha.engine.evaluate import evaluate
    from qlib_llm_alpha.engine.funnel import prepare_label, screen
    from qlib_llm_alpha.engine.tile_scoring import Pool, UnitRows, exact_correlation, score_horizons
    from qlib_llm_alpha.factor.expression import parse
    from qlib_llm_alpha.library.formula_file import read_formulas

    label = parse("Ref($close,-2)/Ref($close,-1)-1", allow_future=True)
    formulas, _ = read_formulas("alpha158")
    formula_frame(formulas, provider, "csi300", start="2021-01-04", warmup="strict")
    formula_scores(formulas[:40], provider, "csi300", label, start="2020-06-01", end="2021-03-01")
    panel = open_panel(provider, "all")
    expressions = [one.expression for one in formulas[:3] if one.expression is not None]
    columns = evaluate(expressions, panel, budget=1_000_000).values
    ready = prepare_label(label, panel)
    rows = UnitRows.of(columns, ready.universe)
    screen(expressions, panel, ready, pool=Pool.empty().add("one", rows))
    score_horizons(columns, {2: ready, 3: ready})
    exact_correlation(columns[0], columns[1], ready.universe)


def _saved_panel(provider: str) -> None:
    import tempfile

    from qlib_llm_alpha.data.bars import open_panel
    from qlib_llm_alpha.engine.cache import ColumnCache, cached_evaluate
    from qlib_llm_alpha.engine.panel_store import open_saved_panel, save_panel
    from qlib_llm_alpha.factor.expression import parse

    expressions = [parse(text) for text in ("Mean($close,5)/$close", "CSRank($close)", "Corr($close,$open,9)")]
    with tempfile.TemporaryDirectory() as folder:
        panel = open_saved_panel(save_panel(open_panel(provider, "csi300"), ["$close", "$open"], Path(folder) / "a"))
        cache = ColumnCache(Path(folder) / "cache")
        cached_evaluate(expressions, panel.window(0, 300), cache)
        cached_evaluate(expressions, panel, cache)


def _through_qlib() -> None:
    from qlib.contrib.data.handler import Alpha158
    from qlib.data import D

    Alpha158(instruments="csi300", start_time="2020-06-01", end_time="2021-03-01")
    texts = ["EMA($close,10)", "Mean(CSRank($close),5)", "Mask($close,'SH000300')", "WMA($close,5)", "Max($close,0)"]
    D.features(D.instruments("csi300"), texts, "2020-06-01", "2021-03-01")
