"""The cache of columns: always what a fresh evaluation gives, and no more work than that takes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qlib_llm_alpha.engine import cache as cache_module
from qlib_llm_alpha.engine.cache import FORGETS, CacheReport, ColumnCache, cached_evaluate, evaluate_and_report
from qlib_llm_alpha.engine.evaluate import Columns, evaluate
from qlib_llm_alpha.engine.kernels.registry import HAVE_NUMBA, KERNELS, LANES
from qlib_llm_alpha.engine.tiles import TiledPanel
from qlib_llm_alpha.errors import PanelError
from qlib_llm_alpha.factor.expression import Expression, parse
from qlib_llm_alpha.factor.limits import Limits
from qlib_llm_alpha.factor.parser import read
from qlib_llm_alpha.factor.tree import Call, Field
from qlib_llm_alpha.factor.tree import Node as Tree

NAMES = 70  # three tiles, the last one with six instruments
ROWS = 900


@dataclass(frozen=True)
class Market:
    """What a panel is made of, so that a test can change one thing of it."""

    values: dict[str, NDArray[np.float32]]
    spans: dict[str, tuple[int, int]]
    codes: tuple[str, ...]
    member: NDArray[np.bool_] | None = None
    first_day: str = "2015-01-05"
    dropped_days: tuple[int, ...] = field(default=())

    def panel(self, rows: int, codes: Sequence[str] | None = None) -> TiledPanel:
        """Return the panel of the first ``rows`` days, read anew."""
        codes = self.codes if codes is None else tuple(codes)
        place = [self.codes.index(code) for code in codes]
        days = (np.datetime64(self.first_day) + np.arange(rows)).astype("datetime64[D]")
        return TiledPanel.from_arrays(
            days,
            codes,
            {name: array[:rows][:, place] for name, array in self.values.items()},
            spans={code: self.spans[code] for code in codes},
            member=None if self.member is None else self.member[:rows][:, place],
        )

    def with_bar(self, name: str, row: int, lane: int, value: float) -> Market:
        array = self.values[name].copy()
        array[row, lane] = value
        return replace(self, values={**self.values, name: array})


def market(rows: int = ROWS, names: int = NAMES, seed: int = 7) -> Market:
    """Return a market with late listings, delistings, suspensions, ties, constants, infinities and spikes."""
    random = np.random.default_rng(seed)
    close = 10 * np.exp(np.cumsum(random.normal(0, 0.02, (rows, names)), axis=0))
    close[:, 3] = 5.0
    close[200:420, 4] = 7.0
    close[:, 5] = np.round(close[:, 5], 1)
    close[random.random((rows, names)) < 0.02] = np.nan
    close[300:380, 6] = np.nan
    volume = random.lognormal(10, 1, (rows, names))
    volume[random.random((rows, names)) < 0.002] = 1e12
    volume[random.random((rows, names)) < 0.001] = np.inf
    codes = tuple(f"SH{600000 + n}" for n in range(names))
    spans = {code: (0, rows) for code in codes}
    spans[codes[8]] = (450, rows)
    spans[codes[9]] = (0, 500)
    spans[codes[10]] = (120, 640)
    member = random.random((rows, names)) < 0.8
    values = {
        "$close": close,
        "$volume": volume,
        "$vwap": close * 1.01,
        "$industry": np.tile(np.arange(names) % 3, (rows, 1)),
    }
    return Market({name: array.astype(np.float32) for name, array in values.items()}, spans, codes, member)


def same_bits(found: Columns, expected: Columns) -> None:
    assert found.values.dtype == expected.values.dtype
    differ = found.values.view(np.uint32) != expected.values.view(np.uint32)
    differ &= ~(np.isnan(found.values) & np.isnan(expected.values))
    assert not differ.any(), f"{differ.sum()} cells differ, the first at {np.argwhere(differ)[0]}"
    for one, other in zip(found.spans, expected.spans, strict=True):
        assert one.same_as(other)


class Checked:
    """A cache of which every answer is compared with a fresh evaluation."""

    def __init__(self, folder: Path, formulas: Sequence[Expression | Tree], **settings: Any) -> None:
        self.cache, self.formulas, self.settings = ColumnCache(folder), formulas, settings

    def __call__(self, panel: Callable[[], TiledPanel]) -> CacheReport:
        found, report = evaluate_and_report(self.formulas, panel(), self.cache, threads=1, **self.settings)
        same_bits(found, evaluate(self.formulas, panel(), threads=1, **self.settings))
        return report


TEXTS = ["Mean($close,20)/$close", "Std($volume,10)", "$vwap-Ref($close,3)"]
ACROSS_TEXT = "Mean(CSRank($volume),5)"


def expressions(*texts: str) -> list[Expression]:
    return [parse(text) for text in texts]


def test_a_second_call_reads_everything_and_computes_nothing(tmp_path: Path) -> None:
    made = market()
    ask = Checked(tmp_path, expressions(*TEXTS, ACROSS_TEXT))
    assert ask(lambda: made.panel(ROWS)) == CacheReport(computed=12)
    assert ask(lambda: made.panel(ROWS)) == CacheReport(read=12)


def test_the_same_formula_twice_in_a_batch_has_the_same_values(tmp_path: Path) -> None:
    made = market()
    ask = Checked(tmp_path, expressions(TEXTS[0], TEXTS[1], TEXTS[0]))
    assert ask(lambda: made.panel(ROWS)) == CacheReport(computed=9)
    assert ask(lambda: made.panel(ROWS)) == CacheReport(read=9)


def test_a_changed_bar_recomputes_what_reads_its_field_on_its_tile_alone(tmp_path: Path) -> None:
    made = market()
    ask = Checked(tmp_path, expressions(*TEXTS))
    ask(lambda: made.panel(ROWS))
    changed = made.with_bar("$volume", 400, 40, 123.0)
    assert ask(lambda: changed.panel(ROWS)) == CacheReport(read=8, computed=1)
    changed = changed.with_bar("$close", 0, 0, 123.0)
    assert ask(lambda: changed.panel(ROWS)) == CacheReport(read=7, computed=2)
    assert ask(lambda: changed.panel(ROWS)) == CacheReport(read=9)
    assert ask(lambda: made.panel(ROWS)) == CacheReport(read=6, computed=3), "the past as it was before is past too"


def test_a_changed_bar_recomputes_every_tile_of_a_cross_section(tmp_path: Path) -> None:
    made = market()
    ask = Checked(tmp_path, expressions(ACROSS_TEXT, "CSRank($close)", TEXTS[1]))
    ask(lambda: made.panel(ROWS))
    changed = made.with_bar("$volume", 400, 40, 123.0)
    assert ask(lambda: changed.panel(ROWS)) == CacheReport(read=5, computed=4)


def test_changed_bars_of_different_tiles_and_fields_are_found_together(tmp_path: Path) -> None:
    made = market()
    ask = Checked(tmp_path, expressions(*TEXTS, ACROSS_TEXT))
    ask(lambda: made.panel(ROWS))
    changed = made.with_bar("$close", 10, 1, 1.0).with_bar("$volume", 20, 33, 1.0).with_bar("$vwap", 30, 69, 1.0)
    assert ask(lambda: changed.panel(ROWS)) == CacheReport(read=5, computed=7)


def test_appended_days_compute_new_rows_of_what_forgets_and_all_rows_of_what_does_not(tmp_path: Path) -> None:
    made = market()
    forgetful = Checked(tmp_path / "a", expressions(*TEXTS, ACROSS_TEXT))
    forgetful(lambda: made.panel(850))
    assert forgetful(lambda: made.panel(851)) == CacheReport(extended=12)
    assert forgetful(lambda: made.panel(ROWS)) == CacheReport(extended=12)
    assert forgetful(lambda: made.panel(ROWS)) == CacheReport(read=12)
    texts = ["EMA($close,5)", "Wilder($close,5)", "Slope($volume,10)", "Resi($close,5)"]
    trees = [read("Sum($close,0)", Limits()), read("Ref($close,0)", Limits()), read("Mean($close,0.2)", Limits())]
    endless = Checked(tmp_path / "b", [*expressions(*texts), *trees])
    endless(lambda: made.panel(850))
    assert endless(lambda: made.panel(ROWS)) == CacheReport(computed=21)


def test_windows_on_short_histories_are_recomputed_whole_and_shifts_need_not_be(tmp_path: Path) -> None:
    made = market()
    ask = Checked(tmp_path, expressions(*TEXTS))
    ask(lambda: made.panel(300))
    assert ask(lambda: made.panel(310)) == CacheReport(extended=3, computed=6)


def test_a_bar_changed_before_days_were_appended_is_seen(tmp_path: Path) -> None:
    made = market()
    ask = Checked(tmp_path, expressions(*TEXTS))
    ask(lambda: made.panel(850))
    changed = made.with_bar("$close", 2, 40, 123.0)
    assert ask(lambda: changed.panel(ROWS)) == CacheReport(extended=7, computed=2)


def test_labels_compute_the_old_rows_that_saw_the_end_of_the_data(tmp_path: Path) -> None:
    made = market()
    label = parse("Ref($close,-5)/Ref($close,-1)-1", allow_future=True)
    nested = parse("Mean(Ref($close,-20),10)", allow_future=True)
    ask = Checked(tmp_path, [label, nested])
    ask(lambda: made.panel(860))
    assert ask(lambda: made.panel(863)) == CacheReport(extended=6)
    assert ask(lambda: made.panel(ROWS)) == CacheReport(extended=6)


def test_a_shorter_calendar_does_not_serve_what_the_longer_one_knew(tmp_path: Path) -> None:
    made = market()
    label = parse("Ref($close,-5)/$close-1", allow_future=True)
    ask = Checked(tmp_path, [label, *expressions(*TEXTS)])
    ask(lambda: made.panel(ROWS))
    assert ask(lambda: made.panel(800)) == CacheReport(computed=12)
    assert ask(lambda: made.panel(ROWS)) == CacheReport(extended=12)


def test_another_first_day_is_another_question(tmp_path: Path) -> None:
    made = market()
    ask = Checked(tmp_path, expressions(*TEXTS))
    ask(lambda: made.panel(ROWS))
    assert ask(lambda: made.panel(ROWS).window(100, ROWS)) == CacheReport(computed=9)
    assert ask(lambda: made.panel(ROWS)) == CacheReport(read=9)


def test_a_day_taken_out_of_the_calendar_is_seen(tmp_path: Path) -> None:
    made = market()
    ask = Checked(tmp_path, expressions("Mean($close,20)"))
    ask(lambda: made.panel(850))
    without = replace(made, values={name: np.delete(array, 400, axis=0) for name, array in made.values.items()})
    assert ask(lambda: without.panel(860)).computed == 3


def test_changed_membership_touches_cross_sections_only(tmp_path: Path) -> None:
    made = market()
    ask = Checked(tmp_path, expressions(*TEXTS, ACROSS_TEXT, "CSNeutralize($close,$industry)"))
    ask(lambda: made.panel(850))
    assert made.member is not None
    member = made.member.copy()
    member[400, 40] ^= True
    changed = replace(made, member=member)
    assert ask(lambda: changed.panel(850)) == CacheReport(read=9, computed=6)
    assert ask(lambda: changed.panel(ROWS)) == CacheReport(extended=15)
    everyone = replace(made, member=None)
    assert ask(lambda: everyone.panel(ROWS)) == CacheReport(read=9, computed=6)


def test_two_universes_live_side_by_side(tmp_path: Path) -> None:
    made = market()
    assert made.member is not None
    other = replace(made, member=~made.member)
    ask = Checked(tmp_path, expressions(ACROSS_TEXT))
    ask(lambda: made.panel(ROWS))
    assert ask(lambda: other.panel(ROWS)) == CacheReport(computed=3)
    assert ask(lambda: made.panel(ROWS)) == CacheReport(read=3)
    assert ask(lambda: other.panel(ROWS)) == CacheReport(read=3)


@pytest.mark.parametrize(("code", "span"), [(0, (17, ROWS)), (8, (440, ROWS)), (40, (0, 845)), (41, (0, 0))])
def test_a_changed_span_is_seen(tmp_path: Path, code: int, span: tuple[int, int]) -> None:
    made = market()
    ask = Checked(tmp_path, expressions(*TEXTS))
    ask(lambda: made.panel(850))
    changed = replace(made, spans={**made.spans, made.codes[code]: span})
    report = ask(lambda: changed.panel(850))
    assert (report.read, report.computed) == (6, 3)
    ask(lambda: changed.panel(ROWS))


def test_a_listing_among_the_appended_days_is_there(tmp_path: Path) -> None:
    made = market()
    made = replace(made, spans={**made.spans, made.codes[40]: (870, ROWS)})
    ask = Checked(tmp_path, expressions(*TEXTS, ACROSS_TEXT))
    ask(lambda: made.panel(850))
    report = ask(lambda: made.panel(ROWS))
    assert report.read == 0
    assert report.extended >= 6


def test_a_delisting_among_the_appended_days_is_there(tmp_path: Path) -> None:
    made = market()
    made = replace(made, spans={**made.spans, made.codes[40]: (0, 850), made.codes[41]: (0, 870)})
    ask = Checked(tmp_path, expressions(*TEXTS, ACROSS_TEXT))
    ask(lambda: made.panel(850))
    assert ask(lambda: made.panel(ROWS)) == CacheReport(extended=12)


def test_another_order_of_the_instruments_is_another_question(tmp_path: Path) -> None:
    made = market()
    ask = Checked(tmp_path, expressions(*TEXTS, ACROSS_TEXT))
    ask(lambda: made.panel(ROWS))
    swapped = [*made.codes[:63], made.codes[64], made.codes[63], *made.codes[65:]]
    assert ask(lambda: made.panel(ROWS, swapped)) == CacheReport(read=3, computed=9)
    assert ask(lambda: made.panel(ROWS, made.codes[::-1])) == CacheReport(computed=12)


def test_instruments_added_at_the_end_leave_full_tiles_alone(tmp_path: Path) -> None:
    made = market()
    ask = Checked(tmp_path, expressions(*TEXTS, ACROSS_TEXT))
    ask(lambda: made.panel(ROWS, made.codes[:64]))
    assert ask(lambda: made.panel(ROWS)) == CacheReport(read=6, computed=6)


def test_a_strict_warm_up_shares_its_file_with_the_other(tmp_path: Path) -> None:
    made = market()
    formulas = expressions(*TEXTS, ACROSS_TEXT)
    assert Checked(tmp_path, formulas, warmup="strict")(lambda: made.panel(ROWS)) == CacheReport(computed=12)
    assert Checked(tmp_path, formulas, warmup="qlib")(lambda: made.panel(ROWS)) == CacheReport(read=12)
    assert Checked(tmp_path, formulas, warmup="strict")(lambda: made.panel(ROWS)) == CacheReport(read=12)
    with pytest.raises(PanelError, match="bare tree"):
        cached_evaluate([Field("$close")], made.panel(ROWS), ColumnCache(tmp_path), warmup="strict")


def test_another_instrument_is_an_input_as_the_own_columns_are(tmp_path: Path) -> None:
    made = market()
    ask = Checked(tmp_path, expressions(f"$close/ChangeInstrument('{made.codes[64]}',Mean($close,5))", "Max($close,5)"))
    ask(lambda: made.panel(850))
    assert ask(lambda: made.panel(ROWS)) == CacheReport(extended=6)
    changed = made.with_bar("$close", 400, 64, 123.0)
    assert ask(lambda: changed.panel(ROWS)) == CacheReport(read=2, computed=4), "it is in the last tile"
    changed = changed.with_bar("$close", 400, 2, 123.0)
    assert ask(lambda: changed.panel(ROWS)) == CacheReport(read=4, computed=2)


def test_columns_that_the_source_evaluates_are_digested_by_value(tmp_path: Path) -> None:
    made = market()
    formula = Call("Mean", (Call("Own", (Field("$close"),)), _number(5)))

    def with_own(factor: float) -> Callable[[], TiledPanel]:
        own = made.values["$close"] * np.float32(factor)
        return lambda: replace(made, values={**made.values, "Own($close)": own}).panel(ROWS)

    ask = Checked(tmp_path, [formula], foreign=lambda call: call.op == "Own")
    assert ask(with_own(2.0)) == CacheReport(computed=3)
    assert ask(with_own(2.0)) == CacheReport(read=3)
    assert ask(with_own(3.0)) == CacheReport(computed=3)


def _number(value: int) -> Tree:
    from qlib_llm_alpha.factor.tree import Number

    return Number(value)


def test_an_operator_that_was_ours_and_is_foreign_now_is_not_mistaken(tmp_path: Path) -> None:
    made = market()
    own = replace(made, values={**made.values, "Mean($close,5)": made.values["$volume"]})
    formula = Call("Mean", (Field("$close"), _number(5)))
    assert Checked(tmp_path, [formula])(lambda: own.panel(ROWS)) == CacheReport(computed=3)
    foreign = Checked(tmp_path, [formula], foreign=lambda call: call.op == "Mean")
    assert foreign(lambda: own.panel(ROWS)) == CacheReport(computed=3)


def test_whole_numbers_and_others_are_different_formulas(tmp_path: Path) -> None:
    made = market()
    one, other = Call("Power", (_number(2), Field("$close"))), Call("Power", (Field("$close"), _number(2)))
    assert Checked(tmp_path, [one])(lambda: made.panel(ROWS)) == CacheReport(computed=3)
    assert Checked(tmp_path, [other])(lambda: made.panel(ROWS)) == CacheReport(computed=3)


def test_values_are_written_where_the_caller_says(tmp_path: Path) -> None:
    made = market()
    formulas = expressions(*TEXTS)
    out = np.empty((3, 3, ROWS, LANES), dtype=np.float32)
    cache = ColumnCache(tmp_path)
    assert cached_evaluate(formulas, made.panel(ROWS), cache, out=out).values is out
    assert cached_evaluate(formulas, made.panel(ROWS), cache, out=out).values is out
    with pytest.raises(PanelError, match="expected"):
        cached_evaluate(formulas, made.panel(ROWS), cache, out=out[:2])


def damage_cut(content: bytes) -> bytes:
    return content[:-100]


def damage_bit(content: bytes) -> bytes:
    return content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]


def damage_header(content: bytes) -> bytes:
    return content.replace(b'"rows": ', b'"row": ', 1)


def damage_list(content: bytes) -> bytes:
    return b"qlib-llm-alpha column []\n"


def damage_foreign(content: bytes) -> bytes:
    return b"something else"


@pytest.mark.parametrize("damage", [damage_cut, damage_bit, damage_header, damage_list, damage_foreign, lambda _: b""])
def test_a_damaged_file_is_ignored_with_a_warning_and_replaced(
    tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    made = market()
    ask = Checked(tmp_path, expressions(TEXTS[0]))
    ask(lambda: made.panel(ROWS))
    path = sorted(tmp_path.rglob("*.column"))[0]
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert ask(lambda: made.panel(ROWS)) == CacheReport(read=2, computed=1)
    assert str(path) in caplog.text
    assert ask(lambda: made.panel(ROWS)) == CacheReport(read=3)


def test_a_file_under_the_name_of_another_is_ignored(tmp_path: Path) -> None:
    made = market()
    ask = Checked(tmp_path, expressions(TEXTS[0]))
    ask(lambda: made.panel(ROWS))
    one, other, _ = sorted(tmp_path.rglob("*.column"))
    one.write_bytes(other.read_bytes())
    assert ask(lambda: made.panel(ROWS)) == CacheReport(read=2, computed=1)


def test_a_folder_that_cannot_be_written_is_a_warning_and_leaves_no_half_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = market()

    def full(self: Path, target: Path) -> Path:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", full)
    ask = Checked(tmp_path, expressions(TEXTS[0]))
    with caplog.at_level(logging.WARNING):
        assert ask(lambda: made.panel(ROWS)) == CacheReport(computed=3)
    assert "no space left" in caplog.text
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_another_engine_is_another_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = market()
    ask = Checked(tmp_path, expressions(TEXTS[0]))
    ask(lambda: made.panel(ROWS))
    monkeypatch.setattr(cache_module, "_ENGINE", "a later version")
    assert ask(lambda: made.panel(ROWS)) == CacheReport(computed=3)


ONE_INPUT = sorted(name for name in FORGETS if name in KERNELS and KERNELS[name].inputs == 1)
TWO_INPUTS = sorted(name for name in FORGETS if name in KERNELS and KERNELS[name].inputs == 2)


def windowed(name: str, series: Sequence[str], window: int) -> str:
    inputs = series[: KERNELS[name].inputs]
    numbers = f"{window},0.3" if name == "Quantile" else str(window)
    return f"{name}({','.join(inputs)},{numbers})"


def test_the_list_of_what_forgets_names_kernels() -> None:
    assert set(KERNELS) >= FORGETS


@pytest.mark.skipif(not HAVE_NUMBA, reason="without numba operators keep no sums")
@pytest.mark.parametrize("name", ONE_INPUT + TWO_INPUTS)
def test_the_end_of_a_history_has_the_bits_of_the_whole(tmp_path: Path, name: str) -> None:
    made = market(rows=1700, names=20)
    texts = [windowed(name, ["$close", "$volume"], window) for window in (4, 20, 128)]
    texts.append(windowed(name, ["$close-Ref($close,1)", "$volume/Mean($volume,5)"], 10))
    texts.append(windowed("Mean", [windowed(name, ["Std($volume,30)", "Max($close,9)"], 12)], 60))
    texts.append(windowed(name, ["$volume", "$close"], 200))
    trees = [read(text, Limits()) for text in texts]
    ask = Checked(tmp_path, trees)
    ask(lambda: made.panel(1690))
    # 200 has rows divisible by 400 for its own, which a short history does not have in common with the others.
    assert ask(lambda: made.panel(1700)) == CacheReport(extended=6)


@pytest.mark.skipif(not HAVE_NUMBA, reason="without numba operators keep no sums")
@pytest.mark.parametrize("name", ONE_INPUT + TWO_INPUTS)
@pytest.mark.parametrize("window", [4, 20, 128, 150])
def test_a_kernel_that_begins_at_a_whole_period_has_all_digits_one_period_later(name: str, window: int) -> None:
    made = market(rows=1700, names=LANES)
    inputs = [made.values["$volume"].astype(np.float64), made.values["$close"].astype(np.float64)]
    kernel, rest = KERNELS[name], (0.3,) if name == "Quantile" else ()
    period = max(256, 2 * window)
    first = np.zeros(LANES, dtype=np.int64)
    first[:5] = [3, 300, 700, 1000, 1690]
    for array in inputs:
        array[np.arange(1700)[:, None] < first] = np.nan

    def computed(begin: int) -> NDArray[np.float64]:
        out = np.empty((1700 - begin, LANES))
        rows = [np.ascontiguousarray(array[begin:]) for array in inputs[: kernel.inputs]]
        kernel.run(*rows, out, window, np.maximum(first - begin, 0), *rest)
        return out

    whole, end = computed(0), computed(2 * period)
    np.testing.assert_array_equal(end[period:].view(np.int64), whole[3 * period :].view(np.int64))


LEAVES = st.sampled_from(["$close", "$volume", "$vwap"])


def _calls(series: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    window = st.sampled_from([4, 5, 20, 60])
    return st.one_of(
        st.builds(
            lambda name, x, y, n: windowed(name, [x, y], n),
            st.sampled_from(ONE_INPUT + TWO_INPUTS),
            series,
            series,
            window,
        ),
        st.builds(lambda x, n: f"Ref({x},{n})", series, st.sampled_from([-3, 1, 7])),
        st.builds(lambda x, y, sign: f"({x}{sign}{y})", series, series, st.sampled_from("+-*/<")),
        st.builds(lambda x: f"Log(Abs({x}))", series),
        st.builds(lambda x: f"CSRank({x}+0)", series),
        st.builds(lambda x: f"EMA({x},5)", series),
    )


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    texts=st.lists(st.recursive(LEAVES, _calls, max_leaves=5), min_size=1, max_size=6),
    known=st.integers(300, 1290),
    seed=st.integers(0, 3),
)
def test_whatever_is_asked_after_whatever_change_equals_a_fresh_evaluation(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], known: int, seed: int
) -> None:
    made = market(rows=1300, names=40, seed=seed)
    ask = Checked(tmp_path_factory.mktemp("cache"), [read(text, Limits()) for text in texts])
    ask(lambda: made.panel(known))
    assert ask(lambda: made.panel(1300)).read == 0
    changed = made.with_bar("$close", known - 1, 35, 3.0)
    ask(lambda: changed.panel(1300))
    assert ask(lambda: changed.panel(1300)).read == 2 * len(texts)
