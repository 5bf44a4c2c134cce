"""Formulas on a provider: their values as a frame, their scores as a table. What the command line's ``factor`` does.

Whoever looks at scores has tried the formulas: :meth:`FormulaScores.enter` counts them in a trial ledger.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qlib_llm_alpha.data.bars import open_panel, provider_fields
from qlib_llm_alpha.data.provider_files import period_path
from qlib_llm_alpha.engine.distribute import Backend, screen_chunks
from qlib_llm_alpha.engine.evaluate import Batch, Warmup, columns_of
from qlib_llm_alpha.engine.execution import Cells
from qlib_llm_alpha.engine.funnel import Screened, prepare_label, screen
from qlib_llm_alpha.engine.panel import DayLike, Days, as_day
from qlib_llm_alpha.engine.panel_store import save_panel
from qlib_llm_alpha.engine.tile_scoring import DailyScores
from qlib_llm_alpha.engine.tiles import TiledPanel
from qlib_llm_alpha.errors import ConfigError, ExpressionError
from qlib_llm_alpha.evaluation.basis import Basis
from qlib_llm_alpha.evaluation.ledger import Trial, TrialLedger
from qlib_llm_alpha.evaluation.statistics import hac_t, icir, mean_of
from qlib_llm_alpha.factor.expression import Expression
from qlib_llm_alpha.library.formula_file import ReadFormula

Progress = Callable[[int, int], None]

_AT_ONCE: Final = 32


@dataclass(frozen=True)
class FormulaScore:
    """What one formula did; NaN where nothing is known.

    ``ic`` and ``rank_ic`` are daily means, ``icir`` and ``rank_icir`` those means over their daily deviation, ``t_ic``
    and ``t_rank_ic`` HAC t values, ``turnover`` the mean daily share of new names in the top fifth, ``coverage`` the
    mean share of members with a value, ``days`` those with a rank IC. ``refused`` says why it was not scored.
    """

    name: str
    formula: str
    ic: float = np.nan
    icir: float = np.nan
    t_ic: float = np.nan
    rank_ic: float = np.nan
    rank_icir: float = np.nan
    t_rank_ic: float = np.nan
    turnover: float = np.nan
    autocorrelation: float = np.nan
    coverage: float = np.nan
    days: int = 0
    refused: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, NaN as None."""
        values = asdict(self)
        return {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in values.items()}


@dataclass(frozen=True, eq=False)
class FormulaScores:
    """What some formulas did on the same days, members and label.

    Parameters
    ----------
    formulas : tuple of ReadFormula, K of them
    scores : tuple of FormulaScore, (K,)
    rank_ic : array, (T, K)
        Daily rank IC; NaN for what was refused. Dated t, it is known ``label.lookahead`` trading days later.
    days : array, (T,) datetime64[D]
        The days that count: from the first asked for to the last whose label is known by the end.
    label : Expression
    universe, membership : str
        The market, and who belongs to it when, in words.
    """

    formulas: tuple[ReadFormula, ...]
    scores: tuple[FormulaScore, ...]
    rank_ic: NDArray[np.float64] = field(repr=False)
    days: Days = field(repr=False)
    label: Expression
    universe: str
    membership: str

    @property
    def basis(self) -> Basis:
        """What the rank ICs are measured on; their number is that of formulas which were scored."""
        return Basis(
            label=self.label.text,
            horizon=self.label.lookahead,
            ic_kind="rank_ic",
            universe=self.universe,
            membership=self.membership,
            start=str(self.days[0]),
            end=str(self.days[-1]),
            cost_bps=None,
            trials=sum(not one.refused for one in self.scores),
        )

    def enter(self, ledger: TrialLedger, *, data: str, run: str, proposers: Mapping[str, str] | None = None) -> int:
        """Count the formulas that were scored in a ledger, with their daily rank IC; what was refused is not entered.

        Parameters
        ----------
        ledger : TrialLedger
        data : str
            Fingerprint of the provider's content.
        run : str
            Who asked.
        proposers : mapping of str to str, optional
            Who proposed a formula, by its id. Default: ``human``.

        Returns
        -------
        int
            How many are new.
        """
        known = proposers or {}
        trials, columns = [], []
        for column, (formula, score) in enumerate(zip(self.formulas, self.scores, strict=True)):
            if formula.expression is not None and not score.refused:
                who = known.get(formula.expression.id, "human")
                name = formula.expression.id
                trials.append(Trial(name, formula.text, who, ic=score.rank_ic, t=score.t_rank_ic))
                columns.append(column)
        if not trials:
            return 0
        return ledger.record(trials, self.rank_ic[:, columns], self.days, basis=self.basis, data=data, run=run)


