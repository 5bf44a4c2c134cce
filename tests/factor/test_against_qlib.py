"""The operator table against Qlib's own classes, and what we print against what Qlib computes."""

from __future__ import annotations

import inspect
import itertools
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from qlib.contrib.data.loader import Alpha158DL, Alpha360DL
from qlib.data import ops as qlib_ops
from qlib.data.base import Expression as QlibExpression
from qlib.data.pit import P, PRef
from qlib.utils import parse_field

import qlib_llm_alpha.ops.ours as own_ops
from qlib_llm_alpha.errors import ExpressionError
from qlib_llm_alpha.factor.expression import expression_of, parse
from qlib_llm_alpha.factor.operators import OPERATORS, REFUSED, WITHHELD, Operator
from qlib_llm_alpha.factor.tree import Call, Node, walk
from tests.factor.trees import series

QLIB = {cls.__name__: cls for cls in [*qlib_ops.OpsList, P, PRef]}
ALPHA158 = Alpha158DL.get_feature_config()[0]
ALPHA360 = Alpha360DL.get_feature_config()[0]
DAYS = 120
_QUERIES = itertools.count()

EXAMPLES: dict[str, str] = {
    "N": "5",
    "lo": "9.5",
    "hi": "10.5",
    "p": "2",
    "n": "5",
    "q": "0.3",
    "a": "$close>$open",
    "b": "$high>Ref($close,1)",
    "x": "$close",
    "y": "$low",
    "group": "$industry",
    "code": "'SH000300'",
    "period": "201903",
}


def _bars() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    close = 10 * np.exp(np.cumsum(rng.normal(0, 0.02, DAYS)))
    bars = {
        "close": close,
        "open": close * np.exp(rng.normal(0, 0.01, DAYS)),
        "high": close * np.exp(rng.uniform(0, 0.02, DAYS)),
        "low": close * np.exp(-rng.uniform(0, 0.02, DAYS)),
        "vwap": close * 1.002,
        "volume": np.exp(rng.normal(13, 0.3, DAYS)),
        "change": np.r_[np.nan, close[1:] / close[:-1] - 1],
    }
    suspended = [17, 18, 60]
    for values in bars.values():
        values[suspended] = np.nan
    return {name: values.astype("float32") for name, values in bars.items()}


class Given(QlibExpression):
    """A feature whose values are handed in, so that no provider is needed."""

    def __init__(self, name: str, values: np.ndarray) -> None:
        self.name, self.values = name, values

    def __str__(self) -> str:
        return f"${self.name}"

    def _load_internal(self, instrument: str, start_index: int, end_index: int, *args: object) -> pd.Series:
        return pd.Series(self.values[start_index : end_index + 1], index=range(start_index, end_index + 1))

    def get_longest_back_rolling(self) -> int:
        return 0

    def get_extended_window_size(self) -> tuple[int, int]:
        return 0, 0


class Registry:
    """Qlib's operators and ours, and features of given bars."""

    def __init__(self, bars: dict[str, np.ndarray]) -> None:
        self.Feature = lambda name: Given(name, bars[name])

    def __getattr__(self, name: str) -> type:
        return QLIB[name] if name in QLIB else getattr(own_ops, name)


def qlib_values(text: str, bars: dict[str, np.ndarray], start: int = 0) -> np.ndarray:
    """Return what Qlib makes of ``text``, the way its provider does it; each query has its own cache key."""
    names = {"Operators": Registry(bars), "__builtins__": {}}
    node = eval(parse_field(text.replace(" ", "")), names)  # noqa: S307 - this is what Qlib does
    series = node.load(f"query{next(_QUERIES)}", start, len(bars["close"]) - 1, "day")
    return np.asarray(series, dtype="float64")


def example(row: Operator) -> str:
    arguments = [EXAMPLES[name] for name, _ in row.arguments]
    if row.unit == "pure" or row.name in ("Power", "SignedPower"):
        arguments[0] = "$close/$open-1"
    if row.lookback == "reported":
        arguments[0] = "$$eps_q"
    if row.name == "Power":
        arguments[1] = "2"
    return f"{row.name}({','.join(arguments)})"


EVALUABLE = [
    row
    for row in OPERATORS.values()
    if not row.cross_sectional and row.lookback != "reported" and row.name != "ChangeInstrument"
]


