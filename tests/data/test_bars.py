"""Panels from a provider's files: Qlib's numbers in every cell, without Qlib; one clear error where there is none."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from qlib.data import D
from qlib.data.base import Feature, PFeature
from qlib.data.ops import Mean, Ref
from qlib.data.pit import P, PRef

from qlib_llm_alpha.data.bars import BinSource, QlibSource, membership, open_panel
from qlib_llm_alpha.data.provider_files import (
    feature_path,
    read_calendar,
    read_instruments,
    write_calendar,
    write_feature,
    write_instruments,
    write_period_records,
)
from qlib_llm_alpha.engine.tiles import TiledPanel
from qlib_llm_alpha.errors import PanelError, ProviderError
from tests.support.provider import open_provider

DAYS = np.array(["2020-01-02", "2020-01-03", "2020-01-06", "2020-01-07", "2020-01-08"], dtype="datetime64[D]")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Five days; AAA from the start, BBB from the third, no file of CCC; a market that BBB leaves and joins again."""
    write_calendar(tmp_path, DAYS)
    write_feature(tmp_path, "AAA", "close", 0, np.array([1.0, 2.0, np.nan, 4.0, 5.0]))
    write_feature(tmp_path, "BBB", "close", 2, np.array([30.0, 40.0]))
    write_instruments(tmp_path, "all", [(code, DAYS[0], DAYS[-1]) for code in ("BBB", "AAA", "CCC")])
    spans = [("BBB", DAYS[0], DAYS[1]), ("AAA", DAYS[2], DAYS[-1]), ("BBB", DAYS[3], np.datetime64("2099-01-01"))]
    write_instruments(tmp_path, "index", spans)
    return tmp_path


def dense(panel: TiledPanel, name: str) -> np.ndarray:
    return np.asarray(panel.untiled(panel.column(name).values))


def members(panel: TiledPanel) -> np.ndarray:
    assert panel.member is not None
    return np.asarray(panel.untiled(panel.member), dtype=np.bool_)


def exists(panel: TiledPanel, names: list[str]) -> np.ndarray:
    """Return (T, N), true on the rows that Qlib's frame of these columns has."""
    row = np.arange(len(panel.days))[:, None]
    alive = np.zeros(panel.shape, dtype=np.bool_)
    for name in names:
        spans = panel.column(name).spans
        first, stop = (side.ravel()[: panel.shape[1]] for side in (spans.first, spans.stop))
        alive |= (row >= first) & (row < stop)
    return alive


def assert_equals_qlib(panel: TiledPanel, frame: pd.DataFrame, wanted: np.ndarray) -> None:
    """Compare bit by bit: the rows that are there, their order by code, and every value."""
    rows = pd.MultiIndex.from_arrays(
        [
            np.array(panel.instruments)[np.nonzero(wanted.T)[0]],
            pd.DatetimeIndex(panel.days[np.nonzero(wanted.T)[1]].astype("datetime64[ns]")),
        ],
        names=["instrument", "datetime"],
    )
    assert list(frame.index) == list(rows)
    for name in frame.columns:
        np.testing.assert_array_equal(dense(panel, name).T[wanted.T], frame[name].to_numpy(np.float32), err_msg=name)


# What a panel holds


def test_rows_begin_at_the_providers_first_day_whatever_the_start(tiny: Path) -> None:
    panel = open_panel(tiny, "index", start="2020-01-07", end="2020-01-07")
    np.testing.assert_array_equal(panel.days, DAYS[:4])
    assert panel.instruments == ("AAA", "BBB")
    np.testing.assert_array_equal(
        dense(panel, "$close"),
        np.array([[1, np.nan], [2, np.nan], [np.nan, 30], [4, 40]], dtype=np.float32),
    )


def test_members_are_those_of_the_day_and_a_code_may_come_back(tiny: Path) -> None:
    np.testing.assert_array_equal(
        members(open_panel(tiny, "index")),
        np.array([[0, 1], [0, 1], [1, 0], [1, 1], [1, 1]], dtype=np.bool_),
    )


def test_who_left_before_the_start_stays_unless_it_is_said_that_nobody_looks_back(tiny: Path) -> None:
    write_instruments(tiny, "old", [("AAA", DAYS[0], DAYS[1]), ("BBB", DAYS[2], DAYS[4]), ("CCC", DAYS[4], DAYS[4])])
    assert open_panel(tiny, "old", start=DAYS[2]).instruments == ("AAA", "BBB", "CCC")
    assert open_panel(tiny, "old", start=DAYS[2], departed=False).instruments == ("BBB", "CCC")
    assert open_panel(tiny, "old", start=DAYS[2], end=DAYS[3]).instruments == ("AAA", "BBB")


