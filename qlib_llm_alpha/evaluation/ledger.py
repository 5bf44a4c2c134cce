"""The trial ledger: every candidate that anyone ever scored, with its daily IC, and every look beyond search.

A figure that was picked among N trials says little without N, so N is counted where the scoring happens and cannot be
reset. A folder holds the rows in ``ledger.jsonl`` (a :class:`~qlib_llm_alpha.chain.Chain`) and the daily IC of each
batch in ``series/<sha256>.parquet``, named by its content. Rows are of kind ``trial``, ``tune_read`` and ``opening``.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qlib_llm_alpha.chain import Chain, Fault, Head, Row
from qlib_llm_alpha.engine.panel import Days, as_days
from qlib_llm_alpha.errors import ChainError, ConfigError, PanelError
from qlib_llm_alpha.evaluation.basis import Basis, is_count
from qlib_llm_alpha.evaluation.max_null import BLOCK, FEWEST_BLOCKS, effective_trials
from qlib_llm_alpha.evaluation.statistics import finite_or_none

TRIAL, TUNE_READ, OPENING = "trial", "tune_read", "opening"


@dataclass(frozen=True)
class Trial:
    """One candidate that was scored.

    Parameters
    ----------
    factor_id : str
        Hash of the canonical form: equal up to algebra is the same trial.
    expression : str
        As written.
    proposer : str
        Who proposed it: ``random``, ``genetic``, ``seed``, ``human``, the name of a model.
    verdict, reason : str
        ``admitted`` or ``rejected``, and the reason code; empty where nothing was decided.
    ic, t : float
        Mean daily IC of the basis' kind, and its t value; NaN where there is none.
    """

    factor_id: str
    expression: str
    proposer: str
    verdict: str = ""
    reason: str = ""
    ic: float = math.nan
    t: float = math.nan


class TrialLedger:
    """The trials, reads of tune and openings of sealed in one folder, for many processes at once.

    Nothing is ever removed. Reading raises ``ChainError`` where rows or series were changed.

    Parameters
    ----------
    folder : path
        Made when something is first recorded.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"ledger {str(folder)!r} is a file; expected a folder, there or not yet; name another")
        self.chain = Chain(self.folder / "ledger.jsonl")

    def record(
        self,
        trials: Sequence[Trial],
        series: NDArray[np.float64] | None,
        days: Days,
        *,
        basis: Basis,
        data: str,
        run: str,
        seed: int | None = None,
    ) -> int:
        """Write one row for each trial, and their daily IC.

        Parameters
        ----------
        trials : sequence of Trial, K of them
        series : array, (T, K), or None
            Daily IC, one column for each trial; NaN on days without one. None where the batch has no series.
        days : array, (T,) datetime64[D]
            Dates of the scores; the IC dated t is known ``basis.horizon`` trading days later.
        basis : Basis
            What they were measured on.
        data : str
            Fingerprint of the data.
        run : str
            Who asked: the id of a mining session or an MLflow run.
        seed : int, optional
            Seed of the proposer.

        Returns
        -------
        int
            How many are new. A trial is known by factor_id, label, IC kind, universe, start, end and data; a trial that
            was scored before is logged again, not counted again.

        Raises
        ------
        PanelError
            Shapes that do not fit, or an IC dated outside the period of the basis.
        ConfigError
            A trial without factor_id or proposer.
        ChainError
            The ledger is damaged.
        """
        for trial in trials:
            if not trial.factor_id or not trial.proposer:
                raise ConfigError(f"{trial!r} has no factor_id or no proposer; expected both; name them")
        content = None if series is None else _parquet(*_checked(series, days, len(trials), basis))
        if not trials:
            return 0
        stored = "" if content is None else hashlib.sha256(content).hexdigest()
        shared = {"data": data, "run": run, "seed": seed, "basis": basis.to_dict(), "series": stored}
        bodies = [
            {
                **asdict(trial),
                "ic": finite_or_none(trial.ic),
                "t": finite_or_none(trial.t),
                **shared,
                "column": str(place) if stored else "",
            }
            for place, trial in enumerate(trials)
        ]
        with self.chain.locked():
            known = {_identity(row.body) for row in self.chain.rows(TRIAL)}
            if content is not None:
                self._keep(stored, content)
            self.chain.append([(TRIAL, body) for body in bodies])
        return len({_identity(body) for body in bodies} - known)

    def record_tune_reads(self, reads: Mapping[str, int], *, basis: Basis, data: str, run: str) -> None:
        """Write how often the outcomes of the tune segment (valid) were looked at, by what it was done for.

        Parameters
        ----------
        reads : mapping of str to int
            Such as ``{"early stopping": 12, "ladder": 3}``.
        basis, data, run
            As for :meth:`record`.
        """
        wrong = {what: times for what, times in reads.items() if not is_count(times)}
        if wrong:
            raise ConfigError(f"reads of tune are {wrong!r}; expected counts; write how often each was done")
        if reads:
            counted = {what: int(times) for what, times in reads.items()}
            self.chain.append([(TUNE_READ, {"reads": counted, "basis": basis.to_dict(), "data": data, "run": run})])

    def trials(self, *, data: str | None = None, run: str | None = None) -> pd.DataFrame:
        """Return the distinct trials by their first scoring, all or those of a data fingerprint and a run.

        Returns
        -------
        DataFrame
            Indexed by number of the ledger's row, in the order of scoring, with the columns ``TRIAL_COLUMNS``.
        """
        found = list(_first_scorings(self._bodies(data, run)).items())
        index = pd.Index([number for _, (number, _) in found], name="row", dtype=np.int64)
        table = pd.DataFrame([_flat(body) for _, (_, body) in found], index=index, columns=list(TRIAL_COLUMNS))
        typed: pd.DataFrame = table.astype({"ic": np.float64, "t": np.float64, "cost_bps": np.float64})
        return typed

    def count(self, *, data: str | None = None, run: str | None = None) -> int:
        """Return the number of distinct trials."""
        return len({_identity(body) for _, body in self._bodies(data, run)})

    def series(self, *, data: str | None = None, run: str | None = None) -> pd.DataFrame:
        """Return the daily IC of the distinct trials.

        Returns
        -------
        DataFrame
            (days, trials), float64, indexed ``datetime``; a column is called by its trial's row in :meth:`trials`. A
            trial without series has no column. Batches of other days are aligned: NaN on days they do not have.
        """
        bodies = self._bodies(data, run)
        numbers = {identity: number for identity, (number, _) in _first_scorings(bodies).items()}
        with_series = _first_scorings(one for one in bodies if one[1]["series"])
        wanted: dict[str, list[tuple[str, int]]] = {}
        for identity, (_, body) in with_series.items():
            wanted.setdefault(body["series"], []).append((body["column"], numbers[identity]))
        parts = [
            self._stored(name)[[column for column, _ in columns]].set_axis([row for _, row in columns], axis=1)
            for name, columns in wanted.items()
        ]
        if not parts:
            parts = [pd.DataFrame(index=pd.DatetimeIndex([], name="datetime"), dtype=np.float64)]
        joined: pd.DataFrame = pd.concat(parts, axis=1, join="outer").sort_index().sort_index(axis=1)
        joined.columns.name = "row"
        return joined

    def effective_trials(self, *, data: str | None = None) -> float:
        """Return how many independent trials the distinct ones amount to; without enough days, their number.

        A trial without daily series, or with too few days to be compared, counts in full.
        """
        count, series = self.count(data=data), self.series(data=data)
        if len(series) < BLOCK * FEWEST_BLOCKS:
            return float(count)
        return effective_trials(series.to_numpy(np.float64)) + count - series.shape[1]

    def tune_reads(self, *, data: str | None = None, run: str | None = None) -> int:
        """Return how often the outcomes of the tune segment were looked at."""
        return sum(sum(body["reads"].values()) for _, body in self._bodies(data, run, TUNE_READ))

    def openings(self) -> list[Row]:
        """Return the rows of all openings of sealed segments; ``evaluation.openings`` writes and judges them."""
        return list(self.chain.rows(OPENING))

    def head(self) -> Head:
        """Return the head of the rows, to keep elsewhere as an anchor."""
        return self.chain.head()

    def verify(self, anchor: Head | None = None) -> list[Fault]:
        """Name every row that was changed, moved or removed, and every series file that is changed or missing.

        Parameters
        ----------
        anchor : Head, optional
            A head of this ledger from an earlier time.
        """
        faults = self.chain.verify(anchor)
        seen: set[str] = set()
        try:
            for row in self.chain.rows(TRIAL):
                name = row.body["series"]
                if name and name not in seen:
                    seen.add(name)
                    fault = self._series_fault(name)
                    faults += [Fault(row.number, fault)] if fault else []
        except ChainError as error:
            # What can be read ends at the first damaged row, which is among the faults of the chain.
            faults = faults or [Fault(0, str(error))]
        return sorted(faults, key=lambda fault: (fault.row, fault.detail))

    def _bodies(self, data: str | None, run: str | None, kind: str = TRIAL) -> list[tuple[int, Mapping[str, Any]]]:
        return [
            (row.number, row.body)
            for row in self.chain.rows(kind)
            if data in (None, row.body["data"]) and run in (None, row.body["run"])
        ]

    def _path(self, name: str) -> Path:
        return self.folder / "series" / f"{name}.parquet"

    def _keep(self, name: str, content: bytes) -> None:
        """Write a series file before its rows, so that no row tells of a file that never was."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".new")
        with draft.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)

    def _series_fault(self, name: str) -> str:
        path = self._path(name)
        if not path.is_file():
            return f"series file {path.name} is missing"
        if hashlib.sha256(path.read_bytes()).hexdigest() != name:
            return f"series file {path.name} was changed: its content does not have the hash of its name"
        return ""

    def _stored(self, name: str) -> pd.DataFrame:
        fault = self._series_fault(name)
        if fault:
            raise ChainError(f"{self.folder}: {fault}; expected what was recorded; restore it from a copy")
        table: pd.DataFrame = pd.read_parquet(io.BytesIO(self._path(name).read_bytes()))
        return table


def open_ledger(folder: str | Path) -> TrialLedger:
    """Open a ledger that is there, to look at it; ConfigError where there is none."""
    ledger = TrialLedger(folder)
    if not any(path.exists() for path in ledger.chain.files):
        raise ConfigError(f"{str(folder)!r} holds no trial ledger; expected ledger.jsonl in it; correct the folder")
    return ledger


BASIS_COLUMNS = tuple(Basis.__dataclass_fields__)
TRIAL_COLUMNS = (
    *("factor_id", "expression", "proposer", "verdict", "reason", "ic", "t"),
    *("data", "run", "seed", "series", "column"),
    *(name for name in BASIS_COLUMNS if name != "trials"),
)


@dataclass(frozen=True)
class LedgerSummary:
    """What a ledger holds, for people.

    ``trials`` are distinct, ``scorings`` all that were logged; ``by_proposer`` and ``by_verdict`` (verdict, reason)
    count distinct trials by their first scoring, most first. ``effective_trials`` is how many independent trials would
    offer chance as much. ``openings`` are the openings of sealed segments as logged.
    """

    folder: str
    head: Head
    trials: int
    scorings: int
    effective_trials: float
    by_proposer: Mapping[str, int]
    by_verdict: Mapping[tuple[str, str], int]
    tune_reads: Mapping[str, int]
    openings: tuple[Mapping[str, Any], ...]

    def to_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {
            **asdict(self),
            "by_verdict": [{"verdict": v, "reason": r, "trials": n} for (v, r), n in self.by_verdict.items()],
            "openings": [dict(opening) for opening in self.openings],
        }


def summarise(ledger: TrialLedger) -> LedgerSummary:
    """Count what a ledger holds."""
    rows = list(ledger.chain.rows())
    scorings = [(row.number, row.body) for row in rows if row.kind == TRIAL]
    distinct = [body for _, body in _first_scorings(scorings).values()]
    reads: Counter[str] = Counter()
    for row in rows:
        if row.kind == TUNE_READ:
            reads.update(row.body["reads"])
    return LedgerSummary(
        folder=str(ledger.folder),
        head=Head(len(rows), rows[-1].hash) if rows else ledger.head(),
        trials=len(distinct),
        scorings=len(scorings),
        effective_trials=ledger.effective_trials(),
        by_proposer=dict(Counter(body["proposer"] for body in distinct).most_common()),
        by_verdict=dict(Counter((body["verdict"], body["reason"]) for body in distinct).most_common()),
        tune_reads=dict(reads.most_common()),
        openings=tuple({"row": row.number, "time": row.time, **row.body} for row in rows if row.kind == OPENING),
    )


def _identity(body: Mapping[str, Any]) -> tuple[str, ...]:
    basis = body["basis"]
    return (
        *(body["factor_id"], body["data"], basis["label"], basis["ic_kind"]),
        *(basis["universe"], basis["start"], basis["end"]),
    )


def _first_scorings(
    bodies: Iterable[tuple[int, Mapping[str, Any]]],
) -> dict[tuple[str, ...], tuple[int, Mapping[str, Any]]]:
    found: dict[tuple[str, ...], tuple[int, Mapping[str, Any]]] = {}
    for number, body in bodies:
        found.setdefault(_identity(body), (number, body))
    return found


def _flat(body: Mapping[str, Any]) -> dict[str, Any]:
    return {**body["basis"], **body}


def _checked(
    series: NDArray[np.float64], days: Days, count: int, basis: Basis
) -> tuple[NDArray[np.float64], pd.DatetimeIndex]:
    values, calendar = np.asarray(series, dtype=np.float64), as_days(days)
    if values.shape != (len(calendar), count):
        raise PanelError(
            f"series have shape {values.shape}; expected (T, K) = ({len(calendar)}, {count}), one column for each "
            "trial; align them"
        )
    if np.isinf(values).any():
        raise PanelError("series hold infinity; expected a daily IC, NaN where there is none; correct them")
    outside = (calendar < np.datetime64(basis.start)) | (calendar > np.datetime64(basis.end))
    if not np.isnan(values[outside]).all():
        late = calendar[outside][~np.isnan(values[outside]).all(axis=1)]
        raise PanelError(
            f"series have an IC dated {late[0]}; expected none outside the period of the basis, {basis.start} to "
            f"{basis.end}; state the period that was scored"
        )
    return values, pd.DatetimeIndex(calendar.astype("datetime64[ns]"), name="datetime")


def _parquet(values: NDArray[np.float64], index: pd.DatetimeIndex) -> bytes:
    table = pd.DataFrame(values, index=index, columns=[str(place) for place in range(values.shape[1])])
    # An IC repeats no value: dictionaries and statistics would only cost time.
    content: bytes = table.to_parquet(None, engine="pyarrow", use_dictionary=False, write_statistics=False)
    return content
