"""A mixture of experts as a Qlib ``Model``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from qlib.data import D
from qlib.data.dataset import DatasetH
from qlib.data.dataset.handler import DataHandlerLP
from qlib.model.base import Model

from qlib_llm_alpha.agents.context import MarketContext
from qlib_llm_alpha.agents.selection import SelectionOptions
from qlib_llm_alpha.data.handler import LABEL, FactorSetHandler
from qlib_llm_alpha.data.market_state import load_market_context
from qlib_llm_alpha.engine.panel import Panel
from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.evaluation.walls import LABEL_HORIZON, Walls
from qlib_llm_alpha.factor.expression import Expression, parse
from qlib_llm_alpha.gating.experts import ExpertSpec
from qlib_llm_alpha.gating.mixture import (
    GATES,
    SINGLE,
    STATE,
    FactorPanel,
    FittedMixture,
    MixtureSettings,
    default_experts,
    fit_mixture,
)
from qlib_llm_alpha.gating.sufficient import Array, Days, SufficientStatistics, composite
from qlib_llm_alpha.library.seed import CATEGORIES

logger = logging.getLogger("qlib.gated")

SCORE = "score"


class GatedModel(Model):
    """Agents choose factors, experts score, a gate weighs the experts by the state of the market.

    ``fit`` uses train (search) and valid (tune), each without its last days whose labels are not yet known; it never
    reads test. ``predict`` gives a frame: ``score`` first, which stock strategies and records read, then one column
    for each expert, standardised by day. A row dated t uses bars up to the close of t and is traded at t+1; the label
    reaches into ``predict`` only for the trailing gate, which at t reads outcomes dated t-2 and earlier.

    Parameters
    ----------
    gate : {"softmax", "static", "equal", "trailing_ic"}
        Which gate makes the column ``score``; all are fitted, for comparison.
    benchmark : str
        Index whose returns describe the market.
    experts : list of mappings, optional
        Each with ``name``, ``learner`` (``ridge``, ``lightgbm`` or ``factor``), and ``preference`` (conservative,
        moderate, aggressive; left out: every factor) or ``category`` (the factors of one of the nine), ``params``, or,
        for the learner ``factor``, ``factor``. Default: three preferences times ridge and LightGBM. Factors may be
        mined, so an expert of a category that none of them has is left out, and the log says so.
    selection : mapping, optional
        Keywords of ``SelectionOptions``: weights, threshold, ``max_per_category``, ...
    state : list of str, optional
        Columns of the market context that the gate reads.
    n_folds, min_train, min_names, top_m, permutations, seed
        See ``MixtureSettings``.

    Attributes
    ----------
    mixture : FittedMixture or None
        Learned.
    context : MarketContext or None
        The market context that was read last.
    """

    def __init__(
        self,
        gate: str = "softmax",
        benchmark: str = "SH000300",
        experts: Sequence[Mapping[str, Any]] | None = None,
        selection: Mapping[str, Any] | None = None,
        state: Sequence[str] = STATE,
        n_folds: int = 4,
        min_train: int = 240,
        min_names: int = 30,
        top_m: int | None = None,
        permutations: int = 200,
        seed: int = 7,
    ) -> None:
        if gate not in GATES:
            raise ConfigError(f"gate {gate!r} is unknown; expected one of {list(GATES)}")
        for given in () if experts is None else experts:
            _check_expert(given)
        self.gate = gate
        self.benchmark = benchmark
        self.experts = experts
        self.selection = _keywords(SelectionOptions, selection, "selection")
        self.state = tuple(state)
        self.n_folds = n_folds
        self.min_train = min_train
        self.min_names = min_names
        self.top_m = top_m
        self.permutations = permutations
        self.seed = seed
        self.instruments: Any = None
        self.horizon = LABEL_HORIZON
        self.label = LABEL
        self.mixture: FittedMixture | None = None
        self.context: MarketContext | None = None
        # Refuses what no data could make right, before any are loaded.
        for spec in self._settings(None).experts:
            spec.build()

    def fit(self, dataset: DatasetH) -> GatedModel:
        """Choose factors, fit experts and gates on the dataset's train and valid segments."""
        walls = Walls.from_segments(dataset.segments)
        if walls.tune is None:
            raise ConfigError("segments have no 'valid'; GatedModel chooses the gate's penalty on it: add its dates")
        handler = dataset.handler
        self.instruments = handler.instruments
        label = _label_expression(handler)
        self.horizon, self.label = label.lookahead, label.qlib
        settings = self._settings(_feature_names(dataset), _categories(dataset.handler))
        panel = self._panel(dataset, ["train", "valid"])
        self.context = load_market_context(self.instruments, self.benchmark, pd.Timestamp(walls.tune.end))
        self.mixture = fit_mixture(panel, walls, self.context, settings)
        for expert in self.mixture.experts:
            logger.info("expert %s: %s", expert.spec.name, ", ".join(expert.factors))
        return self

    def predict(self, dataset: DatasetH, segment: str | slice = "test") -> pd.DataFrame:
        """Score a segment: columns ``score`` and one for each expert, indexed as the segment."""
        mixture = self.fitted()
        features = dataset.prepare(segment, col_set="feature", data_key=DataHandlerLP.DK_I)
        panel = Panel.from_frame(features)
        scores = mixture.scores(panel.fields, panel.stack())
        experts = _like(features, panel, dict(zip(mixture.names, scores, strict=True)))
        outcomes = self.realised(experts) if self.gate == "trailing_ic" else None
        weights = self.weights(self.gate, panel.days, outcomes)
        experts.insert(0, SCORE, _like(features, panel, {SCORE: composite(scores, weights)})[SCORE])
        return experts

    def realised(self, predictions: pd.DataFrame) -> SufficientStatistics:
        """Reduce predictions and the returns that followed to what an observing gate reads, after those of valid.

        Parameters
        ----------
        predictions : DataFrame
            Indexed (datetime, instrument), with the experts' columns.

        Returns
        -------
        SufficientStatistics
            Dated like the predictions; an outcome dated s is known `horizon` trading days later, and days whose label
            is not known yet are dropped.
        """
        mixture = self.fitted()
        experts = predictions[list(mixture.names)]
        days = experts.index.get_level_values("datetime")
        codes = sorted(experts.index.get_level_values("instrument").unique())
        label = D.features(codes, [self.label], days.min(), days.max())[self.label].rename("label")
        panel = Panel.from_frame(experts.join(label.reorder_levels(experts.index.names)))
        return mixture.outcomes(panel.stack(mixture.names), panel["label"], panel.days)

    def weights(self, gate: str, days: Days, outcomes: SufficientStatistics | None = None) -> Array:
        """Return the weights (T, K) of a fitted gate; each row from what is known at the close of its day."""
        return self.fitted().weights(gate, days, self.market_context(days[-1]), outcomes)

    def market_context(self, until: np.datetime64) -> MarketContext:
        """Return the market context of every day up to at least `until`."""
        if self.context is None or self.context.days[-1] < until:
            self.context = load_market_context(self.instruments, self.benchmark, pd.Timestamp(until))
        return self.context

    def fitted(self) -> FittedMixture:
        """Return the mixture; ConfigError before ``fit``."""
        if self.mixture is None:
            raise ConfigError("GatedModel has not been fitted; call fit(dataset) before predict or weights")
        return self.mixture

    def tune_reads(self) -> dict[str, int]:
        """Return how often ``fit`` looked at valid to decide something, by what it decided.

        An expert whose learner stops early chose its number of rounds there, once; the gate's penalty was chosen by
        one look with every rung of the ladder.
        """
        mixture = self.fitted()
        stopping = [expert.spec for expert in mixture.experts if expert.spec.build().stops_early]
        reads = {f"early stopping of {spec.name}": 1 for spec in stopping}
        return {**reads, "rungs of the gate's ladder": len(mixture.ladder)}

    def _settings(self, names: tuple[str, ...] | None, categories: Mapping[str, str] | None = None) -> MixtureSettings:
        specs = default_experts(self.seed) if self.experts is None else _specs(self.experts, names)
        if names is not None:
            specs = _of_categories_there(specs, names, categories or {})
        return MixtureSettings(
            experts=specs,
            selection=self.selection,
            n_folds=self.n_folds,
            min_train=self.min_train,
            horizon=self.horizon,
            min_names=self.min_names,
            state=self.state,
            top_m=self.top_m,
            permutations=self.permutations,
            seed=self.seed,
        )

    def _panel(self, dataset: DatasetH, segments: list[str]) -> FactorPanel:
        parts = dataset.prepare(segments, col_set=["feature", "label"], data_key=DataHandlerLP.DK_I)
        frame = pd.concat(parts)
        panel = Panel.from_frame(frame["feature"])
        # Factors of a stock handler have no category: each is one of its own, so that none crowds out another.
        categories = _categories(dataset.handler)
        return FactorPanel(
            names=panel.fields,
            categories=tuple(categories.get(name, name) for name in panel.fields),
            days=panel.days,
            features=panel.stack(),
            label=_label_array(frame["label"], panel),
        )


