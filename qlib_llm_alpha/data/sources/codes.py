"""Instrument codes: one spelling for all vendors.

A-share codes become ``SH600000``, ``SZ000001``, ``BJ430047``; other tickers are only put in upper case.
"""

from __future__ import annotations

import re

_EXCHANGES = {"SH": "SH", "SS": "SH", "XSHG": "SH", "SZ": "SZ", "XSHE": "SZ", "BJ": "BJ", "XBSE": "BJ"}
_PREFIXED = re.compile(r"^(SH|SZ|BJ)[._]?(\d{6})$")
_SUFFIXED = re.compile(r"^(\d{6})\.(SH|SS|SZ|BJ|XSHG|XSHE|XBSE)$")
# Shares only: an index such as 000300 shares its digits with nothing in Shenzhen's 000xxx range by rule, so an index
# must come with its exchange.
_BARE = (("SH", re.compile(r"^(60|68|90)\d{4}$")), ("SZ", re.compile(r"^(00|30|20)\d{4}$")))
_BARE_BEIJING = re.compile(r"^(4|8|92)\d+$")


def normalise_code(text: str, *, market: str = "cn") -> str:
    """Return the provider's spelling of a vendor's code.

    Parameters
    ----------
    text : str
        ``600000.SH``, ``600000.SS``, ``600000.XSHG``, ``sh.600000``, ``sh600000``, ``600000`` or a ticker.
    market : str
        ``"cn"`` also places bare six-digit codes by their first digits; ``"us"`` leaves digits alone.
    """
    code = text.strip().upper()
    if market != "cn":
        return code
    if match := _PREFIXED.match(code):
        return match[1] + match[2]
    if match := _SUFFIXED.match(code):
        return _EXCHANGES[match[2]] + match[1]
    for exchange, pattern in _BARE:
        if pattern.match(code):
            return exchange + code
    if len(code) == 6 and _BARE_BEIJING.match(code):
        return "BJ" + code
    return code


def is_index(code: str) -> bool:
    """Tell whether a code names an index (``SH000300``, ``SZ399006``, ``^GSPC``) and not a share."""
    return code.startswith(("SH000", "SZ399", "^"))
