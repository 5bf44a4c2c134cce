"""The mixture of experts from end to end, on plain arrays: choose, fit, cross-fit, gate, score.

The walls are kept here: factors are chosen and learners fitted on search, the gate on out-of-fold scores of search, its
penalty and early stopping on tune. Nothing of the sealed segment is an argument of `fit_mixture`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.agents.context import CONTEXT_NAMES, MarketContext
from qlib_llm_alpha.agents.evidence import FactorEvidence, gather_evidence
from qlib_llm_alpha.agents.preference import PREFERENCES, RiskPreference
from qlib_llm_alpha.agents.selection import Selection, SelectionOptions, choose_factors
from qlib_llm_alpha.errors import ConfigError, PanelError
from qlib_llm_alpha.evaluation.walls import LABEL_HORIZON, Walls
from qlib_llm_alpha.gating.crossfit import cross_fit, expanding_folds
from qlib_llm_alpha.gating.experts import ExpertSpec, Learner, Predictor, Rows, predict_panel, rows_of
from qlib_llm_alpha.gating.explain import LogOddsExplanation, explain_log_odds
from qlib_llm_alpha.gating.gates import EqualGate, Gate, SoftmaxGate, StaticGate, TrailingICGate
from qlib_llm_alpha.gating.ladder import LadderRow, climb
from qlib_llm_alpha.gating.permutation import PermutationResult, permutation_test
from qlib_llm_alpha.gating.sufficient import (
    Array,
    Days,
    Mask,
    SufficientStatistics,
    standardise_scores,
)

logger = logging.getLogger(__name__)

RowNumbers = NDArray[np.intp]

GATES = ("equal", "static", "trailing_ic", "softmax")
DEFAULT_LEARNERS = ("ridge", "lightgbm")
SINGLE = "factor"
"""The learner of an expert that is one factor; its setting ``column`` counts the panel's factors."""
STATE = (
    "index_return_5",
    "index_return_20",
    "index_return_60",
    "index_volatility_20",
    "index_volatility_60",
    "drawdown_250",
    "dispersion",
    "breadth_20",
    "turnover_60",
    "correlation_20",
)
PERMUTATION_BLOCK = 60
"""Days of market state that are moved together in the permutation test."""
STOPPING_SHARE = 0.2
"""Part of a fold's training days that is held out for early stopping inside the fold."""


def default_experts(seed: int = 7) -> tuple[ExpertSpec, ...]:
    """Return every risk preference with every learner, six experts."""
    return tuple(
        ExpertSpec(f"{preference}_{learner}", preference, learner, {"seed": seed} if learner == "lightgbm" else {})
        for preference in PREFERENCES
        for learner in DEFAULT_LEARNERS
    )


@dataclass(frozen=True)
class MixtureSettings:
    """How a mixture is made.

    Attributes
    ----------
    experts : tuple of ExpertSpec
        An expert without a preference uses every factor, those of its category, or the one that the learner ``factor``
        names.
    selection : SelectionOptions
        Of the agents.
    n_folds, min_train : int
        Expanding folds inside search, and training days of the first.
    horizon : int
        Days after which a label is known.
    min_names : int
        Days with fewer joint names are no evidence for the gate.
    state : tuple of str
        Columns of the market context that the gate reads.
    top_m : int, optional
        Keep the m heaviest experts of a day.
    permutations : int
        Of the test whether the state of the market helps; 0 leaves it out.
    seed : int
    """

    experts: tuple[ExpertSpec, ...] = field(default_factory=default_experts)
    selection: SelectionOptions = field(default_factory=SelectionOptions)
    n_folds: int = 4
    min_train: int = 240
    horizon: int = LABEL_HORIZON
    min_names: int = 30
    state: tuple[str, ...] = STATE
    top_m: int | None = None
    permutations: int = 200
    seed: int = 7

    def __post_init__(self) -> None:
        for name, value, least in (
            ("n_folds", self.n_folds, 1),
            ("min_train", self.min_train, 1),
            ("min_names", self.min_names, 2),
            ("top_m", 1 if self.top_m is None else self.top_m, 1),
            ("permutations", self.permutations, 0),
        ):
            if value < least:
                raise ConfigError(f"{name} is {value!r}; expected {least} or more")
        unknown = sorted(set(self.state) - set(CONTEXT_NAMES))
        if unknown:
            raise ConfigError(f"state {unknown} is not in the market context; expected some of {list(CONTEXT_NAMES)}")
        names = [spec.name for spec in self.experts]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"experts are named {names!r}; expected at least one, each with a name of its own")
        for spec in self.experts:
            if spec.preference and spec.preference not in PREFERENCES:
                raise ConfigError(
                    f"expert {spec.name!r} has the preference {spec.preference!r}; expected one of "
                    f"{list(PREFERENCES)}, or '' for every factor"
                )
            if spec.preference and spec.learner == SINGLE:
                raise ConfigError(
                    f"expert {spec.name!r} is a single factor and has the preference {spec.preference!r}; a preference "
                    "chooses among factors: leave it out"
                )
            if spec.category and (spec.preference or spec.learner == SINGLE):
                raise ConfigError(
                    f"expert {spec.name!r} has the category {spec.category!r} beside a preference or a single factor; "
                    "expected one way to say which factors it uses: leave the others out"
                )


