"""Operators of ours through `D.features` of stock Qlib, registered as a workflow names them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import qlib
from qlib.data import D

from qlib_llm_alpha.data.provider_files import write_calendar, write_feature, write_instruments
from qlib_llm_alpha.errors import ProviderError
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.ops.ours import OPERATORS
from tests.ops.test_ours import slow_decay_linear, slow_entropy

DAYS = np.arange("2021-03-01", "2021-04-30", dtype="datetime64[D]")
LISTED = {"SH600000": 0, "SZ000001": 20}


def closes() -> dict[str, np.ndarray]:
    """Return whole numbers with gaps, one array for each instrument, from its first day."""
    rng = np.random.default_rng(4)
    prices = {}
    for code, begins in LISTED.items():
        prices[code] = rng.integers(10, 60, len(DAYS) - begins).astype("float32")
        prices[code][[5, 6, 17]] = np.nan
    return prices


@pytest.fixture(scope="module", autouse=True)
def provider(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("provider")
    write_calendar(root, list(DAYS))
    write_instruments(root, "all", [(code, DAYS[begins], DAYS[-1]) for code, begins in LISTED.items()])
    for code, prices in closes().items():
        write_feature(root, code, "close", LISTED[code], prices)
    named = [{"class": operator.__name__, "module_path": "qlib_llm_alpha.ops.ours"} for operator in OPERATORS]
    qlib.init(provider_uri=str(root), region="cn", custom_ops=named, kernels=1)


def features(text: str, start: np.datetime64 = DAYS[0]) -> pd.Series:
    return D.features(list(LISTED), [parse(text).qlib], str(start), str(DAYS[-1]), disk_cache=0).iloc[:, 0]


@pytest.mark.parametrize(
    ("text", "slow", "window"),
    [("DecayLinear($close,7)", slow_decay_linear, 7), ("Entropy($close,9)", slow_entropy, 9)],
)
def test_qlib_loads_an_operator_of_ours_wherever_the_query_starts(text: str, slow: object, window: int) -> None:
    whole, late = features(text), features(text, DAYS[35])
    for code, prices in closes().items():
        expected = np.array(slow(prices.tolist(), window))  # type: ignore[operator]
        np.testing.assert_allclose(whole.loc[code], expected, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(late.loc[code], whole.loc[code].loc[str(DAYS[35]) :])


def test_operators_of_ours_nest_in_those_of_qlib_and_the_other_way_round() -> None:
    nested = features("Mean(DecayLinear(Delta($close,1),3),4)/Entropy(Std($close,5),6)")
    assert np.isfinite(nested).sum() > 70


def test_a_cross_section_in_stock_qlib_is_refused_with_the_provider_that_serves_it() -> None:
    with pytest.raises(ProviderError, match="PanelDatasetProvider"):
        features("Mean(CSRank($close),5)")
