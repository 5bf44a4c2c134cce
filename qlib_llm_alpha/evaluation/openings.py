"""Openings of the sealed segment: keyed, logged, and refused where a second configuration would choose by it.

Two sealed ranges of one market conflict when they share a day. Opening the same configuration again tells nothing new:
it is logged. A grid of experiments is declared as a study with its number of cells by the study's first opening.
Anything else is refused, unless it is forced with a reason; every later report on those dates then says ``spent``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qlib_llm_alpha.chain import Row
from qlib_llm_alpha.errors import ConfigError, WallError
from qlib_llm_alpha.evaluation.basis import check_period
from qlib_llm_alpha.evaluation.ledger import OPENING, TrialLedger


@dataclass(frozen=True)
class OpeningKey:
    """What is opened by what.

    Parameters
    ----------
    configuration, factor_set, data : str
        Hashes or names of the configuration, the factor set and the data.
    market : str
        Name of the market, such as ``csi300``.
    start, end : str
        First and last day of the sealed range, both included, as YYYY-MM-DD.
    """

    configuration: str
    factor_set: str
    data: str
    market: str
    start: str
    end: str

    def __post_init__(self) -> None:
        for name in ("configuration", "factor_set", "data", "market"):
            text = getattr(self, name)
            if not isinstance(text, str) or not text.strip():
                raise ConfigError(f"{name} of an opening is {text!r}; expected a hash or a name; say what is opened")
        check_period(self.start, self.end)

    def conflicts(self, other: OpeningKey) -> bool:
        """Say whether two sealed ranges share a day of one market, by its name or by the same data."""
        same_market = self.market.casefold() == other.market.casefold() or self.data == other.data
        return same_market and self.start <= other.end and other.start <= self.end


@dataclass(frozen=True)
class Opening:
    """One opening as it was logged.

    Parameters
    ----------
    key : OpeningKey
    repeated : bool
        The same key was opened before.
    forced : str
        The reason in words for which it was forced; empty when it was not, or needed not be.
    study : str
        The study that it belongs to; empty for none.
    cells : int
        How many openings that study declared; 1 without one.
    openings : int
        Distinct keys opened so far whose dates conflict with these, this one included.
    row : int
        Number of the ledger's row.
    spent : bool
        It was forced, or another on conflicting dates was before: the segment no longer proves anything.
    """

    key: OpeningKey
    repeated: bool
    forced: str
    study: str
    cells: int
    openings: int
    row: int
    spent: bool


def check_opening(ledger: TrialLedger, key: OpeningKey, *, study: str = "", cells: int = 1, force: str = "") -> None:
    """Refuse early what :func:`open_segment` would refuse; nothing is written.

    Raises
    ------
    WallError
        The segment was opened by another configuration, or the study's cells differ or are used up.
    ConfigError
        Cells without a study, or a force that is no reason.
    """
    _judged(ledger.openings(), key, study, cells, force)


def open_segment(
    ledger: TrialLedger, key: OpeningKey, *, study: str = "", cells: int = 1, force: str = "", run: str = ""
) -> Opening:
    """Check an opening and log it, while no other process can.

    Parameters
    ----------
    ledger : TrialLedger
    key : OpeningKey
    study : str
        Name of a declared grid of experiments.
    cells : int
        How many keys the study opens in all; fixed by its first opening.
    force : str
        A reason in words; used, and logged, only where the opening would be refused.
    run : str
        Id of the run that opens.

    Returns
    -------
    Opening

    Raises
    ------
    WallError, ConfigError
        As for :func:`check_opening`.
    ChainError
        The ledger is damaged.
    """
    with ledger.chain.locked():
        body = _judged(ledger.openings(), key, study, cells, force)
        row = ledger.chain.append([(OPENING, {**body, "run": run})])[0]
    return Opening(**{**body, "key": key}, row=row.number)


def _judged(rows: Sequence[Row], key: OpeningKey, study: str, cells: int, force: str) -> dict[str, Any]:
    """Return the fields of an opening that is accepted; raise for one that is not."""
    _check_words(study, cells, force)
    earlier = [(row, OpeningKey(**row.body["key"])) for row in rows]
    conflicting = [(row, other) for row, other in earlier if key.conflicts(other)]
    same = [row for row, other in conflicting if other == key]
    refusal = _cells_refusal(earlier, study, cells)
    if not same and not refusal:
        refusal = _refusal(earlier, conflicting, key, study, cells)
    if refusal and not force:
        raise WallError(refusal)
    forced = force if refusal else ""
    return {
        "key": asdict(key),
        "repeated": bool(same),
        "forced": forced,
        "study": same[0].body["study"] if same else study,
        "cells": same[0].body["cells"] if same else cells,
        "openings": len({other for _, other in conflicting} | {key}),
        "spent": bool(forced) or any(row.body["forced"] for row, _ in conflicting),
    }


def _check_words(study: object, cells: object, force: object) -> None:
    if isinstance(cells, bool) or not isinstance(cells, int) or cells < 1:
        raise ConfigError(f"cells is {cells!r}; expected how many openings the study makes in all, 1 or more")
    if cells > 1 and not study:
        raise ConfigError(f"cells is {cells} without a study; expected the study's name; declare study and cells")
    for name, text in (("study", study), ("force", force)):
        if not isinstance(text, str) or (text and not text.strip()):
            raise ConfigError(f"{name} is {text!r}; expected words, or '' for none; write the {name} in words")


def _cells_refusal(earlier: Sequence[tuple[Row, OpeningKey]], study: str, cells: int) -> str:
    declared = [row for row, _ in earlier if study and row.body["study"] == study]
    if not declared or declared[0].body["cells"] == cells:
        return ""
    return (
        f"study {study!r} is opened with {cells} cells; expected {declared[0].body['cells']}, which its first opening "
        f"declared on {declared[0].time[:10]}; keep that number, or force with a reason"
    )


def _refusal(
    earlier: Sequence[tuple[Row, OpeningKey]],
    conflicting: Sequence[tuple[Row, OpeningKey]],
    key: OpeningKey,
    study: str,
    cells: int,
) -> str:
    """Say why a key that was not opened before may not be; empty when it may."""
    if not conflicting:
        return ""
    strangers = [(row, other) for row, other in conflicting if not study or row.body["study"] != study]
    used = len({other for row, other in earlier if row.body["study"] == study})
    if not strangers and used < cells:
        return ""
    row, other = (strangers or conflicting)[0]
    why = "" if strangers else f"; the {cells} cells of study {study!r} are used up"
    return (
        f"the sealed dates {key.start} to {key.end} of {key.market!r} were opened by configuration "
        f"{other.configuration!r} (factor set {other.factor_set!r}, data {other.data!r}, {other.start} to {other.end}) "
        f"on {row.time[:19]} UTC{why}; given was configuration {key.configuration!r} (factor set {key.factor_set!r}, "
        f"data {key.data!r}): choosing between the two by these dates would spend them. Run the same configuration "
        "again, or declare study and cells before the first opening of a grid, or force with a reason, which every "
        "later report on these dates will state"
    )
