"""Genetic programming over the trees of the factor language.

The fittest formulas so far are varied and crossed; what a part is put in place of has its unit, so that a price never
meets a volume and every child is a plain ratio again. Formulas at random come in with every generation, and nothing is
proposed twice, not even with its sign turned.
"""

from __future__ import annotations

import logging
import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Final, TypeAlias

import numpy as np

from qlib_llm_alpha.errors import ConfigError, ExpressionError
from qlib_llm_alpha.factor.canonical import canonical_text, identity
from qlib_llm_alpha.factor.expression import Call, Expression, Field, Limits, Node, Number, expression_of
from qlib_llm_alpha.factor.fields import DAILY, GROUPS, REPORTED
from qlib_llm_alpha.factor.operators import OPERATORS, Operator
from qlib_llm_alpha.factor.printing import lower
from qlib_llm_alpha.factor.units import RATIO
from qlib_llm_alpha.library.factor_set import load_factor_set
from qlib_llm_alpha.mining.candidates import Candidate
from qlib_llm_alpha.mining.exploring import Found
from qlib_llm_alpha.mining.profile import Profile
from qlib_llm_alpha.mining.random_formulas import Kind, RandomFormulas
from qlib_llm_alpha.mining.tree_units import Part, adjustment_matters, parts_of, replaced, unit_of

_LOG = logging.getLogger(__name__)

BATCH: Final = 100
LADDER: Final = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 40, 60, 90, 120, 180, 250)
"""Windows and shifts, in bars; a variation moves one of them by a step."""

_LIMITS: Final = Limits(depth=10, nodes=40, lookback=300)
_TRIES: Final = 12
"""Attempts for each child; after them a formula at random takes its place."""

_SHARES: Final = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
_TAILS: Final = (0.01, 0.02, 0.05, 0.1, 0.2)
_COUNTS: Final = (2, 3, 5, 10, 20)
_LEAVES: Final = 0.2
"""How often a part that is crossed or regrown is a field, next to 1 for a call."""

_DRAWN_AT_ONCE: Final = 20

Variation: TypeAlias = Callable[[Node, np.random.Generator], Node | None]


@dataclass(frozen=True)
class Breeding:
    """How parents are chosen and children made.

    Parameters
    ----------
    parents : int
        The fittest formulas of all generations that may have children.
    tournament : int
        Parents drawn for each place, of which the best has the child.
    near_tie : float
        Fitness, as a ``|t|``, by which a smaller formula may be behind a larger one and still win.
    alike : int
        Most parents with the same figures, to three digits: they are one formula in other words.
    family : int
        Most parents that come from the same first formula, so that no early success crowds out all others.
    crossover : float
        Share of children with two parents; the others have one and are varied.
    random : float
        Share of each generation that is formulas at random.

    Raises
    ------
    ConfigError
        Numbers that cannot mean anything.
    """

    parents: int = 100
    tournament: int = 4
    near_tie: float = 0.2
    alike: int = 1
    family: int = 6
    crossover: float = 0.35
    random: float = 0.3

    def __post_init__(self) -> None:
        if min(self.parents, self.tournament, self.alike, self.family) < 1 or self.near_tie < 0:
            raise ConfigError(f"{self}; expected whole numbers from 1 on, and near_tie from 0 on")
        if not (0 <= self.crossover <= 1 and 0 < self.random <= 1):
            raise ConfigError(f"{self}; expected crossover from 0 to 1, random above 0 and at most 1")


