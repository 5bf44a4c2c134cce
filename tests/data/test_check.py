import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qlib_llm_alpha.data.check import _KINDS, check_provider
from qlib_llm_alpha.data.provider_files import (
    feature_path,
    read_feature,
    write_calendar,
    write_feature,
    write_instruments,
)
from qlib_llm_alpha.errors import ProviderError
from tests.data.test_sources_parquet import run_command

DAYS = np.array(pd.bdate_range("2021-01-04", "2021-12-31"), dtype="datetime64[D]")
CODES = ("SH600000", "SZ000001", "SZ300001", "SH688001")


def write_share(root, code, *, seed, raw=None, factor=None):
    rng = np.random.default_rng(seed)
    if raw is None:
        raw = np.round(20 * np.exp(np.cumsum(rng.normal(0, 0.01, len(DAYS)))), 2)
    factor = np.full(len(DAYS), 1.0 + (np.arange(len(DAYS)) > 100)) if factor is None else factor
    if not code.startswith("SH000"):
        raw = raw / factor
    close = raw * factor
    volume = np.full(len(DAYS), 1e5)
    fields = {
        "open": close,
        "high": close * 1.01,
        "low": close * 0.99,
        "close": close,
        "volume": volume / factor,
        "factor": factor,
        "amount": volume * raw,
        "vwap": close,
        "change": np.concatenate([[np.nan], close[1:] / close[:-1] - 1]),
    }
    for name, values in fields.items():
        write_feature(root, code, name, 0, values)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    root = tmp_path_factory.mktemp("clean")
    write_calendar(root, list(DAYS))
    write_instruments(root, "all", [(code, DAYS[0], DAYS[-1]) for code in CODES])
    write_instruments(root, "csi300", [(code, DAYS[0], DAYS[-1]) for code in CODES[:2]])
    for seed, code in enumerate(CODES):
        write_share(root, code, seed=seed)
    write_share(root, "SH000300", seed=9, factor=np.ones(len(DAYS)))
    return root


@pytest.fixture
def provider(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "provider")


def codes_of(provider):
    return [finding.code for finding in check_provider(provider).findings]


def change_field(provider, code, name, change):
    start, values = read_feature(provider, code, name)
    write_feature(provider, code, name, start, change(values.astype(np.float64)))


def put(place, value):
    def change(values):
        values[place] = value
        return values

    return change


def test_a_clean_provider_has_no_findings(clean):
    assert check_provider(clean).findings == ()


def replace_calendar(provider, days):
    write_calendar(provider, list(days))


@pytest.mark.parametrize(
    ("days", "code"),
    [
        (np.concatenate([DAYS[:5], DAYS[4:-1]]), "calendar_order"),
        (np.concatenate([DAYS[:9], DAYS[9:11][::-1], DAYS[11:]]), "calendar_order"),
        (np.where(DAYS[4] == DAYS, DAYS[4] + 1, DAYS), "calendar_weekend"),
        (np.concatenate([DAYS[:100] - 14, DAYS[100:]]), "calendar_hole"),
    ],
)
def test_calendar_defects_are_named(provider, days, code):
    replace_calendar(provider, days)
    assert code in codes_of(provider)


def test_a_thin_year_between_full_ones_is_a_warning(tmp_path, provider):
    days = np.array(pd.bdate_range("2020-01-02", "2022-12-30"), dtype="datetime64[D]")
    inside = days.astype("datetime64[Y]") == np.datetime64("2021")
    replace_calendar(provider, days[~inside | (np.arange(len(days)) % 5 > 0)])
    assert "calendar_thin_year" in codes_of(provider)


def test_upper_case_folders_are_named(provider):
    features = provider / "features"
    (features / "sh600000").rename(features / "SH600000")
    (features / "sz000001" / "close.day.bin").rename(features / "sz000001" / "Close.day.bin")
    found = next(item for item in check_provider(provider).findings if item.code == "folder_case")
    assert found.examples == ("features/SH600000", "features/sz000001/Close.day.bin")


def test_a_cut_file_is_named(provider):
    path = feature_path(provider, "SH600000", "vwap")
    path.write_bytes(path.read_bytes()[:-2])
    feature_path(provider, "SZ000001", "vwap").write_bytes(b"")
    found = next(item for item in check_provider(provider).findings if item.code == "bin_malformed")
    assert found.count == 2


def test_a_start_beyond_the_calendar_is_named(provider):
    write_feature(provider, "SH600000", "vwap", 999, np.ones(3))
    assert "bin_malformed" in codes_of(provider)


def test_fields_of_different_length_are_named(provider):
    change_field(provider, "SH600000", "high", lambda values: values[:-3])
    assert "bin_length" in codes_of(provider)


def test_missing_fields_are_named_by_their_weight(provider):
    feature_path(provider, "SH600000", "factor").unlink()
    feature_path(provider, "SZ000001", "vwap").unlink()
    feature_path(provider, "SZ300001", "close").unlink()
    report = check_provider(provider)
    missing = {item.code: item.examples for item in report.findings}
    assert missing["field_missing"][0].startswith("$factor: 1 of 5 instruments, such as SH600000")
    assert missing["field_useful_missing"][0].startswith("$vwap")


