"""A whole search: a proposer explores, and what it arrives at is judged on days of which it has seen nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from qlib_llm_alpha.evaluation.ledger import TrialLedger
from qlib_llm_alpha.evaluation.search_data import SearchData
from qlib_llm_alpha.factor.expression import Expression
from qlib_llm_alpha.mining.admission import Rules
from qlib_llm_alpha.mining.candidates import Candidate
from qlib_llm_alpha.mining.exploring import EXPLORE_SHARE, SHORTLIST, Exploration, Feedback, Proposer, cut, explore
from qlib_llm_alpha.mining.session import NULLS, Session, mine


def search(
    proposer_on: Callable[[SearchData], Proposer],
    data: SearchData,
    *,
    trials: int,
    shortlist: int = SHORTLIST,
    share: float = EXPLORE_SHARE,
    feedback: Feedback = "true",
    rules: Rules | None = None,
    library: Iterable[Expression] = (),
    null_fields: Sequence[str] = (),
    ledger: TrialLedger | None = None,
    run: str = "",
    seed: int = 0,
    nulls: int = NULLS,
    threads: int = 2,
    choose: Callable[[Exploration], Sequence[Candidate]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Session:
    """Let a proposer try formulas on the first days of search, and judge the fittest on the others.

    Parameters
    ----------
    proposer_on : callable
        Makes the proposer, given explore: all of the market that it may ever see.
    data : SearchData
        The search wall; see :func:`~qlib_llm_alpha.mining.exploring.cut`.
    trials : int
        Distinct candidates at most.
    shortlist : int
        How many of them are judged: the family of the test against chance. Its choice rests on explore alone.
    share : float
        Share of the labelled days that are explore.
    feedback, rules, library, ledger, run, seed, threads, progress
        As for :func:`~qlib_llm_alpha.mining.exploring.explore`.
    choose : callable, optional
        Says which candidates are judged, by what was explored alone; default the ``shortlist`` fittest.
    null_fields, nulls
        As for :func:`~qlib_llm_alpha.mining.session.mine`.

    Returns
    -------
    Session
        Of the judged days, with the exploration.
    """
    known = tuple(library)
    first, last = cut(data, share=share, threads=threads)
    tried = explore(
        proposer_on(first),
        first,
        trials=trials,
        rules=rules,
        library=known,
        feedback=feedback,
        ledger=ledger,
        run=run,
        seed=seed,
        threads=threads,
        progress=progress,
    )
    session = mine(
        tried.shortlist(shortlist) if choose is None else choose(tried),
        last,
        rules=rules,
        library=known,
        null_fields=null_fields,
        ledger=ledger,
        run=run,
        seed=seed,
        nulls=nulls,
        threads=threads,
    )
    return replace(session, exploration=tried)