def _label_expression(handler: Any) -> Expression:
    """Return the label of a handler, ours or a stock one, because its horizon decides what may be fitted on."""
    if isinstance(handler, FactorSetHandler):
        return handler.labels[0]
    fields = getattr(getattr(handler, "data_loader", None), "fields", None)
    if isinstance(fields, Mapping) and "label" in fields:
        return parse(fields["label"][0][0], allow_future=True)
    logger.warning("%s does not say what its label is; taken for %s", type(handler).__name__, LABEL)
    return parse(LABEL, allow_future=True)


def _feature_names(dataset: DatasetH) -> tuple[str, ...]:
    columns = dataset.handler.get_cols(col_set="feature")
    return tuple(str(name) for name in columns)


def _specs(experts: Sequence[Mapping[str, Any]], names: tuple[str, ...] | None) -> tuple[ExpertSpec, ...]:
    """Make specs; without the panel's factor names a single factor is not looked up."""
    specs = []
    for given in experts:
        params = dict(given.get("params", {}))
        if "factor" in given and names is not None:
            if given["factor"] not in names:
                raise ConfigError(f"expert {given['name']!r} asks for {given['factor']!r}; factors are {list(names)}")
            params["column"] = names.index(given["factor"])
        specs.append(
            ExpertSpec(
                name=str(given["name"]),
                preference=str(given.get("preference", "")),
                learner=str(given["learner"]),
                params=params,
                category=str(given.get("category", "")),
            )
        )
    return tuple(specs)


