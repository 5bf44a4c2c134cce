"""A small embedded market for tests: 30 instruments, two years, all four boards, written once for a test session."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from qlib_llm_alpha.data.embedded.simulate import Market, simulate
from qlib_llm_alpha.data.embedded.write import ensure_market

if TYPE_CHECKING:
    import pytest

# The dates hold the opening of STAR, the widening of ChiNext's limits, four index reviews and the crash week.
INSTRUMENTS, START, END, SEED = 30, "2019-06-03", "2021-06-30", 7


def small_market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the provider of the small planted market; the same folder for the whole session. Read it only."""
    out = tmp_path_factory.getbasetemp() / "small-market"
    ensure_market(out, instruments=INSTRUMENTS, start=START, end=END, seed=SEED)
    return out


@cache
def small_arrays() -> Market:
    """Return the same market as arrays. Read them only."""
    return simulate("planted", INSTRUMENTS, START, END, SEED)
