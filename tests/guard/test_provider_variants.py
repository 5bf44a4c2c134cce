"""The copies of a provider differ from it where they should, nowhere else, and stay valid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qlib_llm_alpha.data.check import check_provider
from qlib_llm_alpha.data.provider_files import (
    read_calendar,
    read_feature,
    read_instruments,
    read_period_records,
    write_calendar,
    write_feature,
    write_instruments,
    write_period_records,
)
from qlib_llm_alpha.errors import ProviderError
from qlib_llm_alpha.guard.provider_variants import (
    missing_closes,
    write_independent,
    write_poisoned,
    write_truncated,
)

DAYS = np.arange(np.datetime64("2020-01-01"), np.datetime64("2020-04-10"))
CUT = np.datetime64("2020-02-15")
KEPT = 46
CODES = [f"SH60000{number}" for number in range(8)]


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 100 days of 8 names: bars, a field of whole numbers, one of our own, a report, and a table beside them."""
    root = tmp_path_factory.mktemp("provider")
    rng = np.random.default_rng(3)
    write_calendar(root, list(DAYS))
    write_instruments(root, "all", [(code, DAYS[0], DAYS[-1]) for code in CODES])
    write_instruments(root, "late", [(CODES[0], np.datetime64("2020-03-01"), DAYS[-1])])
    for code in CODES:
        close = 10 * np.exp(np.cumsum(rng.normal(0, 0.02, len(DAYS))))
        close[40:44] = np.nan
        for field, scale in (("close", 1), ("open", 1), ("high", 1.01), ("low", 0.99), ("vwap", 1)):
            write_feature(root, code, field, 0, close * scale)
        write_feature(root, code, "volume", 0, np.where(np.isnan(close), np.nan, 1e6))
        write_feature(root, code, "factor", 0, np.where(np.isnan(close), np.nan, 1.0))
        write_feature(root, code, "board", 0, rng.integers(0, 4, len(DAYS)).astype(float))
        write_feature(root, code, "mood", 0, rng.normal(size=len(DAYS)))
        announced = np.array(["2020-01-20", "2020-03-20"], dtype="datetime64[D]")
        write_period_records(root, code, "eps_q", announced, np.array([201903, 201904]), np.array([1.0, 2.0]))
    (root / "notes.csv").write_text("a,b\n")
    (root / "features_cache").mkdir()
    (root / "features_cache" / "old").write_text("old")
    return root


def test_poison_keeps_every_bit_up_to_the_day_and_changes_every_field_after_it(provider: Path, tmp_path: Path) -> None:
    out = write_poisoned(provider, tmp_path / "poisoned", CUT)
    np.testing.assert_array_equal(read_calendar(out), DAYS)
    for field in ("open", "high", "low", "close", "vwap", "volume", "factor", "board", "mood"):
        for code in CODES:
            old, new = read_feature(provider, code, field)[1], read_feature(out, code, field)[1]
            np.testing.assert_array_equal(new[:KEPT], old[:KEPT])
            assert not np.array_equal(new[KEPT:], old[KEPT:], equal_nan=True), (field, code)


def test_poisoned_bars_are_in_order(provider: Path, tmp_path: Path) -> None:
    out = write_poisoned(provider, tmp_path / "poisoned", CUT)
    bars = {name: read_feature(out, CODES[5], name)[1][KEPT:] for name in ("open", "high", "low", "close", "vwap")}
    there = np.isfinite(bars["close"])
    for name in ("open", "close", "vwap"):
        assert (bars["low"][there] <= bars[name][there]).all()
        assert (bars[name][there] <= bars["high"][there]).all()


def test_a_poisoned_market_is_one_that_qlib_can_run_on(small_provider: Path, tmp_path: Path) -> None:
    out = write_poisoned(small_provider, tmp_path / "poisoned", np.datetime64("2020-06-30"))
    before, after = (
        {finding.code for finding in check_provider(root).findings if finding.severity == "error"}
        for root in (small_provider, out)
    )
    # Valid, not plausible: prices jump, and gaps are drawn for each name by itself.
    assert after - before == {"market_gap", "unadjusted_jump"}


def test_poison_lets_names_leave_in_every_market_and_changes_later_reports(provider: Path, tmp_path: Path) -> None:
    out = write_poisoned(provider, tmp_path / "poisoned", CUT)
    before = {code: (first, last) for code, first, last in read_instruments(provider, "all")}
    after = {code: (first, last) for code, first, last in read_instruments(out, "all")}
    assert set(after) == set(before)
    assert any(after[code] != before[code] for code in after)
    assert all(last >= CUT for _, last in after.values())
    announced, periods, values = read_period_records(out, CODES[2], "eps_q")
    known = announced <= CUT
    assert (periods[known].tolist(), values[known].tolist()) == ([201903], [1.0])
    assert 2.0 not in values


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(provider: Path, tmp_path: Path) -> None:
    one, same, other = (
        write_poisoned(provider, tmp_path / name, CUT, seed) for name, seed in (("one", 4), ("same", 4), ("other", 5))
    )
    for path in sorted(one.rglob("*.*")):
        assert (same / path.relative_to(one)).read_bytes() == path.read_bytes()
    assert read_feature(one, CODES[0], "close")[1][-1] != read_feature(other, CODES[0], "close")[1][-1]


def test_truncation_ends_calendar_bars_markets_and_reports_on_the_day(provider: Path, tmp_path: Path) -> None:
    out = write_truncated(provider, tmp_path / "truncated", CUT)
    assert read_calendar(out)[-1] == CUT
    np.testing.assert_array_equal(
        read_feature(out, CODES[0], "mood")[1], read_feature(provider, CODES[0], "mood")[1][:KEPT]
    )
    assert {last for _, _, last in read_instruments(out, "all")} == {CUT}
    assert read_instruments(out, "late") == []
    assert read_period_records(out, CODES[0], "eps_q")[2].tolist() == [1.0]


def test_other_files_are_copied_and_caches_are_not(provider: Path, tmp_path: Path) -> None:
    out = write_truncated(provider, tmp_path / "truncated", CUT)
    assert (out / "notes.csv").read_text() == "a,b\n"
    (out / "notes.csv").write_text("changed")
    assert (provider / "notes.csv").read_text() == "a,b\n"
    assert not (out / "features_cache").exists()


def test_independent_returns_keep_gaps_and_other_fields_and_are_uncorrelated(provider: Path, tmp_path: Path) -> None:
    codes, returns = write_independent(provider, tmp_path / "independent", 1)
    assert codes == CODES
    assert returns.shape == (len(DAYS), len(CODES))
    out = tmp_path / "independent"
    old, new = read_feature(provider, CODES[0], "close")[1], read_feature(out, CODES[0], "close")[1]
    np.testing.assert_array_equal(np.isnan(new), np.isnan(old))
    np.testing.assert_allclose(returns[1:, 0], new[1:] / new[:-1] - 1, rtol=1e-4, atol=1e-6)
    assert (out / "features/sh600000/mood.day.bin").read_bytes() == (
        provider / "features/sh600000/mood.day.bin"
    ).read_bytes()
    there = returns[np.isfinite(returns).all(axis=1)]
    off_diagonal = np.corrcoef(there.T)[np.triu_indices(len(CODES), 1)]
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(len(there))


def test_days_without_a_close_that_comes_back_are_counted(provider: Path) -> None:
    counted = missing_closes(provider)
    assert counted[40:44].tolist() == [8, 8, 8, 8]
    assert counted.sum() == 32


def test_a_folder_that_is_no_provider_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match=r"calendars/day\.txt"):
        write_truncated(tmp_path, tmp_path / "out", CUT)
