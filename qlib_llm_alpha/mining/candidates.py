"""What is proposed, and by whom."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from qlib_llm_alpha.errors import LibraryError
from qlib_llm_alpha.factor.expression import Expression
from qlib_llm_alpha.factor.fields import DAILY
from qlib_llm_alpha.library.factor_set import builtin_names, load_factor_set
from qlib_llm_alpha.library.formula_file import read_formulas
from qlib_llm_alpha.mining.profile import Profile
from qlib_llm_alpha.mining.random_formulas import RandomFormulas

MINED_FIELDS: Final = tuple(name for name in DAILY if name not in ("$factor", "$st"))
"""Fields that proposers build from where nothing else is said: bars, and shares outstanding. Industry codes are of one
date in most providers, so they are left out; the adjustment factor and the ST mark say nothing by themselves."""


@dataclass(frozen=True)
class Candidate:
    """A formula that somebody proposes.

    Parameters
    ----------
    expression : Expression
    proposer : str
        ``random``, ``seed``, ``human``, ``genetic``, or the name of a language model.
    name, category, hypothesis : str
        As a factor will carry them; an empty name becomes proposer and id.
    sources : tuple of str
        Papers; for a quote that was verified, ``doc:<id>:<first>-<last character>``.
    calls : tuple of str
        Keys of the requests to a model that it came from, by which the journal has them.
    """

    expression: Expression
    proposer: str
    name: str = ""
    category: str = ""
    hypothesis: str = ""
    sources: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()


class RandomProposer:
    """Proposes random formulas that are built as the seed library's are; it learns nothing from results.

    Parameters
    ----------
    fields : collection of str
        What the provider has; those of :data:`MINED_FIELDS` are used.
    seed : int
    profile : Profile, optional
        What the formulas look like; that of the seed library where nothing is said.
    """

    name = "random"
    adaptive = False
    batch = 256

    def __init__(self, fields: Collection[str], *, seed: int, profile: Profile | None = None) -> None:
        usable = [name for name in MINED_FIELDS if name in fields]
        self._formulas = RandomFormulas(usable, seed=seed, profile=profile)

    def propose(self, count: int, history: Sequence[object]) -> list[Candidate]:
        """Return ``count`` formulas that it has not proposed before."""
        return [Candidate(formula, self.name) for formula in self._formulas.propose(count)]


def listed_candidates(file: str, fields: Collection[str] = ()) -> list[Candidate]:
    """Read candidates from a factor set or a text with one formula a line.

    Parameters
    ----------
    file : str
        As for :func:`~qlib_llm_alpha.library.formula_file.read_formulas`. The factors of a set keep their name,
        category and origin; formulas of a text are ``human``.
    fields : collection of str
        Fields of the provider beyond those of the language, with their sigil.

    Raises
    ------
    LibraryError
        The file cannot be read, or the factor language refuses a line.
    """
    if file in builtin_names() or file.endswith((".yaml", ".yml")):
        return [
            Candidate(factor.expression, factor.origin, factor.name, factor.category, factor.hypothesis, factor.sources)
            for factor in load_factor_set(file).factors
        ]
    formulas, _ = read_formulas(file, fields)
    refused = [f"{one.text:.80}: {one.refusal}" for one in formulas if one.expression is None]
    if refused:
        raise LibraryError(
            f"{file}: {len(refused)} of {len(formulas)} formulas are refused, the first is {refused[0]}; expected "
            "formulas of the factor language: mend or drop them (`qlib-llm-alpha factor check` lists all)"
        )
    return [
        Candidate(one.expression, "human", "" if one.name == one.text else one.name)
        for one in formulas
        if one.expression is not None
    ]


def random_candidates(
    count: int, fields: Collection[str], *, seed: int, known: Collection[str] = ()
) -> list[Candidate]:
    """Propose random formulas that are built as the seed library's are.

    Parameters
    ----------
    count : int
    fields : collection of str
        What the provider has; those of :data:`MINED_FIELDS` are used.
    seed : int
    known : collection of str
        Ids of formulas that are not to be proposed again.
    """
    if count <= 0:
        return []
    usable = [name for name in MINED_FIELDS if name in fields]
    return [Candidate(formula, "random") for formula in RandomFormulas(usable, seed=seed).propose(count, known=known)]
