"""Random formulas: the null that a miner has to beat, and the simplest miner there is.

A formula is grown from the top: each place knows the unit that it has to deliver, so that a price never meets a volume
and the whole is a plain ratio. It does not change when the prices or volumes of an instrument are rescaled.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal, TypeAlias

import numpy as np

from qlib_llm_alpha.errors import ConfigError, ExpressionError
from qlib_llm_alpha.factor import units
from qlib_llm_alpha.factor.expression import Call, Expression, Field, Limits, Node, Number, expression_of
from qlib_llm_alpha.factor.fields import DAILY, GROUPS, REPORTED
from qlib_llm_alpha.factor.operators import OPERATORS, ArgumentKind, Operator
from qlib_llm_alpha.factor.units import RATIO, Unit
from qlib_llm_alpha.mining.profile import Pattern, Profile, default_profile, operator_shares

_LOG = logging.getLogger(__name__)

Kind: TypeAlias = Unit | Literal["boolean"]
"""What a place has to deliver: a quantity of some unit, or a yes or no."""

_BOOLEAN: Final[Literal["boolean"]] = "boolean"
_FORMULAS: Final = ("series", "varying", "boolean")
_TRIES: Final = 20
"""Attempts for each formula that is asked for; in practice fewer than two are needed."""

_CALIBRATION: Final = 250
_ROUNDS: Final = 5
"""Trees grown in a round of setting the weights of operators, and rounds."""

_LARGEST_TREE: Final = 40
"""Nodes of these trees: beyond, shares of operators hardly change."""

_DEFAULT_LIMITS: Final = Limits()
_NUMBERS: Final[dict[ArgumentKind, tuple[float, ...]]] = {
    "window": (5, 10, 20, 60),
    "shift": (1, 5, 10, 20),
    "number": (-1, -0.5, 0.5, 1, 2),
    "count": (2, 3, 5, 10),
    "fraction": (0.1, 0.2, 0.5, 0.8, 0.9),
    "tail": (0.01, 0.05, 0.1),
}
"""For operators that the profile never saw."""

_EXPONENTS: Final = (0.5, 2)
_EARLY: Final = 1.0
"""Weight of a division where a ratio is wanted, next to all other operators together."""

_PLAIN: Final = 0.3
_ODD_UNIT: Final = 0.02
"""Weights of plain ratios, and of units that no field has, next to those of fields, which sum to 1."""

_DRAWS: Final = 8
"""Operators tried at one place of a tree for one that leaves the right number of nodes to the rest."""

_TWINS: Final = 6
"""Attempts to have the arguments of a call differ."""


class RandomFormulas:
    """Draw random formulas that look like those of a profile.

    Depth and number of nodes are drawn from the formulas of the profile, operators by their share there, windows and
    constants as they were written there, fields by their share among those that are given. What operators can follow
    one another is decided by units and kinds alone.

    Parameters
    ----------
    fields : sequence of str
        Columns to build from, with their sigil: ``$close``, ``$volume``, ``$$eps_q``, ``$industry`` to group by. A
        field that the factor language does not know counts as a plain ratio.
    operators : collection of str, optional
        Names from the table of operators to build from; default those of the profile. One that the profile never saw
        is drawn as often as the rarest there.
    profile : Profile, optional
        What to look like; default :func:`~qlib_llm_alpha.mining.profile.default_profile`.
    seed : int
        The same seed and arguments give the same formulas in the same order, however they are split over calls.
    windows : sequence of int, optional
        Bars of windows and shifts, each as likely; default those of the profile, by operator.
    cross_sectional : bool
        Let formulas read all instruments of the day, in at most the profile's share of them.
    limits : Limits
        How large a formula may be.

    Raises
    ------
    ConfigError
        An unknown operator, a window that is none, or fields and operators of which no plain ratio can be made.

    Notes
    -----
    A value dated t reads bars up to the close of t. Cross-sectional operators and logarithms are applied to plain
    ratios only, and numbers are added to and compared with plain ratios only: else the result would change with the
    scale of an instrument's prices.
    """

    def __init__(
        self,
        fields: Sequence[str],
        *,
        operators: Collection[str] | None = None,
        profile: Profile | None = None,
        seed: int,
        windows: Sequence[int] | None = None,
        cross_sectional: bool = True,
        limits: Limits = _DEFAULT_LIMITS,
    ) -> None:
        self.profile = default_profile() if profile is None else profile
        self._limits = limits
        self._more = tuple(name for name in fields if name not in DAILY and name not in REPORTED and name not in GROUPS)
        chosen = _chosen(self.profile, operators)
        self._share = self.profile.cross_sectional if cross_sectional else 0.0
        numbers = _Numbers(self.profile, windows)
        plain = _Grammar(fields, {n: w for n, w in chosen.items() if not OPERATORS[n].cross_sectional}, self.profile)
        # Drawn for a share of the formulas only, and in those the more often.
        crossing = {n: w / self._share if OPERATORS[n].cross_sectional else w for n, w in chosen.items() if self._share}
        whole = _Grammar(fields, crossing, self.profile) if self._share > 0 else plain
        if RATIO not in plain.least:
            raise ConfigError(
                f"no plain ratio can be made of the fields {list(fields)!r} with {sorted(chosen)!r}; expected, for "
                "example, a price and a division; give more fields or operators"
            )
        calibration, drawing = np.random.default_rng(seed).spawn(2)
        for grammar in dict.fromkeys((plain, whole)):
            _calibrate(grammar, numbers, self.profile, calibration)
        self._plain, self._whole = (_Grower(grammar, numbers, drawing) for grammar in (plain, whole))
        self._rng = drawing
        self._proposed: set[str] = set()

    def propose(self, count: int, *, known: Collection[str] = ()) -> list[Expression]:
        """Return new formulas.

        Parameters
        ----------
        count : int
            How many.
        known : collection of str
            Ids of formulas that must not be among them, besides those proposed before.

        Returns
        -------
        list of Expression
            Distinct by canonical id and accepted by the checks of the factor language. Fewer than ``count`` when that
            many could not be found, as when fields and operators allow only a handful; the log says so.
        """
        found: list[Expression] = []
        tries = 0
        while len(found) < count and tries < _TRIES * max(count, 10):
            tries += 1
            expression = self._one()
            if expression is None or expression.id in self._proposed or expression.id in known:
                continue
            self._proposed.add(expression.id)
            found.append(expression)
        if len(found) < count:
            _LOG.warning(
                "only %d of %d formulas found in %d tries; give more fields or operators", len(found), count, tries
            )
        return found

    def _one(self) -> Expression | None:
        crossing = self._rng.random() < self._share
        grower = self._whole if crossing else self._plain
        depth, nodes = self.profile.shapes[int(self._rng.random() * len(self.profile.shapes))]
        try:
            return expression_of(grower.formula(depth, nodes), limits=self._limits, fields=self._more)
        except ExpressionError:
            return None  # fields that cancel, windows that pile up beyond the limits: drawn anew


class _Numbers:
    """The numbers that operators are written with."""

    def __init__(self, profile: Profile, windows: Sequence[int] | None) -> None:
        if windows is not None and (not windows or any(int(bars) != bars or bars < 1 for bars in windows)):
            raise ConfigError(f"windows={windows!r}; expected whole numbers of bars from 1 on, such as (5, 10, 20)")
        self.windows = None if windows is None else tuple(int(bars) for bars in windows)
        self.patterns = profile.patterns
        self.pooled = tuple(int(bars) for bars in profile.windows if bars > 1)

    def draw(self, row: Operator, rng: np.random.Generator) -> Pattern:
        """Return a pattern: numbers, and None where a formula has to stand."""
        written = self.patterns.get(row.name)
        pattern = written[int(rng.random() * len(written))] if written else self._invented(row, rng)
        if self.windows is None:
            return pattern
        return tuple(
            self._window(kind, row, rng) if kind in ("window", "shift") else number
            for number, (_, kind) in zip(pattern, row.arguments, strict=True)
        )

    def _invented(self, row: Operator, rng: np.random.Generator) -> Pattern:
        numbers: list[float | int | None] = []
        for _, kind in row.arguments:
            if kind == "window" and self.pooled:
                numbers.append(max(row.min_window, self.pooled[int(rng.random() * len(self.pooled))]))
            elif kind in _NUMBERS:
                numbers.append(_NUMBERS[kind][int(rng.random() * len(_NUMBERS[kind]))])
            else:
                numbers.append(None)
        # Two numbers of one row are bounds: the lower first, and never the same.
        bounds = [place for place, (_, kind) in enumerate(row.arguments) if kind == "number"]
        if len(bounds) > 1:
            drawn = sorted(rng.choice(_NUMBERS["number"], size=len(bounds), replace=False).tolist())
            for place, number in zip(bounds, drawn, strict=True):
                numbers[place] = number
        return tuple(numbers)

    def _window(self, kind: ArgumentKind, row: Operator, rng: np.random.Generator) -> int:
        if not self.windows:
            raise ConfigError("no windows to draw from; expected whole numbers of bars")
        bars = self.windows[int(rng.random() * len(self.windows))]
        # A window of one bar is the bar itself.
        return bars if kind == "shift" else max(2, row.min_window, bars)


class _Grammar:
    """Which operator can deliver which unit, how deep the tree below has to be, and how often each is drawn.

    Parameters
    ----------
    fields : sequence of str
    weights : mapping of str to float
        Names of operators.
    profile : Profile
        How often each field is drawn.
    """

    def __init__(self, fields: Sequence[str], weights: dict[str, float], profile: Profile) -> None:
        self.leaves = _leaves(fields, profile)
        self.groups = tuple(name for name in fields if name in GROUPS)
        self.rows = tuple(
            row for row in (OPERATORS[name] for name in weights) if self.groups or "group" not in _kinds(row)
        )
        self.weights = dict(weights)
        ordinary = [RATIO, *self.leaves]
        products = [units.product(one, two) for one in self.leaves for two in self.leaves]
        self.units: tuple[Unit, ...] = tuple(dict.fromkeys([*ordinary, *products]))
        self.ordinary = tuple(dict.fromkeys(ordinary))
        shares = {unit: sums[-1] for unit, (_, sums) in self.leaves.items()}
        self.unit_weights: dict[Kind, float] = {
            **{unit: share / sum(shares.values()) for unit, share in shares.items()},
            RATIO: _PLAIN,
            _BOOLEAN: 1.0,
        }
        self._fitting: dict[tuple[str, Kind, int], tuple[list[tuple[Kind, ...]], list[float]]] = {}
        self.least: dict[Kind, int] = self._least_depths()
        self._drawn: dict[tuple[Kind, int, bool], tuple[list[Operator], list[float]]] = {}

    def inputs(self, row: Operator, wanted: Kind) -> list[tuple[Kind, ...]]:
        """Return the kinds that the formulas of a row may have for it to deliver ``wanted``; () where nothing can."""
        formulas = [kind for kind in _kinds(row) if kind in _FORMULAS]
        count, rule = len(formulas), row.unit
        if rule in ("compare", "boolean"):
            # A comparison is also a ratio, 0 or 1.
            if wanted not in (_BOOLEAN, RATIO):
                return []
            return [(_BOOLEAN,) * count] if rule == "boolean" else [(unit,) * count for unit in self.ordinary]
        if wanted == _BOOLEAN:
            return []
        if row.cross_sectional or rule == "pure" or (rule == "ratio" and row.elementwise):
            return [(RATIO,) * count] if wanted == RATIO else []
        if rule == "ratio":
            return _free(count, self.ordinary) if wanted == RATIO else []
        if rule == "same":
            # A number written out, such as a bound, fits a plain ratio alone.
            return [(wanted,) * count] if wanted == RATIO or "number" not in _kinds(row) else []
        if rule == "join":
            return [(wanted,) * count]
        if rule == "choose":
            return [(_BOOLEAN,) + (wanted,) * (count - 1)]
        if rule == "product":
            return [(one, units.product(wanted, one, -1)) for one in self.units]
        if rule == "quotient":
            return [(units.product(wanted, one), one) for one in self.units]
        if rule == "inverse":
            return [(units.product(RATIO, wanted, -1),)]
        if rule == "root":
            return [(units.power(wanted, 2),)]
        if rule == "square":
            return [(units.power(wanted, 0.5),)]
        return [(wanted,) * count] if wanted == RATIO else []  # a power changes the unit of all but plain ratios

    def fitting(self, row: Operator, wanted: Kind, depth: int) -> tuple[list[tuple[Kind, ...]], list[float]]:
        """Return those inputs that trees of at most ``depth`` can deliver, and the running sum of their weights."""
        key = (row.name, wanted, depth)
        if key not in self._fitting:
            found = [
                kinds for kinds in self.inputs(row, wanted) if all(self.least.get(kind, 99) <= depth for kind in kinds)
            ]
            weights = [min(self.unit_weights.get(kind, _ODD_UNIT) for kind in kinds) for kinds in found]
            self._fitting[key] = found, list(accumulate(weights))
        return self._fitting[key]

    def candidates(self, wanted: Kind, depth: int, *, top: bool) -> tuple[list[Operator], list[float]]:
        """Return the rows for a place of a tree and the running sum of their weights."""
        key = (wanted, depth, top)
        if key not in self._drawn:
            rows = [
                row
                for row in self.rows
                if not (top and row.unit in ("compare", "boolean")) and self.fitting(row, wanted, depth - 1)[0]
            ]
            weights = [self.weights[row.name] for row in rows]
            if wanted == RATIO:
                # Divide early: below a division of prices stand prices, which need no division of their own.
                others = sum(weight for row, weight in zip(rows, weights, strict=True) if row.unit != "quotient")
                weights = [
                    max(weight, _EARLY * others) if row.unit == "quotient" else weight
                    for row, weight in zip(rows, weights, strict=True)
                ]
            self._drawn[key] = rows, list(accumulate(weights))
        return self._drawn[key]

    def reweigh(self, weights: dict[str, float]) -> None:
        self.weights = weights
        self._drawn.clear()

    def _least_depths(self) -> dict[Kind, int]:
        """Return the smallest depth of a tree for each unit that can be had."""
        least: dict[Kind, int] = {unit: 1 for unit in self.leaves}
        self.least = least
        for depth in range(2, 8):
            wanted: Iterable[Kind] = [kind for kind in (*self.units, _BOOLEAN) if kind not in least]
            new = [kind for kind in wanted if any(self.fitting(row, kind, depth - 1)[0] for row in self.rows)]
            least.update(dict.fromkeys(new, depth))
            self._fitting.clear()
        return least


@dataclass(frozen=True, slots=True)
class _Grower:
    """Grow trees of a given depth and about a given number of nodes."""

    grammar: _Grammar
    numbers: _Numbers
    rng: np.random.Generator

    def formula(self, depth: int, nodes: int) -> Node:
        depth = max(depth, self.grammar.least[RATIO], 2)
        return self._grow(RATIO, depth, max(nodes, depth), top=True)

    def _grow(self, wanted: Kind, depth: int, nodes: int, *, top: bool = False) -> Node:
        rows, sums = self.grammar.candidates(wanted, depth, top=top)
        if wanted != _BOOLEAN and (depth <= 1 or not rows):
            return self._leaf(wanted)
        fits: list[tuple[int, Operator, Pattern, tuple[Kind, ...], int]] = []
        for _ in range(_DRAWS):
            row = rows[min(bisect_right(sums, self.rng.random() * sums[-1]), len(rows) - 1)]
            pattern, kinds = self._filled(row, wanted, depth)
            extra = self._room(row, kinds, depth, nodes)
            # Too few nodes left, or more than the formulas below could use: draw another operator.
            most = len(kinds) * 2 ** (depth - 1)
            misfit = max(-extra, extra - most, 0)
            fits.append((misfit, row, pattern, kinds, extra))
            if not misfit:
                break
        _, row, pattern, kinds, extra = min(fits, key=lambda fit: fit[0])
        return self._call(row, pattern, kinds, extra, depth)

    def _filled(self, row: Operator, wanted: Kind, depth: int) -> tuple[Pattern, tuple[Kind, ...]]:
        """Return the numbers of a call, and the kinds of the formulas that remain to be grown."""
        choices, sums = self.grammar.fitting(row, wanted, depth - 1)
        kinds = choices[min(bisect_right(sums, self.rng.random() * sums[-1]), len(choices) - 1)]
        pattern = self.numbers.draw(row, self.rng)
        places = [place for place, (_, kind) in enumerate(row.arguments) if kind in _FORMULAS]
        kept: list[float | int | None] = list(pattern)
        if row.unit == "power" and pattern[1] is None:
            kept[1] = _EXPONENTS[int(self.rng.random() * len(_EXPONENTS))]
        elif any(pattern[place] is not None for place in places):
            other = self._beside_number(row, wanted, pattern, places, depth)
            if other is not None:
                return pattern, other
            for place in places:
                kept[place] = None
        return tuple(kept), tuple(kind for place, kind in zip(places, kinds, strict=True) if kept[place] is None)

    def _beside_number(
        self, row: Operator, wanted: Kind, pattern: Pattern, places: list[int], depth: int
    ) -> tuple[Kind, ...] | None:
        """Return the kinds of the formulas beside a number; None where it must not stand there."""
        least = self.grammar.least
        if row.unit in ("product", "quotient"):
            inverse = row.unit == "quotient" and pattern[places[0]] is not None
            kind = units.product(RATIO, wanted, -1) if inverse and wanted != _BOOLEAN else wanted
        elif row.unit in ("join", "choose", "compare"):
            kind = RATIO if row.unit == "compare" else wanted
            if kind != RATIO and any(pattern[place] not in (None, 0) for place in places):
                return None
        else:
            kind = wanted
        if least.get(kind, 99) > depth - 1:
            return None
        kinds = [row.arguments[place][1] for place in places if pattern[place] is None]
        return tuple(_BOOLEAN if argument == "boolean" else kind for argument in kinds)

    def _room(self, row: Operator, kinds: tuple[Kind, ...], depth: int, nodes: int) -> int:
        """Return the nodes left when every formula of a call is as small as it can be and one is deep enough."""
        least = [self.grammar.least[kind] for kind in kinds]
        numbers = 1 + len(row.arguments) - len(kinds)
        return nodes - numbers - sum(least) - (depth - 1 - max(least))

    def _call(self, row: Operator, pattern: Pattern, kinds: tuple[Kind, ...], extra: int, depth: int) -> Node:
        rng, least = self.rng, self.grammar.least
        spine = int(rng.random() * len(kinds))  # the formula that makes the call as deep as it has to be
        cuts = sorted(rng.random() for _ in range(len(kinds) - 1))
        shares = [high - low for low, high in zip([0.0, *cuts], [*cuts, 1.0], strict=True)]
        grown: list[Node] = []
        for place, (kind, share) in enumerate(zip(kinds, shares, strict=True)):
            nodes = (depth - 1 if place == spine else least[kind]) + round(max(extra, 0) * share)
            deep = depth - 1
            if place != spine:
                low = min(max(least[kind], nodes.bit_length() - 1), depth - 1)
                deep = low + int(rng.random() * (max(min(depth - 1, nodes) - low, 0) + 1))
            one = self._grow(kind, deep, nodes)
            for again in range(_TWINS):
                if one not in grown:
                    break
                # x/x and x-x say nothing; where there is one field of a unit, x has to meet a formula of it.
                one = self._grow(kind, deep + again // 2, nodes + again)
            grown.append(one)
        formulas = iter(grown)
        arguments: list[Node] = []
        for number, (_, argument) in zip(pattern, row.arguments, strict=True):
            if number is not None:
                arguments.append(Number(number))
            elif argument == "group":
                arguments.append(Field(self.grammar.groups[int(rng.random() * len(self.grammar.groups))]))
            else:
                arguments.append(next(formulas))
        return Call(row.name, tuple(arguments))

    def _leaf(self, wanted: Unit) -> Node:
        names, sums = self.grammar.leaves[wanted]
        name = names[min(bisect_right(sums, self.rng.random() * sums[-1]), len(names) - 1)]
        return Call(_REPORT.name, (Field(name),)) if name.startswith("$$") else Field(name)


_REPORT: Final = next(row for row in OPERATORS.values() if row.lookback == "reported" and len(row.arguments) == 1)


def _chosen(profile: Profile, operators: Collection[str] | None) -> dict[str, float]:
    """Return the operators that can be drawn, with their weights."""
    names = profile.operators if operators is None else operators
    unknown = sorted(name for name in names if name not in OPERATORS)
    if unknown:
        raise ConfigError(f"operators {unknown!r} are unknown; expected names of the factor language; correct them")
    rarest = min(profile.operators.values())
    chosen = {name: profile.operators.get(name, rarest) for name in sorted(names)}
    return {name: weight for name, weight in chosen.items() if _can_be_drawn(OPERATORS[name])}


def _can_be_drawn(row: Operator) -> bool:
    # Reports are leaves; another instrument's formula is the same for all, or nearly.
    return row.lookback != "reported" and "instrument" not in _kinds(row)


def _kinds(row: Operator) -> tuple[ArgumentKind, ...]:
    return tuple(kind for _, kind in row.arguments)


def _free(count: int, ordinary: Sequence[Unit]) -> list[tuple[Kind, ...]]:
    found: list[tuple[Kind, ...]] = [()]
    for _ in range(count):
        found = [(*kinds, unit) for kinds in found for unit in ordinary]
    return found


def _leaves(fields: Sequence[str], profile: Profile) -> dict[Unit, tuple[list[str], list[float]]]:
    """Return the fields of each unit with the running sum of their weights."""
    if isinstance(fields, str) or any(not name.startswith("$") for name in fields):
        raise ConfigError(f"fields={fields!r}; expected a sequence of columns such as ['$close', '$volume']")
    rarest = min(profile.fields.values())
    by_unit: dict[Unit, list[str]] = {}
    for name in dict.fromkeys(fields):
        if name not in GROUPS:
            by_unit.setdefault(DAILY.get(name) or REPORTED.get(name) or RATIO, []).append(name)
    return {
        unit: (names, list(accumulate(profile.fields.get(name, rarest) for name in names)))
        for unit, names in by_unit.items()
    }


def _calibrate(grammar: _Grammar, numbers: _Numbers, profile: Profile, rng: np.random.Generator) -> None:
    """Turn the weights until trees hold each operator about as often as it was asked for.

    Units let some operators stand in few places only; drawn by their share alone, these would be too rare.
    """
    wanted = dict(grammar.weights)
    total = sum(wanted.values())
    grower = _Grower(grammar, numbers, rng)
    for _ in range(_ROUNDS):
        shapes = [profile.shapes[int(rng.random() * len(profile.shapes))] for _ in range(_CALIBRATION)]
        found = operator_shares([grower.formula(depth, min(nodes, _LARGEST_TREE)) for depth, nodes in shapes])
        grammar.reweigh(
            {
                name: weight * min(4.0, max(0.25, (wanted[name] / total) / max(found.get(name, 0.0), 1e-4)))
                for name, weight in grammar.weights.items()
            }
        )
