"""Experts: a risk preference's factors and a learner, or a single factor.

Rows are (day, instrument) pairs. The caller standardises features and label per day (rank to normal), so that a row
means the same on every day and a missing feature can be read as the day's mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol

import numpy as np

from qlib_llm_alpha.errors import ConfigError, PanelError
from qlib_llm_alpha.gating.sufficient import Array

Rows = tuple[Array, Array]
"""Features (rows, F) and label (rows,)."""


class Predictor(Protocol):
    """A fitted learner: a frozen, picklable value."""

    def predict(self, features: Array) -> Array:
        """Score rows: features (rows, F) to (rows,); NaN for a row whose features are all NaN."""
        ...


class Learner(Protocol):
    """A learner before fitting: a frozen value of its settings.

    `stops_early` says whether it reads the tune rows.
    """

    stops_early: ClassVar[bool]

    def fit(self, features: Array, label: Array, tune: Rows | None = None) -> Predictor:
        """Fit on rows.

        Parameters
        ----------
        features : array, (rows, F)
            Standardised per day.
        label : array, (rows,)
            Standardised per day. Rows whose label or whose features are all NaN are left out.
        tune : pair of arrays, optional
            Later rows, for early stopping. A learner that does not stop early ignores them.

        Raises
        ------
        PanelError
            If shapes do not fit or no row is usable.
        """
        ...


@dataclass(frozen=True)
class ExpertSpec:
    """What an expert is.

    Attributes
    ----------
    name : str
        Unique in a mixture; names the expert's column.
    preference : str
        The risk preference whose factors it uses; empty for a single factor.
    learner : str
        A key of `LEARNERS`.
    params : mapping
        Settings of the learner.
    category : str
        Use the factors of this category alone; empty: of all.

    Raises
    ------
    ConfigError
        If the learner or one of its settings is unknown.
    """

    name: str
    preference: str
    learner: str
    params: Mapping[str, Any] = field(default_factory=dict)
    category: str = ""

    def __post_init__(self) -> None:
        if self.learner not in LEARNERS:
            raise ConfigError(
                f"expert {self.name!r} asks for the learner {self.learner!r}; there are {', '.join(sorted(LEARNERS))}"
            )
        known = {setting.name for setting in fields(LEARNERS[self.learner])}
        unknown = sorted(set(self.params) - known)
        if unknown:
            raise ConfigError(
                f"expert {self.name!r} gives {unknown!r} to the learner {self.learner!r}; it knows "
                f"{', '.join(sorted(known))}"
            )

    def build(self) -> Learner:
        """Make the learner with these settings."""
        learner: Learner = LEARNERS[self.learner](**self.params)
        return learner


@dataclass(frozen=True)
class RidgeLearner:
    """Linear regression with an L2 penalty and no intercept; a missing feature counts as 0, the day's mean.

    Attributes
    ----------
    alpha : float
        Added to the diagonal of the features' second moments per row, so that it means the same for any number of rows.
    """

    stops_early: ClassVar[bool] = False
    alpha: float = 0.1

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ConfigError(f"alpha is {self.alpha!r}; it must be above 0, or collinear factors have no solution")

    def fit(self, features: Array, label: Array, tune: Rows | None = None) -> LinearPredictor:
        """Solve the normal equations; `tune` is not read."""
        x, y = _usable(features, label)
        x = np.nan_to_num(x)
        moments = x.T @ x / len(x) + self.alpha * np.eye(x.shape[1])
        return LinearPredictor(np.linalg.solve(moments, x.T @ y / len(x)))


@dataclass(frozen=True, eq=False)
class LinearPredictor:
    """Coefficients (F,); a missing feature counts as 0."""

    coefficients: Array

    def predict(self, features: Array) -> Array:
        """Weighted sum of each row; NaN for a row without any feature."""
        return np.where(np.isnan(features).all(axis=1), np.nan, np.nan_to_num(features) @ self.coefficients)


@dataclass(frozen=True)
class SingleFactorLearner:
    """One factor, turned by a stated sign, or so that its mean IC on the fitted rows is positive.

    A stated sign keeps the expert the same in every fold. A learned one may flip between folds of a factor whose sign
    follows the market, and a gate cannot learn when to trust an expert that changes what it says.

    Attributes
    ----------
    column : int
        Which feature.
    sign : int
        1 or -1, the direction of the hypothesis; 0 learns it.
    """

    stops_early: ClassVar[bool] = False
    column: int = 0
    sign: int = 0

    def __post_init__(self) -> None:
        if self.sign not in {-1, 0, 1}:
            raise ConfigError(f"sign is {self.sign!r}; expected 1, -1, or 0 to learn it from the fitted rows")

    def fit(self, features: Array, label: Array, tune: Rows | None = None) -> LinearPredictor:
        """Find the sign unless it is stated; `tune` is not read."""
        if not 0 <= self.column < features.shape[-1]:
            raise PanelError(f"column is {self.column!r}; the features have {features.shape[-1]} columns, from 0")
        x, y = _usable(features, label)
        coefficients = np.zeros(x.shape[1])
        coefficients[self.column] = self.sign or (1.0 if np.nansum(x[:, self.column] * y) >= 0 else -1.0)
        return SingleFactorPredictor(coefficients)


@dataclass(frozen=True, eq=False)
class SingleFactorPredictor(LinearPredictor):
    """A turned factor; NaN where the factor is."""

    def predict(self, features: Array) -> Array:
        """Give the turned factor of each row."""
        column = int(np.flatnonzero(self.coefficients)[0])
        return np.asarray(features[:, column] * self.coefficients[column])


@dataclass(frozen=True)
class LightGBMLearner:
    """Small boosted trees: deterministic, one thread. Missing features are LightGBM's own missing values.

    Attributes
    ----------
    rounds : int
        Trees, or the most of them when stopped early.
    patience : int
        Rounds without a better squared error on the tune rows before stopping.
    learning_rate, leaves, min_rows_in_leaf, l2, feature_fraction, bagging_fraction, seed
        As in LightGBM; the leaf size is lowered to a twentieth of the rows when there are few.
    """

    stops_early: ClassVar[bool] = True
    rounds: int = 120
    patience: int = 20
    learning_rate: float = 0.05
    leaves: int = 15
    min_rows_in_leaf: int = 200
    l2: float = 10.0
    feature_fraction: float = 0.8
    bagging_fraction: float = 0.8
    seed: int = 7

    def fit(self, features: Array, label: Array, tune: Rows | None = None) -> TreePredictor:
        """Grow trees; with `tune` stop early and keep the best round."""
        # Here, not above: it takes longer to import than the whole room.
        import lightgbm

        x, y = _usable(features, label)
        parameters = {
            "objective": "regression",
            "learning_rate": self.learning_rate,
            "num_leaves": self.leaves,
            "min_data_in_leaf": max(1, min(self.min_rows_in_leaf, len(x) // 20)),
            "lambda_l2": self.l2,
            "feature_fraction": self.feature_fraction,
            "bagging_fraction": self.bagging_fraction,
            "bagging_freq": 1,
            "seed": self.seed,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": 1,
            "verbosity": -1,
        }
        data = lightgbm.Dataset(x, y, free_raw_data=True)
        if tune is None:
            booster = lightgbm.train(parameters, data, self.rounds)
        else:
            held_out = lightgbm.Dataset(*_usable(*tune), reference=data)
            stop = lightgbm.early_stopping(self.patience, verbose=False)
            booster = lightgbm.train(parameters, data, self.rounds, valid_sets=[held_out], callbacks=[stop])
        return TreePredictor(booster.model_to_string(num_iteration=booster.best_iteration or self.rounds))


@dataclass(frozen=True)
class TreePredictor:
    """Boosted trees as LightGBM's own text, which pickles and compares as text does."""

    model: str

    def predict(self, features: Array) -> Array:
        """Sum of the trees of each row; NaN for a row without any feature."""
        import lightgbm

        scores = lightgbm.Booster(model_str=self.model).predict(features, num_threads=1)
        return np.where(np.isnan(features).all(axis=1), np.nan, np.asarray(scores, dtype=np.float64))


