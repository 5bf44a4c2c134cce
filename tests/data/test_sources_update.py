import numpy as np
import pandas as pd
import pytest

from qlib_llm_alpha.data.provider_files import feature_path, read_calendar, read_feature, read_instruments
from qlib_llm_alpha.data.sources import updating
from qlib_llm_alpha.data.sources.parquet import ParquetSource
from qlib_llm_alpha.data.sources.updating import update_bars
from qlib_llm_alpha.data.sources.vendor_csv import VendorCsvSource
from qlib_llm_alpha.data.sources.writing import import_bars
from qlib_llm_alpha.errors import ConfigError, ProviderError
from tests.data.test_sources_parquet import DAYS, run_command, tree, write_layout

CUT = DAYS[24]


def provider_until(source, out, day=CUT):
    import_bars(ParquetSource(source), out, end=day, progress=False)
    return out


def provider_bytes(root):
    return {name: value for name, value in tree(root).items() if name != "provider.json"}


@pytest.fixture
def layout(tmp_path):
    return write_layout(tmp_path / "source")


def test_appending_gives_the_bytes_of_importing_at_once(layout, tmp_path):
    out = provider_until(layout, tmp_path / "out")
    update_bars(ParquetSource(layout), out, progress=False)
    import_bars(ParquetSource(layout), tmp_path / "whole", progress=False)
    assert provider_bytes(out) == provider_bytes(tmp_path / "whole")


def test_appending_in_two_steps_gives_the_same(layout, tmp_path):
    out = provider_until(layout, tmp_path / "out")
    update_bars(ParquetSource(layout), out, end=DAYS[30], progress=False)
    assert read_calendar(out)[-1] == DAYS[30]
    report = update_bars(ParquetSource(layout), out, progress=False)
    import_bars(ParquetSource(layout), tmp_path / "whole", progress=False)
    assert provider_bytes(out) == provider_bytes(tmp_path / "whole")
    assert "9 days appended" in report.notes


def test_old_values_stay_where_they_were(layout, tmp_path):
    out = provider_until(layout, tmp_path / "out")
    before = {name: value for name, value in tree(out).items() if name.endswith(".bin")}
    update_bars(ParquetSource(layout), out, progress=False)
    after = tree(out)
    assert all(after[name].startswith(value) for name, value in before.items())


