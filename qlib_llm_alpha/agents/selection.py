"""The selection agent: from every category the factors that predict and that suit the risk preference.

    score = w_c * theta' + w_r * rho'

where theta' and rho' are the places, 0 to 1, of confidence and risk-preference scores inside the pool of factors that
have evidence (otherwise rho, which is of the order of 1, would swamp theta, which is of the order of 0.02). Factors are
taken in falling order of score (equal scores by name) while the score is above the threshold, the category has room and
no chosen factor says the same thing. A category without such a factor stays empty.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qlib_llm_alpha.agents.confidence import confidence
from qlib_llm_alpha.agents.evidence import FactorEvidence
from qlib_llm_alpha.agents.preference import MEASURES, RiskPreference, risk_measures, risk_scores
from qlib_llm_alpha.engine.panel import DayLike
from qlib_llm_alpha.engine.scoring import percentile
from qlib_llm_alpha.errors import ConfigError

Array = NDArray[np.float64]
Fallback = Literal["none", "best_single", "no_evidence"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SelectionOptions:
    """How factors are chosen.

    Parameters
    ----------
    confidence_weight, risk_weight : float
        ``w_c`` and ``w_r``: 0 or more, sum 1 (the paper's mix is 0.6 and 0.4).
    threshold : float
        A score must be above it, in [0, 1]. To be chosen on the valid segment alone.
    max_per_category : int or None
        1 is the paper's whole-framework algorithm (A.6), None its category algorithm (A.5): all above the threshold.
    max_rank_correlation : float or None
        A factor whose mean rank correlation with a chosen one is beyond this, either way, is left out. None turns it
        off.
    window : int
        Trailing observable days.
    shrinkage : float
        Days of weight of the unconditional mean in confidence.
    min_days : int
        A factor with fewer days of evidence is not in the pool.
    """

    confidence_weight: float = 0.6
    risk_weight: float = 0.4
    threshold: float = 0.5
    max_per_category: int | None = 1
    max_rank_correlation: float | None = 0.9
    window: int = 252
    shrinkage: float = 60.0
    min_days: int = 60

    def __post_init__(self) -> None:
        weights = (self.confidence_weight, self.risk_weight)
        if not all(weight >= 0 for weight in weights) or abs(sum(weights) - 1.0) > 1e-9:
            raise ConfigError(
                f"confidence_weight and risk_weight are {weights!r}; expected 0 or more each and sum 1; "
                "0.6 and 0.4 are usual"
            )
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold is {self.threshold!r}; expected 0 to 1, as the scores are; 0.5 is usual")
        if self.max_per_category is not None and self.max_per_category < 1:
            raise ConfigError(
                f"max_per_category is {self.max_per_category!r}; expected 1 or more, or None for all above it"
            )
        if self.max_rank_correlation is not None and not 0 < self.max_rank_correlation <= 1:
            raise ConfigError(
                f"max_rank_correlation is {self.max_rank_correlation!r}; expected more than 0 and at most 1, "
                "or None for off"
            )
        if self.window < 2 or self.min_days < 2 or self.min_days > self.window or not self.shrinkage >= 0:
            raise ConfigError(
                f"window is {self.window!r}, min_days {self.min_days!r}, shrinkage {self.shrinkage!r}; expected "
                "2 <= min_days <= window and shrinkage of 0 or more"
            )


@dataclass(frozen=True)
class SelectionRow:
    """One factor in the score table: what each agent said, and what became of it.

    ``status`` is ``chosen``, ``below_threshold``, ``category_full``, ``redundant``, ``no_evidence`` or ``fallback``
    (chosen although below the threshold); ``detail`` names the factor that it repeats. The measures are those of the
    risk-preference agent. NaN where there is no evidence.
    """

    name: str
    category: str
    sign: int
    theta: float
    theta_place: float
    rho: float
    rho_place: float
    score: float
    status: str
    detail: str
    n_days: int
    measures: Mapping[str, float]


@dataclass(frozen=True)
class Selection:
    """The factors of one preference on one decision day.

    Parameters
    ----------
    preference : str
        ``conservative``, ``moderate``, ``aggressive``, or ``custom`` for weights of the user's own.
    as_of : str
        The decision day.
    regime : str
        Regime of that day.
    chosen : tuple of (name, sign)
        In falling order of score; sign +1 or -1 says which way the factor is used.
    rows : tuple of SelectionRow
        Every factor of the pool, in the order it came.
    fallback : str
        ``none``; ``best_single`` when nothing was above the threshold and the best factor overall was taken instead;
        ``no_evidence`` when no factor had enough days, and ``chosen`` is empty.
    """

    preference: str
    as_of: str
    regime: str
    chosen: tuple[tuple[str, int], ...]
    rows: tuple[SelectionRow, ...]
    fallback: Fallback = "none"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the chosen factors, in falling order of score."""
        return tuple(name for name, _ in self.chosen)

    def to_dict(self) -> dict[str, object]:
        """Return plain values for JSON, NaN as None."""
        return {
            "preference": self.preference,
            "as_of": self.as_of,
            "regime": self.regime,
            "fallback": self.fallback,
            "chosen": [{"name": name, "sign": sign} for name, sign in self.chosen],
            "rows": [{name: _plain(value) for name, value in _flat(row).items()} for row in self.rows],
        }

    def to_frame(self) -> pd.DataFrame:
        """Return the score table, one row for each factor, measures as columns."""
        table: pd.DataFrame = pd.DataFrame([_flat(row) for row in self.rows])
        table.insert(0, "preference", self.preference)
        table.insert(1, "as_of", self.as_of)
        return table


def choose_factors(
    evidence: FactorEvidence,
    preference: RiskPreference | Mapping[str, float],
    as_of: int | DayLike,
    options: SelectionOptions | None = None,
) -> Selection:
    """Choose the factors of one risk preference on one decision day.

    Parameters
    ----------
    evidence : FactorEvidence
        Of the whole pool; gathered once for all preferences and days.
    preference : str or mapping
        A risk preference, or weights by measure.
    as_of : int or date
        Decision day: row number, or a date, which means the last day up to it. Outcomes dated later than ``horizon``
        days before it are not read. For a fit on a segment, its last day.
    options : SelectionOptions, optional

    Returns
    -------
    Selection
        Never raises for want of evidence: see its ``fallback``.

    Raises
    ------
    ConfigError
        An unknown preference or impossible weights.
    PanelError
        A decision day before the first day.
    """
    options = SelectionOptions() if options is None else options
    row = evidence.row(as_of)
    trust = confidence(
        evidence.rank_ic,
        evidence.regime,
        row,
        horizon=evidence.horizon,
        window=options.window,
        shrinkage=options.shrinkage,
        min_days=options.min_days,
        slow_rank_ic=evidence.slow_rank_ic,
        slow_horizon=evidence.slow_horizon,
    )
    measures = risk_measures(
        evidence.rank_ic,
        evidence.long_short,
        evidence.regime,
        trust.sign,
        row,
        horizon=evidence.horizon,
        window=options.window,
        min_days=options.min_days,
    )
    rho = risk_scores(measures, preference)
    in_pool = ~(np.isnan(trust.strength) | np.isnan(rho))
    theta_place = percentile(np.where(in_pool, trust.strength, np.nan))
    rho_place = percentile(np.where(in_pool, rho, np.nan))
    score = np.round(options.confidence_weight * theta_place + options.risk_weight * rho_place, 12)
    status, fallback = _decide(evidence, score, row, options)
    rows = tuple(
        SelectionRow(
            name=name,
            category=evidence.categories[factor],
            sign=int(trust.sign[factor]),
            theta=float(trust.theta[factor]),
            theta_place=float(theta_place[factor]),
            rho=float(rho[factor]),
            rho_place=float(rho_place[factor]),
            score=float(score[factor]),
            status=status[factor][0],
            detail=status[factor][1],
            n_days=int(trust.n_days[factor]),
            measures={measure: float(getattr(measures, measure)[factor]) for measure in MEASURES},
        )
        for factor, name in enumerate(evidence.names)
    )
    taken = sorted((r for r in rows if r.status in {"chosen", "fallback"}), key=lambda r: (-r.score, r.name))
    return Selection(
        preference=preference if isinstance(preference, str) else "custom",
        as_of=str(evidence.days[row]),
        regime=str(evidence.regime[row]),
        chosen=tuple((r.name, r.sign) for r in taken),
        rows=rows,
        fallback=fallback,
    )


def _decide(
    evidence: FactorEvidence, score: Array, row: int, options: SelectionOptions
) -> tuple[list[tuple[str, str]], Fallback]:
    """Give every factor a status and a detail, in the order of the pool."""
    status = [("no_evidence", "")] * len(score)
    order = sorted(np.flatnonzero(~np.isnan(score)).tolist(), key=lambda f: (-score[f], evidence.names[f]))
    if not order:
        logger.warning("no factor has enough evidence on %s: nothing is chosen", evidence.days[row])
        return status, "no_evidence"
    limit = options.max_rank_correlation
    # Values of a day are known at its close: the correlation needs no horizon.
    alike = np.abs(evidence.mean_correlation(row, options.window)) if limit is not None else None
    chosen: list[int] = []
    for factor in order:
        twins = [] if alike is None else [c for c in chosen if alike[factor, c] > (limit or 1.0)]
        peers = sum(evidence.categories[c] == evidence.categories[factor] for c in chosen)
        if not score[factor] > options.threshold:
            status[factor] = ("below_threshold", "")
        elif options.max_per_category is not None and peers >= options.max_per_category:
            status[factor] = ("category_full", "")
        elif twins:
            status[factor] = ("redundant", evidence.names[twins[0]])
            logger.info("%s is left out: it repeats %s", evidence.names[factor], evidence.names[twins[0]])
        else:
            status[factor] = ("chosen", "")
            chosen.append(factor)
    if chosen:
        return status, "none"
    status[order[0]] = ("fallback", f"no score above {options.threshold}")
    logger.warning("no factor scores above %s on %s: the best is taken", options.threshold, evidence.days[row])
    return status, "best_single"


def _flat(row: SelectionRow) -> dict[str, object]:
    flat = asdict(row)
    flat.update(flat.pop("measures"))
    return flat


def _plain(value: object) -> object:
    return None if isinstance(value, float) and np.isnan(value) else value
