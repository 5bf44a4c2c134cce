"""Which names to sell and to buy: a pure function, same inputs, same orders."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Trades:
    """Names to sell whole, and names to buy, best score first.

    Each purchase gets an equal part of the cash: one of `parts`, which counts the names that were wanted and cannot be
    bought today, so that their cash waits for them and doubles no other name.
    """

    sell: tuple[str, ...]
    buy: tuple[str, ...]
    parts: int


def choose_trades(
    scores: Mapping[str, float],
    held: Collection[str],
    sellable: Collection[str],
    buyable: Collection[str],
    *,
    topk: int,
    n_drop: int,
) -> Trades:
    """Hold the best `topk` names and change at most `n_drop` of them a day.

    The rule is that of Qlib's ``TopkDropoutStrategy``: of the names held and the best outsiders, the worst `n_drop` go
    if they are held, and the best outsiders take the free places. Two things differ. A name that could not be sold
    keeps its place, so that never more than `topk` are held after the trades (Qlib counts it as sold). And a place
    goes to the best outsider that can be bought only if it is among those looked at, as in Qlib: a name at its limit
    is not replaced by a worse one.

    Parameters
    ----------
    scores : mapping of str to float
        Score of each name, higher is better; NaN is no score. Without any score nothing is traded.
    held : collection of str
        Names in the portfolio. One without a score ranks below all others.
    sellable, buyable : collection of str
        Names that can be sold or bought today.
    topk, n_drop : int

    Returns
    -------
    Trades
        Ties are broken by name.
    """
    known = {name: score for name, score in scores.items() if not np.isnan(score)}
    if not known:
        return Trades((), (), 0)
    candidates = best_outsiders(scores, held, topk=topk, n_drop=n_drop)

    def order(name: str) -> tuple[float, str]:
        return (-known[name] if name in known else np.inf, name)

    worst = sorted([*held, *candidates], key=order)[-n_drop:] if n_drop else []
    leaving = [name for name in worst if name in held]
    sell = tuple(name for name in leaving if name in sellable)
    wanted = candidates[: max(len(sell) + topk - len(held), 0)]
    return Trades(sell, tuple(name for name in wanted if name in buyable), len(wanted))


def best_outsiders(scores: Mapping[str, float], held: Collection[str], *, topk: int, n_drop: int) -> tuple[str, ...]:
    """Return the names that may be bought, best first: no other can be, whatever is tradable.

    Takes what `choose_trades` takes; a caller asks the exchange about these names alone.
    """
    outsiders = [(-score, name) for name, score in scores.items() if name not in held and not np.isnan(score)]
    return tuple(name for _, name in sorted(outsiders)[: max(n_drop + topk - len(held), 0)])
