import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qlib_llm_alpha.cli import data as data_command
from qlib_llm_alpha.data import provider_files
from qlib_llm_alpha.data.provider_files import read_calendar, read_feature, read_instruments
from qlib_llm_alpha.data.sources import reading, writing
from qlib_llm_alpha.data.sources.codes import is_index, normalise_code
from qlib_llm_alpha.data.sources.parquet import ParquetSource
from qlib_llm_alpha.data.sources.writing import import_bars
from qlib_llm_alpha.errors import ConfigError, ProviderError

DAYS = np.array(pd.bdate_range("2021-01-04", "2021-02-26"), dtype="datetime64[D]")
SPLIT = np.datetime64("2021-01-20")


def write_layout(root: Path, *, instruments: int = 6, days: np.ndarray = DAYS, amount: bool = True) -> Path:
    """Write a small source: share 0 splits two for one, share 1 is suspended for a week, two files split by date."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    rows = []
    for number in range(instruments):
        code = f"SH60{number:04d}" if number % 2 == 0 else f"SZ00{number:04d}"
        moves = rng.normal(0, 0.01, len(DAYS))
        factor = np.where((DAYS >= SPLIT) & (number == 0), 2.0, 1.0)
        close = np.round(20 * np.exp(np.cumsum(moves)) / factor, 2)
        for place, day in enumerate(DAYS):
            if day not in days or (number == 1 and 10 <= place < 15) or (number == 2 and place < 8):
                continue
            price = close[place]
            rows.append(
                {
                    "date": day.astype(object),
                    "instrument": code,
                    "open": price,
                    "high": price * 1.01,
                    "low": price * 0.99,
                    "close": price,
                    "volume": 1000.0 * (place + 1),
                    "amount": 1000.0 * (place + 1) * price,
                    "factor": factor[place],
                }
            )
    frame = pd.DataFrame(rows).drop(columns=[] if amount else ["amount"])
    half = DAYS[len(DAYS) // 2].astype(object)
    frame[frame["date"] < half].to_parquet(root / "daily_a.parquet")
    frame[frame["date"] >= half].to_parquet(root / "daily_b.parquet")
    index = pd.DataFrame({"date": [day.astype(object) for day in days], "instrument": "SH000300"})
    for name in ("open", "high", "low", "close"):
        index[name] = 4000.0 + np.arange(len(days))
    index["volume"], index["amount"] = 1e9, 1e10
    index.to_parquet(root / "index_daily.parquet")
    provider_files.write_calendar(root, list(days))
    spans = [("SH600000", np.datetime64("2020-12-01"), days[-1]), ("SZ000001", days[0], days[5])]
    provider_files.write_instruments(root, "csi300", spans)
    pd.DataFrame(
        {
            "instrument": ["SH600000", "SZ000001", "SH600002"],
            "industry": ["银行", "半导体", "银行"],
            "list_date": pd.to_datetime(["1999-11-10", "1991-04-03", "2021-01-14"]),
        }
    ).to_parquet(root / "instrument_info.parquet")
    return root


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def run_command(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    data_command.add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["data", *argv])
    return int(args.run(args))


@pytest.fixture
def layout(tmp_path):
    return write_layout(tmp_path / "source")


def test_prices_are_multiplied_and_volume_divided_by_the_factor(layout, tmp_path):
    import_bars(ParquetSource(layout), tmp_path / "out", progress=False)
    start, close = read_feature(tmp_path / "out", "SH600000", "close")
    _, factor = read_feature(tmp_path / "out", "SH600000", "factor")
    _, volume = read_feature(tmp_path / "out", "SH600000", "volume")
    _, vwap = read_feature(tmp_path / "out", "SH600000", "vwap")
    raw = pd.concat([pd.read_parquet(layout / f"daily_{part}.parquet") for part in "ab"])
    raw = raw[raw["instrument"] == "SH600000"].sort_values("date")
    assert start == 0
    np.testing.assert_allclose(close / factor, raw["close"], rtol=1e-6)
    np.testing.assert_allclose(volume * factor, raw["volume"], rtol=1e-6)
    np.testing.assert_allclose(vwap, close, rtol=1e-6)
    split = int(np.searchsorted(DAYS, SPLIT))
    assert factor[split - 1] == 1.0
    assert factor[split] == 2.0


def test_change_is_taken_against_the_last_traded_day_and_unknown_on_the_first_bar(layout, tmp_path):
    import_bars(ParquetSource(layout), tmp_path / "out", progress=False)
    _, close = read_feature(tmp_path / "out", "SZ000001", "close")
    _, change = read_feature(tmp_path / "out", "SZ000001", "change")
    assert np.isnan(change[0])
    assert np.isnan(close[10:15]).all()
    assert np.isnan(change[10:15]).all()
    assert change[15] == pytest.approx(close[15] / close[9] - 1, abs=1e-6)


def test_a_late_listing_starts_at_its_own_position(layout, tmp_path):
    import_bars(ParquetSource(layout), tmp_path / "out", progress=False)
    start, values = read_feature(tmp_path / "out", "SH600002", "close")
    assert start == 8
    assert len(values) == len(DAYS) - 8


def test_start_and_end_cut_calendar_bars_and_membership(layout, tmp_path):
    import_bars(
        ParquetSource(layout),
        tmp_path / "out",
        start=np.datetime64("2021-01-06"),
        end=np.datetime64("2021-02-05"),
        progress=False,
    )
    days = read_calendar(tmp_path / "out")
    assert (days[0], days[-1]) == (np.datetime64("2021-01-06"), np.datetime64("2021-02-05"))
    start, close = read_feature(tmp_path / "out", "SH600000", "close")
    assert (start, len(close)) == (0, len(days))
    assert read_instruments(tmp_path / "out", "csi300") == [
        ("SH600000", days[0], days[-1]),
        ("SZ000001", days[0], DAYS[5]),
    ]


def test_indices_have_bars_but_are_in_no_universe(layout, tmp_path):
    report = import_bars(ParquetSource(layout), tmp_path / "out", progress=False)
    _, factor = read_feature(tmp_path / "out", "SH000300", "factor")
    assert (factor == 1).all()
    assert not (tmp_path / "out" / "features" / "sh000300" / "vwap.day.bin").exists()
    assert "SH000300" not in [code for code, _, _ in read_instruments(tmp_path / "out", "all")]
    assert (report.instruments, report.indices) == (6, 1)


def test_listing_days_are_kept_apart_from_first_bars(layout, tmp_path):
    import_bars(ParquetSource(layout), tmp_path / "out", start=np.datetime64("2021-01-06"), progress=False)
    listed = {code: first for code, first, _ in read_instruments(tmp_path / "out", "listed")}
    assert listed["SZ000001"] == np.datetime64("1991-04-03")
    assert listed["SH600002"] == DAYS[8]


def test_industry_is_a_code_and_flagged_as_not_of_the_time(layout, tmp_path):
    import_bars(ParquetSource(layout), tmp_path / "out", progress=False)
    manifest = json.loads((tmp_path / "out" / "provider.json").read_text(encoding="utf-8"))
    assert manifest["not_point_in_time"] == ["industry"]
    _, industry = read_feature(tmp_path / "out", "SH600000", "industry")
    assert set(industry) == {manifest["industry_codes"]["银行"]}
    assert not (tmp_path / "out" / "features" / "sz000003" / "industry.day.bin").exists()


def test_no_amount_means_no_vwap(tmp_path):
    import_bars(ParquetSource(write_layout(tmp_path / "s", amount=False)), tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / "features" / "sh600000" / "amount.day.bin").exists()
    assert not (tmp_path / "out" / "features" / "sh600000" / "vwap.day.bin").exists()


@pytest.mark.parametrize("stop_after", [0, 1, 4, 6])
def test_an_interrupted_import_goes_on_and_gives_the_same_bytes(layout, tmp_path, monkeypatch, stop_after):
    import_bars(ParquetSource(layout), tmp_path / "whole", progress=False)
    real, calls = writing._write_instrument, []

    def interrupted(*args):
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(args)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(writing, "_write_instrument", interrupted)
        with pytest.raises(KeyboardInterrupt):
            import_bars(ParquetSource(layout), tmp_path / "out", progress=False)
    # A kill may leave half a journal line and a folder that no line names.
    if stop_after:
        with (tmp_path / "out" / ".import.done").open("a", encoding="utf-8") as journal:
            journal.write("SZ00")
    report = import_bars(ParquetSource(layout), tmp_path / "out", progress=False)
    assert (report.kept, report.written) == (stop_after, 7 - stop_after)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_killed_process_goes_on(tmp_path):
    source = write_layout(tmp_path / "source", instruments=400)
    out = tmp_path / "out"
    program = (
        "import sys; from pathlib import Path; "
        "from qlib_llm_alpha.data.sources.parquet import ParquetSource; "
        "from qlib_llm_alpha.data.sources.writing import import_bars; "
        "import_bars(ParquetSource(Path(sys.argv[1])), Path(sys.argv[2]), progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(source), str(out)])
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        journal = out / ".import.done"
        if journal.exists() and journal.read_text(encoding="utf-8").count("\n") >= 20:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.002)
    process.wait()
    report = import_bars(ParquetSource(source), out, progress=False)
    import_bars(ParquetSource(source), tmp_path / "whole", progress=False)
    assert report.written + report.kept == 401
    assert tree(out) == tree(tmp_path / "whole")


def test_a_finished_import_is_left_as_it_is(layout, tmp_path):
    import_bars(ParquetSource(layout), tmp_path / "out", progress=False)
    before = tree(tmp_path / "out")
    report = import_bars(ParquetSource(layout), tmp_path / "out", progress=False)
    assert report.written == 0
    assert tree(tmp_path / "out") == before


def test_another_request_does_not_overwrite_a_provider(layout, tmp_path):
    import_bars(ParquetSource(layout), tmp_path / "out", progress=False)
    with pytest.raises(ProviderError, match="another request or source"):
        import_bars(ParquetSource(layout), tmp_path / "out", start=np.datetime64("2021-02-01"), progress=False)


def test_a_foreign_folder_is_not_written_into(layout, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "diary.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(ProviderError, match="not empty"):
        import_bars(ParquetSource(layout), tmp_path / "out", progress=False)


def test_an_unfinished_import_of_another_source_is_refused(layout, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".import.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ProviderError, match="unfinished import of another"):
        import_bars(ParquetSource(layout), tmp_path / "out", progress=False)


def test_batches_do_not_change_the_result(layout, tmp_path, monkeypatch):
    import_bars(ParquetSource(layout), tmp_path / "whole", progress=False)
    monkeypatch.setattr(reading.batches, "__defaults__", (40,))
    import_bars(ParquetSource(layout), tmp_path / "out", progress=False)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_duplicate_bar_is_refused_with_its_place(layout, tmp_path):
    frame = pd.read_parquet(layout / "daily_a.parquet")
    pd.concat([frame, frame.iloc[[3]]]).to_parquet(layout / "daily_a.parquet")
    with pytest.raises(ProviderError, match=r"'SH600000' has more than one bar on 2021-01-07"):
        import_bars(ParquetSource(layout), tmp_path / "out", progress=False)


def test_a_bar_outside_the_calendar_is_refused(layout, tmp_path):
    provider_files.write_calendar(layout, [day for day in DAYS if day != DAYS[4]])
    with pytest.raises(ProviderError, match=r"which calendars/day\.txt does not list"):
        import_bars(ParquetSource(layout), tmp_path / "out", progress=False)


def test_an_index_bar_on_a_day_without_trading_is_left_out_with_a_warning(layout, tmp_path, caplog):
    frame = pd.read_parquet(layout / "index_daily.parquet")
    extra = frame.iloc[[4]].assign(date=np.datetime64("2021-01-09").astype(object))
    pd.concat([frame, extra]).to_parquet(layout / "index_daily.parquet")
    import_bars(ParquetSource(layout), tmp_path / "out", progress=False)
    _, close = read_feature(tmp_path / "out", "SH000300", "close")
    assert len(close) == len(DAYS)
    assert "SH000300: left out the bar of ['2021-01-09']" in caplog.text


def test_a_factor_that_is_not_positive_is_refused(layout, tmp_path):
    frame = pd.read_parquet(layout / "daily_a.parquet")
    frame.loc[2, "factor"] = 0.0
    frame.to_parquet(layout / "daily_a.parquet")
    with pytest.raises(ProviderError, match=r"'SH600000' has no positive adjustment factor on 2021-01-06"):
        import_bars(ParquetSource(layout), tmp_path / "out", progress=False)


def test_a_folder_without_bars_says_what_it_holds(tmp_path):
    (tmp_path / "prices.xlsx").write_text("", encoding="utf-8")
    with pytest.raises(ProviderError, match=r"found \['prices.xlsx'\]"):
        ParquetSource(tmp_path)
    with pytest.raises(ProviderError, match="no such folder"):
        ParquetSource(tmp_path / "nowhere")


def test_a_missing_column_is_named(layout):
    frame = pd.read_parquet(layout / "daily_a.parquet").drop(columns=["factor"])
    frame.to_parquet(layout / "daily_a.parquet")
    with pytest.raises(ProviderError, match=r"lacks the columns \['factor'\]"):
        ParquetSource(layout)


def test_a_file_that_was_cut_is_named(layout):
    path = layout / "daily_a.parquet"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ProviderError, match=r"daily_a\.parquet' is no complete Parquet file"):
        ParquetSource(layout)


def test_dates_without_a_trading_day_are_refused(layout, tmp_path):
    with pytest.raises(ConfigError, match="no trading day from 2022-01-01"):
        import_bars(ParquetSource(layout), tmp_path / "out", start=np.datetime64("2022-01-01"), progress=False)


def test_the_command_imports_with_a_progress_bar_on_stderr(layout, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert run_command("import", "--source", "parquet", "--from", str(layout), "--out", out) == 0
    shown = capsys.readouterr()
    assert "layout detected: parquet" in shown.out
    assert "6 instruments and 1 indices, 40 days" in shown.out
    assert "7/7" in shown.err


def test_the_command_reports_json_and_refuses_a_bad_date(layout, tmp_path, capsys):
    call = ("import", "--source", "parquet", "--from", str(layout), "--out", str(tmp_path / "out"), "--quiet")
    assert run_command(*call, "--json") == 0
    assert json.loads(capsys.readouterr().out)["days"] == 40
    with pytest.raises(ConfigError, match="--start is '2021/01'"):
        run_command(*call, "--start", "2021/01")


@pytest.mark.parametrize(
    ("given", "spelt"),
    [
        ("600000.SH", "SH600000"),
        ("600000.SS", "SH600000"),
        ("600000.XSHG", "SH600000"),
        ("sh.600000", "SH600000"),
        ("sz000001", "SZ000001"),
        ("000001", "SZ000001"),
        ("300750", "SZ300750"),
        ("688981", "SH688981"),
        ("830799", "BJ830799"),
        ("920002", "BJ920002"),
        ("bj.430047", "BJ430047"),
        ("000300.SH", "SH000300"),
        ("^gspc", "^GSPC"),
    ],
)
def test_codes_of_all_vendors_get_one_spelling(given, spelt):
    assert normalise_code(given) == spelt


def test_tickers_of_other_markets_are_left_alone():
    assert normalise_code("brk.b", market="us") == "BRK.B"
    assert normalise_code("600000", market="us") == "600000"


def test_index_codes_are_told_from_shares():
    assert [is_index(code) for code in ("SH000300", "SZ399006", "^GSPC", "SZ000001", "SH600000")] == [True] * 3 + [
        False
    ] * 2


def _real_data() -> Path:
    root = Path(os.environ.get("QLIB_LLM_ALPHA_REAL_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
    if not (root / "cn" / "daily_2018_2019.parquet").exists():
        pytest.skip("no real market data: set QLIB_LLM_ALPHA_REAL_DATA")
    return root


@pytest.mark.slow
def test_the_real_a_share_data_keep_their_known_prices(tmp_path):
    import_bars(ParquetSource(_real_data() / "cn"), tmp_path / "out", start=np.datetime64("2018-01-02"), progress=False)
    days = read_calendar(tmp_path / "out")

    def raw_close(code, day):
        start, close = read_feature(tmp_path / "out", code, "close")
        _, factor = read_feature(tmp_path / "out", code, "factor")
        place = int(np.searchsorted(days, np.datetime64(day))) - start
        return close[place] / factor[place]

    assert raw_close("SH600519", "2021-02-10") == pytest.approx(2601.00, abs=0.005)
    assert raw_close("SH600519", "2023-12-29") == pytest.approx(1726.00, abs=0.005)
    assert raw_close("SH000300", "2021-02-10") == pytest.approx(5807.72, abs=0.005)
    assert raw_close("SZ300750", "2021-11-30") == pytest.approx(680.00, abs=0.005)


@pytest.mark.slow
def test_the_real_us_data_can_be_imported(tmp_path):
    report = import_bars(ParquetSource(_real_data() / "us", market="us"), tmp_path / "out", progress=False)
    assert (report.instruments, report.indices) == (538, 1)
    assert report.last == "2021-04-21"
