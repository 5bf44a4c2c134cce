"""One random stream for each purpose, so that no draw of one can move another.

Streams are drawn day by day (or quarter by quarter) in row order: a market that ends earlier draws a prefix of the same
numbers, which is what makes its bars identical up to its end.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream is for; the number is part of the seed, so never renumber."""

    LISTING = 1
    REGIME = 2
    MARKET = 3
    INDUSTRY = 4
    STYLE = 5
    OWN_SHOCK = 6
    OWN_TAIL = 7
    OWN_VOLATILITY = 8
    GAP = 9
    RANGE = 10
    VOLUME = 11
    VWAP = 12
    SUSPENSION = 13
    PAYOUT = 14
    BUSINESS = 15
    ACCOUNTS = 16
    INDEX = 17
    MARKET_TAIL = 18


def stream(seed: int, purpose: Purpose) -> np.random.Generator:
    """Return the generator of one purpose for a market's seed."""
    return np.random.default_rng([seed, int(purpose)])
