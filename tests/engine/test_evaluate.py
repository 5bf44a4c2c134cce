from __future__ import annotations

import sys

import numpy as np
import pytest

from qlib_llm_alpha.engine.evaluate import evaluate
from qlib_llm_alpha.engine.execution import Cells
from qlib_llm_alpha.engine.tiles import TiledPanel
from qlib_llm_alpha.errors import ExpressionError, PanelError
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.factor.limits import Limits
from qlib_llm_alpha.factor.parser import read

DAYS, NAMES = 60, 70
CODES = [f"SH{600000 + number}" for number in range(NAMES)]


def panel(**settings: object) -> TiledPanel:
    rng = np.random.default_rng(4)
    values = {name: rng.normal(10, 1, (DAYS, NAMES)) for name in ("$close", "$open", "$volume")}
    return TiledPanel.from_arrays(np.arange(DAYS).astype("datetime64[D]"), CODES, values, **settings)  # type: ignore[arg-type]


def values_of(text: str, market: TiledPanel, **settings: object) -> np.ndarray:
    return evaluate([read(text, Limits())], market, **settings).dense(0)  # type: ignore[arg-type]


def test_one_formula_is_the_same_alone_in_a_batch_and_on_two_threads() -> None:
    texts = ["Mean($close,5)/$open", "Std($close,5)", "Mean($close,5)", "CSRank($close)-Mean(CSRank($close),3)"]
    market = panel()
    together = evaluate([read(text, Limits()) for text in texts], market, threads=2)
    for place, text in enumerate(texts):
        np.testing.assert_array_equal(together.dense(place), values_of(text, market, threads=1))


def test_columns_of_many_different_spans_are_shared_by_threads() -> None:
    rng = np.random.default_rng(5)
    names = [f"$f{number}" for number in range(16)]
    spans = {code: (int(rng.integers(0, 20)), DAYS) for code in CODES}
    values = {name: rng.normal(size=(DAYS, NAMES)) for name in names}
    text = f"CSRank({'+'.join(f'Mean({name},3)' for name in names)})"
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(5):
            market = TiledPanel.from_arrays(np.arange(DAYS).astype("datetime64[D]"), CODES, values, spans=spans)
            first = values_of(text, market, threads=2)
            np.testing.assert_array_equal(first, values_of(text, market, threads=1))
    finally:
        sys.setswitchinterval(before)


def test_a_small_budget_changes_nothing_but_the_memory() -> None:
    texts = [f"Mean(CSRank(Mean($close,{window})),2)" for window in range(2, 9)] + ["$close/$open", "CSDemean($open)"]
    market = panel()
    trees = [read(text, Limits()) for text in texts]
    np.testing.assert_array_equal(evaluate(trees, market, budget=1).values, evaluate(trees, market).values)


def test_a_strict_warm_up_counts_from_the_first_close() -> None:
    close = np.full((DAYS, NAMES), 10.0) + np.arange(DAYS)[:, None]
    close[:7, 0] = np.nan
    days = np.arange(DAYS).astype("datetime64[D]")
    market = TiledPanel.from_arrays(days, CODES, {"$close": close, "$volume": np.ones((DAYS, NAMES))})
    for text in ("Mean($close,5)", "Mean($volume,5)"):
        found = evaluate([parse(text)], market, warmup="strict").dense(0)
        assert np.isnan(found[:11, 0]).all()
        assert not np.isnan(found[11:, 0]).any()
        assert np.isnan(found[:4, 1]).all()
        assert not np.isnan(found[4:, 1]).any()


def test_a_strict_warm_up_of_a_bare_tree_is_refused() -> None:
    with pytest.raises(PanelError, match="knows its look-back"):
        evaluate([read("$close", Limits())], panel(), warmup="strict")


def test_an_output_of_another_shape_is_refused() -> None:
    with pytest.raises(PanelError, match="expected"):
        evaluate([read("$close", Limits())], panel(), out=np.empty((1, 1, DAYS, 32), dtype=np.float32))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("$close+Power(9,Power(9,8))", "bad_number"),
        ("$close*Power(10,400)", "bad_number"),
        ("If($close>1,Power(-1,0.5),$close)", "bad_number"),
        ("$close+1/0", "bad_number"),
        ("Mean($close,99999999999999999999)", "bad_window"),
        ("Mean($close,2.5)", "bad_window"),
        ("Mean($close,-3)", "bad_window"),
        ("Ref($close,1.5)", "bad_window"),
        ("EMA($close,-1)", "bad_window"),
        ("Skew($close,2)", "bad_window"),
        ("Mean($close)", "arity"),
        ("Mean($close,5,6)", "arity"),
        ("Mean(5,3)", "bad_argument"),
        ("Mean($close,$open)", "bad_argument"),
        ("($close>$open)-($close>1)", "bad_argument"),
        ("And($close,$open)", "bad_argument"),
        ("1+2", "constant"),
        ("Log(5)+$close", "constant"),
        ("Nothing($close)", "unknown_operator"),
        ("ChangeInstrument('SH600001',CSRank($close))", "misplaced"),
        ("ChangeInstrument($close,$close)", "bad_argument"),
        ("$close+'SH600001'", "bad_argument"),
    ],
)
def test_what_cannot_be_computed_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(ExpressionError) as refused:
        values_of(text, panel())
    assert refused.value.reason == reason


def test_cells_by_day_are_those_by_instrument_in_another_order() -> None:
    wanted = np.random.default_rng(6).random((NAMES, DAYS)) < 0.6
    by_instrument, by_day = Cells.by_instrument(wanted), Cells.by_day(wanted)
    assert len(by_instrument) == len(by_day) == wanted.sum()
    assert by_day.places is not None
    day, code = np.nonzero(wanted.T)
    seen = np.empty((len(by_day), 2), dtype=int)
    tile = np.repeat(np.arange(len(by_day.starts) - 1), np.diff(by_day.starts))
    seen[by_day.places] = np.stack([by_day.rows, tile * 32 + by_day.lanes], axis=1)
    np.testing.assert_array_equal(seen, np.stack([day, code], axis=1))