@dataclass(frozen=True, eq=False)
class FactorPanel:
    """Factors with their label: features (F, T, N) dated by signal day, label (T, N), days (T,)."""

    names: tuple[str, ...]
    categories: tuple[str, ...]
    days: Days
    features: Array
    label: Array


@dataclass(frozen=True, eq=False)
class FittedExpert:
    """An expert after fitting: its factors in the order of the learner's columns, and what chose them."""

    spec: ExpertSpec
    factors: tuple[str, ...]
    predictor: Predictor
    selection: Selection | None = None


@dataclass(frozen=True, eq=False)
class FittedMixture:
    """Everything that prediction needs, and everything that a record wants to show.

    Attributes
    ----------
    experts : tuple of FittedExpert, (K,)
        Fitted on search.
    gates : mapping of str to Gate
        ``equal``, ``static``, ``trailing_ic``, ``softmax``; fitted on the out-of-fold scores of search.
    ladder : tuple of LadderRow
        The penalties tried on tune.
    permutation : PermutationResult or None
        Whether the state of the market helped inside search.
    search, tune : SufficientStatistics
        Out of fold on search; of the final experts on tune.
    state : tuple of str
        Columns of the market context.
    fit_until : datetime64[D]
        The state is standardised by days up to this one.
    min_names : int
    horizon : int
        Trading days after which a label is known.
    """

    experts: tuple[FittedExpert, ...]
    gates: Mapping[str, Gate]
    ladder: tuple[LadderRow, ...]
    permutation: PermutationResult | None
    search: SufficientStatistics
    tune: SufficientStatistics
    state: tuple[str, ...]
    fit_until: np.datetime64
    min_names: int
    horizon: int

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the experts."""
        return tuple(expert.spec.name for expert in self.experts)

    def scores(self, names: Sequence[str], features: Array) -> Array:
        """Score a panel with every expert.

        Parameters
        ----------
        names : sequence of str, (F,)
            Factors of the panel, in its order.
        features : array, (F, T, N)

        Returns
        -------
        array, (K, T, N)
            Standardised per day; NaN where an expert's factors are all missing.
        """
        column = {name: position for position, name in enumerate(names)}
        missing = sorted({name for expert in self.experts for name in expert.factors} - set(column))
        if missing:
            raise PanelError(f"factors {missing} were fitted and are not in the panel {list(names)}; load them too")
        columns = [[column[name] for name in expert.factors] for expert in self.experts]
        result = np.full((len(self.experts), *features.shape[1:]), np.nan)
        for day in range(features.shape[1]):
            # A day is scored from its own names alone: who joins the universe later would change the order of sums,
            # and with it the last bit.
            there = ~np.isnan(features[:, day]).all(axis=0)
            if there.any():
                standard = standardise_scores(features[:, day, there])[:, None]
                for row, expert in enumerate(self.experts):
                    raw = predict_panel(expert.predictor, standard[columns[row]])
                    result[row, day, there] = standardise_scores(raw)[0]
        return result

    def outcomes(self, scores: Array, label: Array, days: Days) -> SufficientStatistics:
        """Reduce realised scores and labels, after those of tune, to what an observing gate reads."""
        later = _each_day(scores, label, days, self.min_names)
        later = later.select(later.days > self.tune.days[-1])
        return SufficientStatistics(
            np.concatenate([self.tune.days, later.days]),
            np.concatenate([self.tune.c, later.c]),
            np.concatenate([self.tune.R, later.R]),
            np.concatenate([self.tune.positions, later.positions + self.tune.positions[-1] + 2]),
            np.concatenate([self.tune.dropped_days, later.dropped_days]),
        )

    def weights(
        self, gate: str, days: Days, context: MarketContext, outcomes: SufficientStatistics | None = None
    ) -> Array:
        """Return the weights of a gate, (T, K), each row from what is known at the close of its day."""
        if gate not in self.gates:
            raise ConfigError(f"gate {gate!r} is unknown; expected one of {sorted(self.gates)}")
        asked = _context_rows(context, days)
        # Days are counted on the market's calendar, whichever of them are asked for: an outcome is seen two trading
        # days later, also where some days in between have none.
        first = asked[0] if outcomes is None else min(asked[0], int(np.searchsorted(context.days, outcomes.days[0])))
        counted = np.arange(first, asked[-1] + 1)
        calendar = context.days[counted]
        state = _state_rows(context, self.state, self.fit_until, calendar)
        weights = self.gates[gate].weights(state, calendar, self._as_known(outcomes, context))
        return np.asarray(weights[asked - first])

    def explain(self, days: Days, context: MarketContext) -> LogOddsExplanation | None:
        """Say, for each day, which state feature moved the softmax gate's odds between its two heaviest experts.

        None for a mixture of one expert.
        """
        gate = self.gates["softmax"]
        if not isinstance(gate, SoftmaxGate) or len(self.experts) < 2:
            return None
        return explain_log_odds(gate, _state_rows(context, self.state, self.fit_until, days))

    def _as_known(self, outcomes: SufficientStatistics | None, context: MarketContext) -> SufficientStatistics | None:
        """Date outcomes later by what their label needs beyond the gates' own two days."""
        late = self.horizon - LABEL_HORIZON
        if outcomes is None or late <= 0:
            return outcomes
        place = np.searchsorted(context.days, outcomes.days) + late
        known = outcomes.select(place < len(context.days))
        return replace(known, days=context.days[place[place < len(context.days)]])


