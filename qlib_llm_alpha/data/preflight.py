"""Look before the long work: provider, universe, fields, dates and label, each with one clear error.

Qlib itself answers a missing field with a column of NaN and a missing date with fewer rows (``qlib/data/data.py``); a
study built on either is wrong without a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from qlib.config import C
from qlib.data import D

from qlib_llm_alpha.errors import ConfigError, ProviderError
from qlib_llm_alpha.factor.expression import Expression, parse

# The longest closure of the A-share market: a start that lies closer to the first bar misses no trading day.
LONGEST_CLOSURE = pd.Timedelta(days=15)


def provider_root(freq: str = "day") -> Path:
    """Return the provider's folder.

    Raises
    ------
    ProviderError
        If there is no folder or no calendar in it.
    """
    root = Path(C.dpm.get_data_uri(freq))
    calendar = root / "calendars" / f"{freq}.txt"
    if not calendar.is_file():
        raise ProviderError(
            f"provider_uri {str(root)!r}: expected a Qlib provider with {calendar.relative_to(root)}, found none. "
            "Write the embedded market with `qlib-llm-alpha market --out DIR`, import bars with "
            "`qlib-llm-alpha data import`, or point qlib_init.provider_uri (here: QLIB_DATA) at a provider"
        )
    return root


def check_dates(start: object, end: object, *, what: str, freq: str = "day") -> None:
    """Refuse a range that is empty or lies outside the calendar; ``None`` means unbounded."""
    calendar = D.calendar(freq=freq)
    first, last = calendar[0], calendar[-1]
    begin, finish = _timestamp(start, what), _timestamp(end, what)
    if begin is not None and finish is not None and begin > finish:
        raise ConfigError(f"{what}: starts {begin.date()} after it ends {finish.date()}; swap or mend the dates")
    for given in (begin, finish):
        if given is not None and not first - LONGEST_CLOSURE <= given <= last + LONGEST_CLOSURE:
            raise ConfigError(
                f"{what}: {given.date()} lies outside the provider's calendar, which runs from {first.date()} to "
                f"{last.date()}; choose dates inside it or import more bars"
            )


def check_inside(
    inner: tuple[object, object], outer: tuple[object, object], *, what: str, where: str, freq: str = "day"
) -> None:
    """Refuse a range with trading days outside another one.

    Parameters
    ----------
    inner, outer : pair of dates
        First and last day, both included. ``None`` in ``outer`` is unbounded, in ``inner`` not compared.
    what, where : str
        What the two ranges are, for the message.

    Raises
    ------
    ConfigError
        A trading day of ``inner`` lies outside ``outer``. Holidays do not count.
    """
    begin, finish = _timestamp(inner[0], what), _timestamp(inner[1], what)
    first, last = _timestamp(outer[0], where), _timestamp(outer[1], where)
    calendar = pd.DatetimeIndex(D.calendar(freq=freq))
    early = begin is not None and first is not None and ((calendar >= begin) & (calendar < first)).any()
    late = finish is not None and last is not None and ((calendar > last) & (calendar <= finish)).any()
    if early or late:
        raise ConfigError(
            f"{what} runs from {inner[0]} to {inner[1]}; expected it inside the {where}, {outer[0]} to {outer[1]}: "
            "mend one of the two"
        )


def check_universe(instruments: object, *, freq: str = "day") -> list[str]:
    """Return the codes of a universe; refuse an unknown market or code, an empty universe and a single instrument."""
    root = provider_root(freq)
    if isinstance(instruments, str):
        _check_market(root, instruments)
        codes = list(D.list_instruments(D.instruments(instruments), as_list=True, freq=freq))
    elif isinstance(instruments, Mapping) and "market" in instruments:
        _check_market(root, str(instruments["market"]))
        codes = list(D.list_instruments(instruments, as_list=True, freq=freq))
    elif isinstance(instruments, Iterable):
        codes = [str(code) for code in instruments]
        _check_codes(root, codes)
    else:
        raise ConfigError(f"instruments {instruments!r}: expected a market name, a list of codes or a Qlib config")
    if len(codes) < 2:
        raise ConfigError(
            f"instruments {instruments!r} holds {len(codes)} instrument(s); a cross-section needs at least 2, and a "
            "gate at least 30 a day: name a larger universe"
        )
    return codes


def check_fields(fields: Sequence[str], codes: Sequence[str], *, freq: str = "day") -> None:
    """Refuse fields that no instrument of the universe has."""
    root = provider_root(freq)
    if not (root / "features").is_dir():
        return  # a provider with a storage backend of its own: nothing to look at on disk
    missing = [field for field in fields if not any(_field_file(root, code, field, freq).is_file() for code in codes)]
    if missing:
        example = root / "features" / codes[0].lower()
        found = sorted("$" + path.name.split(".")[0] for path in example.glob(f"*.{freq}.bin"))
        raise ProviderError(
            f"fields {missing} are in no instrument of the universe (the provider has {found}); leave out the factors "
            "that need them or import these fields"
        )


def check_label(text: str, *, days: int, what: str = "the segment") -> Expression:
    """Parse a label and refuse one that reads no future bar or needs more bars than there are.

    Parameters
    ----------
    text : str
        The label's expression; the one place where look-ahead is meant.
    days : int
        Trading days of the range that is loaded.
    what : str
        The name of that range, for the message.
    """
    label = parse(text, allow_future=True)
    if label.lookahead < 1:
        raise ConfigError(
            f"label {text!r} reads no bar after its date, so it is known beforehand and no forecast; expected a future "
            "return such as 'Ref($close, -2)/Ref($close, -1) - 1'"
        )
    if label.lookahead >= days:
        raise ConfigError(
            f"label {text!r} needs {label.lookahead} bars after its date, and {what} has {days} days; shorten the "
            "horizon or lengthen the segment"
        )
    return label


def _check_market(root: Path, market: str) -> None:
    known = sorted(path.stem for path in (root / "instruments").glob("*.txt"))
    if market.lower() not in known:
        raise ProviderError(
            f"universe {market!r}: the provider has {known}; choose one of them or add instruments/{market.lower()}.txt"
        )


def _check_codes(root: Path, codes: Sequence[str]) -> None:
    features = root / "features"
    unknown = [code for code in codes if not (features / code.lower()).is_dir()] if features.is_dir() else []
    if unknown:
        raise ProviderError(
            f"instruments {unknown[:5]!r} ({len(unknown)} of {len(codes)}) have no bars in the provider; expected "
            "codes such as those of instruments/all.txt: correct them or import their bars"
        )


def _field_file(root: Path, code: str, field: str, freq: str) -> Path:
    if field.startswith("$$"):
        return root / "financial" / code.lower() / f"{field[2:].lower()}.data"
    return root / "features" / code.lower() / f"{field[1:].lower()}.{freq}.bin"


def _timestamp(value: object, what: str) -> pd.Timestamp | None:
    if value is None:
        return None
    try:
        stamp: pd.Timestamp = pd.Timestamp(str(value))
    except ValueError as error:
        raise ConfigError(f"{what}: {value!r} is no date; expected one such as 2020-01-31") from error
    return stamp
