"""Two experiments on a formula's values: change the future, and change the base of adjustment. Neither may change them.

The factor language forbids what they look for. They are here because a rule that is only written down is not checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.engine.evaluate import columns_of, evaluate
from qlib_llm_alpha.engine.tiles import Column, TiledPanel
from qlib_llm_alpha.factor.expression import Expression

Floats = NDArray[np.float32]

_FLOOR = 1e-3
"""Relative difference from which a value counts as changed by a base: float32 keeps seven digits, and formulas such as
a covariance lose some."""

_REBASED: Final = {name: np.float32(1) for name in ("$open", "$high", "$low", "$close", "$vwap", "$factor")} | {
    "$volume": np.float32(-1)
}
"""Columns that the base of adjustment multiplies, and to which power."""


@dataclass(frozen=True)
class Change:
    """A value that ought not to have changed: where, from what to what."""

    day: str
    instrument: str
    before: float
    after: float


def future_changes(
    formulas: Sequence[Expression], panel: TiledPanel, *, cuts: Sequence[int], seed: int = 0, threads: int = 2
) -> list[Change | None]:
    """Replace everything after a row by other values and look whether earlier values of the formulas change.

    Parameters
    ----------
    formulas : sequence of Expression
    panel : TiledPanel
    cuts : sequence of int
        Rows after which bars, reports and membership are replaced, one experiment each.
    seed, threads : int

    Returns
    -------
    list of Change or None
        The first value that differs by as much as a bit, for each formula; None where none does.
    """
    fields, _ = columns_of(formulas)
    plain = evaluate(formulas, panel, threads=threads).values
    found: list[Change | None] = [None] * len(formulas)
    for cut in cuts:
        other = evaluate(formulas, _with_other_future(panel, fields, cut, seed), threads=threads).values
        for at in range(len(formulas)):
            if found[at] is None:
                found[at] = _first_change(plain[at, :, : cut + 1], other[at, :, : cut + 1], panel, exact=True)
    return found


def scale_changes(
    formulas: Sequence[Expression], panel: TiledPanel, *, seed: int = 0, threads: int = 2
) -> list[Change | None]:
    """Give each instrument's adjustment factor another base, and look whether values change.

    Adjusted prices are raw ones times a cumulative factor whose base is a convention, and another one for each
    instrument: the day of listing, of the import, or today. Adjusted volumes are raw ones over it. A formula that
    depends on the base, such as the rank of a price, ranks instruments by an accident.

    Parameters and result are those of :func:`future_changes`. The bases are powers of two, which floating point
    multiplies exactly, so that what does not depend on them stays the same but for rounding.
    """
    fields, _ = columns_of(formulas)
    rng = np.random.default_rng(seed)
    shape = (panel.tile_count, 1, panel.column(fields[0]).values.shape[2])
    base = np.exp2(rng.integers(-4, 5, shape)).astype(np.float32)
    changed = _copy(panel)
    for name in fields:
        if name in _REBASED:
            column = panel.column(name)
            changed.put(name, Column(column.values * base ** _REBASED[name], column.spans))
    plain = evaluate(formulas, panel, threads=threads).values
    other = evaluate(formulas, changed, threads=threads).values
    return [_first_change(plain[at], other[at], panel, exact=False) for at in range(len(formulas))]


def _with_other_future(panel: TiledPanel, fields: Sequence[str], cut: int, seed: int) -> TiledPanel:
    rng = np.random.default_rng([seed, cut])
    changed = _copy(panel)
    for name in fields:
        column = panel.column(name)
        values = column.values.copy()
        later = values[:, cut + 1 :]
        later *= rng.uniform(0.2, 5.0, later.shape).astype(np.float32)
        later[rng.random(later.shape) < 0.05] = np.nan
        changed.put(name, Column(values, column.spans))
    if panel.member is not None:
        member = panel.untiled(panel.member).astype(np.bool_)
        member[cut + 1 :] &= rng.random((1, member.shape[1])) < 0.7
        return changed.with_members(member)
    return changed


def _copy(panel: TiledPanel) -> TiledPanel:
    member = None if panel.member is None else panel.untiled(panel.member).astype(np.bool_)
    return TiledPanel(panel.days, panel.instruments, panel.source, member)


def _first_change(before: Floats, after: Floats, panel: TiledPanel, *, exact: bool) -> Change | None:
    if exact:
        differs = before.view(np.uint32) != after.view(np.uint32)
        differs &= ~(np.isnan(before) & np.isnan(after))
    else:
        both = np.isfinite(before) & np.isfinite(after)
        size = np.maximum(np.abs(before), np.abs(after), where=both, out=np.ones_like(before))
        gap = np.abs(np.subtract(before, after, where=both, out=np.zeros_like(before)))
        scale = float(np.median(size[both])) if both.any() else 1.0
        differs = both & (gap > _FLOOR * np.maximum(size, scale))
    places = np.argwhere(panel.untiled(differs))
    if not len(places):
        return None
    day, name = (int(place) for place in places[0])
    return Change(
        str(panel.days[day]),
        panel.instruments[name],
        float(panel.untiled(before)[day, name]),
        float(panel.untiled(after)[day, name]),
    )
