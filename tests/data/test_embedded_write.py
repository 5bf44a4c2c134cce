from __future__ import annotations

import argparse
import json
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import qlib
from qlib.constant import REG_CN
from qlib.data import D
from qlib.utils import read_period_data

from qlib_llm_alpha.cli import market as market_command
from qlib_llm_alpha.data.check import check_provider
from qlib_llm_alpha.data.embedded.plants import PLANTS
from qlib_llm_alpha.data.embedded.simulate import planted_factors
from qlib_llm_alpha.data.embedded.write import INDEX_CODE, content_hash, ensure_market, fields, index_fields
from qlib_llm_alpha.data.provider_files import (
    period_path,
    read_calendar,
    read_feature,
    read_instruments,
    read_period_records,
    write_period_records,
)
from qlib_llm_alpha.errors import ProviderError
from tests.support.market import END, INSTRUMENTS, SEED, START, small_arrays, small_market

# THE FILES ARE FROZEN with the generator; see test_embedded_simulate.py before changing this.
FROZEN_FILES = "a7f1278c42668d37846f43f04ff9e2768adfb0cc1646cf6af51bc1132717a8bd"
TINY = {"instruments": 10, "start": "2019-06-03", "end": "2019-12-31", "seed": 1}


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_market(tmp_path_factory)


@pytest.fixture
def opened(provider: Path) -> Path:
    qlib.init(provider_uri=str(provider), region=REG_CN, kernels=1)
    return provider


def test_the_files_are_frozen(provider: Path) -> None:
    assert content_hash(provider)[0] == FROZEN_FILES