class GeneticProposer:
    """Breed formulas from those that did best so far.

    Parameters
    ----------
    fields : sequence of str
        Columns to build from, as for :class:`~qlib_llm_alpha.mining.random_formulas.RandomFormulas`.
    seed : int
    batch : int
        Formulas of a generation.
    ancestors : sequence of Expression
        Proposed first, but for those beyond the limits; the rest of the first generation is random.
    known : collection of str
        Ids of formulas that are never proposed, such as those of a library.
    operators, profile
        As for ``RandomFormulas``, of which the first generation and all new material are; the profile is by default
        :func:`wide_profile`. Where no operators are named, signs may be turned too.
    limits : Limits
        How large a formula may be; by default within the rules of admission.
    breeding : Breeding

    Raises
    ------
    ConfigError
        As for ``RandomFormulas``; a batch below 1.

    Notes
    -----
    The same seed and the same history give the same formulas. A generation is bred from the history as it is when the
    first of it is asked for, and a call never reaches into the next one, so that it does not matter in how many calls
    a generation is asked for. Formulas read bars up to the close of their day.

    Without any figures in the history, as in a search whose feedback is withheld, all that was proposed are parents
    alike.
    """

    name = "genetic"
    adaptive = True

    def __init__(
        self,
        fields: Sequence[str],
        *,
        seed: int,
        batch: int = BATCH,
        ancestors: Sequence[Expression] = (),
        known: Collection[str] = (),
        operators: Collection[str] | None = None,
        profile: Profile | None = None,
        limits: Limits = _LIMITS,
        breeding: Breeding | None = None,
    ) -> None:
        if batch < 1:
            raise ConfigError(f"batch is {batch!r}; expected at least 1; {BATCH} are usual")
        self.batch = batch
        self._seed = seed
        self._breeding = breeding or Breeding()
        self._limits = limits
        self._more = tuple(name for name in fields if name not in DAILY and name not in REPORTED and name not in GROUPS)
        self._ancestors = list(ancestors)
        self._known = set(known)
        profile = wide_profile() if profile is None else profile
        other = int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])
        self._random, material = (
            RandomFormulas(fields, operators=operators, profile=profile, seed=one, limits=limits)
            for one in (seed, other)
        )
        allowed = [*profile.operators, "Neg"] if operators is None else operators
        self._variations = _Variations(fields, allowed, material)
        self._founders: dict[str, str] = {}
        self._generation = 0
        self._waiting: list[Candidate] = []

    def propose(self, count: int, history: Sequence[Found]) -> list[Candidate]:
        """Return the next formulas of the generation, the first of a new one when it is used up.

        Parameters
        ----------
        count : int
        history : sequence of Found
            Everything scored so far, and all that is known of the data.

        Returns
        -------
        list of Candidate
            At most ``count``; fewer where a generation ends, none when no new formula could be found.
        """
        if count < 1:
            return []
        if not self._waiting:
            self._waiting = self._bred(history)
            self._generation += 1
        given, self._waiting = self._waiting[:count], self._waiting[count:]
        return given

    def _bred(self, history: Sequence[Found]) -> list[Candidate]:
        self._known.update(one.candidate.expression.id for one in history)
        rng = np.random.default_rng([self._seed, self._generation])
        born = [one for one in self._ancestors if self._accepted(one)] if self._generation == 0 else []
        parents = _Parents.of(history, self._breeding, self._founders)
        if parents.pool:
            children = self.batch - math.ceil(self._breeding.random * self.batch)
            born += [child for child in (self._child(parents, rng) for _ in range(children)) if child is not None]
        while len(born) < self.batch:
            more = self._random.propose(self.batch - len(born), known=self._known)
            born += [one for one in more if self._accepted(one)]
            if not more:
                break
        _LOG.debug("generation %d: %d formulas, %d parents", self._generation, len(born), len(parents.pool))
        return [Candidate(one, self.name) for one in born]

    def _child(self, parents: _Parents, rng: np.random.Generator) -> Expression | None:
        for _ in range(_TRIES):
            mother = parents.draw(rng).candidate.expression
            if rng.random() < self._breeding.crossover:
                made = crossed(mother.root, parents.draw(rng).candidate.expression.root, rng)
            else:
                made = self._variations.varied(mother.root, rng)
            child = None if made is None else self._checked(made)
            if child is not None and self._accepted(child):
                self._founders[child.id] = self._founders.get(mother.id, mother.id)
                return child
        return None

    def _checked(self, root: Node) -> Expression | None:
        try:
            return expression_of(root, limits=self._limits, fields=self._more)
        except ExpressionError:
            return None  # too large, or fields that cancel: another attempt

    def _accepted(self, formula: Expression) -> bool:
        """Say whether a formula is fit to be tried and neither it nor its negative was there, and remember it."""
        # The checks count the numbers of the last operator only when there is something after them.
        if formula.nodes > self._limits.nodes or "$" not in formula.canonical or adjustment_matters(formula.root):
            return False
        opposite = identity(canonical_text(lower(Call("Neg", (formula.root,)))))
        if formula.id in self._known or opposite in self._known:
            return False
        self._known.add(formula.id)
        return True


