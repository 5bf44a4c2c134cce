from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from qlib_llm_alpha.engine.panel import Panel, as_day, as_days
from qlib_llm_alpha.errors import PanelError

DAYS = np.array(["2020-01-02", "2020-01-03", "2020-01-06"], dtype="datetime64[D]")
NAMES = ("SH600000", "SZ000001")


def small(**change: object) -> Panel:
    parts: dict[str, object] = {
        "days": DAYS,
        "instruments": NAMES,
        "values": {"$close": np.arange(6.0).reshape(3, 2)},
        "member": None,
    }
    return Panel(**(parts | change))  # type: ignore[arg-type]


def test_a_panel_gives_its_fields_and_shape() -> None:
    panel = small()
    assert panel.shape == (3, 2)
    assert panel.fields == ("$close",)
    assert panel["$close"][2, 1] == 5.0
    assert panel.member_mask().all()
    assert panel.stack().shape == (1, 3, 2)
    assert panel.stack([]).shape == (0, 3, 2)


def test_a_field_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(PanelError, match=r"\$volume.*\$close"):
        small()["$volume"]


def test_arrays_cannot_be_written_through_the_panel() -> None:
    panel = small(member=np.ones((3, 2), dtype=bool))
    for array in (panel["$close"], panel.member_mask(), panel.days):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[1]


def test_integers_become_floats() -> None:
    assert small(values={"x": np.ones((3, 2), dtype=int)})["x"].dtype == np.float64


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"days": DAYS[::-1]}, "strictly increasing"),
        ({"days": DAYS[[0, 0, 1]]}, "strictly increasing"),
        ({"days": np.array([DAYS])}, "one axis"),
        ({"days": np.array([1, 2, 3])}, "are not|have type"),
        ({"days": np.array(["soon", "later", "never"])}, "are not dates"),
        ({"days": np.array([DAYS[0], DAYS[1], np.datetime64("NaT")])}, "NaT"),
        ({"instruments": ("A", "A")}, r"\['A'\]"),
        ({"values": {"x": np.ones((2, 2))}}, r"\(2, 2\).*\(3, 2\)"),
        ({"values": {"x": np.array([[1.0, np.inf], [1, 1], [-np.inf, 1]])}}, "2 infinite.*SZ000001 on 2020-01-02"),
        ({"values": {"x": np.full((3, 2), "a")}}, "not numeric"),
        ({"member": np.ones((3, 2))}, "bool"),
        ({"member": np.ones((2, 2), dtype=bool)}, r"\(3, 2\)"),
    ],
)
def test_what_does_not_fit_is_refused_at_the_door(change: dict[str, object], says: str) -> None:
    with pytest.raises(PanelError, match=says):
        small(**change)


def test_a_slice_includes_both_ends_and_keeps_the_members() -> None:
    member = np.array([[True, False], [False, True], [True, True]])
    cut = small(member=member).slice("2020-01-03", "2020-01-05")
    assert cut.days.tolist() == [DAYS[1].item()]
    assert cut["$close"].tolist() == [[2.0, 3.0]]
    assert cut.member_mask().tolist() == [[False, True]]
    assert small().slice().shape == (3, 2)


@pytest.mark.parametrize("span", [("2021-01-01", None), ("2020-01-06", "2020-01-02")])
def test_an_empty_slice_is_refused(span: tuple[str, str | None]) -> None:
    with pytest.raises(PanelError, match="no day between"):
        small().slice(*span)


def test_an_empty_panel_can_be_made_but_not_sliced() -> None:
    empty = Panel(DAYS[:0], (), {})
    with pytest.raises(PanelError, match="empty"):
        empty.slice()


def frame() -> pd.DataFrame:
    index = pd.MultiIndex.from_tuples(
        [(pd.Timestamp("2020-01-03"), "B"), (pd.Timestamp("2020-01-02"), "A"), (pd.Timestamp("2020-01-03"), "A")],
        names=["datetime", "instrument"],
    )
    return pd.DataFrame({"x": [3.0, 1.0, 2.0], "n": [3, 1, 2]}, index=index)


def test_a_frame_in_any_row_order_becomes_a_sorted_panel_with_nan_where_there_is_no_row() -> None:
    panel = Panel.from_frame(frame())
    assert panel.instruments == ("A", "B")
    np.testing.assert_array_equal(panel["x"], [[1.0, np.nan], [2.0, 3.0]])
    assert panel.member is None
    assert len(panel.to_frame()) == 4


def test_levels_in_the_other_order_give_the_same_panel() -> None:
    swapped = frame().swaplevel()
    np.testing.assert_array_equal(Panel.from_frame(swapped)["x"], Panel.from_frame(frame())["x"])


def test_to_frame_gives_back_what_from_frame_took_when_rows_are_members() -> None:
    panel = Panel.from_frame(frame(), rows_are_members=True)
    assert panel.member_mask().tolist() == [[True, False], [True, True]]
    pd.testing.assert_frame_equal(panel.to_frame(), frame().sort_index().astype(float), check_index_type=False)


def test_two_rows_for_one_cell_are_refused_by_name() -> None:
    twice = pd.concat([frame(), frame().iloc[[0]]])
    with pytest.raises(PanelError, match="more than one row for B on 2020-01-03"):
        Panel.from_frame(twice)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (frame().reset_index(), "index levels"),
        (frame().rename_axis(["date", "code"]), "index levels"),
        (pd.concat({"feature": frame()}, axis=1), "2 levels"),
        (frame().assign(word="a"), "'word'"),
    ],
)
def test_a_frame_of_another_form_is_refused(bad: pd.DataFrame, says: str) -> None:
    with pytest.raises(PanelError, match=says):
        Panel.from_frame(bad)


@pytest.mark.parametrize("value", ["not a day", None, object()])
def test_what_is_not_a_day_is_refused(value: object) -> None:
    with pytest.raises(PanelError, match="not a date"):
        as_day(value)  # type: ignore[arg-type]


def test_dates_of_every_kind_are_days() -> None:
    for value in ("2020-01-02", DAYS[0], pd.Timestamp("2020-01-02 15:00"), DAYS[0].item()):
        assert as_day(value) == DAYS[0]
    assert as_days(pd.DatetimeIndex(DAYS)).dtype == np.dtype("datetime64[D]")