def test_every_operator_of_qlib_is_in_the_table_or_refused_with_a_hint() -> None:
    assert set(QLIB) == {name for name in QLIB if name in OPERATORS or name in REFUSED or name in WITHHELD}
    assert set(REFUSED) | set(WITHHELD) <= set(QLIB)
    assert not (set(REFUSED) | set(WITHHELD)) & set(OPERATORS)


@pytest.mark.parametrize("row", OPERATORS.values(), ids=lambda row: row.name)
def test_an_operator_is_qlibs_or_ours_or_spelt_in_qlibs_or_cross_sectional(row: Operator) -> None:
    ways = [row.name in QLIB, row.ours, bool(row.stock), row.cross_sectional]
    assert sum(ways) == 1 + (row.name in QLIB and bool(row.stock))
    if row.ours or row.cross_sectional:
        assert issubclass(getattr(own_ops, row.name), QlibExpression)
    if row.name in QLIB:
        parameters = [name for name in inspect.signature(QLIB[row.name].__init__).parameters if name != "self"]
        assert len(parameters) == len(row.arguments)


@pytest.mark.parametrize("row", OPERATORS.values(), ids=lambda row: row.name)
def test_every_operator_can_be_written_and_says_what_it_reads(row: Operator) -> None:
    expression = parse(example(row))
    assert parse(str(expression)) == expression
    assert expression.fields
    assert row.summary
    assert row.signature.startswith(f"{row.name}(")


@pytest.mark.parametrize("row", OPERATORS.values(), ids=lambda row: row.name)
def test_what_is_printed_for_qlib_uses_only_operators_that_it_finds(row: Operator) -> None:
    text = parse(example(row)).qlib
    found = set(QLIB) | {operator.__name__ for operator in own_ops.OPERATORS}
    assert set(re.findall(r"([A-Za-z]\w*)\(", text)) <= found


@pytest.mark.parametrize("row", EVALUABLE, ids=lambda row: row.name)
def test_qlib_evaluates_every_operator_to_numbers(row: Operator) -> None:
    values = qlib_values(parse(example(row)).qlib, _bars())
    assert values.shape == (DAYS,)
    assert np.isfinite(values).sum() > 100


@pytest.mark.parametrize("row", EVALUABLE, ids=lambda row: row.name)
def test_no_operator_reads_the_future(row: Operator) -> None:
    text = parse(example(row)).qlib
    poisoned = _bars()
    for values in poisoned.values():
        values[81:] = 1e6
    # Not to the last bit: pandas 2.2 centres rolling skewness and kurtosis on the whole column.
    np.testing.assert_allclose(qlib_values(text, _bars())[:81], qlib_values(text, poisoned)[:81], rtol=1e-5)


@pytest.mark.parametrize("row", EVALUABLE, ids=lambda row: row.name)
def test_the_look_back_is_enough_and_not_more_than_needed(row: Operator) -> None:
    expression = parse(example(row))
    full = qlib_values(expression.qlib, _bars())[-1]
    cut = qlib_values(expression.qlib, _bars(), start=DAYS - 1 - expression.lookback)[-1]
    tolerance = 0.003 if row.lookback in ("decay", "slow_decay") else 1e-5
    assert cut == pytest.approx(full, rel=tolerance)
    if row.lookback in ("window", "shift") and row.name not in ("Min", "Max", "IdxMin", "IdxMax", "Med", "Rank"):
        short = qlib_values(expression.qlib, _bars(), start=DAYS - expression.lookback)[-1]
        assert short != pytest.approx(full, rel=1e-7)


