# ruff: noqa: RUF001 - the dashes and quotation marks that dates are written with
"""How dates and codes are written: patterns over text whose full-width forms are folded and blanks collapsed."""

from __future__ import annotations

import re
from typing import Final

_YEAR: Final = r"(?:19|20)[0-9]{2}"
_NEAR_YEAR: Final = r"(?:199[0-9]|20[0-3][0-9])"
_MONTH: Final = r"(?:1[0-2]|0?[1-9])"
_DAY: Final = r"(?:[12][0-9]|3[01]|0?[1-9])"
_MM: Final = r"(?:0[1-9]|1[0-2])"
_DD: Final = r"(?:0[1-9]|[12][0-9]|3[01])"
_YY: Final = r"(?:[0-3][0-9]|9[0-9])"
_TO: Final = r"\s?[-–—~～/、,和及与至到]\s?"
_CLOCK: Final = r"(?:[T ]\s?[0-9]{1,2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]+)?)?(?:\s?Z|\s?[+-][0-9]{2}:?[0-9]{2})?)?"
_ZH_DIGIT: Final = "〇零○一二三四五六七八九"
_ZH_DAY: Final = r"(?:三十一?|二?十[一二三四五六七八九]?|廿[一二三四五六七八九]?|[一二三四五六七八九])"
_ZH_MONTH: Final = r"(?:十[一二]?|[一二三四五六七八九元正腊])"

# A number before one of these counts something: no year, and no code.
_COUNTED: Final = (
    r"(?!\s?(?:[%‰倍万亿千百元股家只支吨人个個台套米点项条户名辆平次例位篇]|公里|天|日(?!期|报)|交易日|(?:bps?|stocks?|shares?|"
    r"tokens?|(?:trading\s)?days?|sessions?|nodes?|names?|rows?|samples?|points?|trials?|instruments?|observations?|firms|companies|bars?|units?|"
    r"times|words|characters|chars|calls|seeds|steps|iterations|epochs|usd|rmb|cny|yuan|dollars|million|billion|"
    r"trillion|mn|bn|km|kg|tons?|tonnes|employees|people|stores|basis|securities|factors|formulas|expressions)"
    r"(?![a-z])))"
)
_UNCOUNTED: Final = r"(?<![0-9])(?<![0-9][.,])(?<![$¥€£#=<>≈≤≥~])(?<![=<>≈≤≥~]\s)"

# After one of these a number that is no round one is a year all the same: ~2015, year=2015, but not N = 2000.
_AFTER_SIGN: Final = r"(?<![<>!]=)(?<=[~≈#=$])\s?(?!2000)"

_DIGIT_WORD: Final = r"(?:one|two|three|four|five|six|seven|eight|nine)"
_TEEN_WORD: Final = r"(?:ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen)"
_LONG_MONTH: Final = r"(?:January|February|April|June|July|August|September|October|November|December)"
_SHORT_MONTH: Final = r"(?:Jan|Feb|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)"
# These are verbs too, so they count only in capitals and in company.
_DOUBTFUL: Final = r"(?:May|March|Mar|MAY|MARCH|MAR)"
_ANY_MONTH: Final = rf"(?:(?i:{_LONG_MONTH}|{_SHORT_MONTH})|{_DOUBTFUL})"
_ORDINAL: Final = r"(?:3[01]|[12][0-9]|0?[1-9])(?:st|nd|rd|th)?"
_NO_LETTER: Final = r"(?<![A-Za-z])"
_NO_MORE: Final = r"(?![A-Za-z0-9])"
_BEFORE_MONTH: Final = "|".join(
    rf"(?<=(?i:\b{word})[\s-])"
    for word in ("in", "by", "of", "since", "until", "from", "to", "late", "early", "mid", "last", "this", "next")
)
# After one of these a number of years is a length of time.
_LASTING: Final = "近去来前后每满约达续第超过长共逾足历"
_NO_LENGTH: Final = rf"(?<![{_LASTING}])(?<![{_LASTING}]\s)"
_EFFECT: Final = r"(?!\s?(?:effect|anomaly|效应))"


def _all(*patterns: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern) for pattern in patterns)


