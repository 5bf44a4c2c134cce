"""The tiled panel: columns and spans, ceilings, blocks of instruments, later days and what tells of a change."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlib_llm_alpha.engine.tiles import LANES, Column, Series, Spans, TiledPanel, Values, tiled
from qlib_llm_alpha.errors import PanelError

FIRST = np.datetime64("2020-01-01")


def days(count: int) -> np.ndarray:
    return FIRST + np.arange(count)


def codes(count: int) -> list[str]:
    return [f"S{place:03d}" for place in range(count)]


class Shelf:
    """A source of series by column and code that remembers what was asked."""

    def __init__(self, series: Mapping[str, Mapping[str, tuple[int, Sequence[float]]]]) -> None:
        self.series = {name: dict(of) for name, of in series.items()}
        self.asked: list[tuple[str, tuple[str, ...], int]] = []
        self.version: bytes | None = b"1"

    def read(self, name: str, instruments: Sequence[str], rows: int, since: int = 0) -> Iterator[Series]:
        self.asked.append((name, tuple(instruments), since))
        for code in instruments:
            start, values = self.series[name].get(code, (0, []))
            begin, stop = max(start, since), min(start + len(values), rows)
            kept = np.asarray(values[begin - start : stop - start], dtype=np.float32) if begin < stop else np.empty(0)
            yield (begin, kept.astype(np.float32)) if len(kept) else (0, kept.astype(np.float32))

    def stamp(self, name: str, instruments: Sequence[str]) -> bytes | None:
        return self.version


def dense(panel: TiledPanel, name: str) -> Values:
    return np.asarray(panel.untiled(panel.column(name).values), dtype=np.float32)


def random_panel(rows: int = 7, count: int = 70, seed: int = 0) -> tuple[TiledPanel, Values]:
    values = np.random.default_rng(seed).normal(size=(rows, count)).astype(np.float32)
    return TiledPanel.from_arrays(days(rows), codes(count), {"$close": values}), values


# Columns and spans


def test_instrument_n_stands_in_lane_n_of_its_tile_and_the_last_tile_is_filled_up_with_nothing() -> None:
    panel, values = random_panel(count=70)
    column = panel.column("$close")
    assert column.values.shape == (3, 7, LANES)
    assert column.values.flags.c_contiguous
    assert column.values[1, 4, 5] == values[4, LANES + 5]
    assert np.isnan(column.values[2, :, 70 - 2 * LANES :]).all()
    np.testing.assert_array_equal(column.spans.stop[2, 70 - 2 * LANES :], 0)
    np.testing.assert_array_equal(dense(panel, "$close"), values)


def test_a_series_that_begins_late_and_ends_early_has_that_span_and_is_nan_outside_it() -> None:
    source = Shelf({"$close": {"S000": (2, [1.0, np.nan, 3.0]), "S001": (0, [5.0] * 6)}})
    column = TiledPanel(days(6), codes(3), source).column("$close")
    assert [(int(column.spans.first[0, lane]), int(column.spans.stop[0, lane])) for lane in range(3)] == [
        (2, 5),
        (0, 6),
        (0, 0),
    ]
    np.testing.assert_array_equal(column.values[0, :, 0], np.array([np.nan, np.nan, 1, np.nan, 3, np.nan], "f4"))
    dead = column.spans.dead(0)
    assert dead is not None
    np.testing.assert_array_equal(dead[:, 0], [True, True, False, False, False, True])
    assert not dead[:, 1].any()
    assert dead[:, 2].all()


def test_values_beyond_the_last_day_of_the_panel_are_left_out() -> None:
    panel = TiledPanel(days(3), codes(1), Shelf({"$close": {"S000": (1, [1.0, 2.0, 3.0])}}))
    np.testing.assert_array_equal(dense(panel, "$close")[:, 0], np.array([np.nan, 1, 2], "f4"))


def test_a_column_is_read_once_and_columns_with_the_same_rows_share_their_spans() -> None:
    source = Shelf({"$close": {"S000": (1, [1.0])}, "$open": {"S000": (1, [2.0])}, "$eps": {"S000": (0, [2.0])}})
    panel = TiledPanel(days(2), codes(1), source)
    spans = [panel.column(name).spans for name in ("$close", "$open", "$eps", "$close")]
    assert spans[0] is spans[1] is spans[3]
    assert spans[2] is not spans[0]
    assert [name for name, _, _ in source.asked] == ["$close", "$open", "$eps"]
    assert panel.loaded == ("$close", "$open", "$eps")


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)), min_size=1))
def test_the_union_of_spans_runs_from_the_first_row_of_either_to_the_last_as_pandas_aligns(
    sides: list[tuple[int, int, int, int]],
) -> None:
    def spans(pairs: list[tuple[int, int]]) -> Spans:
        bounds = np.array([sorted(pair) if len(set(pair)) == 2 else (0, 0) for pair in pairs], dtype=np.int64)
        return Spans(bounds[:, 0][None], bounds[:, 1][None], 10)

    ours, theirs = spans([side[:2] for side in sides]), spans([side[2:] for side in sides])
    union = ours.union(theirs)
    for lane in range(len(sides)):
        rows = [set(range(int(one.first[0, lane]), int(one.stop[0, lane]))) for one in (ours, theirs)]
        either = rows[0] | rows[1]
        expected = set(range(min(either), max(either) + 1)) if either else set()
        assert set(range(int(union.first[0, lane]), int(union.stop[0, lane]))) == expected


def test_a_window_looks_into_the_same_memory() -> None:
    panel, values = random_panel(rows=9)
    window = panel.window(2, 6)
    column = window.column("$close")
    assert np.shares_memory(column.values, panel.column("$close").values)
    np.testing.assert_array_equal(dense(window, "$close"), values[2:6])
    assert (int(column.spans.first[0, 0]), int(column.spans.stop[0, 0]), column.spans.rows) == (0, 4, 4)
    with pytest.raises(PanelError, match="rows 6 to 6"):
        panel.window(6, 6)


def test_another_instrument_is_read_over_the_same_days_and_an_unknown_one_is_refused() -> None:
    panel = TiledPanel(days(3), codes(1), Shelf({"$close": {"INDEX": (1, [8.0, 9.0])}}))
    np.testing.assert_array_equal(dense(panel.of_instrument("INDEX"), "$close")[:, 0], np.array([np.nan, 8, 9], "f4"))
    arrays, _ = random_panel()
    with pytest.raises(PanelError, match="'INDEX'"):
        arrays.of_instrument("INDEX").column("$close")


def test_arrays_in_memory_keep_the_spans_they_are_given() -> None:
    values = np.arange(8.0).reshape(4, 2)
    panel = TiledPanel.from_arrays(
        days(4), ["A", "B"], {"$close": values}, spans={"A": (0, 4), "B": (1, 3)}, member=values > 2
    )
    assert panel.member is not None
    np.testing.assert_array_equal(panel.untiled(panel.member), values > 2)
    np.testing.assert_array_equal(dense(panel, "$close")[:, 1], np.array([np.nan, 3, 5, np.nan], "f4"))
    with pytest.raises(PanelError, match=r"'\$open'"):
        panel.column("$open")


def test_arrays_of_another_shape_are_refused() -> None:
    panel, _ = random_panel()
    with pytest.raises(PanelError, match="expected"):
        panel.put("$open", Column(np.zeros((1, 7, LANES), dtype=np.float32), panel.column("$close").spans))
    with pytest.raises(PanelError, match="expected"):
        tiled(np.zeros((3, 3)), 0.0, (3, 4))


def test_a_panel_does_not_travel_to_another_process() -> None:
    panel, _ = random_panel()
    for one in (panel, panel.window(1, 4), panel.with_members(np.ones((7, 70), dtype=np.bool_))):
        with pytest.raises(PanelError, match="save_panel"):
            pickle.dumps(one)


# Memory


def test_memory_is_stated_before_it_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    panel, _ = random_panel(rows=1000, count=40)
    assert panel.bytes_for(3) == 3 * 2 * 1000 * LANES * 4
    with caplog.at_level(logging.INFO, logger="qlib_llm_alpha.engine.tiles"):
        panel.column("$close")
    assert "column $close takes 0.3 MB" in caplog.text
    assert panel.held == panel.bytes_for(1)


def test_a_column_beyond_the_limit_is_refused_before_it_is_read() -> None:
    source = Shelf({"$close": {}, "$open": {}})
    panel = TiledPanel(days(10), codes(40), source, memory_limit=2 * 10 * LANES * 4)
    column = panel.column("$close")
    with pytest.raises(PanelError, match=r"'\$open'.*blocks"):
        panel.column("$open")
    with pytest.raises(PanelError, match="memory_limit"):
        panel.put("$open", column)
    panel.put("$close", column)
    assert [name for name, _, _ in source.asked] == ["$close"]


@given(count=st.integers(1, 5 * LANES), tiles_that_fit=st.integers(1, 6))
def test_blocks_cover_every_instrument_once_and_none_takes_more_than_the_budget(
    count: int, tiles_that_fit: int
) -> None:
    source = Shelf({name: {code: (0, [float(n)] * 3) for n, code in enumerate(codes(count))} for name in ("$a", "$b")})
    member = np.arange(count) % 2 == np.zeros((3, 1))
    panel = TiledPanel(days(3), codes(count), source, member)
    budget = 2 * tiles_that_fit * 3 * LANES * 4
    seen: list[float] = []
    place = 0
    for first, last, block in panel.blocks(["$a", "$b"], budget):
        assert first == place
        place = last
        assert block.bytes_for(2) <= budget
        assert block.tile_count == last - first
        assert block.member is not None
        values = dense(block, "$a")[0]
        seen.extend(values)
        np.testing.assert_array_equal(block.untiled(block.member)[0], values % 2 == 0)
        block.column("$b")
    assert place == panel.tile_count
    assert seen == [float(n) for n in range(count)]
    if panel.tile_count > tiles_that_fit:
        assert panel.loaded == ()


def test_when_everything_fits_there_is_one_block_the_panel_itself() -> None:
    panel, _ = random_panel()
    ((first, last, block),) = panel.blocks(["$close"], panel.bytes_for(1))
    assert (first, last) == (0, 3)
    assert block is panel


def test_a_block_looks_into_columns_that_are_in_memory_already() -> None:
    source = Shelf({"$close": {code: (0, [1.0, 2.0]) for code in codes(70)}, "$open": {}})
    panel = TiledPanel(days(2), codes(70), source)
    whole = panel.column("$close").values
    for _, _, block in panel.blocks(["$close", "$open"], panel.bytes_for(1) // 3):
        assert np.shares_memory(block.column("$close").values, whole)
    assert [name for name, _, _ in source.asked] == ["$close"]


def test_blocks_of_a_window_are_windows_of_blocks_with_the_windows_universe() -> None:
    panel, values = random_panel(rows=9, count=70)
    member = values > 0
    windows = [block for _, _, block in panel.with_members(member).blocks(["$close"], panel.bytes_for(1) // 3)]
    assert [block.shape for block in windows] == [(9, 32), (9, 32), (9, 6)]
    np.testing.assert_array_equal(dense(windows[1], "$close"), values[:, 32:64])
    assert windows[2].member is not None
    np.testing.assert_array_equal(windows[2].untiled(windows[2].member), member[:, 64:])
    cut = [block for _, _, block in panel.window(3, 5).blocks(["$close"], panel.bytes_for(1) // 3)]
    np.testing.assert_array_equal(dense(cut[1], "$close"), values[3:5, 32:64])


def test_a_budget_below_one_tile_is_refused_and_the_limit_of_the_panel_counts() -> None:
    panel, _ = random_panel()
    with pytest.raises(PanelError, match="one tile"):
        list(panel.blocks(["$close"], 10))
    tile = 7 * LANES * 4
    bounded = TiledPanel(days(7), codes(70), Shelf({"$close": {}, "$open": {}}), memory_limit=3 * tile)
    assert [last - first for first, last, _ in bounded.blocks(["$close", "$open"], 10**9)] == [1, 1, 1]


# Later days


def grown(series: Mapping[str, tuple[int, Sequence[float]]], rows: int = 6) -> tuple[Shelf, TiledPanel]:
    source = Shelf({"$close": series})
    panel = TiledPanel(days(rows), sorted(series), source)
    panel.column("$close")
    source.asked.clear()
    return source, panel


def test_later_days_are_read_alone_and_the_shorter_panel_stays_valid() -> None:
    source, panel = grown({"A": (0, [1, 2, 3, 4, 5, 6]), "B": (4, [8, 9])})
    before = dense(panel, "$close").copy()
    source.series["$close"] = {"A": (0, [1, 2, 3, 4, 5, 6, 7]), "B": (4, [8, 9, np.nan, 10])}
    longer = panel.appended(days(8), overlap=2)
    assert source.asked == [("$close", ("A", "B"), 4)]
    np.testing.assert_array_equal(dense(longer, "$close")[:, 0], np.array([1, 2, 3, 4, 5, 6, 7, np.nan], "f4"))
    np.testing.assert_array_equal(dense(longer, "$close")[:, 1], np.array([np.nan] * 4 + [8, 9, np.nan, 10], "f4"))
    spans = longer.column("$close").spans
    np.testing.assert_array_equal(spans.first[0, :2], [0, 4])
    np.testing.assert_array_equal(spans.stop[0, :2], [7, 8])
    np.testing.assert_array_equal(dense(panel, "$close"), before)
    assert panel.shape == (6, 2)


def test_an_instrument_whose_overlap_differs_is_read_whole() -> None:
    source, panel = grown({"A": (0, [1, 2, 3, 4, 5, 6]), "B": (0, [1, 1, 1, 1, 1, 1])})
    source.series["$close"] = {"A": (0, [1, 2, 3, 4, 5, 6, 7]), "B": (0, [0.5] * 7)}
    longer = panel.appended(days(7), overlap=1)
    assert source.asked == [("$close", ("A", "B"), 5), ("$close", ("B",), 0)]
    np.testing.assert_array_equal(dense(longer, "$close")[:, 1], np.full(7, 0.5, dtype=np.float32))


def test_an_instrument_suspended_over_the_whole_overlap_is_read_whole_when_it_trades_again() -> None:
    source, panel = grown({"A": (0, [1, 2, 3, np.nan, np.nan, np.nan])})
    source.series["$close"] = {"A": (0, [10, 20, 30, np.nan, np.nan, np.nan, 40])}
    longer = panel.appended(days(7), overlap=2)
    np.testing.assert_array_equal(
        dense(longer, "$close")[:, 0], np.array([10, 20, 30, np.nan, np.nan, np.nan, 40], "f4")
    )


def test_an_instrument_that_ended_before_the_overlap_keeps_what_it_had() -> None:
    source, panel = grown({"A": (1, [1, 2]), "B": (0, [1, 1, 1, 1, 1, 1]), "C": (0, [])})
    longer = panel.appended(days(7), overlap=2)
    assert source.asked == [("$close", ("A", "B", "C"), 4)]
    np.testing.assert_array_equal(dense(longer, "$close")[:, 0], np.array([np.nan, 1, 2] + [np.nan] * 4, "f4"))
    np.testing.assert_array_equal(longer.column("$close").spans.stop[0, :3], [3, 6, 0])


def test_a_changed_bar_far_back_cannot_be_missed_unless_an_overlap_is_asked_for() -> None:
    source, panel = grown({"A": (0, [1, 2, 3, 4, 5, 6])})
    source.series["$close"] = {"A": (0, [1, 99, 3, 4, 5, 6, 7])}
    assert dense(panel.appended(days(7)), "$close")[1, 0] == 99
    assert dense(panel.appended(days(7), overlap=2), "$close")[1, 0] == 2


@given(
    first=st.integers(0, 9),
    values=st.lists(st.sampled_from([1.0, 2.0, float("nan")]), max_size=10),
    known=st.integers(1, 9),
    overlap=st.integers(0, 10),
)
def test_without_changes_an_appended_panel_equals_one_that_was_opened_anew(
    first: int, values: list[float], known: int, overlap: int
) -> None:
    source = Shelf({"$close": {"A": (first, values), "B": (0, [3.0] * 10)}})
    short = TiledPanel(days(known), ["A", "B"], source)
    short.column("$close")
    anew = TiledPanel(days(10), ["A", "B"], source).column("$close")
    longer = short.appended(days(10), overlap=overlap).column("$close")
    np.testing.assert_array_equal(longer.values, anew.values)
    assert longer.spans.same_as(anew.spans)


def test_new_instruments_are_read_from_their_beginning_and_lanes_follow_the_new_order() -> None:
    source, panel = grown({"B": (0, [1, 2, 3, 4, 5, 6]), "D": (2, [1, 2, 3, 4])})
    source.series["$close"] |= {"A": (1, [7, 7, 7, 7, 7, 7]), "D": (2, [1, 2, 3, 4, 5])}
    member = np.ones((7, 3), dtype=np.bool_)
    longer = panel.appended(days(7), instruments=["A", "B", "D"], member=member, overlap=1)
    assert source.asked == [("$close", ("A", "B", "D"), 5), ("$close", ("A",), 0)]
    np.testing.assert_array_equal(dense(longer, "$close")[:, 0], np.array([np.nan] + [7] * 6, "f4"))
    np.testing.assert_array_equal(dense(longer, "$close")[:, 2], np.array([np.nan, np.nan, 1, 2, 3, 4, 5], "f4"))


def test_a_column_that_was_put_in_has_no_later_days() -> None:
    _, panel = grown({"A": (0, [1, 2, 3, 4, 5, 6])})
    panel.put("score", panel.column("$close"))
    assert panel.appended(days(7)).loaded == ("$close",)


def test_days_that_do_not_carry_the_panel_on_are_refused() -> None:
    _, panel = grown({"A": (0, [1, 2, 3, 4, 5, 6])})
    with pytest.raises(PanelError, match="later ones"):
        panel.appended(days(5))
    with pytest.raises(PanelError, match="later ones"):
        panel.appended(days(8) + 1)
    with pytest.raises(PanelError, match="append to that one"):
        panel.window(0, 3).appended(days(8))
    with_universe = TiledPanel(days(6), ["A"], panel.source, np.ones((6, 1), dtype=np.bool_))
    with pytest.raises(PanelError, match="member"):
        with_universe.appended(days(7))


# What tells of a change


def test_a_digest_changes_with_a_value_or_a_span_up_to_its_row_and_with_nothing_later() -> None:
    def digest(series: tuple[int, Sequence[float]], rows: int = 4) -> bytes:
        panel = TiledPanel(days(6), ["A"], Shelf({"$close": {"A": series}}))
        return panel.digest("$close", 0, rows)

    plain = digest((0, [1, 2, 3, 4, 5]))
    assert len(plain) == 16
    assert digest((0, [1, 2, 3, 4, 99, 6])) == plain
    assert digest((0, [1, 2, 3, 5, 5])) != plain
    assert digest((0, [np.nan, 1.0])) != digest((1, [1.0]))
    assert digest((0, [1, 2, 3, 4, 5]), rows=3) != plain


def test_a_digest_follows_a_column_that_is_put_in_its_place() -> None:
    panel, _ = random_panel()
    before = panel.digest("$close", 1, 5)
    column = panel.column("$close")
    changed = column.values.copy()
    changed[1, 0, 0] += 1
    panel.put("$close", Column(changed, column.spans))
    assert panel.digest("$close", 1, 5) != before
    assert panel.digest("$close", 0, 5) != panel.digest("$close", 1, 5)


def test_the_digest_of_the_universe_holds_its_codes_and_who_belonged_so_far() -> None:
    member = np.ones((6, 2), dtype=np.bool_)
    member[4, 0] = False

    def digest(rows: int, mask: np.ndarray | None = member, names: Sequence[str] = ("A", "B")) -> bytes:
        return TiledPanel(days(6), names, Shelf({}), mask).member_digest(rows)

    assert digest(4) == digest(4, np.ones((6, 2), dtype=np.bool_))
    assert digest(5) != digest(5, np.ones((6, 2), dtype=np.bool_))
    assert digest(4) != digest(4, names=("A", "C"))


def test_columns_whose_source_changed_since_they_were_read_are_dropped_those_of_another_instrument_too() -> None:
    source = Shelf({"$close": {"A": (0, [1.0]), "INDEX": (0, [2.0])}})
    panel = TiledPanel(days(1), ["A"], source)
    panel.column("$close")
    panel.put("score", panel.column("$close"))
    panel.of_instrument("INDEX").column("$close")
    assert panel.forget_changed() == ()
    source.version = b"2"
    source.series["$close"] = {"A": (0, [3.0]), "INDEX": (0, [4.0])}
    assert panel.with_members(None).forget_changed() == ("$close",)
    assert panel.loaded == ("score",)
    assert dense(panel, "$close")[0, 0] == 3
    assert dense(panel.of_instrument("INDEX"), "$close")[0, 0] == 4


def test_a_source_that_cannot_tell_is_read_again() -> None:
    source = Shelf({"$close": {"A": (0, [1.0])}})
    panel = TiledPanel(days(1), ["A"], source)
    panel.column("$close")
    source.version = None
    assert panel.forget_changed() == ("$close",)