LEARNERS: dict[str, Any] = {
    "ridge": RidgeLearner,
    "lightgbm": LightGBMLearner,
    "factor": SingleFactorLearner,
}
"""Learners by the name used in YAML."""


def rows_of(features: Array, label: Array) -> Rows:
    """Lay a panel out as rows: features (F, T, N) and label (T, N) to (T * N, F) and (T * N,)."""
    if features.ndim != 3 or features.shape[1:] != label.shape:
        raise PanelError(
            f"features {features.shape!r} and label {label.shape!r} do not fit; expected (F, T, N), (T, N)"
        )
    return features.reshape(len(features), -1).T, label.ravel()


def predict_panel(predictor: Predictor, features: Array) -> Array:
    """Score a panel: features (F, T, N) to scores (T, N)."""
    return predictor.predict(features.reshape(len(features), -1).T).reshape(features.shape[1:])


def _usable(features: Array, label: Array) -> Rows:
    if features.ndim != 2 or label.shape != features.shape[:1]:
        raise PanelError(
            f"features {features.shape!r} and label {label.shape!r} do not fit; expected (rows, F), (rows,)"
        )
    usable = ~np.isnan(label) & ~np.isnan(features).all(axis=1)
    if not usable.any():
        raise PanelError(
            f"none of {len(label)} rows has a label and a feature; check the segment's dates and the factors' warm-up"
        )
    return features[usable], label[usable]
