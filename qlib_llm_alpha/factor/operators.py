"""The one table of operators: what the language knows, each row checked against Qlib's own classes by a test.

Every other module reads this table and names no operator that it could look up. To add an operator, add a row; if stock
Qlib has no class of that name, give ``stock`` (the same thing in Qlib's operators) or set ``ours`` and write the kernel
in ``engine/kernels/``: its class for Qlib is made of the row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

ArgumentKind = Literal[
    "series",  # any formula
    "varying",  # a formula in which a field occurs
    "boolean",  # a comparison, or And/Or/Not of comparisons
    "number",  # a number written out
    "count",  # a whole number written out, from 2 to 100
    "fraction",  # a number written out, from 0 to 1
    "tail",  # a number written out, from 0 to 0.5
    "window",  # a whole number of bars, at least `min_window`
    "shift",  # a whole number of bars; negative reads the future
    "period",  # a reporting period as Qlib writes it: 2019, or 201903 for a third quarter
    "group",  # a field that holds a group code
    "instrument",  # an instrument code in quotes
]

UnitRule = Literal[
    "same",  # the unit of the first series
    "join",  # all series must agree; that unit
    "compare",  # all series must agree; a yes or no
    "boolean",  # a yes or no
    "ratio",  # anything in, a plain ratio out
    "pure",  # only plain ratios in, a plain ratio out
    "product",
    "quotient",
    "inverse",
    "power",
    "root",
    "square",
    "choose",  # the last two must agree; that unit
]

Lookback = Literal["none", "window", "shift", "decay", "slow_decay", "reported"]

Price: TypeAlias = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Operator:
    """One row of the table.

    Parameters
    ----------
    name : str
        As written in front of ``(``; for all but ours this is also the name of Qlib's class.
    arguments : tuple of (str, ArgumentKind)
        Name and kind of each argument.
    unit : UnitRule
        How the unit of the result follows from the units of the series.
    lookback : Lookback
        Bars needed before the day beyond those of the arguments, for window N: ``none`` 0, ``window`` N - 1,
        ``shift`` N, ``decay`` 3N (an exponential mean then has forgotten all but 0.25 percent), ``slow_decay``
        3(2N - 1) likewise, ``reported``: counted in reporting periods, so no bars at all.
    summary : str
        One line for people and for prompts.
    infix : str
        The sign that is printed between two arguments, or empty.
    precedence : int
        Of ``infix``, as in Python; higher binds tighter.
    min_window : int
        Smallest window for which the result is defined.
    commutes : int
        So many first arguments may change places.
    associative : bool
        ``f(f(a,b),c)`` equals ``f(a,f(b,c))``.
    even : bool
        ``f(-x)`` equals ``f(x)``.
    elementwise : bool
        The value of a day depends on that day alone, so a shift may go inside.
    cross_sectional : bool
        Reads all instruments of the day: stock Qlib cannot evaluate it, our dataset provider can.
    stock : str
        The same thing in other operators of the table (arguments as ``$name``), where Qlib lacks the class or has its
        numbers wrong. Empty: printed under its own name.
    ours : bool
        Qlib lacks the class and the engine has the kernel; ``qlib_llm_alpha.ops.ours`` makes a class for Qlib of both.
    price : (float, float)
        Nanoseconds of the engine for one day of one instrument: fixed, and for each bar of the window. Without the
        arguments; of a row with a stock form that the engine has no faster way for, the whole form.
    """

    name: str
    arguments: tuple[tuple[str, ArgumentKind], ...]
    unit: UnitRule
    summary: str
    lookback: Lookback = "none"
    infix: str = ""
    precedence: int = 0
    min_window: int = 1
    commutes: int = 0
    associative: bool = False
    even: bool = False
    elementwise: bool = False
    cross_sectional: bool = False
    stock: str = ""
    ours: bool = False
    price: Price = (0.2, 0.0)

    @property
    def signature(self) -> str:
        """The call as documented, such as ``Mean(x, N)``."""
        return f"{self.name}({', '.join(name for name, _ in self.arguments)})"

    def bars_back(self, window: int) -> int:
        """Return how many bars before the day the operator reads beyond those of its arguments."""
        return _BARS_BACK[self.lookback](window)


_BARS_BACK: Final[dict[Lookback, Callable[[int], int]]] = {
    "none": lambda n: 0,
    "reported": lambda n: 0,
    "window": lambda n: n - 1,
    "shift": lambda n: n,
    "decay": lambda n: 3 * n,
    "slow_decay": lambda n: 3 * (2 * n - 1),
}


def _arguments(text: str) -> tuple[tuple[str, ArgumentKind], ...]:
    """Return the arguments for a row's shorthand; ``v`` and ``w`` are an x and a y that vary."""
    kinds: dict[str, tuple[str, ArgumentKind]] = {
        "x": ("x", "series"),
        "y": ("y", "series"),
        "v": ("x", "varying"),
        "w": ("y", "varying"),
        "a": ("a", "boolean"),
        "b": ("b", "boolean"),
        "lo": ("lo", "number"),
        "hi": ("hi", "number"),
        "p": ("p", "number"),
        "n": ("n", "count"),
        "q": ("q", "fraction"),
        "tail": ("q", "tail"),
        "N": ("N", "window"),
        "d": ("N", "shift"),
        "period": ("period", "period"),
        "g": ("group", "group"),
        "code": ("code", "instrument"),
    }
    return tuple(kinds[word] for word in text.split())


def _infix(name: str, sign: str, precedence: int, unit: UnitRule, summary: str, *, commutes: bool = False) -> Operator:
    arguments = "a b" if unit == "boolean" else "x y"
    return Operator(
        name,
        _arguments(arguments),
        unit,
        summary,
        infix=sign,
        precedence=precedence,
        commutes=2 if commutes else 0,
        associative=unit == "boolean",
        elementwise=True,
        price=(0.2, 0.0),
    )


def _elementwise(
    name: str,
    arguments: str,
    unit: UnitRule,
    summary: str,
    *,
    stock: str = "",
    commutes: int = 0,
    even: bool = False,
    ours: bool = False,
    price: Price = (0.2, 0.0),
) -> Operator:
    return Operator(
        name,
        _arguments(arguments),
        unit,
        summary,
        stock=stock,
        ours=ours,
        commutes=commutes,
        associative=commutes == 2,
        even=even,
        elementwise=True,
        price=price,
    )


def _rolling(
    name: str,
    unit: UnitRule,
    summary: str,
    price: Price,
    *,
    arguments: str = "v N",
    at_least: int = 1,
    commutes: int = 0,
    even: bool = False,
    ours: bool = False,
) -> Operator:
    return Operator(
        name,
        _arguments(arguments),
        unit,
        summary,
        lookback="window",
        min_window=at_least,
        commutes=commutes,
        even=even,
        ours=ours,
        price=price,
    )


def _cross(name: str, arguments: str, unit: UnitRule, summary: str, price: float) -> Operator:
    return Operator(name, _arguments(arguments), unit, summary, cross_sectional=True, price=(price, 0.0))


_ROWS: Final[tuple[Operator, ...]] = (
    _infix("Or", "|", 2, "boolean", "one of two comparisons holds", commutes=True),
    _infix("And", "&", 3, "boolean", "two comparisons hold", commutes=True),
    _infix("Gt", ">", 1, "compare", "x > y"),
    _infix("Ge", ">=", 1, "compare", "x >= y"),
    _infix("Lt", "<", 1, "compare", "x < y"),
    _infix("Le", "<=", 1, "compare", "x <= y"),
    _infix("Eq", "==", 1, "compare", "x == y", commutes=True),
    _infix("Ne", "!=", 1, "compare", "x != y", commutes=True),
    _infix("Add", "+", 4, "join", "x + y", commutes=True),
    _infix("Sub", "-", 4, "join", "x - y"),
    _infix("Mul", "*", 5, "product", "x * y", commutes=True),
    _infix("Div", "/", 5, "quotient", "x / y"),
    _elementwise("Power", "x y", "power", "x to the power of y", price=(2.0, 0.0)),
    _elementwise("Neg", "x", "same", "-x", stock="-1*$x"),
    _elementwise("Not", "a", "boolean", "the comparison does not hold"),
    _elementwise("Abs", "x", "same", "absolute value", even=True),
    _elementwise("Sign", "x", "ratio", "-1, 0 or 1", price=(0.2, 0.0)),
    _elementwise("Log", "x", "ratio", "natural logarithm", price=(0.4, 0.0)),
    _elementwise("Sqrt", "x", "root", "square root", stock="Power($x,0.5)", price=(0.2, 0.0)),
    _elementwise("Exp", "x", "pure", "e to the power of x", stock="Power(2.718281828459045,$x)", price=(0.5, 0.0)),
    _elementwise(
        "Tanh",
        "x",
        "pure",
        "hyperbolic tangent",
        stock="1-2/(Power(2.718281828459045,2*$x)+1)",
        price=(0.5, 0.0),
    ),
    _elementwise("Reciprocal", "x", "inverse", "1 / x", stock="1/$x"),
    _elementwise(
        "SignedPower", "x p", "power", "Sign(x) * |x|^p", stock="Sign($x)*Power(Abs($x),$p)", price=(1.5, 0.0)
    ),
    _elementwise(
        "Clip", "x lo hi", "same", "x held between two numbers", stock="Less(Greater($x,$lo),$hi)", price=(0.8, 0.0)
    ),
    _elementwise("Greater", "x y", "join", "the larger of two, day by day", commutes=2),
    _elementwise("Less", "x y", "join", "the smaller of two, day by day", commutes=2),
    _elementwise(
        "If",
        "a x y",
        "choose",
        "x where the comparison holds, else y (also where an input is missing)",
        price=(0.5, 0.0),
    ),
    Operator("Ref", _arguments("v d"), "same", "the value N bars ago", "shift"),
    Operator(
        "Delta",
        _arguments("v d"),
        "same",
        "x minus its value N bars ago",
        lookback="shift",
        stock="$x-Ref($x,$N)",
        price=(0.2, 0.0),
    ),
    _rolling("Mean", "same", "mean of N bars", (0.65, 0.0)),
    _rolling("Sum", "same", "sum of N bars", (0.7, 0.0)),
    _rolling("Std", "same", "sample standard deviation of N bars", (1.0, 0.0), at_least=2, even=True),
    _rolling("Var", "square", "sample variance of N bars", (0.9, 0.0), at_least=2, even=True),
    _rolling("Skew", "ratio", "skewness of N bars", (1.5, 0.0), at_least=3),
    _rolling("Kurt", "ratio", "excess kurtosis of N bars", (1.6, 0.0), at_least=4, even=True),
    _rolling("Max", "same", "largest of N bars", (0.4, 0.0)),
    _rolling("Min", "same", "smallest of N bars", (0.4, 0.0)),
    _rolling("Med", "same", "median of N bars", (3.5, 0.11)),
    _rolling("Mad", "same", "mean absolute deviation of N bars", (3.4, 0.055), even=True),
    _rolling("Rank", "ratio", "rank of today among the last N bars of the same instrument, 0 to 1", (0.5, 0.06)),
    _rolling("Count", "ratio", "number of bars of N that have a value", (0.2, 0.0)),
    _rolling("IdxMax", "ratio", "position of the largest of N bars, 1 for the oldest", (0.45, 0.0)),
    _rolling("IdxMin", "ratio", "position of the smallest of N bars, 1 for the oldest", (0.45, 0.0)),
    _rolling("Slope", "same", "slope per bar of a line through N bars", (0.9, 0.0), at_least=2),
    _rolling("Rsquare", "ratio", "R squared of a line through N bars", (0.9, 0.0), at_least=2),
    _rolling("Resi", "same", "today's distance from a line through N bars", (0.9, 0.0), at_least=2),
    _rolling("Quantile", "same", "quantile q of N bars", (3.5, 0.11), arguments="v N q"),
    Operator(
        "EMA",
        _arguments("v N"),
        "same",
        "exponential mean, weight of today 2/(N+1)",
        lookback="decay",
        price=(0.4, 0.0),
    ),
    Operator(
        "Wilder",
        _arguments("v N"),
        "same",
        "Wilder's exponential mean, weight of today 1/N",
        lookback="slow_decay",
        stock="EMA($x,2*$N-1)",
        price=(0.4, 0.0),
    ),
    _rolling(
        "DecayLinear",
        "same",
        "mean of N bars with weights N, N-1, ..., 1, today the heaviest",
        (1.0, 0.0),
        ours=True,
    ),
    _rolling(
        "Entropy",
        "ratio",
        "entropy of the values of N bars in 8 equal bins, 0 to 1",
        (20.0, 0.85),
        at_least=2,
        ours=True,
    ),
    _rolling("Corr", "ratio", "correlation of two over N bars", (2.6, 0.0), arguments="v w N", at_least=2, commutes=2),
    _rolling("Cov", "product", "covariance of two over N bars", (1.7, 0.0), arguments="v w N", at_least=2, commutes=2),
    Operator("P", _arguments("v"), "same", "a reported item as known on the day", lookback="reported"),
    Operator(
        "PRef", _arguments("v period"), "same", "a reported item of one period as known on the day", lookback="reported"
    ),
    Operator("ChangeInstrument", _arguments("code v"), "same", "the formula for another instrument, such as an index"),
    _cross("CSRank", "v", "ratio", "rank among the day's instruments, above 0 to 1, ties averaged", 12.5),
    _cross("CSZScore", "v", "ratio", "distance from the day's mean in standard deviations", 3.3),
    _cross("CSDemean", "v", "same", "distance from the day's mean", 2.5),
    _cross("CSScale", "v", "ratio", "divided by the day's sum of absolute values", 1.7),
    _cross("CSWinsorize", "v tail", "same", "held between the day's quantiles q and 1-q", 8.5),
    _cross("CSQuantile", "v q", "same", "the day's quantile q, the same for all instruments", 5.0),
    _cross("CSBucket", "v n", "ratio", "number of the day's n equally filled buckets, 1 for the smallest to n", 12.5),
    _cross("CSNeutralize", "v g", "same", "distance from the mean of the instrument's group that day", 6.0),
    _cross("CSGroupRank", "v g", "ratio", "rank within the instrument's group that day", 16.0),
    _cross("CSGroupZScore", "v g", "ratio", "distance from the group's mean in its standard deviations", 8.0),
    _cross("CSResidual", "v w", "same", "distance from the day's least-squares line of x on y", 6.0),
)

OPERATORS: Final[dict[str, Operator]] = {row.name: row for row in _ROWS}

REFUSED: Final[dict[str, str]] = {
    "WMA": "Qlib's WMA divides by the number of bars once too often; write DecayLinear(x, N)",
}
"""Operators of Qlib whose numbers are not what the name says: reason ``wrong_numbers``."""

WITHHELD: Final[dict[str, str]] = {
    "Rolling": "it is the parent class of the windowed operators; write one of them, such as Mean(x, N)",
    "Feature": "write $name",
    "PFeature": "write P($$name)",
    "TResample": "it fails on daily data, which Qlib indexes by position",
    "Mask": "it is ChangeInstrument without quotes; write ChangeInstrument('SH000300', x)",
}
"""Operators of Qlib that are left out, and what to write: reason ``unknown_operator``."""

ALIASES: Final[dict[str, str]] = {
    "Delay": "Ref(x, N)",
    "DELAY": "Ref(x, N)",
    "Shift": "Ref(x, N)",
    "SMA": "Mean(x, N)",
    "MA": "Mean(x, N)",
    "Avg": "Mean(x, N)",
    "Median": "Med(x, N)",
    "Stdev": "Std(x, N)",
    "StdDev": "Std(x, N)",
    "Pow": "Power(x, y)",
    "Maximum": "Greater(x, y)",
    "Minimum": "Less(x, y)",
    "Where": "If(condition, x, y)",
    "IIf": "If(condition, x, y)",
    "TsRank": "Rank(x, N), the rank in time",
    "Ts_Rank": "Rank(x, N), the rank in time",
    "ZScore": "CSZScore(x) across instruments, or (x-Mean(x, N))/Std(x, N) in time",
    "RMA": "Wilder(x, N)",
    "DecayedLinear": "DecayLinear(x, N)",
    "Decay_Linear": "DecayLinear(x, N)",
    "LinearDecay": "DecayLinear(x, N)",
    "Inv": "Reciprocal(x)",
    "Ln": "Log(x)",
    "Correlation": "Corr(x, y, N)",
    "Covariance": "Cov(x, y, N)",
    "IndNeutralize": "CSNeutralize(x, $industry)",
    "QCut": "CSBucket(x, n)",
    "Bucket": "CSBucket(x, n)",
    "RegressResi": "CSResidual(x, y) across instruments, or Resi(x, N) in time",
}
"""Names that formulas from elsewhere use, for the hint of ``unknown_operator``."""