@cache
def wide_profile() -> Profile:
    """Return the profile of the seed library on bars and of Alpha158 together, without turnovers.

    Alpha158 adds operators, correlations among them, and windows.
    """
    formulas = [factor.expression for name in ("seed_bars", "alpha158") for factor in load_factor_set(name).factors]
    return Profile.of(formulas)


def crossed(mother: Node, father: Node, rng: np.random.Generator) -> Node | None:
    """Return a formula with one of its parts replaced by a part of another with the same unit; None without any."""
    place = _drawn_part(parts_of(mother), rng)
    if place is None:
        return None
    donors = [part for part in parts_of(father) if part.fits(place.kind) and part.node != place.node]
    donor = _drawn_part(donors, rng)
    return None if donor is None else replaced(mother, place.path, donor.node)


@dataclass(frozen=True)
class _Parents:
    """The fittest so far, best first."""

    pool: tuple[Found, ...]
    breeding: Breeding

    @classmethod
    def of(cls, history: Sequence[Found], breeding: Breeding, founders: Mapping[str, str]) -> _Parents:
        fit = [one for one in history if math.isfinite(one.fitness)]
        if not fit:
            return cls(tuple(one for one in history if not one.reason), breeding)
        fit.sort(key=lambda one: (-one.fitness, one.candidate.expression.nodes))
        kept: list[Found] = []
        same: Counter[tuple[str, ...]] = Counter()
        family: Counter[str] = Counter()
        for one in fit:
            figures = tuple(f"{value:.3g}" for value in (one.fitness, abs(one.rank_ic), one.coverage))
            founder = founders.get(one.candidate.expression.id, one.candidate.expression.id)
            if same[figures] < breeding.alike and family[founder] < breeding.family:
                kept.append(one)
                same[figures] += 1
                family[founder] += 1
        return cls(tuple(kept[: breeding.parents]), breeding)

    def draw(self, rng: np.random.Generator) -> Found:
        """Return the best of some, or the smallest of those next to it."""
        entrants = [self.pool[int(rng.integers(len(self.pool)))] for _ in range(self.breeding.tournament)]
        if not math.isfinite(entrants[0].fitness):
            return entrants[0]
        best = max(one.fitness for one in entrants)
        close = [one for one in entrants if one.fitness >= best - self.breeding.near_tie]
        return min(close, key=lambda one: (one.candidate.expression.nodes, -one.fitness))