_DIGITS: Final = (
    # 2015-06-12, 2015/6/12, 2015.6.12, 2015年6月12日, each with a time of day
    rf"(?<![0-9]){_YEAR}(?P<mark>\s?[-/.]\s?){_MONTH}(?P=mark){_DAY}(?![0-9]){_CLOCK}",
    rf"{_NEAR_YEAR}(?P<mark>[-/.]){_MONTH}(?P=mark){_DAY}(?![0-9])",
    rf"(?<![0-9]){_YEAR}\s?年\s?{_MONTH}\s?月\s?{_DAY}(?![0-9])(?:\s?[日号])?{_CLOCK}",
    # 2015年, 2009-2010年, 2015年6月, 2009 年度
    rf"(?<![0-9]){_YEAR}(?:[EAF]?{_TO}(?:{_YEAR}|[0-3][0-9])){{0,12}}[EAF]?\s?年度?(?:\s?{_MONTH}\s?月份?)?",
    # 20150612, 20150612093000, 201506
    rf"(?<![0-9])(?<![0-9][.,]){_YEAR}{_MM}{_DD}(?:[0-9]{{4}}|[0-9]{{6}})?(?![0-9]|[.,][0-9]){_COUNTED}",
    rf"(?<![0-9])(?<![0-9][.,]){_NEAR_YEAR}{_MM}(?![0-9]|[.,][0-9]){_COUNTED}",
    # 2015-06, 2015/6, 2015.06, 2009-2010, 2009-10, 2009/10E
    rf"{_UNCOUNTED}{_YEAR}\s?[-–—/~]\s?(?:{_YEAR}|{_YY})(?![0-9]|[.,][0-9])[EAF]?{_COUNTED}",
    rf"{_UNCOUNTED}{_YEAR}[-/]{_MONTH}(?![0-9]|[.,][0-9]){_COUNTED}",
    rf"{_UNCOUNTED}{_YEAR}\.{_MM}(?![0-9]){_COUNTED}",
    # 12/06/2015, 12.6.2015, 6/12/15
    rf"(?<![0-9/.]){_DAY}[-/.]{_DAY}[-/.]{_YEAR}(?![0-9])",
    rf"(?<![0-9/.]){_DAY}/{_DAY}/[0-9]{{2}}(?![0-9/])",
    # run together by a reader of tables: 20082009E2010E, 2008Q12008Q2, 2008033120090331, a page's number before a year
    rf"(?<![0-9])(?<![0-9][.,])(?:{_NEAR_YEAR}[EAFPHNZe]?){{2,}}",
    rf"(?:{_NEAR_YEAR}[QH][1-4]){{2,}}|{_NEAR_YEAR}[QH][1-4](?={_NEAR_YEAR})",
    rf"(?:[1-4][QH](?:{_NEAR_YEAR}|{_YY})[EA]?){{2,}}",
    rf"{_UNCOUNTED}{_NEAR_YEAR}[EA]?(?=EPS|PE|PB|PS|ROE|YoY|QoQ|GDP|CPI)",
    rf"(?<![0-9A-Za-z])(?:[QH][1-4]{_NEAR_YEAR}){{2,}}",
    rf"(?<![0-9])(?:{_NEAR_YEAR}{_MM}{_DD}){{2,}}",
    rf"{_NEAR_YEAR}年(?!期)",
    # a bare year
    rf"{_UNCOUNTED}{_YEAR}(?:(?:['’]?s|[EAFPHQe]){_NO_MORE}|(?![0-9A-Za-z]|[.,][0-9])){_COUNTED}",
    rf"{_AFTER_SIGN}{_NEAR_YEAR}(?![0-9A-Za-z]|[.,][0-9]){_COUNTED}",
    # the letter O for a nought
    r"(?<![0-9A-Za-z])(?:2[Oo][0-3]|20[Oo])[0-9](?![0-9A-Za-z])",
    # 12.06.15, 06/15
    rf"(?<![0-9A-Za-z/.]){_DD}\.{_MM}\.{_YY}(?![0-9A-Za-z]|\.[0-9])",
    rf"(?<![0-9A-Za-z/.])0[1-9]/{_YY}(?![0-9/]|[.,][0-9])",
    # '90s, the 90s
    rf"(?<![0-9A-Za-z])['’][0-9]0s{_NO_MORE}",
    rf"(?<=(?i:the)\s)[5-9]0s{_NO_MORE}",
    # the year and month of a preprint
    r"(?i:arxiv)\s?:\s?[0-9]{4}\.[0-9]{4,5}(?:v[0-9]+)?",
    # 2021Q3, 2021H1, 2021-W23, Q3 2021, 3Q21, Q3'21, FY2021, CY21, '21
    rf"(?<![0-9]){_YEAR}\s?[-_.年]?\s?[QqHhWw][0-9]{{1,2}}{_NO_MORE}",
    rf"(?<![0-9A-Za-z])(?:[1-4][QqHh]|[QqHh][1-4])\s?[-/,'’]?\s?(?:of\s)?(?:FY\s?)?{_YEAR}(?![0-9])[EAF]?",
    rf"(?<![0-9A-Za-z])(?:[1-4][QqHh]|[QqHh][1-4])[-/'’]?{_YY}(?![0-9])[EAF]?",
    rf"(?<![0-9A-Za-z.,]){_YY}\s?[QqHh][1-4]{_NO_MORE}",
    rf"{_NO_LETTER}(?i:FY|CY)\s?['’]?(?:{_YEAR}|{_YY})(?![0-9])[EAF]?",
    rf"(?<![0-9A-Za-z])['’]{_YY}(?![0-9A-Za-z])",
    rf"(?<![0-9A-Za-z.,])(?:[0-2][0-9]E|0[0-9][AF]){_NO_MORE}",
)

