from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qlib_llm_alpha.errors import ConfigError, WallError
from qlib_llm_alpha.evaluation.confirm import read_confirm
from qlib_llm_alpha.evaluation.ledger import TrialLedger
from qlib_llm_alpha.evaluation.openings import OpeningKey
from qlib_llm_alpha.evaluation.scorecard import score_factor
from qlib_llm_alpha.evaluation.walls import Walls

KEY = OpeningKey("one", "a set", "some data", "cn", "2020-02-16", "2020-02-28")
WALLS = Walls.from_segments(
    {
        "train": ("2020-01-01", "2020-01-31"),
        "valid": ("2020-02-01", "2020-02-15"),
        "confirm": ("2020-02-16", "2020-02-28"),
        "test": ("2020-03-01", "2020-03-31"),
    }
)
DAYS = np.arange("2020-01-01", "2020-04-01", dtype="datetime64[D]")
RNG = np.random.default_rng(3)
SCORE, LABEL = RNG.standard_normal((2, len(DAYS), 12))


def test_every_reading_is_logged_and_other_configurations_are_counted(tmp_path: Path) -> None:
    ledger = TrialLedger(tmp_path)
    other = replace(KEY, configuration="other", start="2020-02-20")
    elsewhere = replace(KEY, market="us", data="other data")
    permits = [read_confirm(ledger, key, study="grid", run="r") for key in (KEY, KEY, other, elsewhere, KEY)]
    assert [permit.repeated for permit in permits] == [False, True, False, False, True]
    assert [permit.readings for permit in permits] == [1, 1, 2, 1, 2]
    rows = list(ledger.chain.rows("confirm_read"))
    assert [row.number for row in rows] == [permit.row for permit in permits]
    assert rows[2].body["study"] == "grid"
    assert rows[2].body["readings"] == 2
    assert ledger.verify() == []


def test_confirm_is_scored_with_a_permit_and_purged_before_sealed(tmp_path: Path) -> None:
    permit = read_confirm(TrialLedger(tmp_path), KEY)
    card = score_factor(SCORE, LABEL, DAYS, WALLS, factor="x", segment="confirm", permit=permit)
    # 29 February lies between confirm and test, so that of the two days that are purged one is a day of confirm.
    assert (card.start, card.end, card.n_days) == ("2020-02-16", "2020-02-27", 12)


def test_confirm_is_refused_without_a_permit_for_its_dates(tmp_path: Path) -> None:
    late = read_confirm(TrialLedger(tmp_path), replace(KEY, start="2020-02-17"))
    for permit in (None, late):
        with pytest.raises(WallError, match=r"'confirm' .2020-02-16 to 2020-02-28.*log the reading first"):
            score_factor(SCORE, LABEL, DAYS, WALLS, factor="x", segment="confirm", permit=permit)


def test_no_permit_opens_test(tmp_path: Path) -> None:
    permit = read_confirm(TrialLedger(tmp_path), KEY)
    with pytest.raises(ConfigError, match="'test' is sealed"):
        score_factor(SCORE, LABEL, DAYS, WALLS, factor="x", segment="test", permit=permit)
