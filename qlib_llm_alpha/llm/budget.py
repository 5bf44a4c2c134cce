"""A hard stop on what calls to models cost: the worst case is set aside before a call, the truth is booked after."""

from __future__ import annotations

import itertools
import math
import threading
from dataclasses import dataclass, field
from typing import Final

from qlib_llm_alpha.errors import BudgetError, ConfigError
from qlib_llm_alpha.llm.models import ModelInfo
from qlib_llm_alpha.llm.request import Request, Usage
from qlib_llm_alpha.llm.schema import schema_text

# What a server adds to a request by itself: marks around each turn, and its own words around a schema.
_TOKENS_OF_A_TURN: Final = 16
_TOKENS_OF_A_REQUEST: Final = 200
# Money is counted in millionths of a millionth of a dollar, as whole numbers, so that no sum is rounded.
_PARTS_OF_A_DOLLAR: Final = 10**12


@dataclass(frozen=True)
class Spent:
    """What was booked: US dollars, None once a call of unknown price was booked; tokens of prompts and answers."""

    usd: float | None
    tokens: int


@dataclass(frozen=True)
class Reservation:
    """What a call may cost at most, set aside until it is settled; made by :meth:`Budget.reserve`."""

    prompt: int
    answer: int
    price: tuple[int, int] | None = field(repr=False)
    number: int = field(repr=False)

    @property
    def tokens(self) -> int:
        """Tokens of prompt and answer."""
        return self.prompt + self.answer


@dataclass(frozen=True)
class Charge:
    """What one attempt may have cost.

    Parameters
    ----------
    key : str
        Of the request; empty for embeddings.
    model : str
    outcome : str
        ``answered``, ``cancelled``, or a kind of ``failures.KINDS``.
    usage : Usage
        As the server counted.
    bound : Usage
        The same; where the server did not count, the most that it can have been.
    """

    key: str
    model: str
    outcome: str
    usage: Usage
    bound: Usage

    @classmethod
    def within(cls, key: str, model: str, outcome: str, usage: Usage | None, most: tuple[int, int]) -> Charge:
        """Return the charge of an attempt whose prompt and answer have so many tokens at most."""
        usage = usage or Usage()
        prompt, answer = most
        bound = Usage(
            prompt if usage.prompt is None else usage.prompt, answer if usage.answer is None else usage.answer
        )
        return cls(key, model, outcome, usage, bound)

    @classmethod
    def of(cls, request: Request, outcome: str, usage: Usage | None = None) -> Charge:
        """Return the charge of one attempt at a request, an image counting as it does for an unknown model."""
        most = prompt_bound(request, ModelInfo(request.model)), request.max_tokens
        return cls.within(request.key, request.model, outcome, usage, most)


