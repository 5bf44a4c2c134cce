"""Names that tell a model which company or market it is about."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from qlib_llm_alpha.documents.cleaning import is_cjk
from qlib_llm_alpha.errors import DocumentError


@dataclass(frozen=True)
class Names:
    """What is masked besides what tells itself by its spelling; make it with :meth:`of`.

    Parameters
    ----------
    codes : frozenset of str
        Codes of digits, in capitals, that are masked where they stand alone.
    tickers : frozenset of str
        Codes with letters, in capitals.
    companies, indices : frozenset of str
    """

    codes: frozenset[str]
    tickers: frozenset[str]
    companies: frozenset[str]
    indices: frozenset[str]

    @classmethod
    def of(
        cls, *, instruments: Iterable[str] = (), companies: Iterable[str] = (), indices: Iterable[str] = ()
    ) -> Names:
        """Collect names, with the spellings that follow from them.

        Parameters
        ----------
        instruments : iterable of str
            Codes in any form, such as ``SH600000``, ``600000.SH``, ``AAPL``, ``BRK.B``, ``^GSPC``. Of a code with
            digits its bare digits are known too. A ticker counts in capitals, or in any case after ``$``; one of a
            single letter only after ``$``.
        companies : iterable of str
            Names with or without their legal form, in English and Chinese: ``Apple Inc.`` gives ``Apple`` too,
            ``*ST平潭发展`` gives ``平潭发展``, ``万科A`` gives ``万科``. An English name of one word counts as
            written, or in capitals; other names in any case. Names of one character are left out.
        indices : iterable of str
            Besides those that are built in.

        Raises
        ------
        DocumentError
            A single text where several are expected.
        """
        for what, given in (("instruments", instruments), ("companies", companies), ("indices", indices)):
            if isinstance(given, str):
                raise DocumentError(f"{what} is the text {given!r:.60}; expected a list of texts; put it in brackets")
        codes: set[str] = set()
        tickers: set[str] = set()
        for instrument in instruments:
            code = instrument.strip().upper()
            digits = _EXCHANGE_CODE.fullmatch(code)
            if digits:
                codes.add(digits[1] or digits[2])
            elif code:
                tickers.add(code)
        return cls(
            frozenset(codes),
            frozenset(tickers),
            frozenset(spelling for name in companies for spelling in _spellings(name)),
            frozenset((*BUILT_IN_INDICES, *(" ".join(name.split()) for name in indices if len(name.strip()) > 1))),
        )

    def ticker_length(self, mark: str | None, name: str) -> int:
        """Return how many letters of a word are a known ticker, 0 for none; ``mark`` is the ``$`` before it."""
        if mark and name.islower() and name in _FIELDS:
            return 0
        for word in dict.fromkeys((name, re.split(r"[.-]", name)[0])):
            spelled = word.upper() if mark else word
            if spelled in self.tickers and (mark or len(word) > 1):
                return len(word)
        return 0

    def found_in(self, text: str) -> Iterator[tuple[str, int, int]]:
        """Yield kind, start and end of every index and company name in ``text``, the longest at each place."""
        lowered = _lowered(text)
        for at in range(len(text) - 1):
            for name in self._by_start.get(lowered[at : at + 2], ()):
                if lowered.startswith(name.lowered, at) and name.fits(text, at):
                    yield name.kind, at, at + len(name.text)
                    break

    @cached_property
    def _by_start(self) -> dict[str, list[_Name]]:
        table: dict[str, list[_Name]] = {}
        listed = {**dict.fromkeys(self.companies, "COMPANY"), **dict.fromkeys(self.indices, "INDEX")}
        for text, kind in sorted(listed.items(), key=lambda item: (-len(item[0]), item[0])):
            name = _Name(text, _lowered(text), kind)
            table.setdefault(name.lowered[:2], []).append(name)
        return table


@dataclass(frozen=True)
class _Name:
    text: str
    lowered: str
    kind: str

    def fits(self, text: str, start: int) -> bool:
        end = start + len(self.text)
        said = text[start:end]
        # A company such as Gap or Target shares its name with a word.
        if self.kind == "COMPANY" and _ONE_WORD.fullmatch(self.text) and said not in (self.text, self.text.upper()):
            return False
        before, after = text[start - 1 : start], text[end : end + 1]
        return not (_joined(before, said[0]) or _joined(said[-1], after))


def _joined(one: str, two: str) -> bool:
    # 沪深300ETF is the index with something behind it, MSCIX is another word.
    return any(all(part and test(part) for part in (one, two)) for test in (_is_letter, str.isdigit))


def _is_letter(one: str) -> bool:
    return one.isalpha() and not is_cjk(one)


def _lowered(text: str) -> str:
    lowered = text.lower()
    # A few letters become two; offsets matter more than they do.
    return (
        lowered if len(lowered) == len(text) else "".join(low if len(low := one.lower()) == 1 else one for one in text)
    )


def _spellings(name: str) -> Iterator[str]:
    plain = " ".join(name.split())
    # What is left of *ST节能 is a word like another, what is left of *ST平潭发展 is the name.
    forms = [plain, bare if len(bare := _STATE.sub("", plain)) > 2 else plain]
    for pattern in _ADDITIONS:
        forms.append(pattern.sub("", forms[-1]).strip(" ,"))
    yield from (form for form in dict.fromkeys(forms) if len(form) > 1)


_FIELDS: Final = frozenset(
    ("open", "high", "low", "close", "vwap", "volume", "amount", "factor", "change", "shares", "st", "industry")
)
_ONE_WORD: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z][a-z]+")
_EXCHANGE_CODE: Final = re.compile(
    r"(?:SH|SZ|BJ|SS|HK|XSHG|XSHE|SSE|SZSE)?[.:_]?([0-9]{4,6})|([0-9]{4,6})[.](?:SH|SZ|SS|BJ|HK|XSHG|XSHE)"
)
_STATE: Final = re.compile(r"^(?:XD|XR|DR|N|S)?\*?(?:ST)?(?=[^A-Za-z\s])")
_ADDITIONS: Final = (
    re.compile(r"(?<=[^A-Za-z\s])(?:[ABHR]|-[UWVB]+)$"),
    re.compile(r"(?:股份有限公司|有限责任公司|有限公司)$"),
    re.compile(
        r"(?i),?\s(?:inc|incorporated|corp|corporation|co|company|companies|ltd|limited|plc|llc|l\.p|lp|n\.v|nv|s\.a|"
        r"sa|ag|se|& co)\.?$"
    ),
    re.compile(r"(?i),?\s(?:inc|corp|corporation|co|company|holdings?|group|& co)\.?$"),
    re.compile(r"(?i)^the\s"),
)


def _numbered(stems: str, numbers: str) -> Iterator[str]:
    for stem in stems.split(","):
        for number in numbers.split():
            yield from (f"{stem}{number}", f"{stem} {number}", f"{stem}-{number}")


_CHINESE_INDICES: Final = """
沪深三百, 上证综指, 上证指数, 上证综合指数, 上证综合, 上证A指, 上证B指, 沪指, 沪综指, 深证成指, 深成指,
深成份指数, 深圳成指, 深证综指, 深综指, 深指, 中小板指, 中小板指数, 中小板综指, 中小100, 创业板指, 创业板指数,
创业板综指, 科创综指, 北证50, 万得全A, Wind全A, 中证全指, 上证红利, 中证红利, 深证红利, 道琼斯, 道琼斯工业,
道琼斯指数, 道指, 标普, 标准普尔, 纳斯达克, 纳斯达克指数, 纳斯达克综合指数, 纳指, 恒生指数, 恒指, 恒生国企指数,
国企指数, 红筹指数, 恒生科技指数, 日经指数, 日经225, 富时指数, 罗素指数, 德国DAX, 明晟中国, MSCI中国
"""
_ENGLISH_INDICES: Final = """
MSCI, MSCI China, MSCI World, MSCI ACWI, MSCI EAFE, MSCI Emerging Markets, SSE Composite, SSE Composite Index,
Shanghai Composite, Shanghai Composite Index, Shenzhen Component, Shenzhen Component Index, Shenzhen Composite,
SZSE Component, SZSE Component Index, ChiNext, ChiNext Index, STAR Market, S&P, S&P Composite,
Standard & Poor's, Standard and Poor's, SPX, Dow Jones, Dow Jones Industrial Average, Dow Jones Industrials,
DJIA, Nasdaq, Nasdaq Composite, NDX, Russell Midcap, Hang Seng, Hang Seng Index, Hang Seng China Enterprises,
HSI, HSCEI, Nikkei, TOPIX, FTSE All-Share, DAX, MDAX, KOSPI, KOSDAQ, Nifty 50, Nifty, Sensex, Bovespa, IBEX 35,
FTSE MIB, A50, TSX Composite, S&P/TSX, CRSP, CBOE VIX, VIX, ^GSPC, ^DJI, ^IXIC
"""

BUILT_IN_INDICES: Final = frozenset(
    (
        *_numbered("CSI,C.S.I.,CSI Index,中证", "50 100 200 300 500 700 800 1000 2000 A50 A100 A500"),
        *_numbered("沪深,HS,SHSZ", "300"),
        *_numbered("SSE,SSE Index,上证", "50 180 380 580"),
        *_numbered("STAR,SSE STAR,科创,科创板", "50 100 200"),
        *_numbered("SZSE,深证", "50 100 300 1000"),
        *_numbered("国证,CNI", "1000 2000 A100"),
        *_numbered("ChiNext,创业板", "50 100"),
        *_numbered(
            "S&P,S & P,S&P Composite,S&P MidCap,S&P SmallCap,SP,Standard & Poor's,标普,标准普尔", "100 400 500 600 1500"
        ),
        *_numbered("Nasdaq,纳斯达克,纳指", "100"),
        *_numbered("Russell,Russell Top,罗素", "200 1000 2000 2500 3000"),
        *_numbered("FTSE,富时", "100 250 350"),
        *_numbered("Nikkei,日经", "225"),
        *_numbered("Euro Stoxx,EuroStoxx,STOXX,STOXX Europe,斯托克", "50 600"),
        *_numbered("CAC,SBF", "40 120"),
        *_numbered("MSCI,MSCI China,FTSE China,富时中国", "A50"),
        *_numbered("Wilshire", "5000"),
        *_numbered("KOSPI", "200"),
        *_numbered("S&P/ASX,ASX", "200"),
        *(" ".join(name.split()) for name in f"{_CHINESE_INDICES},{_ENGLISH_INDICES}".split(",")),
    )
)
"""Index names in English and Chinese that are always masked."""
