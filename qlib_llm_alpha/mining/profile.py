"""What a set of formulas looks like, so that random ones can be made that look the same and differ in merit alone.

A null that is simpler, slower or built of other operators than what it is compared with answers another question:
it would credit a miner for writing longer formulas, or for trading less.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.factor.expression import Call, Expression, Field, Node, Number
from qlib_llm_alpha.factor.operators import OPERATORS
from qlib_llm_alpha.factor.tree import walk
from qlib_llm_alpha.library.factor_set import load_factor_set

Pattern: TypeAlias = tuple[float | int | None, ...]
"""The numbers among the arguments of one call; None where a formula, a field or a code stands."""

_WINDOWS = ("window", "shift")


@dataclass(frozen=True)
class Profile:
    """Size, operators, numbers, fields and turnover of a set of formulas. Make one with :meth:`of`.

    Parameters
    ----------
    shapes : tuple of (depth, nodes)
        Of each formula.
    operators : mapping of str to float
        Share of each operator among the calls of a formula, averaged over formulas; long formulas count no more than
        short ones. Sums to 1.
    fields : mapping of str to float
        The same for fields.
    patterns : mapping of str to tuple of Pattern
        The numbers that each operator was written with: windows, shifts, exponents, constants. Once for each formula
        in which they occur.
    cross_sectional : float
        Share of formulas that read all instruments of the day.
    turnovers : tuple of float
        Mean daily turnover of each formula that has one, sorted; empty when they were not given.
    """

    shapes: tuple[tuple[int, int], ...]
    operators: Mapping[str, float]
    fields: Mapping[str, float]
    patterns: Mapping[str, tuple[Pattern, ...]] = field(repr=False)
    cross_sectional: float
    turnovers: tuple[float, ...] = ()

    @classmethod
    def of(cls, expressions: Iterable[Expression], turnovers: Sequence[float] | None = None) -> Profile:
        """Describe formulas.

        Parameters
        ----------
        expressions : iterable of Expression
            At least one that is more than a field.
        turnovers : sequence of float, optional
            Mean daily turnover of each, as :class:`~qlib_llm_alpha.engine.tile_scoring.DailyScores` gives it by day;
            NaN left out.

        Raises
        ------
        ConfigError
            No formula with an operator.
        """
        known = tuple(expressions)
        if not any(isinstance(expression.root, Call) for expression in known):
            raise ConfigError(f"{len(known)} formulas without an operator; expected one at least; give a factor set")
        roots = [expression.root for expression in known]
        return cls(
            shapes=tuple((expression.depth, expression.nodes) for expression in known),
            operators=operator_shares(roots),
            fields=_mean_shares([_fields(root) for root in roots]),
            patterns=_patterns(roots),
            cross_sectional=sum(expression.is_cross_sectional for expression in known) / len(known),
            turnovers=tuple(sorted(float(value) for value in turnovers or () if np.isfinite(value))),
        )

    @cached_property
    def windows(self) -> tuple[int, ...]:
        """Windows and shifts of all operators, sorted, each as often as it was written."""
        return tuple(
            sorted(
                int(number)
                for name, patterns in self.patterns.items()
                for pattern in patterns
                for number, (_, kind) in zip(pattern, OPERATORS[name].arguments, strict=True)
                if kind in _WINDOWS and number is not None
            )
        )


@cache
def default_profile(name: str = "seed_bars") -> Profile:
    """Return the profile of a builtin factor set in its scale-free form, without turnovers."""
    return Profile.of([factor.expression for factor in load_factor_set(name).factors])


def operator_shares(roots: Iterable[Node]) -> dict[str, float]:
    """Return the share of each operator among the calls of a tree, averaged over trees that have any."""
    return _mean_shares([Counter(node.op for node in walk(root) if isinstance(node, Call)) for root in roots])


def match_turnover(
    turnovers: Sequence[float] | NDArray[np.float64], target: Sequence[float], count: int, *, seed: int
) -> NDArray[np.intp]:
    """Choose candidates so that their turnover is distributed as a given one.

    ``count`` evenly spaced quantiles of ``target`` are visited in random order, and each takes the candidate next to it
    that is still free. The more candidates there are, the closer the match: three to five for each one chosen are
    usual. Where the candidates do not reach, neither does the choice: look at :func:`turnover_distance`.

    Parameters
    ----------
    turnovers : array, (K,)
        Mean daily turnover of each candidate; one that is NaN is never chosen.
    target : sequence of float
        Turnovers to follow, such as ``Profile.turnovers``.
    count : int
        How many to choose.
    seed : int
        Of the order of the visits.

    Returns
    -------
    array, (count,) int
        Positions of the chosen, increasing.

    Raises
    ------
    ConfigError
        No target, or fewer than ``count`` candidates with a turnover.
    """
    values = np.asarray(turnovers, dtype=np.float64)
    wanted = np.asarray(target, dtype=np.float64)
    wanted = wanted[np.isfinite(wanted)]
    known = np.flatnonzero(np.isfinite(values))
    if not len(wanted):
        raise ConfigError(f"target has {len(target)} turnovers and no number; give those of the formulas to match")
    if not 0 <= count <= len(known):
        raise ConfigError(
            f"count is {count!r}, and {len(known)} of {len(values)} candidates have a turnover; expected at most that "
            "many; propose more"
        )
    free = known[np.argsort(values[known], kind="stable")].tolist()
    quantiles = np.quantile(wanted, (np.arange(count) + 0.5) / count) if count else np.empty(0)
    chosen = []
    for quantile in np.random.default_rng(seed).permutation(quantiles):
        place = int(np.searchsorted(values[free], quantile))
        if place == len(free) or (place > 0 and quantile - values[free[place - 1]] <= values[free[place]] - quantile):
            place -= 1
        chosen.append(free.pop(place))
    return np.sort(np.array(chosen, dtype=np.intp))


def turnover_distance(
    left: Sequence[float] | NDArray[np.float64], right: Sequence[float] | NDArray[np.float64]
) -> float:
    """Return the largest distance of the two distribution functions, 0 to 1 (Kolmogorov-Smirnov); NaN left out."""
    one, two = (np.sort(np.asarray(side, dtype=np.float64)) for side in (left, right))
    one, two = one[np.isfinite(one)], two[np.isfinite(two)]
    if not len(one) or not len(two):
        raise ConfigError(f"{len(one)} and {len(two)} turnovers are known; expected one of each at least; score more")
    at = np.concatenate([one, two])
    shares = [np.searchsorted(side, at, side="right") / len(side) for side in (one, two)]
    return float(np.abs(shares[0] - shares[1]).max())


def _fields(root: Node) -> Counter[str]:
    return Counter(node.name for node in walk(root) if isinstance(node, Field))


def _mean_shares(counts: Sequence[Counter[str]]) -> dict[str, float]:
    shares: dict[str, float] = {}
    there = [counter for counter in counts if counter]
    for counter in there:
        for name, number in counter.items():
            shares[name] = shares.get(name, 0.0) + number / counter.total() / len(there)
    return dict(sorted(shares.items()))


def _patterns(roots: Sequence[Node]) -> dict[str, tuple[Pattern, ...]]:
    found: dict[str, list[Pattern]] = {}
    for root in roots:
        written = dict.fromkeys(
            (node.op, tuple(argument.value if isinstance(argument, Number) else None for argument in node.args))
            for node in walk(root)
            if isinstance(node, Call)
        )
        for name, pattern in written:
            found.setdefault(name, []).append(pattern)
    return {name: tuple(patterns) for name, patterns in sorted(found.items())}