_CHINESE: Final = (
    rf"(?<![0-9]){_MONTH}\s?月\s?{_DAY}\s?[日号]",
    # 6月12日, 6月, 1-10月; a number of months is 6个月
    rf"(?<![0-9.]){_NO_LENGTH}(?:{_MONTH}{_TO})?{_MONTH}\s?月份?(?![均线频滚内期]|以){_EFFECT}(?:\s?{_DAY}\s?[日号])?",
    rf"(?<![一二三四五六七八九十个每近前后]){_ZH_MONTH}月份?(?![均线频滚内期]|以){_EFFECT}(?:{_ZH_DAY}[日号])?",
    # 二〇一五年六月十二日
    rf"(?:二[〇零○0]|一九)[{_ZH_DIGIT}]{{2}}年?(?:{_ZH_MONTH}月份?(?:{_ZH_DAY}[日号])?)?",
    rf"(?<![{_ZH_DIGIT}十百])[〇零○][一二三四五六七八九]年",
    rf"(?<![{_ZH_DIGIT}十百千两几]){_NO_LENGTH}(?:一[〇零○一三四五六七八九]|二[〇零○一二四五六七八九])年(?!期)",
    # 09年, 09-11年, 09年7月; 10年 where it is no length of time
    rf"(?<![0-9.])0[0-9](?:年?{_TO}[0-3][0-9]){{0,12}}\s?年度?(?:\s?{_MONTH}\s?月份?(?:\s?{_DAY}\s?[日号])?)?",
    rf"(?<![0-9.]){_NO_LENGTH}[0129][0-9](?:年?{_TO}[0129][0-9]){{1,12}}\s?年度?(?!期)",
    rf"(?<![0-9.]){_YY}年度?\s?{_MONTH}月份?(?:\s?{_DAY}\s?[日号])?",
    rf"(?<![0-9.至到]){_NO_LENGTH}(?<![-–—~～、/]\s)(?<![-–—~～、/])(?:1[0-9]|2[0-9]|9[0-9])\s?年度?"
    r"(?!\s?(?:期|以|来|内|间|之|左右|前|后|平均|历史|均值|经验|多|余|国债|滚动|移动|累计|复合|代|的))",
    r"(?:(?:18|19|20)?[0-9]0|[二三四五六七八九]十)\s?年代",
)

_ENGLISH: Final = (
    rf"{_NO_LETTER}{_ANY_MONTH}\.?[\s-]?{_ORDINAL}(?![0-9A-Za-z]|[.,][0-9]{{1,3}}(?![0-9]))(?:\s?,?\s?{_YEAR}(?![0-9]))?",
    rf"{_NO_LETTER}{_ANY_MONTH}\.?\s?,?[\s-]?['’]?(?:{_YEAR}|{_YY})(?![0-9]|[.,][0-9])",
    rf"(?<![0-9A-Za-z.,]){_ORDINAL}(?:\sof)?[\s-]{_ANY_MONTH}\.?(?![A-Za-z])(?:,?[\s-]['’]?(?:{_YEAR}|{_YY})(?![0-9]))?",
    rf"{_NO_LETTER}(?i:{_LONG_MONTH})(?![A-Za-z]){_EFFECT}",
    rf"{_NO_LETTER}{_SHORT_MONTH}(?![A-Za-z])\.?{_EFFECT}",
    # twenty fifteen, nineteen ninety-eight, in two thousand and nine, the nineties, MMXV
    rf"{_NO_LETTER}(?i:twenty)[\s-](?i:{_TEEN_WORD}|(?:twenty|thirty)(?:[\s-]{_DIGIT_WORD})?){_NO_MORE}",
    rf"{_NO_LETTER}(?i:nineteen)[\s-](?i:(?:six|seven|eigh|nine)ty(?:[\s-]{_DIGIT_WORD})?){_NO_MORE}",
    rf"(?:{_BEFORE_MONTH})(?i:two\sthousand\s(?:and\s)?(?:{_DIGIT_WORD}|{_TEEN_WORD})){_NO_MORE}",
    rf"{_NO_LETTER}(?i:sixties|seventies|eighties|nineties|noughties){_NO_MORE}",
    r"(?<![A-Za-z0-9])(?:MMX{1,3}|MCM(?:XC|LX{0,3}))(?:IX|IV|V?I{0,3})(?![A-Za-z0-9])",
    # The word before stays, so that more of the date may follow.
    rf"(?:{_BEFORE_MONTH}){_DOUBTFUL}(?![A-Za-z]){_EFFECT}",
)

