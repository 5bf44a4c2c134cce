"""Formulas on a provider: their values as a frame, their scores as a table. What the command line's ``factor`` does."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from qlib_llm_alpha.data.bars import open_panel, provider_fields
from qlib_llm_alpha.data.provider_files import period_path
from qlib_llm_alpha.engine.distribute import Backend, screen_chunks
from qlib_llm_alpha.engine.evaluate import Batch, Warmup, columns_of
from qlib_llm_alpha.engine.execution import Cells
from qlib_llm_alpha.engine.funnel import Screened, prepare_label, screen
from qlib_llm_alpha.engine.panel import DayLike, as_day
from qlib_llm_alpha.engine.panel_store import save_panel
from qlib_llm_alpha.engine.tile_scoring import DailyScores
from qlib_llm_alpha.engine.tiles import TiledPanel
from qlib_llm_alpha.errors import ConfigError, ExpressionError
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
) -> list[FormulaScore]:
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
    rows = slice(_first_row(panel, start), None)
    if backend is None:
        screened = iter(screen(good, panel, prepare_label(label, panel), warmup=warmup, rows=rows, progress=progress))
    else:
        screened = iter(_far_and_wide(good, panel, label, warmup, rows, backend, workers, progress))
    return [
        FormulaScore(formula.name, formula.text, refused=formula.refusal)
        if formula.expression is None
        else _score(formula, next(screened))
        for formula in formulas
    ]


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