def fit_mixture(panel: FactorPanel, walls: Walls, context: MarketContext, settings: MixtureSettings) -> FittedMixture:
    """Fit experts and gates.

    Parameters
    ----------
    panel : FactorPanel
        Of search and tune. Later days are refused.
    walls : Walls
        Must have train and valid.
    context : MarketContext
        Of at least the panel's days.
    settings : MixtureSettings

    Raises
    ------
    ConfigError
        Segments that leave too little, a preference without any factor.
    PanelError
        Too few names a day, days past the tune wall, a context that lacks a day.
    """
    if walls.tune is None:
        raise ConfigError("segments have no 'valid'; the gate's penalty and early stopping are chosen on it: add it")
    if panel.days[-1] > walls.tune.end:
        raise PanelError(f"the panel reaches {panel.days[-1]}, past valid which ends {walls.tune.end}; cut it there")
    train = walls.purged(panel.days, "train", settings.horizon)
    tune = walls.purged(panel.days, "valid", settings.horizon)
    _check_names(panel, settings.min_names)
    _check_state(context, settings.state)
    softmax = SoftmaxGate(top_m=settings.top_m)
    fitting = _Fitting(panel, context, settings)

    rows = np.flatnonzero(train)
    folds = expanding_folds(panel.days[rows], settings.n_folds, settings.horizon, settings.min_train)

    predicted = int(sum(fold.predict.sum() for fold in folds))
    if settings.permutations and predicted < 2 * PERMUTATION_BLOCK:
        raise ConfigError(
            f"train leaves {predicted} out-of-fold days after min_train {settings.min_train}; the permutation test "
            f"needs {2 * PERMUTATION_BLOCK}: lengthen train, lower min_train, or leave the test out by permutations: 0"
        )

    def fit_predict(fit_on: Mask, predict: Mask) -> Array:
        """Select and fit on a fold's training days alone; the last of them stop the learners that stop early."""
        known = rows[fit_on]
        stopping = known[int(len(known) * (1 - STOPPING_SHARE)) :]
        experts = fitting.experts(known, stopping, known[-1] + settings.horizon)
        return fitting.scores(experts, rows[predict])

    out_of_fold = cross_fit(folds, fit_predict)
    search = SufficientStatistics.from_scores(out_of_fold, panel.label[rows], panel.days[rows], settings.min_names)
    tune_rows = np.flatnonzero(tune)
    experts = fitting.experts(rows, tune_rows, int(rows[-1]) + settings.horizon)
    on_tune = SufficientStatistics.from_scores(
        fitting.scores(experts, tune_rows), panel.label[tune_rows], panel.days[tune_rows], settings.min_names
    )

    fit_until = panel.days[rows[-1]]
    search_state = _state_rows(context, settings.state, fit_until, search.days)
    tune_state = _state_rows(context, settings.state, fit_until, on_tune.days)
    static = StaticGate(top_m=settings.top_m).fit(search)
    chosen = climb(softmax, search, search_state, on_tune, tune_state, static.learned)
    tested = None
    if settings.permutations:
        # The penalty of the test is fixed beforehand: with the ladder's choice it could pass by being the prior.
        tested = permutation_test(
            softmax,
            search,
            search_state,
            static=StaticGate(top_m=settings.top_m),
            permutations=settings.permutations,
            block=PERMUTATION_BLOCK,
            horizon=settings.horizon,
            seed=settings.seed,
        )
        logger.info(tested.sentence)
    gates: dict[str, Gate] = {
        "equal": EqualGate().fit(search, search_state),
        "static": static,
        "trailing_ic": TrailingICGate(top_m=settings.top_m).fit(search, search_state),
        "softmax": chosen.gate,
    }
    return FittedMixture(
        experts,
        gates,
        chosen.rows,
        tested,
        search,
        on_tune,
        settings.state,
        fit_until,
        settings.min_names,
        settings.horizon,
    )