@dataclass
class _Variations:
    """Children of one parent.

    Parameters
    ----------
    fields, operators
        What may be built from.
    material : RandomFormulas
        New parts are parts of these.
    """

    fields: Sequence[str]
    operators: Collection[str]
    material: RandomFormulas
    grown: dict[Kind, list[Node]] = field(default_factory=lambda: defaultdict(list))
    used_up: bool = False

    def __post_init__(self) -> None:
        self.by_unit: dict[Kind, list[str]] = defaultdict(list)
        for name in dict.fromkeys(self.fields):
            if name not in GROUPS and not name.startswith("$$"):
                self.by_unit[unit_of(name)].append(name)
        self.reported = [name for name in dict.fromkeys(self.fields) if name in REPORTED]
        allowed = [OPERATORS[name] for name in sorted(self.operators) if name in OPERATORS]
        self.siblings = {row.name: [one for one in allowed if _same_form(row, one)] for row in OPERATORS.values()}
        self.wrappers = [row for row in allowed if _wraps(row)]
        self.choices: list[tuple[float, Variation]] = [
            (0.25, self.moved_number),
            (0.20, self.other_operator),
            (0.15, self.other_field),
            (0.20, self.regrown),
            (0.10, self.hoisted),
            (0.07, self.wrapped),
            (0.03, self.negated),
        ]

    def varied(self, root: Node, rng: np.random.Generator) -> Node | None:
        """Return a formula with one thing changed; None where that cannot be changed in it."""
        at = rng.random() * sum(weight for weight, _ in self.choices)
        for weight, variation in self.choices:
            at -= weight
            if at < 0:
                return variation(root, rng)
        return self.regrown(root, rng)

    def moved_number(self, root: Node, rng: np.random.Generator) -> Node | None:
        """Move a window, a shift or another number written out by a step."""
        places = [
            (part, place, kind)
            for part in parts_of(root)
            if isinstance(part.node, Call)
            for place, (_, kind) in enumerate(OPERATORS[part.node.op].arguments)
            if kind in _STEPS and isinstance(part.node.args[place], Number)
        ]
        if not places:
            return None
        part, place, kind = places[int(rng.integers(len(places)))]
        call = part.node
        if not isinstance(call, Call):
            return None
        number = call.args[place]
        if not isinstance(number, Number):
            return None
        moved = _step(number.value, _STEPS[kind], rng)
        if kind == "window":
            moved = max(moved, OPERATORS[call.op].min_window, 2)
        return replaced(root, (*part.path, place), Number(moved))

    def other_operator(self, root: Node, rng: np.random.Generator) -> Node | None:
        """Call another operator with the same arguments and the same rule for units."""
        calls = [part for part in parts_of(root) if isinstance(part.node, Call) and self._others(part.node.op)]
        if not calls:
            return None
        part = calls[int(rng.integers(len(calls)))]
        if not isinstance(part.node, Call):
            return None
        others = self._others(part.node.op)
        row = others[int(rng.integers(len(others)))]
        arguments = [
            Number(max(int(argument.value), row.min_window))
            if kind == "window" and isinstance(argument, Number)
            else argument
            for argument, (_, kind) in zip(part.node.args, row.arguments, strict=True)
        ]
        return replaced(root, part.path, Call(row.name, tuple(arguments)))

    def other_field(self, root: Node, rng: np.random.Generator) -> Node | None:
        """Put another field of the same unit in the place of one."""
        leaves = []
        for part in parts_of(root):
            others = [node for node in self._leaves(part) if node != part.node]
            if others:
                leaves.append((part, others))
        if not leaves:
            return None
        part, others = leaves[int(rng.integers(len(leaves)))]
        return replaced(root, part.path, others[int(rng.integers(len(others)))])

    def regrown(self, root: Node, rng: np.random.Generator) -> Node | None:
        """Put a random part of the same unit in the place of one."""
        part = _drawn_part(parts_of(root), rng)
        if part is None:
            return None
        grown = self._grown(part.kind, rng)
        return None if grown is None else replaced(root, part.path, grown)

    def hoisted(self, root: Node, rng: np.random.Generator) -> Node | None:
        """Leave out what is above a part: put a part of a part of the same unit in its place."""
        parts = parts_of(root)
        pairs = [
            (upper, part)
            for upper in parts
            for part in parts
            if len(part.path) > len(upper.path)
            and part.path[: len(upper.path)] == upper.path
            and part.fits(upper.kind)
            and (upper.path or isinstance(part.node, Call))
        ]
        if not pairs:
            return None
        upper, part = pairs[int(rng.integers(len(pairs)))]
        return replaced(root, upper.path, part.node)

    def wrapped(self, root: Node, rng: np.random.Generator) -> Node | None:
        """Put a part under an operator that keeps its unit, such as a mean."""
        parts = [part for part in parts_of(root) if part.varies and not part.truth]
        if not parts or not self.wrappers:
            return None
        part = parts[int(rng.integers(len(parts)))]
        rows = [row for row in self.wrappers if row.unit == "same" or part.kind == RATIO]
        if not rows:
            return None
        row = rows[int(rng.integers(len(rows)))]
        bars = LADDER[int(rng.integers(bisect_left(LADDER, 60) + 1))]
        return replaced(root, part.path, Call(row.name, (part.node, Number(max(bars, row.min_window, 2)))))

    def negated(self, root: Node, rng: np.random.Generator) -> Node | None:
        """Turn the sign of a part; turning that of the whole would change nothing but the direction."""
        parts = [part for part in parts_of(root) if part.path and part.varies and not part.truth]
        if not parts or "Neg" not in self.operators:
            return None
        part = parts[int(rng.integers(len(parts)))]
        return replaced(root, part.path, Call("Neg", (part.node,)))

    def _others(self, op: str) -> list[Operator]:
        return [row for row in self.siblings[op] if row.name != op]

    def _leaves(self, part: Part) -> list[Node]:
        """Return the fields of a leaf's unit; none for what is no leaf."""
        if isinstance(part.node, Field) and part.kind != "boolean":
            return [Field(name) for name in self.by_unit[part.kind]]
        if isinstance(part.node, Call) and OPERATORS[part.node.op].lookback == "reported":
            return [
                Call(part.node.op, (Field(name), *part.node.args[1:]))
                for name in self.reported
                if REPORTED[name] == part.kind
            ]
        return []

    def _grown(self, kind: Kind, rng: np.random.Generator) -> Node | None:
        if not self.grown[kind] and not self.used_up:
            formulas = self.material.propose(_DRAWN_AT_ONCE)
            self.used_up = len(formulas) < _DRAWN_AT_ONCE
            for formula in formulas:
                for part in parts_of(formula.root):
                    if part.varies and part.path:
                        self.grown[part.kind].append(part.node)
        there = self.grown[kind]
        return there.pop(int(rng.integers(len(there)))) if there else None