def test_prices_that_are_zero_or_negative_are_named(provider):
    change_field(provider, "SH600000", "low", put(7, 0.0))
    change_field(provider, "SZ000001", "close", put(8, -1.0))
    found = next(item for item in check_provider(provider).findings if item.code == "price_not_positive")
    assert found.count == 2
    assert str(DAYS[7]) in found.examples[0]


def test_a_close_outside_the_bar_is_named(provider):
    change_field(provider, "SH600000", "high", put(7, 1.0))
    assert "bar_inconsistent" in codes_of(provider)


def test_a_field_that_stops_is_a_warning(provider):
    change_field(provider, "SH600000", "amount", put(slice(0, 50), np.nan))
    assert codes_of(provider) == ["field_partly_missing"]


def test_a_factor_with_holes_is_an_error(provider):
    change_field(provider, "SH600000", "factor", put(3, np.nan))
    assert "factor_not_positive" in codes_of(provider)


def test_an_unadjusted_split_is_named_with_its_day(provider):
    raw = np.round(20 * np.exp(np.cumsum(np.random.default_rng(3).normal(0, 0.01, len(DAYS)))), 2)
    raw[60:] /= 2
    write_share(provider, "SH600000", seed=0, raw=raw)
    found = next(item for item in check_provider(provider).findings if item.code == "unadjusted_jump")
    assert found.severity == "error"
    assert found.examples[0].startswith(f"SH600000 {DAYS[60]}: -")


def test_a_jump_after_a_suspension_is_only_a_warning(provider):
    raw = np.full(len(DAYS), 20.0)
    raw[60:] /= 2
    write_share(provider, "SH600000", seed=0, raw=raw)
    for name in ("open", "high", "low", "close", "volume", "amount", "vwap", "change", "factor"):
        change_field(provider, "SH600000", name, put(slice(55, 60), np.nan))
    assert codes_of(provider) == ["jump_after_suspension"]


def test_a_move_of_fifteen_percent_is_fine_on_star_and_not_on_the_main_board(provider):
    raw = np.full(len(DAYS), 20.0)
    raw[60:] *= 1.15
    write_share(provider, "SH688001", seed=0, raw=raw)
    assert codes_of(provider) == []
    write_share(provider, "SZ000001", seed=0, raw=raw)
    assert codes_of(provider) == ["unadjusted_jump"]


def test_the_first_days_of_a_listing_may_jump(provider):
    raw = np.full(len(DAYS), 20.0)
    raw[64:] *= 1.6
    write_share(provider, "SZ300001", seed=0, raw=raw)
    for name in ("open", "high", "low", "close", "volume", "amount", "vwap", "change", "factor"):
        _, values = read_feature(provider, "SZ300001", name)
        write_feature(provider, "SZ300001", name, 60, values[60:])
    spans = [(code, DAYS[60] if code == "SZ300001" else DAYS[0], DAYS[-1]) for code in CODES]
    write_instruments(provider, "all", spans)
    assert codes_of(provider) == []


def test_subtraction_shows_in_a_factor_that_never_rests(provider):
    raw = np.round(20 + np.cumsum(np.random.default_rng(3).normal(0, 0.1, len(DAYS))), 2)
    write_share(provider, "SH600000", seed=0, factor=(raw - 3) / raw)
    assert codes_of(provider) == ["factor_varies"]


def subtracted(provider, *, factor_kept):
    """Prices minus three, while amount and volume stay what they were."""
    raw = np.round(20 + np.cumsum(np.random.default_rng(3).normal(0, 0.1, len(DAYS))), 2)
    write_share(provider, "SH600000", seed=0, raw=raw, factor=np.ones(len(DAYS)))
    shifted = raw - 3 if factor_kept else raw * 0.8
    for name in ("open", "high", "low", "close", "vwap"):
        scale = {"high": 1.01, "low": 0.99}.get(name, 1.0)
        change_field(provider, "SH600000", name, lambda values, scale=scale: shifted * scale)


def test_subtraction_shows_against_amount_over_volume(provider):
    subtracted(provider, factor_kept=True)
    assert "subtractive_adjustment" in codes_of(provider)


def test_a_ratio_against_amount_over_volume_is_a_mismatch_of_units(provider):
    subtracted(provider, factor_kept=False)
    assert "amount_mismatch" in codes_of(provider)
    assert "subtractive_adjustment" not in codes_of(provider)


def test_volume_in_hands_is_named(provider):
    change_field(provider, "SH600000", "volume", lambda values: values / 100)
    found = next(item for item in check_provider(provider).findings if item.code == "amount_mismatch")
    assert "100 times the close" in found.examples[0]


def test_filled_suspensions_are_a_warning(provider):
    change_field(provider, "SH600000", "volume", put(slice(5, 9), 0.0))
    assert codes_of(provider) == ["filled_suspension"]


