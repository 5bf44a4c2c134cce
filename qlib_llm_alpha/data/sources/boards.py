"""What the A-share exchanges decided: boards, daily price limits, lots, as data with effective dates.

Sources: trading rules of the Shanghai, Shenzhen and Beijing exchanges. Main board: 10 % since 1996-12-16; first day
of a listing 44 % up and 36 % down of the issue price since 2014-01-01; no limit in the first five days for shares
listed since 2023-04-10 (registration system). ChiNext: 20 % and five free days since 2020-08-24. STAR: 20 % and five
free days since its start. Beijing: 30 %, first day free. Names under special treatment: 5 % on the main board and,
until 2020-08-23, on ChiNext.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LimitRule:
    """The daily price limit of one board, from one day on.

    Parameters
    ----------
    board : str
        ``main``, ``chinext``, ``star`` or ``bse``.
    since : numpy.datetime64
        First day in force; the next rule of the board ends it.
    percent, st_percent : int
        Limit in whole percent of the reference price, for ordinary names and for names under special treatment.
    free_days : int
        Trading days from the listing on without any limit, for shares *listed* while the rule is in force.
    first_day : tuple of (int, int) or None
        Percent up and down on the listing day against the issue price, for shares listed while the rule is in force.
    """

    board: str
    since: np.datetime64
    percent: int
    st_percent: int
    free_days: int = 0
    first_day: tuple[int, int] | None = None


@dataclass(frozen=True)
class LotRule:
    """Order sizes of one board: at least ``minimum`` shares, then in steps of ``step``."""

    minimum: int
    step: int


def _rule(
    board: str, since: str, percent: int, st_percent: int, free_days: int = 0, first_day: tuple[int, int] | None = None
) -> LimitRule:
    return LimitRule(board, np.datetime64(since, "D"), percent, st_percent, free_days, first_day)


LIMIT_RULES: tuple[LimitRule, ...] = (
    _rule("main", "1996-12-16", 10, 5, free_days=1),
    _rule("main", "2014-01-01", 10, 5, first_day=(44, 36)),
    _rule("main", "2023-04-10", 10, 5, free_days=5),
    _rule("chinext", "2009-10-30", 10, 5, free_days=1),
    _rule("chinext", "2014-01-01", 10, 5, first_day=(44, 36)),
    _rule("chinext", "2020-08-24", 20, 20, free_days=5),
    _rule("star", "2019-07-22", 20, 20, free_days=5),
    _rule("bse", "2021-11-15", 30, 30, free_days=1),
)

LOT_RULES: dict[str, LotRule] = {
    "main": LotRule(100, 100),
    "chinext": LotRule(100, 100),
    "star": LotRule(200, 1),
    "bse": LotRule(100, 1),
}

_PREFIXES = {"SH60": "main", "SZ00": "main", "SZ30": "chinext", "SH68": "star"}


def board_of(code: str) -> str | None:
    """Return the board of an A-share code, or None for an index and for anything that is no A-share."""
    if code.startswith("BJ"):
        return "bse"
    return _PREFIXES.get(code[:4])


def rules_of(board: str) -> tuple[LimitRule, ...]:
    """Return a board's limit rules, oldest first."""
    return tuple(rule for rule in LIMIT_RULES if rule.board == board)


def limit_in_cents(reference: NDArray[np.int64], percent: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return reference prices moved by whole percents, in cents, halves rounded up as the exchanges do.

    Parameters
    ----------
    reference : numpy.ndarray of int64
        Reference prices in cents (previous close after ex-rights).
    percent : numpy.ndarray of int64
        Signed percent, same shape.

    Notes
    -----
    Whole numbers throughout: 10.05 x 1.1 = 11.055 must give 11.06, which binary fractions get wrong.
    """
    cents: NDArray[np.int64] = (reference * (100 + percent) * 2 + 100) // 200
    return cents