class _Fitting:
    """One panel standardised once, on which experts are fitted again and again."""

    def __init__(self, panel: FactorPanel, context: MarketContext, settings: MixtureSettings) -> None:
        self.panel = panel
        self.settings = settings
        # One factor at a time: ranking takes several times the memory of what is ranked.
        self.standard = np.stack([standardise_scores(factor) for factor in panel.features])
        self.target = standardise_scores(panel.label)
        regime = context.regime[_context_rows(context, panel.days)]
        self.evidence: FactorEvidence = gather_evidence(
            panel.features,
            panel.names,
            panel.categories,
            panel.label,
            regime,
            panel.days,
            horizon=settings.horizon,
        )

    def experts(
        self,
        rows: RowNumbers,
        stopping: RowNumbers,
        as_of: int,
    ) -> tuple[FittedExpert, ...]:
        """Choose factors by what is known on row `as_of`, and fit every learner on `rows`.

        A learner that stops early is fitted on those whose labels are known before the first of `stopping`.
        """
        selections = {
            preference: choose_factors(self.evidence, preference, as_of, self.settings.selection)
            for preference in PREFERENCES
            if any(spec.preference == preference for spec in self.settings.experts)
        }
        return tuple(self._expert(spec, selections, rows, stopping) for spec in self.settings.experts)

    def scores(self, experts: Sequence[FittedExpert], rows: RowNumbers) -> Array:
        """Score the panel's rows, (K, rows, N)."""
        return np.stack(
            [
                standardise_scores(predict_panel(expert.predictor, self._columns(expert.factors)[:, rows]))
                for expert in experts
            ]
        )

    def _expert(
        self,
        spec: ExpertSpec,
        selections: Mapping[RiskPreference, Selection],
        rows: RowNumbers,
        stopping: RowNumbers,
    ) -> FittedExpert:
        selection = next((chosen for name, chosen in selections.items() if name == spec.preference), None)
        learner = spec.build()
        factors = self.panel.names if selection is None else selection.names
        if spec.learner == SINGLE:
            factors, learner = self._single(spec)
        elif spec.category:
            factors = self._of_category(spec)
        if not factors:
            raise ConfigError(
                f"expert {spec.name!r} has no factor: none has {self.settings.selection.min_days} days of evidence by "
                f"{selection.as_of if selection else ''}; lengthen train or lower selection.min_days"
            )
        columns = self._columns(factors)
        held_out: Rows | None = None
        if learner.stops_early and len(stopping):
            held_out = rows_of(columns[:, stopping], self.target[stopping])
            rows = rows[rows < stopping[0] - self.settings.horizon]
        predictor = learner.fit(*rows_of(columns[:, rows], self.target[rows]), held_out)
        return FittedExpert(spec, factors, predictor, selection)

    def _single(self, spec: ExpertSpec) -> tuple[tuple[str, ...], Learner]:
        """Return the one factor of a single-factor expert, and a learner to which it is the only column."""
        column = int(spec.params.get("column", 0))
        if not 0 <= column < len(self.panel.names):
            raise ConfigError(
                f"expert {spec.name!r} takes factor number {column}; the panel has {len(self.panel.names)}, from 0"
            )
        params = {name: value for name, value in spec.params.items() if name != "column"}
        return (self.panel.names[column],), replace(spec, params=params).build()

    def _of_category(self, spec: ExpertSpec) -> tuple[str, ...]:
        categories = self.panel.categories
        chosen = tuple(
            name for name, category in zip(self.panel.names, categories, strict=True) if category == spec.category
        )
        if not chosen:
            raise ConfigError(
                f"expert {spec.name!r} asks for the category {spec.category!r}; the factors are of "
                f"{sorted(set(categories))}; leave the expert out or correct its category"
            )
        return chosen

    def _columns(self, factors: Sequence[str]) -> Array:
        return self.standard[[self.panel.names.index(name) for name in factors]]