def test_codes_are_members_on_every_day_and_come_sorted(tiny: Path) -> None:
    panel = open_panel(tiny, ["BBB", "AAA"])
    assert panel.instruments == ("AAA", "BBB")
    assert panel.member is None


def test_codes_without_bars_are_told_of_and_kept(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    panel = open_panel(tiny, ["AAA", "XXX"])
    assert panel.instruments == ("AAA", "XXX")
    assert "1 of 2 instruments have no bars: ['XXX']" in caplog.text


def test_a_ceiling_is_handed_on(tiny: Path) -> None:
    with pytest.raises(PanelError, match="memory_limit"):
        open_panel(tiny, "all", memory_limit=100).column("$close")


def test_a_missing_file_is_an_instrument_without_values(tiny: Path) -> None:
    panel = open_panel(tiny, "all")
    assert panel.instruments == ("AAA", "BBB", "CCC")
    assert np.isnan(dense(panel, "$close")[:, 2]).all()
    spans = panel.column("$close").spans
    assert (spans.first[0, :3].tolist(), spans.stop[0, :3].tolist()) == ([0, 2, 0], [5, 4, 0])
    assert np.isnan(dense(panel, "$nofield")).all()


def test_a_span_outside_the_calendar_is_cut_to_it() -> None:
    spans = [("A", np.datetime64("1990-01-01"), np.datetime64("2020-01-05")), ("B", DAYS[4] + 1, DAYS[4] + 9)]
    mask = membership(DAYS, ["A", "B"], [*spans, ("not asked for", DAYS[0], DAYS[1])])
    np.testing.assert_array_equal(mask[:, 0], [True, True, False, False, False])
    assert not mask[:, 1].any()


# Reading


def test_only_the_tail_is_given_when_only_the_tail_is_asked_for(tiny: Path) -> None:
    series = list(BinSource(tiny).read("$close", ["AAA", "BBB", "CCC"], rows=4, since=3))
    assert [(first, values.tolist()) for first, values in series] == [(3, [4.0]), (3, [40.0]), (0, [])]
    assert [values.dtype for _, values in series] == [np.float32] * 3


def test_a_field_and_a_code_are_found_whatever_their_case_and_a_device_name_is_found_where_qlib_keeps_it(
    tiny: Path,
) -> None:
    write_feature(tiny, "_qlib_CON", "close", 1, np.array([7.0]))
    ((_, upper), (first, device)) = BinSource(tiny).read("$CLOSE", ["aaa", "CON"], rows=5)
    assert upper[0] == 1
    assert (first, device.tolist()) == (1, [7.0])


def test_what_qlibs_storage_leaves_when_it_clears_a_field_is_no_value(tiny: Path) -> None:
    feature_path(tiny, "AAA", "close").write_bytes(b"")
    ((_, values),) = BinSource(tiny).read("$close", ["AAA"], rows=5)
    assert len(values) == 0


@pytest.mark.parametrize("content", [b"12345", np.array([np.nan, 1], "<f4").tobytes(), np.array([-1], "<f4").tobytes()])
def test_a_file_that_is_none_of_qlibs_is_named(tiny: Path, content: bytes) -> None:
    feature_path(tiny, "AAA", "close").write_bytes(content)
    with pytest.raises(ProviderError, match=r"aaa.close\.day\.bin.*import"):
        open_panel(tiny, "all").column("$close")


def test_a_text_that_no_file_holds_is_refused(tiny: Path) -> None:
    source = BinSource(tiny)
    for text in ("Mean($close, 5)", "close", "$$eps_q", "P($$eps)", "P(Mean($$eps_q, 2))"):
        assert not source.serves(text)
        with pytest.raises(ProviderError, match="QlibSource"):
            source.read(text, ["AAA"], rows=5)


def test_a_stamp_tells_of_a_file_that_was_written_came_or_went(tiny: Path) -> None:
    source, codes = BinSource(tiny), ["AAA", "BBB", "CCC"]
    path = feature_path(tiny, "AAA", "close")
    stamps = [source.stamp("$close", codes)]
    assert source.stamp("$close", codes) == stamps[0]
    write_feature(tiny, "AAA", "close", 0, np.array([1.0, 2.0, np.nan, 4.0, 99.0]))
    os.utime(path, ns=(1, 1))
    stamps.append(source.stamp("$close", codes))
    write_feature(tiny, "CCC", "close", 0, np.array([1.0]))
    stamps.append(source.stamp("$close", codes))
    path.unlink()
    stamps.append(source.stamp("$close", codes))
    assert len(set(stamps)) == 4


def test_a_panel_sees_a_changed_file_and_days_that_were_added(tiny: Path) -> None:
    panel = open_panel(tiny, ["AAA"])
    dense(panel, "$close")
    assert panel.forget_changed() == ()
    write_calendar(tiny, [*DAYS, np.datetime64("2020-01-09")])
    write_feature(tiny, "AAA", "close", 0, np.array([1.0, 2.0, np.nan, 4.0, 5.5, 6.0]))
    assert panel.forget_changed() == ("$close",)
    assert dense(panel, "$close")[4, 0] == np.float32(5.5)
    assert dense(panel.appended(open_panel(tiny, ["AAA"]).days), "$close")[5, 0] == 6


def test_a_source_travels_as_its_path(tiny: Path) -> None:
    travelling = pickle.dumps(BinSource(tiny))
    assert len(travelling) < 400
    ((_, values),) = pickle.loads(travelling).read("$close", ["AAA"], rows=2)  # noqa: S301 - our own bytes
    assert values.tolist() == [1.0, 2.0]


def test_opening_a_panel_does_not_import_qlib(tiny: Path) -> None:
    code = (
        "import sys; from qlib_llm_alpha.data.bars import open_panel; "
        f"open_panel({str(tiny)!r}, 'all').column('$close'); assert 'qlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Refusals


def test_what_is_missing_is_named_with_what_to_do(tiny: Path) -> None:
    with pytest.raises(ProviderError, match=r"features/.*qlib-llm-alpha market"):
        open_panel(tiny / "nowhere", "all")
    with pytest.raises(ProviderError, match=r"'csi300'.*\['all', 'index'\]"):
        open_panel(tiny, "csi300")
    with pytest.raises(ProviderError, match="none has a folder"):
        open_panel(tiny, ["XXX"])
    with pytest.raises(ProviderError, match="none has a folder"):
        open_panel(tiny, [])
    with pytest.raises(ProviderError, match="no trading day up to"):
        open_panel(tiny, "all", end="2019-12-31")
    with pytest.raises(ProviderError, match="no trading day from"):
        open_panel(tiny, "all", start="2020-01-04", end="2020-01-05")
    write_instruments(tiny, "gone", [("AAA", DAYS[0], DAYS[1])])
    with pytest.raises(ProviderError, match="no member from 2020-01-06"):
        open_panel(tiny, "gone", start=DAYS[2])


def test_a_malformed_market_or_calendar_is_named(tiny: Path) -> None:
    (tiny / "instruments" / "odd.txt").write_text("AAA 2020-01-02 2020-01-08\n")
    with pytest.raises(ProviderError, match=r"odd\.txt"):
        open_panel(tiny, "odd")
    (tiny / "calendars" / "day.txt").write_text("yesterday\n")
    with pytest.raises(ProviderError, match=r"day\.txt"):
        open_panel(tiny, "all")
    (tiny / "calendars" / "day.txt").unlink()
    with pytest.raises(ProviderError, match=r"day\.txt"):
        open_panel(tiny, "all")


# Against Qlib


def test_every_cell_of_a_market_equals_qlib(qlib_small: Path) -> None:
    names = ["$close", "$volume", "$industry", "$change"]
    panel = open_panel(qlib_small, "csi300")
    frame = D.features(D.instruments("csi300"), names)
    assert panel.shape[1] == len({code for code, _, _ in read_instruments(qlib_small, "csi300")})
    assert_equals_qlib(panel, frame, members(panel) & exists(panel, names))


def test_every_cell_of_a_list_equals_qlib_an_index_without_industry_included(qlib_small: Path) -> None:
    codes = sorted({code for code, _, _ in read_instruments(qlib_small, "all")})
    names = ["$close", "$industry"]
    panel = open_panel(qlib_small, [*codes, "SH000300"])
    assert np.isnan(dense(panel, "$industry")[:, panel.instruments.index("SH000300")]).all()
    starts = panel.column("$close").spans.first.ravel()[: len(codes)]
    assert (starts > 0).any(), "the small market should have a late listing"
    assert_equals_qlib(panel, D.features([*codes, "SH000300"], names), exists(panel, names))


def test_what_was_reported_is_known_on_the_day_as_in_qlib(tiny: Path, qlib_small: Path) -> None:
    """A restatement, two periods on one day, an older period reported later, none yet, and an instrument with none."""
    announced = DAYS[[1, 1, 2, 3, 3]] - np.array([0, 0, 1, 0, 0])
    periods = np.array([201902, 201903, 201903, 201901, 201904])
    write_period_records(tiny, "AAA", "eps_q", announced, periods, np.array([0.2, 0.3, 0.33, 0.1, np.nan]))
    write_period_records(tiny, "AAA", "roe_a", DAYS[[0, 2]], np.array([2018, 2019]), np.array([1e300, 9.0]))
    names = ["P($$eps_q)", "P($$roe_a)", "PRef($$eps_q,201902)", "PRef($$eps_q,201901)", "PRef($$eps_q,202001)"]
    names += ["PRef($$roe_a,2018)"]
    open_provider(tiny)
    frame = D.features(["AAA", "BBB"], ["$close", *names])
    panel = open_panel(tiny, ["AAA", "BBB"])
    assert_equals_qlib(panel, frame, exists(panel, ["$close", *names]))
    np.testing.assert_array_equal(
        dense(panel, "P($$eps_q)")[:, 0], np.array([np.nan, 0.3, 0.33, np.nan, np.nan], dtype=np.float32)
    )
    np.testing.assert_array_equal(dense(panel, "PRef($$eps_q,201901)")[:, 0], np.array([np.nan] * 3 + [0.1] * 2, "f4"))
    tail = list(BinSource(tiny).read("P($$eps_q)", ["AAA", "BBB"], rows=4, since=2))
    assert [(first, len(values)) for first, values in tail] == [(2, 2), (0, 0)]


def test_the_accounts_of_the_embedded_market_equal_qlib(qlib_small: Path) -> None:
    stored = sorted((qlib_small / "financial").glob("*/*.data"))
    code, name = stored[0].parent.name.upper(), f"P($${stored[0].stem})"
    panel = open_panel(qlib_small, [code])
    assert_equals_qlib(panel, D.features([code], [name]), exists(panel, [name]))
    assert len(np.unique(dense(panel, name)[np.isfinite(dense(panel, name))])) > 3


def test_qlib_itself_gives_the_fields_and_whatever_it_alone_computes(qlib_small: Path) -> None:
    close = Feature("close")
    expressions = {
        "Mean($close, 5)": Mean(close, 5),
        "Ref($close, -2)": Ref(close, -2),
        "Mean($close, 3) > $close": Mean(close, 3) > close,
    }
    codes = [code for code, _, _ in read_instruments(qlib_small, "csi300")][:3]
    days = read_calendar(qlib_small)
    source = QlibSource(expressions)
    panel = TiledPanel(days, codes, source)
    frame = D.features(codes, ["Mean($close, 5)"]).swaplevel().sort_index()
    for place, code in enumerate(codes):
        expected = frame.xs(code, level="instrument")["Mean($close, 5)"]
        rows = np.searchsorted(days, expected.index.to_numpy().astype("datetime64[D]"))
        np.testing.assert_array_equal(dense(panel, "Mean($close, 5)")[rows, place], expected.to_numpy(np.float32))
    files = open_panel(qlib_small, codes)
    order = [files.instruments.index(code) for code in codes]
    np.testing.assert_array_equal(dense(panel, "$close"), dense(files, "$close")[:, order])
    assert set(np.unique(dense(panel, "Mean($close, 3) > $close"))) >= {0.0, 1.0}
    assert np.isnan(dense(panel, "Ref($close, -2)")[-2:]).all()
    for name in ("$close", "Mean($close, 5)"):
        whole, tail = (list(source.read(name, codes, 400, since)) for since in (0, 390))
        for (first, values), (begin, kept) in zip(whole, tail, strict=True):
            assert begin == max(first, 390)
            np.testing.assert_array_equal(kept, values[begin - first :])
    with pytest.raises(ProviderError, match="neither a field"):
        source.read("Mean($close, 6)", codes, 10)


def test_files_serve_what_they_can_and_qlib_the_rest(tiny: Path, qlib_small: Path) -> None:
    write_period_records(tiny, "AAA", "eps_q", DAYS[[1]], np.array([201903]), np.array([0.5]))
    open_provider(tiny)
    reported = PFeature("eps_q")
    texts = {"P($$eps_q)": P(reported), "PRef($$eps_q,201903)": PRef(reported, 201903)}
    alone, helped = (
        QlibSource(texts),
        QlibSource(texts | {"Mean($close,2)": Mean(Feature("close"), 2)}, BinSource(tiny)),
    )
    for name in texts:
        for ours, theirs in zip(helped.read(name, ["AAA", "BBB"], 5), alone.read(name, ["AAA", "BBB"], 5), strict=True):
            assert ours[0] == theirs[0]
            np.testing.assert_array_equal(ours[1], theirs[1])
    assert helped.stamp("$close", ["AAA"]) == BinSource(tiny).stamp("$close", ["AAA"])
    assert helped.stamp("Mean($close,2)", ["AAA"]) is None
    assert alone.stamp("$close", ["AAA"]) is None