# What has a name because it happened once says when, as a year does.
_EVENTS: Final = (
    rf"{_NO_LETTER}(?i:COVID(?:[\s-]?19)?|coronavirus|SARS|subprime crisis|global financial crisis|dot-?com bubble)"
    r"(?![A-Za-z])",
    r"新冠(?:肺炎|疫情|病毒)?|非典(?!型)|次贷危机",
)

DATES: Final = _all(*_DIGITS, *_CHINESE, *_ENGLISH, *_EVENTS)
"""What is a date by its spelling."""

_A_SHARE: Final = r"(?:000|001|002|003|300|301|600|601|603|605|688|689|900|200|43[0-9]|83[0-9]|87[0-9]|92[0-9])[0-9]{3}"

CODES: Final = _all(
    # SH600000, sz.000001, SSE: 600000, HK0700
    r"(?<![A-Za-z0-9])(?i:SH|SZ|BJ|SS|XSHG|XSHE|SSE|SZSE)\s?[.:_-]?\s?[0-9]{6}(?![0-9])",
    r"(?<![A-Za-z0-9])(?i:HK|HKEX|SEHK)\s?[.:_-]?\s?[0-9]{4,5}(?![0-9])",
    # 600000.SH, 0700.HK, AAPL.US
    r"(?<![0-9])[0-9]{6}\s?\.\s?(?i:SH|SZ|SS|BJ|XSHG|XSHE|OF)(?![A-Za-z])",
    r"(?<![0-9])[0-9]{1,5}\s?\.\s?(?i:HK)(?![A-Za-z])",
    r"(?<![A-Za-z0-9$])[A-Z]{1,5}\.(?:US|OQ)(?![A-Za-z])",
    # (600000), 代码:600000
    rf"(?<=[(\[【<])\s?{_A_SHARE}\s?(?=[)\]】>])",
    r"(?<=代码)\s?:?\s?[0-9]{4,6}(?![0-9])",
    # 600519 and 600519SH anywhere; a round number such as 600000 is more often an amount
    rf"(?<![0-9A-Za-z_$])(?<![0-9][.,])(?![0-9]{{2}}0000){_A_SHARE}(?:\s?(?i:SH|SZ|SS))?(?![0-9A-Za-z]|[.,][0-9]){_COUNTED}",
    # funds that stand for an index
    r"(?<![A-Za-z0-9_.$])\$?(?:SPY|QQQ|IVV|VOO|VTI|IWM|EEM|EFA|FXI|MCHI|ASHR|KWEB)(?![A-Za-z0-9])",
    # NASDAQ: AAPL
    r"(?<![A-Za-z0-9])(?i:NASDAQ|NYSE|AMEX|NYSEARCA|LSE|TSE|OTC)\s?:\s?\$?[A-Z0-9]{1,6}(?:\.[A-Z])?(?![A-Za-z0-9])",
    # ISIN
    r"(?<![A-Za-z0-9])(?:CN|US|HK|GB|JP|DE|FR|KY|BMG)[A-Z0-9]{9}[0-9](?![A-Za-z0-9])",
)
"""What is a code by its spelling, known or not."""

KNOWN_CODES: Final = re.compile(rf"(?<![0-9])(?<![0-9][.,])[0-9]{{4,6}}(?![0-9]|[.,][0-9]){_COUNTED}")
"""What is a code if it is a known one."""

TICKERS: Final = re.compile(
    r"(?<![A-Za-z0-9_$])(?P<mark>\$\s?)?(?P<name>[A-Za-z^][A-Za-z0-9_]*(?:[.-][A-Za-z]{1,2}(?![A-Za-z]))?)"
)
"""What is a ticker if it is a known one."""
