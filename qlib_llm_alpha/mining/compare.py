"""Proposers side by side: the same days, the same screens, the same number of trials, one row for each search.

Whether a language model helps is then a table. Its controls are rows too: random formulas, the same proposer without
feedback and with the feedback of other formulas, and a scripted model, which is called what it is.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.evaluation.statistics import finite_or_none
from qlib_llm_alpha.mining.session import Session

_LOG = logging.getLogger(__name__)

SCRIPTED: Final = "scripted, not an LLM"
NO_FEEDBACK: Final = "-"
"""Stands for the feedback of a proposer that does not use any."""

_UNEQUAL: Final = 0.02
"""Share by which trials of rows may differ and still be called equal."""


@dataclass(frozen=True)
class Cost:
    """What a search cost at the servers of language models; nothing for the others.

    Parameters
    ----------
    calls, tokens : int
    usd : float or None
        None where the price is not known.
    """

    calls: int = 0
    tokens: int = 0
    usd: float | None = 0.0


@dataclass(frozen=True)
class Entry:
    """A search that takes part in a comparison.

    Parameters
    ----------
    proposer : str
    run : callable
        Makes the search and returns its session, with the exploration in it.
    feedback : str
        ``true``, ``none`` or ``shuffled``; ``-`` for a proposer that uses none.
    seed : int
    cost : callable
        Asked once the search is done.
    scripted : bool
        The answers of the "model" are made by a rule.
    """

    proposer: str
    run: Callable[[], Session]
    feedback: str = NO_FEEDBACK
    seed: int = 0
    cost: Callable[[], Cost] = Cost
    scripted: bool = False


@dataclass(frozen=True)
class Row:
    """One search of a comparison; NaN or None where there is nothing.

    Parameters
    ----------
    proposer, feedback, seed, scripted
        As in :class:`Entry`.
    trials : int
        Distinct formulas that were tried on explore.
    repeats : int
        Formulas that were proposed again; they cost no trial.
    refused : int
        Trials that broke a rule or had no IC.
    explore_t : float
        The largest ``|t|`` of a mean rank IC on explore: the best of so many trials, which is large by chance too.
    shortlisted, admitted : int
    judge_rank_ic, judge_t, adjusted_p : float
        Of the candidate with the smallest adjusted p on judge, admitted or not; ``judge_t`` is the HAC t.
    run_p : float
        Chance that the best of a shortlist without merit is as good on judge.
    calls, tokens, usd, seconds
        What it cost; seconds are of this machine.
    """

    proposer: str
    feedback: str
    seed: int
    scripted: bool
    trials: int
    repeats: int
    refused: int
    explore_t: float
    shortlisted: int
    admitted: int
    judge_rank_ic: float
    judge_t: float
    adjusted_p: float
    run_p: float
    calls: int
    tokens: int
    usd: float | None
    seconds: float

    @classmethod
    def of(cls, entry: Entry, session: Session, *, seconds: float) -> Row:
        """Return the row of a session.

        Raises
        ------
        ConfigError
            The session has no exploration, so that its trials are not known.
        """
        tried = session.exploration
        if tried is None:
            raise ConfigError(
                f"the session of {entry.proposer!r} has no exploration; expected one made by mining.search.search: "
                "trials that nobody counted cannot be compared"
            )
        found, cost = session.admission, entry.cost()
        family = [found.judged[place] for place in found.family]
        best = min(family, key=lambda one: (one.adjusted_p, -abs(one.block_t)), default=None)
        return cls(
            proposer=entry.proposer,
            feedback=entry.feedback,
            seed=entry.seed,
            scripted=entry.scripted,
            trials=len(tried.found),
            repeats=tried.repeats,
            refused=sum(not math.isfinite(one.fitness) for one in tried.found),
            explore_t=max((one.fitness for one in tried.found if math.isfinite(one.fitness)), default=math.nan),
            shortlisted=len(found.judged),
            admitted=len(found.admitted),
            judge_rank_ic=math.nan if best is None else best.rank_ic,
            judge_t=math.nan if best is None else best.t,
            adjusted_p=math.nan if best is None else best.adjusted_p,
            run_p=math.nan if found.null is None else found.null.run_p,
            calls=cost.calls,
            tokens=cost.tokens,
            usd=cost.usd,
            seconds=seconds,
        )

    @property
    def label(self) -> str:
        """The proposer, and that it is scripted where it is."""
        return f"{self.proposer} ({SCRIPTED})" if self.scripted else self.proposer


@dataclass(frozen=True)
class Comparison:
    """Rows of one comparison.

    Parameters
    ----------
    rows : tuple of Row
    basis : str
        What the figures on judge rest on, in words.
    """

    rows: tuple[Row, ...]
    basis: str = ""

    @property
    def equal_trials(self) -> bool:
        """Whether all rows tried as many formulas, within 2 percent."""
        trials = [row.trials for row in self.rows]
        return not trials or min(trials) >= (1 - _UNEQUAL) * max(trials)

    @property
    def statement(self) -> str:
        """What the table shows and what it does not."""
        parts = [
            "Each row is one search: formulas were tried on the first days, and the fittest judged on later days that "
            "no proposer saw. The best |t| on explore is the best of all trials of its row and no evidence by itself; "
            "p says how often a shortlist without merit does as well on judge. Costs of trading are not deducted.",
            "One search a row: another seed may turn the order round, so that a difference between two rows is no "
            "finding before it is repeated over seeds.",
        ]
        if not self.equal_trials:
            fewest, most = min(row.trials for row in self.rows), max(row.trials for row in self.rows)
            parts.append(f"Trials are NOT equal ({fewest} to {most}): a row with more has had more chances.")
        if any(row.feedback in ("none", "shuffled") for row in self.rows):
            parts.append(
                "What a proposer owes to its results is only what its row with true feedback has beyond those without."
            )
        if any(row.scripted for row in self.rows):
            parts.append(
                f"A row marked '{SCRIPTED}' has answers made by a stated rule: it shows that the path works and says "
                "nothing about language models."
            )
        if any(row.calls and not row.scripted for row in self.rows):
            parts.append(
                "A language model may have read about these days when it was trained; nothing here excludes that."
            )
        return " ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return rows and statement as JSON has them: None for what is not a number."""
        rows = [{name: finite_or_none(value) for name, value in asdict(row).items()} for row in self.rows]
        return {"basis": self.basis, "statement": self.statement, "equal_trials": self.equal_trials, "rows": rows}

    def to_json(self) -> str:
        """Return :meth:`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    def to_markdown(self) -> str:
        """Return the table and the statement."""
        names = [name for name, _ in _COLUMNS]
        lines = [
            f"| proposer | feedback | {' | '.join(names)} |",
            f"| --- | --- |{' ---: |' * len(names)}",
        ]
        for row in self.rows:
            cells = [text(row) for _, text in _COLUMNS]
            lines.append(f"| {row.label} | {row.feedback} | {' | '.join(cells)} |")
        basis = [f"On judge: {self.basis}.", ""] if self.basis else []
        return "\n".join([*lines, "", *basis, self.statement]) + "\n"


def compare(entries: Sequence[Entry], *, progress: Callable[[int, int], None] | None = None) -> Comparison:
    """Make searches one after the other and put them side by side.

    Parameters
    ----------
    entries : sequence of Entry
        At least one; give all the same data, trials, rules and share of explore.
    progress : callable, optional
        Called as ``progress(done, total)`` after each search.

    Raises
    ------
    ConfigError
        No entry, a session without exploration, or sessions that were judged on different days or labels.
    """
    if not entries:
        raise ConfigError("there is nothing to compare; expected one search at least: name proposers")
    rows: list[Row] = []
    bases: list[str] = []
    for entry in entries:
        began = time.perf_counter()
        session = entry.run()
        rows.append(Row.of(entry, session, seconds=time.perf_counter() - began))
        bases.append(_basis(session))
        _LOG.info("%s, feedback %s: %d admitted", rows[-1].label, entry.feedback, rows[-1].admitted)
        if progress is not None:
            progress(len(rows), len(entries))
    different = [basis for basis in bases if basis != bases[0]]
    if different:
        raise ConfigError(
            f"searches were judged on {bases[0]!r} and on {different[0]!r}; expected the same days, label and "
            "universe; give every search the same data"
        )
    return Comparison(tuple(rows), bases[0])


def _basis(session: Session) -> str:
    basis = session.basis
    return (
        f"label {basis.label}, {basis.universe} ({basis.membership}), {basis.start} to {basis.end}, data {session.data}"
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None or not np.isfinite(value) else format(value, form)


_COLUMNS: Final[tuple[tuple[str, Callable[[Row], str]], ...]] = (
    ("seed", lambda row: str(row.seed)),
    ("trials", lambda row: str(row.trials)),
    ("repeats", lambda row: str(row.repeats)),
    ("refused", lambda row: str(row.refused)),
    ("best \\|t\\| on explore", lambda row: _number(row.explore_t, ".2f")),
    ("shortlisted", lambda row: str(row.shortlisted)),
    ("admitted", lambda row: str(row.admitted)),
    ("best on judge: rank IC", lambda row: _number(row.judge_rank_ic, "+.4f")),
    ("HAC t", lambda row: _number(row.judge_t, "+.2f")),
    ("adjusted p", lambda row: _number(row.adjusted_p, ".4f")),
    ("run p", lambda row: _number(row.run_p, ".4f")),
    ("calls", lambda row: str(row.calls)),
    ("tokens", lambda row: str(row.tokens)),
    ("USD", lambda row: "not known" if row.usd is None else f"{row.usd:.4f}"),
    ("seconds", lambda row: f"{row.seconds:.1f}"),
)
"""Columns of figures: heading and text."""