def test_nothing_new_changes_nothing(layout, tmp_path):
    import_bars(ParquetSource(layout), tmp_path / "out", progress=False)
    before = tree(tmp_path / "out")
    report = update_bars(ParquetSource(layout), tmp_path / "out", progress=False)
    assert report.written == 0
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("stop_after", [0, 3, 7])
def test_an_interrupted_update_is_repeated_to_the_same_end(layout, tmp_path, monkeypatch, stop_after):
    out = provider_until(layout, tmp_path / "out")
    real, calls = updating._append, []

    def interrupted(*args):
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(args)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(updating, "_append", interrupted)
        patch.setattr(updating, "write_manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            update_bars(ParquetSource(layout), out, progress=False)
    update_bars(ParquetSource(layout), out, progress=False)
    import_bars(ParquetSource(layout), tmp_path / "whole", progress=False)
    assert provider_bytes(out) == provider_bytes(tmp_path / "whole")
    assert not (out / ".update.json").exists()


@pytest.mark.parametrize("column", ["close", "volume", "factor"])
def test_a_differing_past_is_refused_with_its_place_and_nothing_is_written(layout, tmp_path, column):
    out = provider_until(layout, tmp_path / "out")
    before = tree(out)
    frame = pd.read_parquet(layout / "daily_a.parquet")
    frame.loc[(frame["instrument"] == "SH600004") & (frame["date"] == DAYS[7].astype(object)), column] *= 1.001
    frame.to_parquet(layout / "daily_a.parquet")
    with pytest.raises(ProviderError, match=rf"'SH600004' \$\w+ on {DAYS[7]}"):
        update_bars(ParquetSource(layout), out, progress=False)
    assert tree(out) == before


def test_a_differing_membership_of_the_past_is_refused(layout, tmp_path):
    out = provider_until(layout, tmp_path / "out")
    (layout / "instruments" / "csi300.txt").write_text(f"SH600000\t{DAYS[3]}\t{DAYS[-1]}\n", encoding="ascii")
    with pytest.raises(ProviderError, match="membership of 'csi300' differs"):
        update_bars(ParquetSource(layout), out, progress=False)


def test_a_new_trading_day_inside_the_old_calendar_is_refused(layout, tmp_path):
    out = provider_until(layout, tmp_path / "out")
    text = (layout / "calendars" / "day.txt").read_text(encoding="ascii")
    (layout / "calendars" / "day.txt").write_text("2021-01-09\n" + text, encoding="ascii")
    with pytest.raises(ProviderError, match="the source trades on 2021-01-09"):
        update_bars(ParquetSource(layout), out, progress=False)


def test_a_new_instrument_is_added_from_its_first_new_day(layout, tmp_path):
    small = write_layout(tmp_path / "small", instruments=4)
    out = provider_until(small, tmp_path / "out")
    report = update_bars(ParquetSource(layout), out, progress=False)
    start, _ = read_feature(out, "SH600004", "close")
    assert start == 25
    assert report.instruments == 6
    spans = {code: (first, last) for code, first, last in read_instruments(out, "all")}
    assert spans["SH600004"] == (DAYS[25], DAYS[-1])


def tushare(folder, rows):
    folder.mkdir(exist_ok=True)
    lines = [f"600000.SH,{day},{close},{close},{close},{close},{reference},10,1" for day, close, reference in rows]
    (folder / "daily.csv").write_text(
        "ts_code,trade_date,open,high,low,close,pre_close,vol,amount\n" + "\n".join(lines) + "\n", encoding="utf-8"
    )
    return VendorCsvSource(folder)


def test_a_derived_factor_continues_over_the_joint_with_and_without_overlap(tmp_path):
    history = [("20210104", 10, 9.9), ("20210105", 5, 5.0), ("20210106", 5.1, 5.0)]
    later = [("20210107", 2.6, 2.55), ("20210108", 2.7, 2.6)]
    for overlap in (0, 1):
        out = tmp_path / f"out{overlap}"
        import_bars(tushare(tmp_path / "a", history), out, progress=False)
        update_bars(tushare(tmp_path / "b", [*history[len(history) - overlap :], *later]), out, progress=False)
        _, factor = read_feature(out, "SH600000", "factor")
        np.testing.assert_allclose(factor, [1, 2, 2, 4, 4], rtol=1e-6)
        _, change = read_feature(out, "SH600000", "change")
        assert change[3] == pytest.approx(2.6 / 2.55 - 1, abs=1e-6)


def test_a_factor_that_starts_anew_is_refused(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    header = "date,symbol,open,high,low,close,volume,factor\n"
    (folder / "x.csv").write_text(header + "2021-01-04,SH600000,50,50,50,50,10,5\n", encoding="utf-8")
    import_bars(VendorCsvSource(folder), tmp_path / "out", progress=False)
    (folder / "x.csv").write_text(header + "2021-01-05,SH600000,10,10,10,10,10,1\n", encoding="utf-8")
    with pytest.raises(ProviderError, match=r"would move by -80.0% .* its factor seems to start anew"):
        update_bars(VendorCsvSource(folder), tmp_path / "out", progress=False)


def test_only_a_finished_provider_of_the_same_market_is_updated(layout, tmp_path):
    with pytest.raises(ProviderError, match=r"has no provider.json"):
        update_bars(ParquetSource(layout), tmp_path / "nowhere", progress=False)
    out = provider_until(layout, tmp_path / "out")
    with pytest.raises(ProviderError, match="of market 'cn' and the source of 'us'"):
        update_bars(ParquetSource(layout, market="us"), out, progress=False)


def test_the_command_updates_and_refuses_a_start(layout, tmp_path, capsys):
    call = ("import", "--source", "parquet", "--from", str(layout), "--out", str(tmp_path / "out"), "--quiet")
    assert run_command(*call, "--end", str(CUT)) == 0
    assert run_command(*call, "--update") == 0
    assert "15 days appended" in capsys.readouterr().out
    assert feature_path(tmp_path / "out", "SH600000", "close").stat().st_size == 4 * (len(DAYS) + 1)
    with pytest.raises(ConfigError, match="--start 2021-01-04 was given with --update"):
        run_command(*call, "--update", "--start", "2021-01-04")
