"""The confirm segment: a block between tune and sealed that a configuration reads once, and the ledger knows of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from qlib_llm_alpha.evaluation.ledger import TrialLedger
from qlib_llm_alpha.evaluation.openings import OpeningKey

CONFIRM_READ = "confirm_read"


@dataclass(frozen=True)
class ConfirmPermit:
    """That a configuration may read the outcomes of confirm, as it was logged.

    Parameters
    ----------
    key : OpeningKey
        Who reads which dates.
    repeated : bool
        The same key read them before.
    readings : int
        Distinct keys that have read overlapping dates of this market so far, this one included. From the second on, the
        segment has been chosen by as much as it has confirmed.
    row : int
        Number of the ledger's row.
    """

    key: OpeningKey
    repeated: bool
    readings: int
    row: int


def read_confirm(ledger: TrialLedger, key: OpeningKey, *, study: str = "", run: str = "") -> ConfirmPermit:
    """Log that a configuration reads confirm, before it does.

    Nothing is refused: a reading by another configuration is logged and counted, and every report shows the count.

    Parameters
    ----------
    ledger : TrialLedger
    key : OpeningKey
        Its dates are those of confirm.
    study, run : str
        The study that the configuration belongs to, and the run that reads; empty for none.

    Raises
    ------
    ChainError
        The ledger is damaged.
    """
    with ledger.chain.locked():
        earlier = [OpeningKey(**row.body["key"]) for row in ledger.chain.rows(CONFIRM_READ)]
        conflicting = {other for other in earlier if key.conflicts(other)}
        said = {"repeated": key in conflicting, "readings": len(conflicting | {key})}
        row = ledger.chain.append([(CONFIRM_READ, {"key": asdict(key), "study": study, "run": run, **said})])[0]
    return ConfirmPermit(key, key in conflicting, len(conflicting | {key}), row.number)
