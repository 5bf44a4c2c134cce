from __future__ import annotations

from datetime import date

import numpy as np
import pytest

from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.evaluation.walls import Segment, Walls

SEGMENTS = {
    "train": ["2020-01-01", "2020-01-10"],
    "valid": (date(2020, 1, 11), "2020-01-15"),
    "test": ("2020-01-20", "2020-01-25"),
}
DAYS = np.arange("2020-01-01", "2020-02-01", dtype="datetime64[D]")


def walls() -> Walls:
    return Walls.from_segments(SEGMENTS)


def test_walls_are_named_after_their_use() -> None:
    named = walls()
    assert (str(named.search.start), str(named.search.end)) == ("2020-01-01", "2020-01-10")
    assert named.tune is named.valid
    assert named.sealed is named.test
    assert [segment.name for segment in named.segments] == ["train", "valid", "test"]


def test_the_last_days_before_the_next_segment_are_purged() -> None:
    assert DAYS[walls().purged(DAYS, "train")].tolist() == DAYS[:8].tolist()
    assert DAYS[walls().purged(DAYS, "train", horizon=0)].tolist() == DAYS[:10].tolist()


def test_a_gap_between_segments_counts_towards_the_purge() -> None:
    assert DAYS[walls().purged(DAYS, "valid", horizon=6)].tolist() == DAYS[10:13].tolist()
    assert DAYS[walls().purged(DAYS, "valid", horizon=2)].tolist() == DAYS[10:15].tolist()


def test_the_last_segment_is_purged_before_its_own_end() -> None:
    assert DAYS[walls().purged(DAYS, "test")].tolist() == DAYS[19:23].tolist()


WITH_CONFIRM = {**SEGMENTS, "confirm": ("2020-01-16", "2020-01-18")}


def test_confirm_lies_between_tune_and_sealed() -> None:
    named = Walls.from_segments(WITH_CONFIRM)
    assert [segment.name for segment in named.segments] == ["train", "valid", "confirm", "test"]
    assert named.confirm is named.segment("confirm")
    assert walls().confirm is None


@pytest.mark.parametrize(
    ("segment", "last"), [("train", "2020-01-08"), ("valid", "2020-01-13"), ("confirm", "2020-01-17")]
)
def test_every_boundary_is_purged_that_of_confirm_too(segment: str, last: str) -> None:
    """Valid ends where confirm begins; between confirm and test lies one day that belongs to neither."""
    kept = DAYS[Walls.from_segments(WITH_CONFIRM).purged(DAYS, segment)]
    assert kept[-1] == np.datetime64(last)


def test_a_calendar_that_stops_with_the_segment_is_purged_as_if_the_next_began_at_once() -> None:
    assert walls().purged(DAYS[:10], "train").sum() == 8


def test_purging_counts_trading_days_not_dates() -> None:
    trading = DAYS[~np.isin(DAYS, np.array(["2020-01-08", "2020-01-09"], dtype="datetime64[D]"))]
    assert trading[walls().purged(trading, "train")][-1] == np.datetime64("2020-01-06")


def test_train_alone_is_enough() -> None:
    alone = Walls.from_segments({"train": SEGMENTS["train"]})
    assert alone.tune is None
    assert alone.sealed is None
    with pytest.raises(ConfigError, match=r"'valid'.*\['train'\]"):
        alone.segment("valid")


@pytest.mark.parametrize(
    ("segments", "says"),
    [
        ({"valid": SEGMENTS["valid"]}, "'train' among them"),
        ({"train": SEGMENTS["train"], "vaild": SEGMENTS["valid"]}, "'vaild'"),
        ({"train": ("2020-01-10", "2020-01-01")}, "start <= end"),
        (
            {"train": ("2020-01-01", "2020-01-11"), "valid": SEGMENTS["valid"]},
            "'valid' begins on 2020-01-11, not after",
        ),
        ({"train": SEGMENTS["test"], "test": SEGMENTS["train"]}, "in this order"),
        ({**SEGMENTS, "confirm": ("2020-01-15", "2020-01-18")}, "'confirm' begins on 2020-01-15, not after 'valid'"),
        ({**SEGMENTS, "confirm": ("2020-01-26", "2020-01-30")}, "'test' begins on 2020-01-20, not after 'confirm'"),
        ({"train": "2020-01-01"}, "expected two dates"),
        ({"train": ["2020-01-01"]}, "expected two dates"),
        ({"train": None}, "expected two dates"),
        ({"train": ["2020-01-01", "2020-13-01"]}, "2020-13-01"),
    ],
)
def test_segments_that_mean_nothing_are_refused(segments: dict[str, tuple[str, str]], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Walls.from_segments(segments)


def test_a_segment_of_which_nothing_remains_is_refused() -> None:
    with pytest.raises(ConfigError, match="no day left after purging 30"):
        walls().purged(DAYS, "train", horizon=30)
    with pytest.raises(ConfigError, match="horizon is -1"):
        walls().purged(DAYS, "train", horizon=-1)


def test_a_segment_marks_its_days() -> None:
    segment = Segment("x", np.datetime64("2020-01-02"), np.datetime64("2020-01-03"))
    assert segment.mask(DAYS[:4]).tolist() == [False, True, True, False]