def _each_day(scores: Array, label: Array, days: Days, min_names: int) -> SufficientStatistics:
    """Reduce every day by itself, from the names of its joint set alone, so that no bit depends on other days."""
    kept: list[SufficientStatistics] = []
    positions: list[int] = []
    for day in range(len(days)):
        joint = ~np.isnan(scores[:, day]).any(axis=0) & ~np.isnan(label[day])
        if joint.sum() >= max(min_names, 1):
            kept.append(
                SufficientStatistics.from_scores(
                    scores[:, day, joint][:, None], label[day, joint][None], days[[day]], min_names
                )
            )
            positions.append(day)
    experts = len(scores)
    return SufficientStatistics(
        days[positions],
        np.array([one.c[0] for one in kept]).reshape(-1, experts),
        np.array([one.R[0] for one in kept]).reshape(-1, experts, experts),
        np.array(positions, dtype=np.int64),
        np.delete(days, positions),
    )


def _check_state(context: MarketContext, names: Sequence[str]) -> None:
    unknown = sorted(set(names) - set(context.names))
    if unknown:
        raise ConfigError(f"state {unknown} is not in the market context; expected some of {list(context.names)}")


def _state_rows(context: MarketContext, names: Sequence[str], fit_until: np.datetime64, days: Days) -> Array:
    _check_state(context, names)
    columns = [context.names.index(name) for name in names]
    standard = context.standardised(fit_until=fit_until)
    return np.asarray(standard[_context_rows(context, days)][:, columns])


def _context_rows(context: MarketContext, days: Days) -> RowNumbers:
    rows = np.searchsorted(context.days, days)
    inside = rows < len(context.days)
    inside[inside] = context.days[rows[inside]] == days[inside]
    if not inside.all():
        raise PanelError(
            f"the market context ({context.days[0]} to {context.days[-1]}) has no row for {days[~inside][0]}; "
            "load it up to the last day that is scored"
        )
    return np.asarray(rows)


def _check_names(panel: FactorPanel, min_names: int) -> None:
    names = (~np.isnan(panel.label)).sum(axis=1)
    if (names >= min_names).sum() < len(names) / 2:
        raise PanelError(
            f"the median day has {int(np.median(names))} instruments with a label; the gate needs {min_names} on most "
            "days: name a larger universe, or lower min_names knowing that a day's IC is then mostly chance"
        )
