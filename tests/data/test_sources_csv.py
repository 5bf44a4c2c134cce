import numpy as np
import pytest

from qlib_llm_alpha.data.provider_files import read_calendar, read_feature, read_instruments
from qlib_llm_alpha.data.sources.vendor_csv import VendorCsvSource
from qlib_llm_alpha.data.sources.writing import import_bars
from qlib_llm_alpha.errors import ProviderError
from tests.data.test_sources_parquet import run_command


def read(folder, out, market="cn"):
    report = import_bars(VendorCsvSource(folder, market=market), out, progress=False)

    def values(code, field):
        return [float(value) for value in read_feature(out, code, field)[1]]

    return report, values


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "csv"
    path.mkdir()
    return path


def test_qlib_csv_is_taken_as_already_adjusted(folder, tmp_path):
    (folder / "x.csv").write_text(
        "symbol,date,open,high,low,close,volume,factor,amount\n"
        "SH600000,2021-01-04,2.0,2.2,1.8,2.0,500,0.2,1000\n"
        "SH600000,2021-01-05,2.0,2.2,1.8,2.2,500,0.2,1050\n",
        encoding="utf-8",
    )
    report, values = read(folder, tmp_path / "out")
    assert report.layout == "qlib"
    assert values("SH600000", "close") == pytest.approx([2.0, 2.2])
    # 500 adjusted shares are 100 raw ones; 1000 CNY over 100 shares is 10, times 0.2.
    assert values("SH600000", "vwap") == pytest.approx([2.0, 2.1])
    assert values("SH600000", "change")[1] == pytest.approx(0.1, abs=1e-6)


def test_tushare_counts_hands_and_thousands_and_takes_adj_factor_from_its_own_files(folder, tmp_path):
    (folder / "20210104.csv").write_text(
        "ts_code,trade_date,open,high,low,close,pre_close,change,pct_chg,vol,amount\n"
        "600000.SH,20210104,10,11,9,10,10,0,0,12.5,12.5\n"
        "000001.SZ,20210104,20,21,19,20,20,0,0,1,2\n",
        encoding="utf-8",
    )
    (folder / "20210105.csv").write_text(
        "ts_code,trade_date,open,high,low,close,pre_close,change,pct_chg,vol,amount\n"
        "600000.SH,20210105,5,5.5,4.5,5,5,0,0,25,12.5\n",
        encoding="utf-8",
    )
    (folder / "factor.csv").write_text(
        "ts_code,trade_date,adj_factor\n600000.SH,20210104,3\n600000.SH,20210105,6\n000001.SZ,20210104,7\n"
        "000001.SZ,20210105,7\n",
        encoding="utf-8",
    )
    report, values = read(folder, tmp_path / "out")
    assert report.layout == "tushare"
    assert values("SH600000", "close") == pytest.approx([30.0, 30.0])
    assert values("SH600000", "volume") == pytest.approx([1250 / 3, 2500 / 6])
    assert values("SH600000", "amount") == pytest.approx([12500.0, 12500.0])
    assert values("SZ000001", "factor") == pytest.approx([7.0])


def test_tushare_without_adj_factor_follows_the_reference_price(folder, tmp_path):
    (folder / "daily.csv").write_text(
        "ts_code,trade_date,open,high,low,close,pre_close,vol,amount\n"
        "600000.SH,20210106,4.9,5.1,4.8,5.0,4.95,25,12.5\n"
        "600000.SH,20210105,5,5.5,4.5,4.95,5,25,12.5\n"
        "600000.SH,20210104,10,11,9,10,9.9,12.5,12.5\n",
        encoding="utf-8",
    )
    report, values = read(folder, tmp_path / "out")
    assert values("SH600000", "factor") == pytest.approx([1.0, 2.0, 2.0])
    assert values("SH600000", "change")[1:] == pytest.approx([-0.01, 5 / 4.95 - 1], abs=1e-6)
    assert "derived from the exchange's reference prices" in report.notes[0]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "gb18030"])
def test_akshare_is_read_in_chinese_and_its_code_taken_from_the_file_name(folder, tmp_path, encoding):
    (folder / "600000.csv").write_text(
        "日期,开盘,收盘,最高,最低,成交量,成交额,振幅,涨跌幅,涨跌额,换手率\n"
        "2021-01-04,10,10,11,9,10,10000,0,0,0.1,1\n"
        "2021-01-05,9,9.6,10,9,10,9500,0,0,0.1,1\n",
        encoding=encoding,
    )
    report, values = read(folder, tmp_path / "out")
    assert report.layout == "akshare"
    assert values("SH600000", "amount") == pytest.approx([10000, 9500])
    # The reference of the second day is 9.60 - 0.10 = 9.50, so the factor rises by 10 / 9.5.
    assert values("SH600000", "factor") == pytest.approx([1.0, 10 / 9.5])
    assert values("SH600000", "volume") == pytest.approx([1000.0, 1000.0 * 9.5 / 10])


def test_baostock_leaves_suspended_rows_out_and_keeps_special_treatment(folder, tmp_path):
    header = "date,code,open,high,low,close,preclose,volume,amount,adjustflag,turn,tradestatus,pctChg,isST\n"
    (folder / "a.csv").write_text(
        header + "2021-01-04,sh.600000,10,11,9,10,10,1000,10000,3,1,1,0,0\n"
        "2021-01-05,sh.600000,10,10,10,10,10,0,0,3,,0,0,0\n"
        "2021-01-06,sh.600000,10,11,9,10.5,10,1000,10000,3,1,1,5,1\n"
        "2021-01-05,sz.000001,10,11,9,10.5,10,1000,10000,3,1,1,5,0\n",
        encoding="utf-8",
    )
    report, values = read(folder, tmp_path / "out")
    assert report.layout == "baostock"
    assert len(read_calendar(tmp_path / "out")) == 3
    assert values("SH600000", "close") == pytest.approx([10, np.nan, 10.5], nan_ok=True)
    assert values("SH600000", "st") == pytest.approx([0, np.nan, 1], nan_ok=True)