_STEPS: Final[dict[str, tuple[float, ...]]] = {
    "window": LADDER,
    "shift": LADDER,
    "fraction": _SHARES,
    "tail": _TAILS,
    "count": _COUNTS,
}
"""Kinds of arguments whose numbers move, and the values they may take."""


def _step(value: float, ladder: Sequence[float], rng: np.random.Generator) -> float:
    """Return the next value of a ladder below or above."""
    at = bisect_left(ladder, value)
    below = ladder[max(at - 1, 0)]
    after = at + 1 if at < len(ladder) and ladder[at] == value else at
    above = ladder[min(after, len(ladder) - 1)]
    return below if rng.random() < 0.5 else above


def _drawn_part(parts: Sequence[Part], rng: np.random.Generator) -> Part | None:
    """Draw a part in which a field occurs, calls more often than fields."""
    there = [part for part in parts if part.varies]
    if not there:
        return None
    weights = np.cumsum([1.0 if isinstance(part.node, Call) else _LEAVES for part in there])
    return there[min(int(np.searchsorted(weights, rng.random() * weights[-1], side="right")), len(there) - 1)]


def _same_form(row: Operator, other: Operator) -> bool:
    return (
        [kind for _, kind in row.arguments] == [kind for _, kind in other.arguments]
        and row.unit == other.unit
        and row.cross_sectional == other.cross_sectional
        and (row.lookback == "reported") == (other.lookback == "reported")
    )


def _wraps(row: Operator) -> bool:
    """Say whether an operator takes one formula and a window, and gives what went in or a plain ratio."""
    return [kind for _, kind in row.arguments] == ["varying", "window"] and row.unit in ("same", "ratio")
