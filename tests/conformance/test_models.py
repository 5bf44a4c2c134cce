"""What every model of ours owes Qlib; the subjects are found."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from qlib.data.dataset import DatasetH
from qlib.data.dataset.handler import DataHandlerLP
from qlib.model.base import Model
from qlib.utils.serial import Serializable

import qlib_llm_alpha.model
from tests.conformance.subjects import subclasses
from tests.support.provider import SEGMENTS, SMALL_MODEL, TEST, VALID, small_dataset

MODELS = subclasses(qlib_llm_alpha.model, Model)
# Every variant whose way of predicting differs; each model has at least one.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    f"GatedModel, {gate}": ("GatedModel", SMALL_MODEL | {"gate": gate})
    for gate in ("equal", "static", "trailing_ic", "softmax")
}


def make(variant: str) -> Model:
    name, kwargs = VARIANTS[variant]
    return next(kind for kind in MODELS if kind.__name__ == name)(**kwargs)


# The gates differ in how they weigh, not in what is fitted: two stand for all in the fast run.
SLOW = ("GatedModel, equal", "GatedModel, static")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in VARIANTS],
)
def variant(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


Fit = Callable[[str, DatasetH], Model]


@pytest.fixture(scope="module")
def fit() -> Fit:
    """Return a function that fits a variant on a dataset once."""
    known: dict[tuple[str, int], Model] = {}

    def fitted(variant: str, dataset: DatasetH) -> Model:
        key = variant, id(dataset)
        if key not in known:
            known[key] = make(variant)
            known[key].fit(dataset)
        return known[key]

    return fitted


def test_there_is_a_model_and_each_has_a_variant_here() -> None:
    assert {kind.__name__ for kind in MODELS} == {name for name, _ in VARIANTS.values()}


@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_the_trainer_can_call_it(kind: type[Model]) -> None:
    assert next(iter(inspect.signature(kind.fit).parameters.values()), None) is not None
    assert list(inspect.signature(kind.fit).parameters)[1] == "dataset"
    predict = inspect.signature(kind.predict).parameters
    assert list(predict)[1:] == ["dataset", "segment"]
    assert predict["segment"].default == "test"


@pytest.mark.parametrize("segment", ["test", "valid", slice("2021-02-01", "2021-02-26")], ids=str)
def test_it_predicts_exactly_the_rows_of_the_segment(
    variant: str, fit: Fit, dataset_small: DatasetH, segment: Any
) -> None:
    scores = fit(variant, dataset_small).predict(dataset_small, segment)
    rows = dataset_small.prepare(segment, col_set="feature", data_key=DataHandlerLP.DK_I).index
    pd.testing.assert_index_equal(scores.index, rows)
    first = scores if isinstance(scores, pd.Series) else scores.iloc[:, 0]
    assert first.notna().mean() > 0.95
    assert first.groupby(level="datetime").nunique().min() > 5


def test_it_is_deterministic_under_its_seed(variant: str, fit: Fit, dataset_small: DatasetH) -> None:
    again = make(variant)
    again.fit(dataset_small)
    pd.testing.assert_frame_equal(
        again.predict(dataset_small), fit(variant, dataset_small).predict(dataset_small), check_exact=True
    )


def test_predicting_twice_gives_the_same(variant: str, fit: Fit, dataset_small: DatasetH) -> None:
    model = fit(variant, dataset_small)
    one, two = model.predict(dataset_small), model.predict(dataset_small)
    pd.testing.assert_frame_equal(one, two, check_exact=True)


@pytest.mark.parametrize("dump", ["to_pickle", "general_dump"])
def test_it_survives_qlibs_pickling_with_equal_predictions(
    variant: str, fit: Fit, dataset_small: DatasetH, tmp_path: Path, dump: str
) -> None:
    model = fit(variant, dataset_small)
    if dump == "to_pickle":
        model.to_pickle(tmp_path / "model.pkl")
    else:
        Serializable.general_dump(model, tmp_path / "model.pkl")
    again = type(model).load(tmp_path / "model.pkl")
    pd.testing.assert_frame_equal(again.predict(dataset_small), model.predict(dataset_small), check_exact=True)


class WatchedDataset(DatasetH):
    """A dataset that writes down which segments are asked for."""

    def prepare(self, segments: Any, *args: Any, **kwargs: Any) -> Any:
        self.asked.extend([segments] if isinstance(segments, str) else segments)
        return super().prepare(segments, *args, **kwargs)


def test_fit_does_not_ask_for_test(variant: str, dataset_small: DatasetH) -> None:
    watched = WatchedDataset(dataset_small.handler, SEGMENTS)
    watched.asked = []
    make(variant).fit(watched)
    assert set(watched.asked) == {"train", "valid"}


def test_garbage_in_test_changes_nothing_that_was_fitted(variant: str, fit: Fit, dataset_small: DatasetH) -> None:
    # Qlib's own copying leaves out what begins with an underscore, which is the data.
    handler = object.__new__(type(dataset_small.handler))
    handler.__dict__.update(vars(dataset_small.handler))
    for name in ("_data", "_infer", "_learn"):
        frame = getattr(handler, name).copy()
        later = frame.index.get_level_values("datetime") > pd.Timestamp(VALID[1])
        assert later.any()
        garbage = np.random.default_rng(5).standard_normal((int(later.sum()), frame.shape[1])) * 100
        frame.loc[later] = garbage.astype(np.float32)
        setattr(handler, name, frame)
    other = make(variant)
    other.fit(small_dataset(handler))
    # Predictions on clean rows are equal only if all that was learned is.
    pd.testing.assert_frame_equal(
        other.predict(dataset_small), fit(variant, dataset_small).predict(dataset_small), check_exact=True
    )


def test_a_row_is_scored_without_the_rows_after_it(variant: str, fit: Fit, dataset_small: DatasetH) -> None:
    model = fit(variant, dataset_small)
    short = model.predict(dataset_small, slice(TEST[0], "2021-03-31"))
    whole = model.predict(dataset_small, slice(*TEST))
    pd.testing.assert_frame_equal(whole.loc[:"2021-03-31"], short, check_exact=True)


def test_it_says_so_when_it_has_not_been_fitted(variant: str, dataset_small: DatasetH) -> None:
    with pytest.raises(ValueError, match="has not been fitted; call fit"):
        make(variant).predict(dataset_small)