REFERENCES = {
    "Sqrt($close/$open)": lambda b: np.sqrt(b["close"] / b["open"]),
    "Exp($close/$open)": lambda b: np.exp(b["close"] / b["open"]),
    "Tanh($close/$open-1)": lambda b: np.tanh(b["close"] / b["open"] - 1),
    "Tanh(50*$close/$open)": lambda b: np.tanh(50 * b["close"] / b["open"]),
    "Tanh(-500*$close/$open)": lambda b: np.tanh(-500 * b["close"] / b["open"]),
    "Reciprocal($close)": lambda b: 1 / b["close"],
    "-$close": lambda b: -b["close"],
    "-($close-$open)*2": lambda b: -(b["close"] - b["open"]) * 2,
    "Clip($close,9.5,10)": lambda b: np.clip(b["close"], 9.5, 10),
    "SignedPower($close/$open-1,0.5)": lambda b: (
        np.sign(b["close"] / b["open"] - 1) * np.sqrt(np.abs(b["close"] / b["open"] - 1))
    ),
    "Delta($close,3)": lambda b: b["close"] - np.r_[np.full(3, np.nan), b["close"][:-3]],
    "$close*Log(2)": lambda b: b["close"] * np.log(2),
    "($close>$open)+($high>$open)": lambda b: (b["close"] > b["open"]) * 1.0 + (b["high"] > b["open"]),
    "($close>$open)-($close<$open)": lambda b: (b["close"] > b["open"]) * 1.0 - (b["close"] < b["open"]),
    "-($close>$open)": lambda b: -1.0 * (b["close"] > b["open"]),
    "Power(1+($close>$open),-1)": lambda b: 1 / (1.0 + (b["close"] > b["open"])),
    "Ref($close>$open,1)": lambda b: np.r_[np.nan, 1.0 * (b["close"] > b["open"])[:-1]],
    "Delta($close>$open,1)": lambda b: np.r_[np.nan, np.diff(1.0 * (b["close"] > b["open"]))],
    "If($close>$open,$high>$open,$low>$open)-1": lambda b: (
        np.where(b["close"] > b["open"], b["high"] > b["open"], b["low"] > b["open"]) - 1.0
    ),
    "Log(1+($close>$open))": lambda b: np.log(1.0 + (b["close"] > b["open"])),
    "(($close>$open)|($low>$open))&Not($high<$open)": lambda b: (
        ((b["close"] > b["open"]) | (b["low"] > b["open"])) & ~(b["high"] < b["open"])
    ),
}


@pytest.mark.parametrize("text", REFERENCES)
def test_qlib_computes_from_our_text_what_numpy_computes_from_the_formula(text: str) -> None:
    bars = _bars()
    with np.errstate(invalid="ignore"):
        expected = np.asarray(REFERENCES[text](bars), dtype="float64")
    np.testing.assert_allclose(qlib_values(parse(text).qlib, bars), expected, rtol=2e-5, atol=2e-6)


def test_wilder_is_the_recursion_of_its_author() -> None:
    close = _bars()["close"].astype("float64")
    close[np.isnan(close)] = 10.0
    smoothed = close[0]
    for value in close[1:]:
        smoothed += (value - smoothed) / 14
    # Started from the first value rather than from weights that sum to 1, which wears off.
    bars = {"close": np.r_[np.full(2000, close[0]), close]}
    assert qlib_values(parse("Wilder($close,14)").qlib, bars)[-1] == pytest.approx(smoothed, rel=1e-9)


@pytest.mark.parametrize("text", ALPHA158 + ALPHA360)
def test_alpha158_and_alpha360_are_accepted_and_printed_as_they_are(text: str) -> None:
    expression = parse(text)
    assert expression.qlib == text.replace(" ", "")
    assert str(expression) == text.replace(" ", "")
    assert expression.lookback <= 60
    assert expression.lookahead == 0


def test_no_two_factors_of_alpha158_are_the_same_up_to_algebra() -> None:
    assert len({parse(text).id for text in ALPHA158}) == 158
    assert len({parse(text).id for text in ALPHA360}) == 360


def test_the_label_of_alpha158_is_accepted_as_a_label_only() -> None:
    label = parse("Ref($close, -2)/Ref($close, -1) - 1", allow_future=True)
    assert (label.lookback, label.lookahead) == (0, 2)
    assert label.qlib == "Ref($close,-2)/Ref($close,-1)-1"


def test_the_operators_of_a_tree_are_rows_of_the_table() -> None:
    for text in ALPHA158:
        assert all(node.op in OPERATORS for node in walk(parse(text).root) if isinstance(node, Call))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(series(4, leaves=("$open", "$high", "$low", "$close", "$vwap", "$volume", "$change"), everything=False))
def test_qlib_evaluates_whatever_the_checks_let_pass(root: Node) -> None:
    try:
        expression = expression_of(root, units="warn")
    except ExpressionError as error:
        assume(error.reason not in ("bad_number", "lookback_limit", "too_many_nodes"))
        raise
    with np.errstate(all="ignore"):
        assert qlib_values(expression.qlib, _bars()).shape == (DAYS,)
