"""Where frames differ, what a report says, what a segment declares, and the lag statistic against a slow loop."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata

from qlib_llm_alpha.errors import ConfigError, LeakError
from qlib_llm_alpha.guard.finding import GUARDS, Finding, GuardReport, chosen_guards
from qlib_llm_alpha.guard.frames import first_change, first_difference
from qlib_llm_alpha.guard.lag import _z_values
from qlib_llm_alpha.guard.segments import declared_ends

DAYS = pd.date_range("2020-01-01", periods=6)
INDEX = pd.MultiIndex.from_product([DAYS, ["A", "B", "C"]], names=["datetime", "instrument"])


def frame() -> pd.DataFrame:
    values = np.arange(36, dtype=np.float32).reshape(18, 2)
    values[4, 1] = np.nan
    return pd.DataFrame(values, index=INDEX, columns=["x", "y"])


def test_equal_frames_have_no_difference_and_nan_equals_nan() -> None:
    assert first_difference(frame(), frame()) is None
    assert first_change(frame(), frame(), until=DAYS[-1]) is None


def test_the_last_bit_of_one_value_is_found_with_its_place() -> None:
    other = frame()
    other.iloc[7, 0] = np.nextafter(other.iloc[7, 0], np.float32(100))
    found = first_difference(frame(), other)
    assert found is not None
    assert (found.columns, found.cells, found.day, found.instrument) == (("x",), 1, "2020-01-03", "B")
    assert first_difference(frame(), other, until=DAYS[1]) is None
    assert first_difference(frame(), other, start=DAYS[3]) is None
    assert first_difference(frame(), other, tolerance=1e-3) is None
    assert first_change(frame(), other, until=DAYS[-1]) == DAYS[2]


def test_a_value_that_became_missing_differs_under_any_tolerance() -> None:
    other = frame()
    other.iloc[0, 1] = np.nan
    found = first_difference(frame(), other, tolerance=10.0)
    assert found is not None
    assert found.evidence()["new"] == "nan"


def test_a_row_that_is_gone_is_named() -> None:
    found = first_difference(frame(), frame().drop(INDEX[5]))
    assert found is not None
    assert (found.columns, found.day, found.instrument, found.one, found.other) == (
        (),
        "2020-01-02",
        "C",
        "there",
        "missing",
    )
    assert "1 row not the same" in found.told("here", "there")


def test_rows_without_any_value_are_no_difference_whichever_frame_is_padded_with_them() -> None:
    short = frame().drop([INDEX[5], INDEX[9]])
    padded = short.reindex(INDEX)
    assert first_difference(short, padded) is None
    assert first_difference(padded, short) is None
    assert first_change(padded, short, until=DAYS[-1]) is None
    wide = frame()["x"].unstack("instrument").where(lambda table: table != 10)
    assert first_difference(wide.stack().to_frame("x"), frame()[["x"]].drop(INDEX[5])) is None


def test_a_padded_index_hides_no_other_difference() -> None:
    short = frame().drop([INDEX[5], INDEX[9]])
    padded = short.reindex(INDEX)
    padded.iloc[9, 1] = 1.0
    rows = first_difference(short, padded)
    assert rows is not None
    assert (rows.cells, rows.day, rows.instrument, rows.other) == (1, "2020-01-04", "A", "there")
    assert first_change(padded, short, until=DAYS[-1]) == DAYS[3]
    padded = short.reindex(INDEX)
    padded.iloc[7, 0] = -1.0
    values = first_difference(short, padded)
    assert values is not None
    assert (values.columns, values.cells, values.day, values.instrument) == (("x",), 1, "2020-01-03", "B")


def test_a_row_that_lost_all_its_values_is_a_difference_whether_or_not_it_is_still_there() -> None:
    emptied = frame()
    emptied.iloc[7] = np.nan
    assert first_difference(frame(), emptied) is not None
    assert first_difference(frame(), emptied.drop(INDEX[7])) is not None
    assert first_difference(emptied, emptied.drop(INDEX[7])) is None


def report(verdict: str) -> GuardReport:
    finding = Finding("poison", "Mine", verdict, "what was found where", {"day": "2020-01-02"})  # type: ignore[arg-type]
    return GuardReport("Mine", (finding,), ("2020-01-02",), 1, 2.0)


def test_a_report_says_what_it_found_and_raises_only_for_leaks() -> None:
    report("clean").raise_for_leaks()
    report("not applicable").raise_for_leaks()
    assert report("not applicable").verdict == "clean"
    leak = report("leak")
    assert leak.verdict == "leak"
    with pytest.raises(LeakError, match="what was found where"):
        leak.raise_for_leaks()
    assert json.loads(json.dumps(leak.to_dict()))["findings"][0]["evidence"] == {"day": "2020-01-02"}
    assert "LEAK" in leak.table()
    assert all(len(line) <= 100 for line in leak.table().splitlines())


def test_a_guard_that_does_not_exist_is_refused_and_the_models_guard_runs_only_when_asked() -> None:
    with pytest.raises(ConfigError, match="'pioson'"):
        chosen_guards(["pioson"], with_model=False)
    assert "model_poison" not in chosen_guards(None, with_model=False)
    assert chosen_guards(None, with_model=True) == tuple(GUARDS)
    assert chosen_guards(["lag", "poison"], with_model=False) == ("poison", "lag")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["2020-01-02", "2020-03-04"], ("2020-01-02", "2020-03-04")),
        (slice("2020-01-02", "2020-03-04"), ("2020-01-02", "2020-03-04")),
        (("2019", "2020"), ("2019-01-01", "2020-12-31")),
        (["2020-01-02"], None),
        (["2020-01-02", None], None),
        (["2020-01-02", "2020-01-03", "2020-01-04"], None),
        ([["2020-01-02", "2020-01-03"], ["2020-02-03", "2020-02-04"]], None),
        ("2020", None),
        (None, None),
        (["first", "last"], None),
    ],
)
def test_a_segment_declares_two_dates_or_nothing(given: object, expected: tuple[str, str] | None) -> None:
    found = declared_ends(given)
    assert (None if found is None else tuple(f"{day:%Y-%m-%d}" for day in found)) == expected


def test_the_lag_statistic_is_that_of_a_loop_over_days() -> None:
    rng = np.random.default_rng(5)
    index = pd.MultiIndex.from_product(
        [pd.date_range("2020-01-01", periods=60), list("ABCDEFGH")], names=["datetime", "instrument"]
    )
    features = pd.DataFrame(rng.normal(size=(480, 3)), index=index, columns=["a", "b", "c"])
    features[rng.random(features.shape) < 0.1] = np.nan
    features["c"] = np.round(features["c"])
    target = pd.Series(rng.normal(size=480), index=index)
    target[rng.random(480) < 0.1] = np.nan
    expected = []
    for name in features:
        total, variance = 0.0, 0.0
        for day in index.levels[0]:
            x, y = features.loc[day, name], target.loc[day]
            ranks = pd.Series(np.where(x.notna(), 0.0, np.nan), index=x.index)
            ranks[x.notna()] = rankdata(x[x.notna()])
            both = ranks.notna() & y.notna()
            if both.sum() < 5 or ranks[both].std() == 0:
                continue
            total += np.corrcoef(ranks[both], y[both])[0, 1]
            variance += 1 / (both.sum() - 1)
        expected.append(total / np.sqrt(variance))
    np.testing.assert_allclose(_z_values(features, target.to_numpy()), expected, rtol=1e-10)


def test_the_lag_statistic_of_noise_has_deviation_one() -> None:
    rng = np.random.default_rng(8)
    index = pd.MultiIndex.from_product(
        [pd.date_range("2020-01-01", periods=80), range(12)], names=["datetime", "instrument"]
    )
    persistent = np.repeat(rng.normal(size=(1, 12, 400)), 80, axis=0).reshape(960, 400)
    z = _z_values(pd.DataFrame(persistent, index=index), rng.normal(size=960))
    assert abs(z.std() - 1) < 0.5
    independent = _z_values(pd.DataFrame(rng.normal(size=(960, 400)), index=index), rng.normal(size=960))
    assert abs(independent.std() - 1) < 0.1
    assert abs(independent.mean()) < 0.2


def test_other_names_of_columns_are_said_in_words() -> None:
    index = pd.MultiIndex.from_product(
        [pd.date_range("2020-01-01", periods=2), ["A"]], names=["datetime", "instrument"]
    )
    found = first_difference(pd.DataFrame({"x": [1.0, 2.0]}, index=index), pd.DataFrame({"y": [1.0, 2.0]}, index=index))
    assert found is not None
    assert found.told("here", "there") == "the columns are not the same: x here, y there"