def test_baostock_adjusted_downloads_are_refused(folder, tmp_path):
    (folder / "a.csv").write_text(
        "date,code,open,high,low,close,preclose,volume,amount,adjustflag\n"
        "2021-01-04,sh.600000,10,11,9,10,10,1000,10000,2\n",
        encoding="utf-8",
    )
    with pytest.raises(ProviderError, match="'SH600000' has adjustflag 2; expected 3"):
        import_bars(VendorCsvSource(folder), tmp_path / "out", progress=False)


def test_yfinance_takes_the_factor_from_the_adjusted_close(folder, tmp_path):
    (folder / "AAPL.csv").write_text(
        "Date,Open,High,Low,Close,Adj Close,Volume\n"
        "2021-01-04 00:00:00-05:00,100,110,90,100,50,1000\n"
        "2021-01-05 00:00:00-05:00,100,110,90,104,52,1000\n",
        encoding="utf-8",
    )
    report, values = read(folder, tmp_path / "out", market="us")
    assert report.layout == "yfinance"
    assert values("AAPL", "close") == pytest.approx([50, 52])
    assert values("AAPL", "volume") == pytest.approx([2000, 2000])
    assert read_instruments(tmp_path / "out", "all")[0][0] == "AAPL"


def test_a_missing_factor_is_said(folder, tmp_path):
    (folder / "AAPL.csv").write_text(
        "Date,Open,High,Low,Close,Volume\n2021-01-04,100,110,90,100,1000\n", encoding="utf-8"
    )
    report, values = read(folder, tmp_path / "out", market="us")
    assert values("AAPL", "factor") == [1.0]
    assert "none found" in report.notes[0]


def test_an_unknown_header_is_shown_with_every_known_layout(folder):
    (folder / "x.csv").write_text("ticker,day,px_last\nA,2021-01-04,1\n", encoding="utf-8")
    with pytest.raises(ProviderError) as caught:
        VendorCsvSource(folder)
    message = str(caught.value)
    assert "['ticker', 'day', 'px_last']" in message
    for name in ("tushare", "akshare", "baostock", "yfinance", "qlib"):
        assert name in message


def test_two_vendors_in_one_folder_are_refused(folder):
    (folder / "a.csv").write_text("date,open,high,low,close,volume\n", encoding="utf-8")
    (folder / "b.csv").write_text("Date,Open,High,Low,Close,Volume\n", encoding="utf-8")
    with pytest.raises(ProviderError, match="expected the bars of one vendor layout"):
        VendorCsvSource(folder)


def test_factors_without_bars_are_refused(folder):
    (folder / "a.csv").write_text("ts_code,trade_date,adj_factor\n", encoding="utf-8")
    with pytest.raises(ProviderError, match="factors only"):
        VendorCsvSource(folder)


def test_an_empty_folder_and_a_file_without_rows_are_refused(folder, tmp_path):
    with pytest.raises(ProviderError, match=r"no \*.csv"):
        VendorCsvSource(folder)
    (folder / "a.csv").write_text("date,open,high,low,close,volume\n", encoding="utf-8")
    with pytest.raises(ProviderError, match="no bars of shares"):
        import_bars(VendorCsvSource(folder), tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    ("row", "message"),
    [("04.01.2021,1,1,1,1,1", "has the date '04.01.2021'"), ("2021-01-04,1,1,1,--,1", "has '--' in the column")],
)
def test_a_malformed_row_is_shown(folder, tmp_path, row, message):
    (folder / "sh600000.csv").write_text(f"date,open,high,low,close,volume\n{row}\n", encoding="utf-8")
    with pytest.raises(ProviderError, match=message):
        import_bars(VendorCsvSource(folder), tmp_path / "out", progress=False)


def test_a_factor_that_is_missing_on_a_traded_day_is_refused(folder, tmp_path):
    (folder / "daily.csv").write_text(
        "ts_code,trade_date,open,high,low,close,vol\n600000.SH,20210104,1,1,1,1,1\n600000.SH,20210105,1,1,1,1,1\n",
        encoding="utf-8",
    )
    (folder / "factor.csv").write_text("ts_code,trade_date,adj_factor\n600000.SH,20210104,3\n", encoding="utf-8")
    with pytest.raises(ProviderError, match="no positive adjustment factor on 2021-01-05"):
        import_bars(VendorCsvSource(folder), tmp_path / "out", progress=False)


def test_a_file_that_is_no_text_is_refused(folder):
    (folder / "a.csv").write_bytes(b"\xff\xfe\x00\x81\xff")
    with pytest.raises(ProviderError, match="neither UTF-8 nor GB18030"):
        VendorCsvSource(folder)


def test_the_command_says_which_layout_it_found(folder, tmp_path, capsys):
    (folder / "AAPL.csv").write_text(
        "Date,Open,High,Low,Close,Volume\n2021-01-04,100,110,90,100,1000\n", encoding="utf-8"
    )
    out = str(tmp_path / "out")
    call = ("import", "--source", "csv", "--from", str(folder), "--out", out, "--market", "us", "--quiet")
    assert run_command(*call) == 0
    assert "layout detected: yfinance" in capsys.readouterr().out
