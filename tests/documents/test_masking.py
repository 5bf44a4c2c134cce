# ruff: noqa: RUF001 - the dashes and quotation marks that dates are written with
"""Texts that do not say when, who or where."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlib_llm_alpha.documents import masking
from qlib_llm_alpha.documents.masking import Leak, Masked, Names, find_leaks, mask
from qlib_llm_alpha.errors import DocumentError

NAMES = Names.of(
    instruments=["SH600000", "000001.SZ", "HK00700", "AAPL", "BRK.B", "F", "IT", "LOW", "^GSPC"],
    companies=["Apple Inc.", "Apple Hospitality REIT", "The Gap, Inc.", "Coca-Cola Company", "浦发银行", "浦发",
               "万科A", "*ST平潭发展", "贵州茅台酒股份有限公司", "3M Company", "X"],
    indices=["Our Own 40"],
)  # fmt: skip

DATES = """
2015-06-12|2015/6/12|2015.6.12|2015 - 06 - 12|20150612|201506|2015-06|2015/06|2015.06|12/06/2015
6/12/15|12.6.2015|2015-06-12T09:30:00+08:00|2015-06-12 15:00:00|20150612093000|2015年6月12日
2015 年 6 月 12 日|2015年6月|2015年|6月12日|6月份|六月|六月十二日|十二月|元月|1-10月
二〇一五年六月十二日|二零一五年|二○一五年|一九九八年|零九年|2015年度|09年|08-09年|09、10年|09年7月
2009-2010年|2009、2010年|2009至2011年|2009~2011|90年代|九十年代|1990s|1990's|2021Q3|2021 Q3|2021-Q3
Q3 2021|3Q21|3Q2021|1H09|09H1|FY2015|FY15|FY 2015E|'09|Q3'21|2015E|09E|20082009E2010E2011E
2008Q12008Q2|2008033120090331|2015-W23|June 12, 2015|June 12th, 2015|June 12|12 June 2015|12 June
12th of June|12-Jun-15|Jun-15|Jun 2015|Jun. 2015|June 2015|JUNE 2015|june|Dec. 31|Sept. 5
May 3, 2012|5 May 2014|May 2012|March 9|in 2015|since 2008|(Fama, 1993)|1999|２０１５年６月
2015年6月12日|20\u200b15年|~2015|#2015|=2015|= 2015|≈2015|$2015|twenty fifteen|Twenty-Fifteen|twenty twenty-one
nineteen ninety-eight|in two thousand and nine|12.06.15|06/15|MMXV|MCMXCVIII|2O15|20O9|一五年|'90s|the 90s|the nineties
COVID-19|covid|SARS|新冠疫情|非典|次贷危机|the global financial crisis|arXiv:1503.01234|arXiv:1503.01234v2
"""


@pytest.mark.parametrize("date", [one for line in DATES.split("\n") for one in line.split("|") if one])
def test_dates_in_many_spellings_are_masked(date: str) -> None:
    masked = mask(f"the report of {date} said so", NAMES).text
    assert "[DATE]" in masked
    assert not any(letter.isdigit() for letter in masked)
    assert not any(word in masked for word in ("MMX", "MCM", "fifteen", "nine", "危机"))
    assert not {"年", "月", "日", "Jun", "May", "March", "june"} & set(masked.replace("[DATE]", " ").split())


@pytest.mark.parametrize(
    "text",
    [
        "a 20-day mean, 252 days, 5 日均线, 20日, 60 bars, 1.5, 12 months",
        "三个月, 10个月, 近3月, 过去6月, 每月, 5年期, 10年期国债, 近10年, 过去 10年, 持有3年, 12个月目标价",
        "Mean($close, 20) / Ref($close, 252) - 1e-12, $low, $volume, $open",
        "2000 stocks, 2000 shares, 2048 tokens, 2000万元, 2,015 rows, 2015.50, $2000, 1,999.5, 2010%, N = 2000",
        "600000 shares, 600000元, 123456, 0.600000, 1,600000",
        "it may be 20 of them, we march 5 miles, a may fly, the January effect, 一月效应",
        "price gap, targets, applet, Gapless, sit, LOWER, ITEM",
        "about 2000 trading days, 2000 sessions, 2000 nodes, x <= 2015, twenty-one, fifteen, MM, MMI, H2O",
        "一二年, 十五年, 第一五年",
        "200000 of them, 430000, 300000, 1e6, a_600519, 0.600519, 600519 shares, 600519元, spy, v12.06.15, 1.12.06.15",
        "Q3, 三季度, 上半年, H1, Monday, 2/3, 1/2, 3:2, 10-K, v1.2.3, page 12",
        "比例为 8:2, 岁月, 每股收益0.48元, 20%, ±2, x^2, 10,000",
        "momentum of A and B shares, plan F, 大盘, A股",
    ],
)  # fmt: skip
def test_windows_amounts_and_words_stay(text: str) -> None:
    assert mask(text, NAMES).text == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("买入 SH600000 和 sz000001", "买入 [CODE] 和 [CODE]"),
        ("600000.SH, 000001.SZ; 300750.sz 0700.HK HK00700", "[CODE], [CODE]; [CODE] [CODE] [CODE]"),
        ("浦发银行(600000)推荐600000", "[COMPANY]([CODE])推荐[CODE]"),
        ("某公司(601398)", "某公司([CODE])"),
        ("股票代码:601398", "股票代码[CODE]"),
        ("AAPL and $AAPL, $aapl, $ aapl but aapl", "[CODE] and [CODE], [CODE], [CODE] but aapl"),
        ("stock 600519, (300750, 000858), 688981.", "stock [CODE], ([CODE], [CODE]), [CODE]."),
        ("600519SH 600519 sz 浪潮000977涨", "[CODE] [CODE] 浪潮[CODE]涨"),
        ("SPY, $QQQ and ASHR", "[CODE], [CODE] and [CODE]"),
        ("BRK.B or AAPL.O, $F not F, $LOW", "[CODE] or [CODE].O, [CODE] not F, [CODE]"),
        ("NASDAQ: MSFT, NYSE:GE; US0378331005", "[CODE], [CODE]; [CODE]"),
        ("MSFT is not listed in names", "MSFT is not listed in names"),
    ],
)
def test_codes_are_masked_when_they_show_or_are_known(text: str, expected: str) -> None:
    assert mask(text, NAMES).text == expected


INDICES = """
CSI 300|CSI300|csi 300|沪深300|沪深 300|沪深三百|SSE 50|上证50|中证500|CSI 1000|上证综指|上证指数|深证成指|创业板指
科创50|S&P 500|S&P500|S&P|Nasdaq|NASDAQ Composite|Nasdaq-100|纳斯达克|标普500|Dow Jones|道琼斯|Russell 2000|恒生指数
C.S.I. 300|A50|Hang Seng Index|MSCI China|日经225|VIX|Our Own 40|SPX|DAX|FTSE 100|Shanghai Composite
"""


@pytest.mark.parametrize("index", [one for line in INDICES.split("\n") for one in line.split("|") if one])
def test_index_names_are_masked_whole(index: str) -> None:
    assert mask(f"members of {index}, or", NAMES).text == "members of [INDEX], or"
    if index[-1].isdigit():
        assert mask(f"{index}ETF", NAMES).text == "[INDEX]ETF"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Apple Inc.'s and Apple's and APPLE; an apple", "[COMPANY]'s and [COMPANY]'s and [COMPANY]; an apple"),
        ("Apple Hospitality REIT, not pineApple", "[COMPANY], not pineApple"),
        ("apple  hospitality\nreit", "[COMPANY]"),
        ("浦发银行与浦发", "[COMPANY]与[COMPANY]"),
        ("The Gap, Inc. and The Gap and Gap", "[COMPANY] and [COMPANY] and [COMPANY]"),
        ("the coca-cola company, coca-cola", "the [COMPANY], [COMPANY]"),
        ("万科A,万科,*ST平潭发展,平潭发展,贵州茅台酒", "[COMPANY],[COMPANY],[COMPANY],[COMPANY],[COMPANY]"),
        ("3M rose, 3Months did not", "[COMPANY] rose, 3Months did not"),
        ("an X in a table", "an X in a table"),
    ],
)
def test_company_names_are_masked_longest_first_at_word_borders(text: str, expected: str) -> None:
    assert mask(text, NAMES).text == expected


def test_an_english_and_a_chinese_report() -> None:
    english = "On June 12, 2015 Apple (AAPL) beat the S&P 500 by 3% over 20 days; FY2016 guidance is 2,015 units."
    assert mask(english, NAMES).text == (
        "On [DATE] [COMPANY] ([CODE]) beat the [INDEX] by 3% over 20 days; [DATE] guidance is 2,015 units."
    )
    chinese = "浦发银行(600000.SH)2009年三季度净利润同比增长20%,10月30日跑赢沪深300指数5日均线,维持09-11年EPS0.58元。"
    assert mask(chinese, NAMES).text == (
        "[COMPANY]([CODE])[DATE]三季度净利润同比增长20%,[DATE]跑赢[INDEX]指数5日均线,维持[DATE]EPS0.58元。"
    )


def test_leaks_say_what_and_where() -> None:
    assert find_leaks("In 2015 Apple", NAMES) == [Leak("DATE", "2015", 3, 7), Leak("COMPANY", "Apple", 8, 13)]
    assert find_leaks("In [DATE] [COMPANY] rose over 20 days", NAMES) == []


def test_a_mask_leads_back_to_the_original() -> None:
    text = "In June 2015 Apple rose; so did Gap in 2016."
    masked = mask(text, NAMES)
    assert masked.text == "In [DATE] [COMPANY] rose; so did [COMPANY] in [DATE]."
    start = masked.text.index("rose")
    assert text[slice(*masked.original_span(start, start + 4))] == "rose"
    assert text[slice(*masked.original_span(5, 12))] == "June 2015 Apple"
    assert text[slice(*masked.original_span(0, len(masked.text)))] == text
    assert masked.original_span(len(masked.text), len(masked.text)) == (len(text), len(text))


@pytest.mark.parametrize("span", [(-1, 2), (3, 2), (0, 99)])
def test_a_span_that_is_not_there_is_refused(span: tuple[int, int]) -> None:
    with pytest.raises(DocumentError, match="masked text"):
        Masked("short", ()).original_span(*span)


def test_long_tables_of_numbers_are_looked_at_once() -> None:
    for table in ("01,02,03,", "2009,2010,", "2009", "10年、", "1Q", "二〇", "AAPL.", "Q3 "):
        assert find_leaks(mask(table * 10_000, NAMES).text, NAMES) == []


@pytest.mark.parametrize("piece", ["'15", "'15 ", "Q3'21", "12-Jun-15 ", "MMXV2O15"])
def test_a_long_row_of_which_each_mask_brings_out_the_next_is_not_looked_at_once_for_each(
    piece: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []

    def counted(text: str, names: Names) -> list[tuple[str, int, int]]:
        looked.append(len(text))
        return hits(text, names)

    hits = masking._hits
    monkeypatch.setattr(masking, "_hits", counted)
    text = piece * (6000 // len(piece))
    assert find_leaks(mask(text, NAMES).text, NAMES) == []
    # Looking at all that is left after each mask took a thousand times the length of the text.
    assert sum(looked) < 100 * len(text)


def test_one_text_where_names_are_expected_is_refused() -> None:
    with pytest.raises(DocumentError, match="list of texts"):
        Names.of(companies="Apple Inc.")


PIECES = st.sampled_from(
    [*DATES.replace("\n", "|").strip("|").split("|"), "Apple", "浦发银行", "600000", "SH600000",
     "AAPL", "S&P 500", "沪深300", "Gap", "[DATE]", "[", "]", "DATE", " ", ",", "年", "月", "日", "-", "/", ".",
     "$", "20", "5", "E",
     "Q", "1",
     "600519", "'", "15", "0s", "twenty ", "ten", "=", "~", "MMX", "V", "2O15", "SARS", "SPY", "x" * 400,
     "Coca-", "Cola", "\u200b", "（", "ﬁ", "İ", "\n", "in ", "May", "代码", "Russell", "Inc."]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=14).map("".join)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_nothing_that_is_found_stays_and_masking_again_changes_nothing(text: str) -> None:
    masked = mask(text, NAMES)
    assert find_leaks(masked.text, NAMES) == []
    assert mask(masked.text, NAMES) == Masked(masked.text, ())


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_everything_between_the_masks_is_the_original(text: str) -> None:
    masked = mask(text, NAMES)
    rebuilt, at = "", 0
    for span in masked.spans:
        rebuilt += masked.text[at : span.start] + text[span.original_start : span.original_end]
        assert masked.text[span.start : span.end] == f"[{span.kind}]"
        assert masked.original_span(span.start, span.end) == (span.original_start, span.original_end)
        at = span.end
    assert rebuilt + masked.text[at:] == text
    for position in range(len(masked.text)):
        if not any(span.start <= position < span.end for span in masked.spans):
            start, end = masked.original_span(position, position + 1)
            assert text[start:end] == masked.text[position]