@dataclass(frozen=True, eq=False)
class FormulaFrame:
    """Values of formulas.

    Parameters
    ----------
    values : DataFrame
        Indexed (datetime, instrument), a row for each member and day, one float32 column for each formula.
    refused : dict of str to str
        Formulas that were not computed, and why: the factor language refuses them, or the provider has no such field.
    """

    values: pd.DataFrame
    refused: dict[str, str]


def formula_frame(
    formulas: Sequence[ReadFormula],
    provider: Path | str,
    universe: str,
    *,
    start: DayLike | None = None,
    end: DayLike | None = None,
    warmup: Warmup = "strict",
    progress: Progress | None = None,
) -> FormulaFrame:
    """Compute formulas for the members of a universe.

    Parameters
    ----------
    formulas : sequence of ReadFormula
    provider : path
    universe : str
        A market of the provider.
    start, end : date, optional
        First and last day of the rows; values read all days before as well, and none after ``end``.
    warmup : {"strict", "qlib"}
        Whether the first look-back bars of an instrument are NaN.
    progress : callable, optional
        Called as ``progress(done, total)``.

    Raises
    ------
    ProviderError
        As :func:`~qlib_llm_alpha.data.bars.open_panel`.
    """
    panel = open_panel(provider, universe, start=start, end=end)
    formulas = _Fields.of(provider, panel).checked(formulas)
    begin = _first_row(panel, start)
    wanted = np.zeros((len(panel.instruments), len(panel.days)), dtype=np.bool_)
    wanted[:, begin:] = True if panel.member is None else panel.untiled(panel.member)[begin:].T
    cells = Cells.by_instrument(wanted)
    refused = {formula.name: formula.refusal for formula in formulas if formula.expression is None}
    good = [(formula.name, formula.expression) for formula in formulas if formula.expression is not None]
    values = np.empty((len(good), len(cells)), dtype=np.float32)
    kept: list[int] = []
    for place in range(0, len(good), _AT_ONCE):
        part = good[place : place + _AT_ONCE]
        for name, failure in _write(part, panel, cells, values[place : place + len(part)], warmup).items():
            refused[name] = failure
        kept.extend(place + offset for offset, (name, _) in enumerate(part) if name not in refused)
        if progress is not None:
            progress(min(place + _AT_ONCE, len(good)), len(good))
    instrument = np.repeat(np.arange(len(wanted)), wanted.sum(axis=1))
    index = pd.MultiIndex(
        levels=[pd.DatetimeIndex(panel.days.astype("datetime64[ns]")), list(panel.instruments)],
        codes=[cells.rows.tolist(), instrument.tolist()],
        names=["datetime", "instrument"],
    )
    if len(kept) < len(good):
        values = values[kept]
    frame = pd.DataFrame(values.T, index=index, columns=[good[place][0] for place in kept], copy=False)
    return FormulaFrame(frame.sort_index(), refused)


def formula_scores(
    formulas: Sequence[ReadFormula],
    provider: Path | str,
    universe: str,
    label: Expression,
    *,
    start: DayLike | None = None,
    end: DayLike | None = None,
    warmup: Warmup = "strict",
    backend: Backend | None = None,
    workers: int = 2,
    progress: Progress | None = None,
) -> FormulaScores:
    """Score formulas against a label, in their order.

    Parameters
    ----------
    label : Expression
        Read with ``allow_future``. A day whose label needs a bar after ``end`` does not count.
    backend : {"loky", "threading", "ray", "dask"}, optional
        Spread chunks of formulas over so many ``workers``; each maps the saved bars into memory. Default: this process.
    formulas, provider, universe, start, end, warmup, progress
        As for :func:`formula_frame`.

    Raises
    ------
    ConfigError
        A label that reads no bar after its date.
    ExpressionError
        A label of fields that the provider does not have.
    ProviderError
        As :func:`~qlib_llm_alpha.data.bars.open_panel`.
    """
    if label.lookahead < 1:
        raise ConfigError(
            f"label {str(label)!r} reads no bar after its date, so it is known beforehand and no forecast; expected a "
            "future return such as 'Ref($close,-2)/Ref($close,-1)-1'"
        )
    panel = open_panel(provider, universe, start=start, end=end)
    fields = _Fields.of(provider, panel)
    if why := fields.without(label):
        raise ExpressionError("unknown_field", f"label {str(label)!r}: {why}")
    formulas = fields.checked(formulas)
    good = [formula.expression for formula in formulas if formula.expression is not None]
    begin = _first_row(panel, start)
    # A window over later returns has a value before all of them are known.
    rows = slice(begin, max(begin + 1, len(panel.days) - label.lookahead))
    if backend is None:
        screened = iter(screen(good, panel, prepare_label(label, panel), warmup=warmup, rows=rows, progress=progress))
    else:
        screened = iter(_far_and_wide(good, panel, label, warmup, rows, backend, workers, progress))
    days = panel.days[rows]
    rank_ic = np.full((len(days), len(formulas)), np.nan)
    scores = []
    for column, formula in enumerate(formulas):
        if formula.expression is None:
            scores.append(FormulaScore(formula.name, formula.text, refused=formula.refusal))
            continue
        found = next(screened)
        scores.append(_score(formula, found))
        if found.passed and found.daily is not None and found.daily.rank_ic is not None:
            rank_ic[:, column] = found.daily.rank_ic
    membership = "all instruments" if panel.member is None else "members of the day"
    return FormulaScores(tuple(formulas), tuple(scores), rank_ic, days, label, universe, membership)