def _of_categories_there(
    specs: Sequence[ExpertSpec], names: Sequence[str], categories: Mapping[str, str]
) -> tuple[ExpertSpec, ...]:
    there = {categories.get(name, name) for name in names}
    kept = tuple(spec for spec in specs if not spec.category or spec.category in there)
    for spec in specs:
        if spec not in kept:
            logger.warning("expert %s is left out: no factor is of the category %s", spec.name, spec.category)
    return kept


def _check_expert(given: Mapping[str, Any]) -> None:
    unknown = sorted(set(given) - {"name", "preference", "category", "learner", "params", "factor"})
    if unknown or "name" not in given or "learner" not in given:
        raise ConfigError(
            f"expert {dict(given)!r}: expected name and learner, and of preference, category, params, factor what "
            "is needed"
        )
    if given.get("category") and given["category"] not in CATEGORIES:
        raise ConfigError(
            f"expert {given['name']!r} has the category {given['category']!r}; expected one of {list(CATEGORIES)}"
        )
    if given["name"] == SCORE:
        raise ConfigError(f"an expert is named {SCORE!r}, which is the mixture's own column; give it another name")
    if (given["learner"] == SINGLE) != ("factor" in given):
        raise ConfigError(
            f"expert {given['name']!r} has the learner {given['learner']!r} and factor {given.get('factor')!r}; "
            f"the learner {SINGLE!r} and the name of a factor belong together"
        )


def _categories(handler: Any) -> dict[str, str]:
    if not isinstance(handler, FactorSetHandler):
        return {}
    return {factor.name: factor.category for factor in handler.factor_set.factors}


def _label_array(label: pd.DataFrame, panel: Panel) -> Array:
    found = Panel.from_frame(label.iloc[:, [0]].set_axis(["label"], axis=1))
    if found.days.shape != panel.days.shape or found.instruments != panel.instruments:
        raise ConfigError("label and feature rows differ; the handler drops rows in one of them: mend its processors")
    return found["label"]


def _like(frame: pd.DataFrame, panel: Panel, values: Mapping[str, Array]) -> pd.DataFrame:
    stamps = frame.index.get_level_values("datetime").to_numpy().astype("datetime64[D]")
    row = np.searchsorted(panel.days, stamps)
    column = np.searchsorted(np.array(panel.instruments), frame.index.get_level_values("instrument").to_numpy(str))
    result: pd.DataFrame = pd.DataFrame({name: array[row, column] for name, array in values.items()}, index=frame.index)
    return result


def _keywords(kind: type[SelectionOptions], given: Mapping[str, Any] | None, what: str) -> SelectionOptions:
    known = set(kind.__dataclass_fields__)
    unknown = sorted(set(given or {}) - known)
    if unknown:
        raise ConfigError(f"{what} has unknown keys {unknown}; expected some of {sorted(known)}")
    return kind(**(given or {}))