def test_two_folders_hold_the_same_bytes(provider: Path, tmp_path: Path) -> None:
    ensure_market(tmp_path / "again", instruments=INSTRUMENTS, start=START, end=END, seed=SEED)
    names = sorted(path.relative_to(provider).as_posix() for path in provider.rglob("*") if path.is_file())
    others = sorted(
        path.relative_to(tmp_path / "again").as_posix() for path in (tmp_path / "again").rglob("*") if path.is_file()
    )
    assert names == others
    assert all((provider / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)


def test_a_second_run_verifies_and_writes_nothing(tmp_path: Path) -> None:
    first = ensure_market(tmp_path / "m", **TINY)
    before = {path: path.stat().st_mtime_ns for path in first.path.rglob("*")}
    second = ensure_market(tmp_path / "m", **TINY)
    assert first.written
    assert not second.written
    assert first.manifest == second.manifest == json.loads((tmp_path / "m" / "market.json").read_text())
    assert before == {path: path.stat().st_mtime_ns for path in first.path.rglob("*")}
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_other_arguments_are_refused_until_forced(tmp_path: Path) -> None:
    ensure_market(tmp_path / "m", **TINY)
    with pytest.raises(ProviderError, match=r"kind='planted'.*asked for kind='noise'.*--force"):
        ensure_market(tmp_path / "m", kind="noise", **TINY)
    forced = ensure_market(tmp_path / "m", kind="noise", force=True, **TINY)
    assert forced.manifest["kind"] == "noise"
    assert not ensure_market(tmp_path / "m", kind="noise", **TINY).written
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_the_checker_of_providers_finds_nothing_to_mend(provider: Path) -> None:
    assert not check_provider(provider).findings


def test_a_changed_file_is_found(tmp_path: Path) -> None:
    ensure_market(tmp_path / "m", **TINY)
    victim = next((tmp_path / "m" / "features").rglob("close.day.bin"))
    victim.write_bytes(victim.read_bytes()[:-4])
    with pytest.raises(ProviderError, match="changed since it was written"):
        ensure_market(tmp_path / "m", **TINY)
    assert ensure_market(tmp_path / "m", force=True, **TINY).written


def test_a_broken_manifest_is_refused_in_words(tmp_path: Path) -> None:
    ensure_market(tmp_path / "m", **TINY)
    (tmp_path / "m" / "market.json").write_text("{")
    with pytest.raises(ProviderError, match="another embedded market"):
        ensure_market(tmp_path / "m", **TINY)


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_is_no_embedded_market_is_never_replaced(tmp_path: Path, force: bool) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not lose")
    with pytest.raises(ProviderError, match="was left alone"):
        ensure_market(tmp_path / "mine", force=force, **TINY)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "do not lose"


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    assert ensure_market(tmp_path / "m", **TINY).written


def test_a_bad_argument_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 10"):
        ensure_market(tmp_path / "m", instruments=1)
    assert list(tmp_path.iterdir()) == []


def test_calendar_and_markets_say_who_was_listed_when(provider: Path) -> None:
    market = small_arrays()
    np.testing.assert_array_equal(read_calendar(provider), market.days)
    for name, mask in (("all", market.listed), ("csi300", market.member)):
        rebuilt = np.zeros_like(mask)
        for code, first, last in read_instruments(provider, name):
            inside = (market.days >= first) & (market.days <= last)
            rebuilt[inside, market.codes.tolist().index(code)] = True
        np.testing.assert_array_equal(rebuilt, mask)


def test_features_lie_where_their_first_day_is(provider: Path) -> None:
    market = small_arrays()
    column = int(np.flatnonzero(~market.listed[0])[0])
    start, values = read_feature(provider, str(market.codes[column]), "close")
    assert start == np.flatnonzero(market.listed[:, column])[0]
    np.testing.assert_array_equal(values, market.close[start : start + len(values), column].astype(np.float32))


def test_qlib_reads_every_field_of_every_instrument(opened: Path) -> None:
    market = small_arrays()
    frame = D.features(D.instruments("all"), [f"${name}" for name in fields(market)], START, END)
    for name, values in fields(market).items():
        wide = frame[f"${name}"].unstack("instrument").reindex(columns=market.codes)
        np.testing.assert_array_equal(wide.to_numpy(), values.astype(np.float32), err_msg=name)


def test_qlib_reads_the_index(opened: Path) -> None:
    market = small_arrays()
    frame = D.features([INDEX_CODE], [f"${name}" for name in index_fields(market)], START, END)
    for name, values in index_fields(market).items():
        np.testing.assert_array_equal(frame[f"${name}"].to_numpy(), values.astype(np.float32), err_msg=name)


def test_qlib_follows_the_membership(opened: Path) -> None:
    market = small_arrays()
    frame = D.features(D.instruments("csi300"), ["$close"], START, END)
    counts = frame.groupby(level="datetime").size().reindex(pd.DatetimeIndex(market.days))
    np.testing.assert_array_equal(counts.to_numpy(), market.member.sum(axis=1))


def test_stock_qlib_evaluates_every_plant_to_the_number_that_acted(opened: Path) -> None:
    market = small_arrays()
    expressions = [plant.expression for plant in PLANTS]
    frame = D.features(D.instruments("all"), expressions, START, END)
    for plant, own in zip(PLANTS, planted_factors(market).values(), strict=True):
        theirs = frame[plant.expression].unstack("instrument").reindex(columns=market.codes).to_numpy()
        shared = np.isfinite(own)
        assert shared.any()
        assert np.isfinite(theirs[shared]).all()
        # Qlib computes in float32, where a difference of two prices keeps three or four digits.
        np.testing.assert_allclose(theirs[shared], own[shared], rtol=2e-3, atol=2e-4, err_msg=plant.name)


def test_qlib_knows_an_account_from_its_day_of_announcement_on(opened: Path) -> None:
    market = small_arrays()
    accounts = market.accounts
    restated = np.flatnonzero((~np.isnat(accounts.restated)).any(axis=0) & market.listed.all(axis=0))
    column = int(restated[0])
    code = str(market.codes[column])
    frame = D.features([code], ["P($$eps_q)", "P($$revenue_q)", "P(Sum($$eps_q, 4))"], START, END).droplevel(0)
    days = pd.DatetimeIndex(market.days)
    told = accounts.announced[:, column]
    for name, values in (("revenue", frame["P($$revenue_q)"]), ("eps", frame["P($$eps_q)"])):
        for day, value in zip(days, values.reindex(days), strict=True):
            latest = np.flatnonzero(told <= np.datetime64(day, "D"))[-1]
            expected = accounts.values[name][latest, column]
            assert value == pytest.approx(expected, rel=1e-6)
    changed = days[1:][np.diff(frame["P($$revenue_q)"].reindex(days).to_numpy()) != 0]
    first_known = {days[np.searchsorted(market.days, day)] for day in told if market.days[0] < day <= market.days[-1]}
    assert set(changed) <= first_known
    assert len(changed) >= 6


def test_qlib_reads_a_restated_period_in_both_its_versions(opened: Path) -> None:
    market = small_arrays()
    accounts = market.accounts
    quarter, column = next(
        (q, i)
        for q, i in np.argwhere(~np.isnat(accounts.restated))
        if market.listed[:, i].all() and accounts.announced[q, i] > market.days[0]
    )
    code, period = str(market.codes[column]), int(accounts.periods[quarter])
    expression = f"PRef($$eps_q, {period})"
    values = D.features([code], [expression], START, END).droplevel(0)[expression]
    days, told, again = market.days, accounts.announced[quarter, column], accounts.restated[quarter, column]
    first = accounts.values["eps"][quarter, column]
    second = np.round(first * accounts.correction[quarter, column], 4)
    np.testing.assert_array_equal(np.isnan(values.to_numpy()), days < told)
    np.testing.assert_allclose(values.to_numpy()[(days >= told) & (days < again)], first, rtol=1e-6)
    np.testing.assert_allclose(values.to_numpy()[days >= again], second, rtol=1e-6)


def test_period_records_read_back_as_written_and_by_qlib(tmp_path: Path) -> None:
    announced = np.array(["2019-04-20", "2019-08-30", "2019-10-30", "2019-10-30"], dtype="datetime64[D]")
    periods = np.array([201901, 201902, 201903, 201901])
    values = np.array([1.0, 2.0, 3.0, 1.5])
    write_period_records(tmp_path, "SH600000", "eps_q", announced, periods, values)
    when, which, what = read_period_records(tmp_path, "SH600000", "eps_q")
    assert when.tolist() == announced[[0, 1, 3, 2]].tolist()
    assert which.tolist() == [201901, 201902, 201901, 201903]
    assert what.tolist() == [1.0, 2.0, 1.5, 3.0]
    data = period_path(tmp_path, "SH600000", "eps_q")

    def known(period: int, day: int) -> float:
        return float(read_period_data(data.with_suffix(".index"), data, period, day, True)[0])

    assert known(201901, 20190420) == 1.0
    assert known(201901, 20191029) == 1.0
    assert known(201901, 20191030) == 1.5
    assert np.isnan(known(201902, 20190829))
    assert known(201903, 20200101) == 3.0
    assert struct.unpack("<I", data.with_suffix(".index").read_bytes()[:4]) == (2019,)


def test_yearly_records_take_one_slot_a_year(tmp_path: Path) -> None:
    announced = np.array(["2018-04-20", "2020-04-20"], dtype="datetime64[D]")
    write_period_records(tmp_path, "sz000001", "dps_a", announced, np.array([2017, 2019]), np.array([0.1, 0.3]))
    index = np.fromfile(period_path(tmp_path, "SZ000001", "dps_a").with_suffix(".index"), dtype="<u4")
    assert index.tolist() == [2017, 0, 0xFFFFFFFF, 20]


@pytest.mark.parametrize(("name", "count", "message"), [("eps", 1, "no frequency"), ("eps_q", 0, "no record")])
def test_records_that_qlib_could_not_read_are_refused(tmp_path: Path, name: str, count: int, message: str) -> None:
    with pytest.raises(ProviderError, match=message):
        write_period_records(
            tmp_path,
            "SH600000",
            name,
            np.array(["2019-04-20"], dtype="datetime64[D]")[:count],
            np.array([201901])[:count],
            np.ones(count),
        )


def _command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    market_command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["market", *words])
    return int(args.run(args))


def test_the_command_says_where_the_market_is_and_whether_it_was_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--out", str(tmp_path / "m"), "--instruments", "10", "--start", "2019-06-03", "--end", "2019-12-31")
    assert _command(*words) == 0
    assert f"written to {tmp_path / 'm'}" in capsys.readouterr().out
    assert _command(*words) == 0
    told = capsys.readouterr().out
    assert "verified, already at" in told
    assert "of 10 instruments" in told
    assert "csi300" in told


def test_the_command_prints_the_plants(capsys: pytest.CaptureFixture[str]) -> None:
    assert _command("--plants", "1", "--instruments", "20", "--start", "2019-06-03", "--end", "2020-12-31") == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].startswith("| factor | bull | bear | sideways |")
    assert len(rows) == 2 + len(PLANTS) + 2


def test_the_command_refuses_a_folder_without_bars(tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match="has no bars from 2018 to 2023"):
        _command("--moments", str(tmp_path))