def test_a_day_that_lacks_most_shares_is_an_error(provider):
    for code in CODES[:3]:
        for name in ("open", "high", "low", "close", "volume", "amount", "vwap", "change", "factor"):
            change_field(provider, code, name, put(70, np.nan))
    found = next(item for item in check_provider(provider).findings if item.code == "market_gap")
    assert found.examples == (f"{DAYS[70]}: 3 of 4 shares",)


def test_a_listing_that_starts_long_before_its_bars_is_a_warning(provider):
    for name in ("open", "high", "low", "close", "volume", "amount", "vwap", "change", "factor"):
        _, values = read_feature(provider, "SH600000", name)
        write_feature(provider, "SH600000", name, 40, values[40:])
    assert codes_of(provider) == ["listing_without_bars"]


def test_members_without_bars_are_named_and_many_are_an_error(provider):
    rows = [(code, DAYS[0], DAYS[-1]) for code in CODES] + [("SH600001", DAYS[0], DAYS[5])]
    write_instruments(provider, "csi300", rows)
    assert codes_of(provider) == ["members_without_bars"]
    write_instruments(provider, "csi300", [*rows, ("SH600002", DAYS[0], DAYS[-1])])
    assert codes_of(provider) == ["members_mostly_without_bars"]


def test_broken_membership_rows_are_named(provider):
    path = provider / "instruments" / "csi300.txt"
    text = path.read_text(encoding="utf-8")
    path.write_text(text + "SH600000 2021-01-04 2021-02-04\nSH600000\t2021-05-04\t2021-02-04\n", encoding="utf-8")
    found = next(item for item in check_provider(provider).findings if item.code == "membership_span")
    assert found.count == 2


def test_a_missing_or_holey_benchmark_is_an_error(provider):
    change_field(provider, "SH000300", "close", put(3, np.nan))
    found = next(item for item in check_provider(provider).findings if item.code == "benchmark_missing")
    assert found.count == 1
    shutil.rmtree(provider / "features" / "sh000300")
    assert codes_of(provider) == ["benchmark_missing"]


def test_a_provider_without_any_adjustment_is_a_warning(tmp_path):
    days = np.array(pd.bdate_range("2019-01-01", "2021-12-31"), dtype="datetime64[D]")
    write_calendar(tmp_path, list(days))
    write_instruments(tmp_path, "all", [("AAPL", days[0], days[-1])])
    close = np.full(len(days), 100.0)
    close[300:] /= 4
    for code in ("AAPL", "^GSPC"):
        for name in ("open", "high", "low", "close"):
            write_feature(tmp_path, code, name, 0, close)
        for name in ("volume", "factor"):
            write_feature(tmp_path, code, name, 0, np.ones(len(days)))
    assert {"no_adjustment", "split_like_jump", "field_useful_missing"} == set(codes_of(tmp_path))


def test_a_long_gap_and_an_index_gap_are_warnings(tmp_path):
    days = np.array(pd.bdate_range("2019-01-01", "2021-12-31"), dtype="datetime64[D]")
    write_calendar(tmp_path, list(days))
    write_instruments(tmp_path, "all", [("SH600000", days[0], days[-1])])
    price = np.full(len(days), 10.0)
    price[100:400] = np.nan
    for name in ("open", "high", "low", "close", "vwap", "amount", "change", "volume"):
        write_feature(tmp_path, "SH600000", name, 0, price)
        write_feature(tmp_path, "SH000905", name, 0, price)
        write_feature(tmp_path, "SH000300", name, 0, np.full(len(days), 10.0))
    for code in ("SH600000", "SH000300", "SH000905"):
        write_feature(tmp_path, code, "factor", 0, np.where(np.arange(len(days)) > 500, 2.0, 1.0))
    assert {"long_gap", "index_gap"} <= set(codes_of(tmp_path))


@pytest.mark.parametrize("missing", ["calendars", "instruments", "features"])
def test_a_folder_that_is_no_provider_is_a_bad_call(provider, missing):
    shutil.rmtree(provider / missing)
    with pytest.raises(ProviderError, match=f"has no {missing}"):
        check_provider(provider)


@pytest.mark.parametrize(("text", "message"), [("yesterday\n", "something else than days"), ("", "is empty")])
def test_a_calendar_that_cannot_be_read_is_a_bad_call(provider, text, message):
    (provider / "calendars" / "day.txt").write_text(text, encoding="utf-8")
    with pytest.raises(ProviderError, match=message):
        check_provider(provider)


def test_the_command_exits_with_one_for_errors_only(provider, capsys):
    assert run_command("check", "--provider", str(provider)) == 0
    change_field(provider, "SH600000", "amount", put(slice(0, 50), np.nan))
    assert run_command("check", "--provider", str(provider)) == 0
    assert "warning: field_partly_missing" in capsys.readouterr().out
    change_field(provider, "SH600000", "close", put(3, -1.0))
    assert run_command("check", "--provider", str(provider)) == 1
    capsys.readouterr()
    assert run_command("check", "--provider", str(provider), "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["errors"] >= 1
    assert {"code", "severity", "message", "mend", "count", "examples"} == set(report["findings"][0])


def test_every_finding_is_documented():
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    assert [code for code in _KINDS if f"`{code}`" not in text] == []