class Budget:
    """Limits in money, in tokens, in both or in none; safe for threads and for tasks of one thread.

    Parameters
    ----------
    usd : float, optional
        US dollars in all, ``spent_usd`` included. Every model that is asked must then have a price.
    tokens : int, optional
        Tokens of prompts and answers in all, ``spent_tokens`` included.
    spent_usd : float, optional
        What an interrupted session spent already; None when that is unknown.
    spent_tokens : int

    Raises
    ------
    ConfigError
        A figure is negative or no number, or a limit in money is set and what was spent is unknown.

    Notes
    -----
    Settled plus set aside never passes a limit. What a server counts beyond the worst case that was set aside (more
    tokens than bytes, or thoughts that it does not count against the limit of the answer) is booked in full and stops
    the next call.
    """

    def __init__(
        self,
        usd: float | None = None,
        tokens: int | None = None,
        spent_usd: float | None = 0.0,
        spent_tokens: int = 0,
    ) -> None:
        for name, value in (("usd", usd), ("tokens", tokens), ("spent_usd", spent_usd), ("spent_tokens", spent_tokens)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"budget: {name} is {value}; expected a number from 0 on; mend it")
        if usd is not None and spent_usd is None:
            raise ConfigError(
                "budget: a limit in US dollars is set, but earlier calls were of a model without a price; give the "
                "model a price in the model registry, or set a budget in tokens"
            )
        self.usd = usd
        self.tokens = tokens
        self._limit = None if usd is None else _parts(usd)
        self._spent = None if spent_usd is None else _parts(spent_usd)
        self._spent_tokens = spent_tokens
        self._open: dict[int, Reservation] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    @property
    def spent(self) -> Spent:
        """What was booked so far, without what is set aside."""
        with self._lock:
            return Spent(None if self._spent is None else self._spent / _PARTS_OF_A_DOLLAR, self._spent_tokens)

    def reserve(self, request: Request, info: ModelInfo) -> Reservation:
        """Set aside the worst case of one attempt at a request.

        Raises
        ------
        BudgetError
            A limit would be passed, or there is one in money and the model has no price. Nothing was set aside.
        """
        return self.reserve_tokens(prompt_bound(request, info), request.max_tokens, info)

    def reserve_tokens(self, prompt: int, answer: int, info: ModelInfo) -> Reservation:
        """Set aside so many tokens of a model; raises as :meth:`reserve` does."""
        price = None if info.price_per_million is None else _per_token(info.price_per_million)
        if self._limit is not None and price is None:
            raise BudgetError(
                f"the budget is in US dollars and the price of {info.name!r} is unknown; nothing was sent; give it "
                "price_per_million: [prompt, answer] in a model registry of your own ([0, 0] for a server that costs "
                "nothing), or set a budget in tokens"
            )
        with self._lock:
            asked = Reservation(prompt, answer, price, next(self._numbers))
            self._check(asked)
            self._open[asked.number] = asked
        return asked

    def settle(self, reservation: Reservation, usage: Usage | None = None) -> None:
        """Book what a call cost and free what was set aside.

        Parameters
        ----------
        reservation : Reservation
        usage : Usage, optional
            As the server counted. What it did not say is booked as it was reserved. Cached tokens are booked at the
            full price, since discounts differ.

        Raises
        ------
        ValueError
            The reservation was settled before, or is another budget's; a mistake of ours.
        """
        usage = usage or Usage()
        prompt = reservation.prompt if usage.prompt is None else usage.prompt
        answer = reservation.answer if usage.answer is None else usage.answer
        with self._lock:
            self._close(reservation)
            self._spent_tokens += prompt + answer
            cost = _cost(prompt, answer, reservation.price)
            self._spent = None if cost is None or self._spent is None else self._spent + cost

    def release(self, reservation: Reservation) -> None:
        """Free what was set aside for a call that cost nothing; raises as :meth:`settle` does."""
        with self._lock:
            self._close(reservation)

    def _close(self, reservation: Reservation) -> None:
        if self._open.pop(reservation.number, None) is not reservation:
            raise ValueError(f"reservation {reservation.number} is not open here")

    def _check(self, asked: Reservation) -> None:
        held = self._open.values()
        tokens = self._spent_tokens + sum(one.tokens for one in held)
        if self.tokens is not None and tokens + asked.tokens > self.tokens:
            raise BudgetError(
                f"the next call may take {asked.tokens} tokens; {self._spent_tokens} are spent and "
                f"{tokens - self._spent_tokens} set aside of {self.tokens}; nothing was sent; raise the budget in "
                "tokens and resume the session"
            )
        if self._limit is None or self._spent is None:
            return
        in_flight = sum(_cost(one.prompt, one.answer, one.price) or 0 for one in held)
        cost = _cost(asked.prompt, asked.answer, asked.price) or 0
        if self._spent + in_flight + cost > self._limit:
            raise BudgetError(
                f"the next call may cost {_shown(cost)}; {_shown(self._spent)} are spent and {_shown(in_flight)} set "
                f"aside of {_shown(self._limit)}; nothing was sent; raise the budget in US dollars and resume the "
                "session"
            )


def prompt_bound(request: Request, info: ModelInfo) -> int:
    """Return how many tokens a request's prompt can be at most: no tokenizer makes more tokens than there are bytes.

    The schema is counted on every rung of the ladder, since the server or we put it into the prompt; an image counts as
    ``info.image_tokens``.
    """
    texts = sum(text_bound(message.text) + _TOKENS_OF_A_TURN for message in request.messages)
    images = sum(len(message.images) for message in request.messages) * info.image_tokens
    return texts + images + text_bound(schema_text(request.schema)) + _TOKENS_OF_A_REQUEST


def text_bound(text: str) -> int:
    """Return how many tokens a text can be at most: its bytes."""
    return len(text.encode("utf-8", "surrogatepass"))


def _parts(usd: float) -> int:
    return round(usd * _PARTS_OF_A_DOLLAR)


def _per_token(price_per_million: tuple[float, float]) -> tuple[int, int]:
    prompt, answer = price_per_million
    # Upwards, so that a price with more digits than we count in never becomes a lower one.
    return math.ceil(_parts(prompt) / 10**6), math.ceil(_parts(answer) / 10**6)


def _cost(prompt: int, answer: int, price: tuple[int, int] | None) -> int | None:
    return None if price is None else prompt * price[0] + answer * price[1]


def _shown(parts: int) -> str:
    return f"{parts / _PARTS_OF_A_DOLLAR:.6f} US dollars"
