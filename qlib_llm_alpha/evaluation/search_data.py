"""The search wall as a value: bars and a label that end where search ends, and nothing later to pass on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.engine.funnel import prepare_label
from qlib_llm_alpha.engine.panel import Days
from qlib_llm_alpha.engine.tile_scoring import PreparedLabel
from qlib_llm_alpha.engine.tiles import TiledPanel
from qlib_llm_alpha.errors import WallError
from qlib_llm_alpha.evaluation.basis import Basis, IcKind
from qlib_llm_alpha.evaluation.walls import SearchWindow
from qlib_llm_alpha.factor.expression import Expression


@dataclass(frozen=True, eq=False)
class SearchData:
    """What may be searched: bars up to the last day of the search wall, and labels that are known by then.

    Make it with :meth:`of`. The panel has no row after the window, so that the labels of the last ``label.lookahead``
    days are missing: they are known only behind the wall.

    Parameters
    ----------
    window : SearchWindow
    panel : TiledPanel
        Bars from the provider's first day on; older ones are needed for look-back.
    label : Expression
    prepared : PreparedLabel
        The label's values, ranked over the members of each day.
    universe, membership : str
        The market, and who belongs to it when, in words.
    data : str
        Fingerprint of the provider's content.
    """

    window: SearchWindow
    panel: TiledPanel
    label: Expression
    prepared: PreparedLabel = field(repr=False)
    universe: str
    membership: str
    data: str

    @classmethod
    def of(
        cls,
        panel: TiledPanel,
        window: SearchWindow,
        label: Expression,
        *,
        universe: str,
        data: str,
        threads: int = 2,
    ) -> SearchData:
        """Wall in a panel.

        Raises
        ------
        WallError
            The panel has days after the window, a label that reads no later day, or too few days for it.
        """
        if panel.days[-1] > window.end:
            raise WallError(
                f"the panel ends on {panel.days[-1]}, search on {window.end}; expected no later bars; open the panel "
                f"with end={str(window.end)!r}"
            )
        if label.lookahead < 1:
            raise WallError(
                f"label {label.text!r} reads no later day; expected a return that follows, such as "
                "Ref($close,-2)/Ref($close,-1)-1; correct it"
            )
        begin = int(np.searchsorted(panel.days, window.start))
        if len(panel.days) - begin <= label.lookahead:
            raise WallError(
                f"search from {window.start} to {window.end} has {len(panel.days) - begin} trading days; expected more "
                f"than the {label.lookahead} after which a label is known; lengthen it"
            )
        membership = "all instruments" if panel.member is None else "members of the day"
        return cls(window, panel, label, prepare_label(label, panel, threads=threads), universe, membership, data)

    def fingerprint(self, fields: Iterable[str]) -> str:
        """Return the SHA-256 over days, members, label and the values of some fields, up to the end of search.

        Two providers that differ only after search have the same one.

        Parameters
        ----------
        fields : iterable of str
            Columns of the panel, with their sigil.
        """
        panel = self.panel
        digest = hashlib.sha256()
        head = [str(self.window.start), str(self.window.end), self.label.text, *panel.instruments]
        digest.update("\0".join(head).encode("utf-8"))
        digest.update(panel.days.astype("datetime64[D]").astype(np.int64).tobytes())
        digest.update(b"" if panel.member is None else panel.member_digest(len(panel.days)))
        for name in sorted(fields):
            digest.update(name.encode("utf-8"))
            for tile in range(panel.tile_count):
                digest.update(panel.digest(name, tile, len(panel.days)))
        return digest.hexdigest()

    @property
    def rows(self) -> slice:
        """Rows of the panel from the window's first day to the last whose label is known inside it."""
        begin = int(np.searchsorted(self.panel.days, self.window.start))
        return slice(begin, len(self.panel.days) - self.label.lookahead)

    @property
    def days(self) -> Days:
        """The days of :attr:`rows`."""
        return self.panel.days[self.rows]

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Which of :attr:`days` have a label for some member."""
        known: NDArray[np.bool_] = self.prepared.count[self.rows] > 0
        return known

    def basis(self, ic_kind: IcKind = "rank_ic", *, trials: int | None = None) -> Basis:
        """Say what a figure of this search rests on."""
        return Basis(
            label=self.label.text,
            horizon=self.label.lookahead,
            ic_kind=ic_kind,
            universe=self.universe,
            membership=self.membership,
            start=str(self.days[0]),
            end=str(self.days[-1]),
            cost_bps=None,
            trials=trials,
        )