def _far_and_wide(
    formulas: Sequence[Expression],
    panel: TiledPanel,
    label: Expression,
    warmup: Warmup,
    rows: slice,
    backend: Backend,
    workers: int,
    progress: Progress | None,
) -> list[Screened]:
    """Screen formulas in other processes, on a copy of the bars on disk that goes when they are done."""
    columns, others = columns_of([*formulas, label])
    # A strict warm-up counts from the first close, whatever is computed.
    columns = tuple(sorted({*columns, "$close"}))
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_panel(panel, columns, Path(scratch) / "panel", others=others)
        results = screen_chunks(
            formulas,
            folder,
            label,
            chunk=_AT_ONCE,
            backend=backend,
            workers=workers,
            warmup=warmup,
            rows=rows,
            progress=progress,
        )
    found: list[Screened] = []
    for number, result in enumerate(results):
        part = formulas[number * _AT_ONCE : (number + 1) * _AT_ONCE]
        lost = [Screened(formula, formula, reason="failed", detail=result.error) for formula in part]
        found.extend(lost if result.value is None else result.value)
    return found


def _first_row(panel: TiledPanel, start: DayLike | None) -> int:
    return 0 if start is None else int(np.searchsorted(panel.days, as_day(start)))


@dataclass(frozen=True)
class _Fields:
    """What a provider has."""

    root: Path
    daily: tuple[str, ...]
    instruments: tuple[str, ...]

    @classmethod
    def of(cls, provider: Path | str, panel: TiledPanel) -> _Fields:
        return cls(Path(provider).expanduser(), provider_fields(provider), panel.instruments)

    def without(self, expression: Expression) -> str:
        """Say which fields of a formula nobody has; empty where there are none such."""
        missing = [field for field in expression.fields if not self._has(field)]
        return f"no instrument of the provider has {missing}; import them or do without" if missing else ""

    def _has(self, field: str) -> bool:
        if field.startswith("$$"):
            return any(period_path(self.root, code, field[2:]).is_file() for code in self.instruments)
        return field.lower() in self.daily

    def checked(self, formulas: Sequence[ReadFormula]) -> list[ReadFormula]:
        """Refuse formulas of fields that nobody has: they would come out empty, as in Qlib, without a word."""
        found = []
        for formula in formulas:
            why = "" if formula.expression is None else self.without(formula.expression)
            found.append(replace(formula, expression=None, refusal=f"[unknown_field] {why}") if why else formula)
        return found


def _write(
    part: Sequence[tuple[str, Expression]], panel: TiledPanel, cells: Cells, out: Any, warmup: Warmup
) -> dict[str, str]:
    """Compute formulas together; where that fails one by one, so that only the bad ones are lost."""
    try:
        Batch([expression for _, expression in part], panel).write_cells(cells, out, warmup=warmup)
    except ExpressionError as error:
        if len(part) == 1:
            return {part[0][0]: str(error)}
        failures: dict[str, str] = {}
        for place, one in enumerate(part):
            failures.update(_write([one], panel, cells, out[place : place + 1], warmup))
        return failures
    return {}


def _score(formula: ReadFormula, found: Screened) -> FormulaScore:
    if not found.passed or found.daily is None:
        return FormulaScore(formula.name, formula.text, refused=f"[{found.reason}] {found.detail}")
    return _summary(formula, found.daily)


def _summary(formula: ReadFormula, daily: DailyScores) -> FormulaScore:
    none = np.full(len(daily.ic), np.nan)
    rank_ic, turnover, autocorrelation = (
        none if series is None else series for series in (daily.rank_ic, daily.turnover, daily.autocorrelation)
    )
    return FormulaScore(
        name=formula.name,
        formula=formula.text,
        ic=mean_of(daily.ic),
        icir=icir(daily.ic),
        t_ic=hac_t(daily.ic),
        rank_ic=mean_of(rank_ic),
        rank_icir=icir(rank_ic),
        t_rank_ic=hac_t(rank_ic),
        turnover=mean_of(turnover),
        autocorrelation=mean_of(autocorrelation),
        coverage=mean_of(daily.coverage),
        days=int(np.isfinite(rank_ic).sum()),
    )
