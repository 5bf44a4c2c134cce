"""Fixtures shared by the Qlib rooms. Research rooms need none: nothing here imports Qlib before a fixture is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

# The same examples on every run and every machine; a slow machine is no failure.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

if TYPE_CHECKING:
    from qlib.data.dataset import DatasetH

    from qlib_llm_alpha.model.gated import GatedModel


@pytest.fixture(scope="session")
def small_provider(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small planted market, written once. Read it only."""
    from tests.support.provider import write_small_market

    return write_small_market(tmp_path_factory.mktemp("embedded") / "planted")


@pytest.fixture(scope="session")
def recorder_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the session's recorder database."""
    return tmp_path_factory.mktemp("recorder")


@pytest.fixture
def qlib_small(small_provider: Path, recorder_store: Path) -> Path:
    """Open Qlib on the small market (again, if another test opened it elsewhere) and return its folder."""
    from tests.support.provider import open_provider

    return open_provider(small_provider, recorder_store)


@pytest.fixture(scope="session")
def _fitted(small_provider: Path, recorder_store: Path) -> tuple[DatasetH, GatedModel]:
    from qlib_llm_alpha.model.gated import GatedModel
    from tests.support.provider import SMALL_MODEL, open_provider, small_dataset

    open_provider(small_provider, recorder_store)
    dataset = small_dataset()
    return dataset, GatedModel(**SMALL_MODEL).fit(dataset)


@pytest.fixture
def dataset_small(qlib_small: Path, _fitted: tuple[DatasetH, GatedModel]) -> DatasetH:
    """Return the `starter` factors of csi300 with train, valid and test, loaded once. Read it only."""
    return _fitted[0]


@pytest.fixture
def model_small(qlib_small: Path, _fitted: tuple[DatasetH, GatedModel]) -> GatedModel:
    """Return a GatedModel (gate softmax, three experts) fitted once on `dataset_small`. Read it only."""
    return _fitted[1]
