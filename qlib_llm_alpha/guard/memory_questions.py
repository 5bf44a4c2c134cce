"""Questions that show whether a language model remembers a market: what happened, the facts, and how both are changed.

These prompts name days and instruments on purpose. They are the one exception from blind prompts, since they ask what a
model knows by day and name alone; nothing that a model answers to them reaches a factor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from qlib_llm_alpha.engine.panel import Days, as_days
from qlib_llm_alpha.errors import ConfigError, PanelError, WallError
from qlib_llm_alpha.evaluation.walls import Walls
from qlib_llm_alpha.llm.prompt import Prompt
from qlib_llm_alpha.llm.request import Request

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Direction = Literal["up", "down", "unknown"]
FlipKind = Literal["facts", "entity"]

QUESTIONS: Final = 40
HORIZON: Final = 5
"""Trading days over which a price rises or falls."""
LEAST_MOVE: Final = 0.01
"""Smaller moves are not asked about: nobody remembers them."""
FLIPS: Final[tuple[FlipKind, ...]] = ("facts", "entity")

_OPEN_SEGMENTS: Final = ("train", "valid")
_PROMPTS: Final = Path(__file__).parent / "prompts"
_ANSWER_TOKENS: Final = 512
_LOOK_BACK: Final = 20
_OPPOSITES: Final = (
    ("beat", "miss"),
    ("beats", "misses"),
    ("above", "below"),
    ("rose", "fell"),
    ("rise", "fall"),
    ("higher", "lower"),
    ("up", "down"),
    ("increase", "decrease"),
    ("increased", "decreased"),
    ("profit", "loss"),
    ("超出预期", "不及预期"),
    ("高于", "低于"),
    ("上升", "下降"),
    ("上涨", "下跌"),
    ("增长", "下滑"),
    ("盈利", "亏损"),
)
_OPPOSITE: Final = {a: b for pair in _OPPOSITES for a, b in (pair, pair[::-1])}
_LATIN: Final = "|".join(sorted((word for word in _OPPOSITE if word.isascii()), key=len, reverse=True))
_HAN: Final = "|".join(word for word in _OPPOSITE if not word.isascii())
_WORD: Final = re.compile(rf"\b(?:{_LATIN})\b|{_HAN}", re.IGNORECASE)
_SIGN: Final = re.compile(r"(?<![\w.)+-])[+-](?=\d)")
# A figure has a decimal point; whole numbers are counts of days, and dates with points have two of them.
_FIGURE: Final = re.compile(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)")


class Answer(BaseModel):
    """What a model says of a direction."""

    direction: Direction = Field(description="up, down, or unknown")
    probability: float = Field(ge=0, le=1, description="from 0 to 1: how probable it is that the answer is right")


@dataclass(frozen=True)
class Outcome:
    """What happened: whether a price rose.

    Parameters
    ----------
    day : date
        At whose close the question stands.
    name : str
        As it is shown to the model: a code, a company, or both.
    up : bool
        Whether the price rose over the ``horizon`` trading days after it.
    known_on : date
        The day at whose close that was known.
    """

    day: date
    name: str
    up: bool
    known_on: date


@dataclass(frozen=True)
class Case:
    """Facts of which a direction may be judged.

    Parameters
    ----------
    day : date
        At whose close the facts are known.
    name, peer : str
        The one that is asked about, and another that the facts name beside it; empty without one.
    facts : str
        Text with figures: those with a decimal point are measured, those with a sign have a direction.
    """

    day: date
    name: str
    peer: str
    facts: str


def check_outcomes(outcomes: Sequence[Outcome], walls: Walls) -> None:
    """Refuse outcomes that the caller may not look at.

    Parameters
    ----------
    outcomes : sequence of Outcome
    walls : Walls
        Outcomes must be asked and known inside search (train) or tune (valid).

    Raises
    ------
    WallError
        An outcome of another day, such as one of the sealed segment.
    ConfigError
        Two outcomes of one day: the names of a day move together, so that they are not two pieces of evidence.
    """
    allowed = [segment for segment in walls.segments if segment.name in _OPEN_SEGMENTS]
    for one in outcomes:
        first, last = np.datetime64(one.day, "D"), np.datetime64(one.known_on, "D")
        if not any(segment.start <= first <= last <= segment.end for segment in allowed):
            spans = " or ".join(f"{segment.name} ({segment.start} to {segment.end})" for segment in allowed)
            raise WallError(
                f"the outcome of {one.name} after {one.day}, known on {one.known_on}, was to be asked about; expected "
                f"both days inside {spans}, so that nothing sealed is looked at; choose earlier days"
            )
    days = [one.day for one in outcomes]
    twice = sorted({day for day in days if days.count(day) > 1})
    if twice:
        raise ConfigError(f"{len(twice)} days such as {twice[0]} have several outcomes; expected one a day; drop some")


def draw_outcomes(
    days: Days,
    names: Sequence[str],
    close: Array,
    walls: Walls,
    *,
    segment: Literal["train", "valid"] = "train",
    count: int = QUESTIONS,
    horizon: int = HORIZON,
    member: Mask | None = None,
    seed: int = 0,
) -> tuple[Outcome, ...]:
    """Draw questions whose answer is known: as many rises as falls, one a day, at least ``horizon`` days apart.

    Which side a day is asked about is drawn first, then a name of that side, so that who knows neither the day nor the
    name is right half of the time, whatever the market did.

    Parameters
    ----------
    days : array, (T,) datetime64[D]
    names : sequence of str, (N,)
        As they are shown to the model.
    close : array, (T, N)
        Adjusted prices; NaN where there is none.
    walls : Walls
        No price after the segment is used: a direction counts when it is known before the next segment begins.
    segment : {"train", "valid"}
        Of search or of tune.
    count : int
        Questions; fewer when the segment has too few days.
    horizon : int
        Trading days.
    member : array, (T, N) bool, optional
        Who may be asked about on which day. Default: all.
    seed : int

    Returns
    -------
    tuple of Outcome
        In order of time.

    Raises
    ------
    WallError
        A segment that is sealed, or read once.
    ConfigError, PanelError
        A count or horizon below 1, arrays that do not fit together.
    """
    calendar, prices = as_days(days), np.asarray(close, dtype=np.float64)
    if segment not in _OPEN_SEGMENTS:
        raise WallError(f"outcomes of {segment!r} were asked for; expected one of {_OPEN_SEGMENTS}; test stays sealed")
    if count < 1 or horizon < 1:
        raise ConfigError(f"count is {count} and horizon {horizon}; expected 1 or more of both; 40 and 5 are usual")
    if prices.shape != (len(calendar), len(names)):
        raise PanelError(
            f"close has shape {prices.shape}; expected ({len(calendar)}, {len(names)}), days by names; align them"
        )
    rng = np.random.default_rng(seed)
    usable = np.flatnonzero(walls.purged(calendar, segment, horizon))
    usable = usable[usable + horizon < len(calendar)]
    sides = rng.permutation(np.arange(count) % 2 == 0)
    found: list[Outcome] = []
    taken: list[int] = []
    for row in rng.permutation(usable):
        if len(found) == count:
            break
        if any(abs(int(row) - other) < horizon for other in taken):
            continue
        with np.errstate(invalid="ignore", divide="ignore"):
            moved = prices[row + horizon] / prices[row] - 1.0
        up = bool(sides[len(found)])
        there = (moved >= LEAST_MOVE) if up else (moved <= -LEAST_MOVE)
        if member is not None:
            there &= member[row]
        if not there.any():
            continue
        chosen = int(rng.choice(np.flatnonzero(there)))
        found.append(Outcome(calendar[row].item(), names[chosen], up, calendar[row + horizon].item()))
        taken.append(int(row))
    return tuple(sorted(found, key=lambda one: one.day))


def draw_cases(
    outcomes: Sequence[Outcome], days: Days, names: Sequence[str], close: Array, volume: Array, *, seed: int = 0
) -> tuple[Case, ...]:
    """Describe each question's name, and one beside it that did the opposite, by bars up to the close of its day.

    Parameters
    ----------
    outcomes : sequence of Outcome
    days, names, close
        As for :func:`draw_outcomes`.
    volume : array, (T, N)
    seed : int

    Returns
    -------
    tuple of Case
        Without those whose figures are missing.
    """
    calendar, rng = as_days(days), np.random.default_rng(seed)
    place = {name: number for number, name in enumerate(names)}
    cases = []
    for one in outcomes:
        row = int(np.searchsorted(calendar, np.datetime64(one.day, "D")))
        if row < _LOOK_BACK:
            continue
        with np.errstate(invalid="ignore", divide="ignore"):
            month = close[row] / close[row - _LOOK_BACK] - 1.0
        own = place[one.name]
        others = np.flatnonzero(np.sign(month) == -np.sign(month[own]))
        peer = names[int(rng.choice(others))] if len(others) else ""
        lines = [_facts(name, close[:, place[name]], volume[:, place[name]], row) for name in (one.name, peer) if name]
        if all(lines):
            cases.append(Case(one.day, one.name, peer, "\n".join(lines)))
    return tuple(cases)


def recall_requests(
    outcomes: Sequence[Outcome], model: str, revision: str = "", *, horizon: int = HORIZON
) -> list[Request]:
    """Ask what happened after each day to each name, and give nothing else."""
    return [_recall(str(one.day), one.name, model, revision, horizon) for one in outcomes]


def false_day_requests(
    outcomes: Sequence[Outcome], model: str, revision: str = "", *, horizon: int = HORIZON
) -> list[Request]:
    """Ask the same of days that cannot be remembered: by turns one that no calendar has, and one a century later."""
    false_days = (
        f"{one.day.year}-02-30" if number % 2 == 0 else f"{one.day.year + 100}-{one.day:%m-%d}"
        for number, one in enumerate(outcomes)
    )
    # 29 February of a year without it is as good as any.
    return [_recall(day, one.name, model, revision, horizon) for day, one in zip(false_days, outcomes, strict=True)]


def forecast_requests(
    cases: Sequence[Case], model: str, revision: str = "", *, horizon: int = HORIZON, sample: int = 0
) -> list[Request]:
    """Ask for a forecast from the facts of each case."""
    prompt = Prompt.read(_PROMPTS / "forecast.md")
    return [
        Request(
            purpose="memory probe: forecast",
            messages=prompt.messages(
                {"day": str(case.day), "name": case.name, "facts": case.facts, "horizon": str(horizon)}
            ),
            schema=Answer,
            model=model,
            revision=revision,
            max_tokens=_ANSWER_TOKENS,
            sample=sample,
            prompt=prompt.stamp,
            as_of=str(case.day),
        )
        for case in cases
    ]


def renamed(cases: Sequence[Case], *, seed: int = 0) -> tuple[Case, ...]:
    """Give each case invented names and the day of another case; its facts stay as they are."""
    rng = np.random.default_rng(seed)
    numbers = rng.permutation(9000)[: 2 * len(cases)] + 1000
    changed = []
    for place, case in enumerate(cases):
        day = cases[(place + max(1, len(cases) // 2)) % len(cases)].day
        new = (f"Company Q{numbers[2 * place]}", f"Company Q{numbers[2 * place + 1]}" if case.peer else "")
        facts = _exchanged(case.facts, {case.name: new[0], **({case.peer: new[1]} if case.peer else {})})
        changed.append(Case(day, *new, facts))
    return tuple(changed)


def jittered(cases: Sequence[Case], *, seed: int = 0, least: float = 0.001, most: float = 0.01) -> tuple[Case, ...]:
    """Change every figure with a decimal point by 0.1 to 1 percent of itself, up or down: no fact becomes another."""
    rng = np.random.default_rng(seed)

    def moved(figure: re.Match[str]) -> str:
        digits = len(figure.group().split(".")[1]) + 2
        factor = 1.0 + float(rng.choice((-1.0, 1.0))) * float(rng.uniform(least, most))
        return f"{float(figure.group()) * factor:.{digits}f}"

    return tuple(replace(case, facts=_FIGURE.sub(moved, case.facts)) for case in cases)


def flipped(cases: Sequence[Case]) -> tuple[tuple[int, FlipKind, Case], ...]:
    """Turn each case into its opposite, the ways of doing so by turns; a reader's answer must follow.

    ``facts``: signed figures change their sign, and words of direction, such as beat and miss, become their opposite;
    both at once, so that the new facts do not contradict each other. ``entity``: the two names change places in the
    facts, not in the question.

    Returns
    -------
    tuple of (place of the case, kind, changed case)
        Without cases that no way changes.
    """
    found: list[tuple[int, FlipKind, Case]] = []
    for place, case in enumerate(cases):
        for kind, facts in _flips(case, first=len(found)):
            if facts != case.facts:
                found.append((place, kind, replace(case, facts=facts)))
                break
    return tuple(found)


def flip(case: Case, kind: FlipKind) -> str:
    """Return the facts of a case, changed in one way; the same when there is nothing to change."""
    if kind == "entity":
        return _exchanged(case.facts, {case.name: case.peer, case.peer: case.name}) if case.peer else case.facts
    facts = _WORD.sub(lambda word: _like(word.group(), _OPPOSITE[word.group().lower()]), case.facts)
    return _SIGN.sub(lambda sign: "-" if sign.group() == "+" else "+", facts)


def _flips(case: Case, *, first: int) -> Iterator[tuple[FlipKind, str]]:
    for step in range(len(FLIPS)):
        kind = FLIPS[(first + step) % len(FLIPS)]
        yield kind, flip(case, kind)


def _recall(day: str, name: str, model: str, revision: str, horizon: int) -> Request:
    prompt = Prompt.read(_PROMPTS / "recall.md")
    return Request(
        purpose="memory probe: recall",
        messages=prompt.messages({"day": day, "name": name, "horizon": str(horizon)}),
        schema=Answer,
        model=model,
        revision=revision,
        max_tokens=_ANSWER_TOKENS,
        prompt=prompt.stamp,
    )


def _facts(name: str, close: Array, volume: Array, row: int) -> str:
    """Describe one name by its bars up to a row; empty when some are missing."""
    window, traded = close[row - _LOOK_BACK : row + 1], volume[row - _LOOK_BACK + 1 : row + 1]
    if not (np.isfinite(window).all() and np.isfinite(traded).all() and traded.mean() > 0):
        return ""
    day, week, month = (100.0 * (window[-1] / window[-1 - back] - 1.0) for back in (1, 5, _LOOK_BACK))
    side = "above" if window[-1] > window[1:].mean() else "below"
    return (
        f"{name}: return of the last day {day:+.2f} percent, of the last 5 days {week:+.2f} percent, of the last 20 "
        f"days {month:+.2f} percent; close {side} its mean of 20 days; volume {traded[-1] / traded.mean():.2f} times "
        "its mean of 20 days."
    )


def _exchanged(text: str, names: Mapping[str, str]) -> str:
    """Put names in the place of names, all at once, so that two can change places."""
    known = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.sub(known, lambda found: names[found.group()], text)


def _like(word: str, opposite: str) -> str:
    return opposite.capitalize() if word[0].isupper() else opposite
