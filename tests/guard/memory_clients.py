"""Markets to ask about, and clients that answer by a stated rule: scripts, not language models."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from datetime import date

import numpy as np

from qlib_llm_alpha.errors import LLMFailure
from qlib_llm_alpha.evaluation.walls import Walls
from qlib_llm_alpha.guard.memory_questions import Answer, Case, Outcome, draw_cases, draw_outcomes
from qlib_llm_alpha.llm.models import ModelInfo
from qlib_llm_alpha.llm.request import Completion, Request, Usage
from tests.support.scripted import ScriptedClient

DAYS = np.busday_offset("2018-01-02", np.arange(800), roll="forward").astype("datetime64[D]")
WALLS = Walls.from_segments(
    {"train": ("2018-01-02", "2019-12-31"), "valid": ("2020-01-02", "2020-06-30"), "test": ("2020-07-01", "2020-12-31")}
)
NAMES = tuple(f"SH6000{number:02d}" for number in range(12))


def model_info(cut_off: date | None, tuned: date | None = None, name: str = "some-model") -> ModelInfo:
    return ModelInfo(
        name=name,
        revision="",
        knowledge_cutoff=cut_off,
        privacy="local",
        images=False,
        schema_modes=("json_schema",),
        max_tokens_field="max_tokens",
        price_per_million=None,
        context=None,
        fine_tuned_until=tuned,
    )


def market(seed: int, drift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return close and volume, (T, N), of independent walks."""
    rng = np.random.default_rng(seed)
    close = 20.0 * np.exp(np.cumsum(rng.normal(drift, 0.02, (len(DAYS), len(NAMES))), axis=0))
    return close, rng.lognormal(10.0, 0.3, close.shape)


def questions(seed: int, count: int = 40) -> tuple[Outcome, ...]:
    close, _ = market(seed)
    return draw_outcomes(DAYS, NAMES, close, WALLS, count=count, seed=seed)


def fact_cases(seed: int, count: int = 40) -> tuple[Case, ...]:
    close, volume = market(seed)
    return draw_cases(questions(seed, count), DAYS, NAMES, close, volume, seed=seed)


class Says(ScriptedClient):
    """A scripted client whose answers are values; what is asked is kept, call by call."""

    def __init__(self, answer: Callable[[Request], Answer | LLMFailure], model: str = "scripted") -> None:
        super().__init__(lambda request: _text(answer(request)), model=model)
        self.batches: list[list[Request]] = []

    def complete(self, requests: Sequence[Request]) -> list[Completion | LLMFailure]:
        self.batches.append(list(requests))
        return super().complete(requests)


def _text(value: Answer | LLMFailure) -> str | LLMFailure:
    return value if isinstance(value, LLMFailure) else value.model_dump_json()


def as_answers(values: Sequence[Answer | LLMFailure]) -> list[Completion | LLMFailure]:
    """Return answers as a client would."""
    return [
        value if isinstance(value, LLMFailure) else Completion(value, "", Usage(), (), "scripted", False)
        for value in values
    ]


def asked_of(request: Request) -> dict[str, str]:
    """Return day and name of a question, and the facts where it gives some."""
    text = request.messages[-1].text
    found = {key.lower(): re.search(rf"^{key}: (.+)$", text, re.MULTILINE) for key in ("Day", "Name")}
    return {key: one.group(1) for key, one in found.items() if one is not None} | {"text": text}


def dice(*words: object) -> float:
    """Return a number from 0 to 1 that depends on the words alone."""
    return int(hashlib.sha256("|".join(map(str, words)).encode()).hexdigest()[:8], 16) / 2**32


def up(p: float) -> Answer:
    return Answer(direction="up" if p >= 0.5 else "down", probability=max(p, 1.0 - p))


UNKNOWN = Answer(direction="unknown", probability=0.9)


def reader(seed: int, noise: float = 0.0) -> Callable[[Request], Answer]:
    """Read the signed figures and the word about the mean in the line of the name that is asked about."""

    def answer(request: Request) -> Answer:
        asked = asked_of(request)
        line = next(one for one in asked["text"].splitlines() if one.startswith(f"{asked['name']}:"))
        day, week, month = (float(one) for one in re.findall(r"([+-]\d+\.\d+) percent", line))
        side = 1.0 if "above" in line else -1.0
        strength = -0.05 * day - 0.02 * week - 0.01 * month - 0.5 * side
        shaken = strength + noise * (dice(seed, request.key) - 0.5)
        return up(1.0 / (1.0 + np.exp(-shaken)))

    return answer


def stubborn(seed: int, noise: float = 0.0) -> Callable[[Request], Answer]:
    """Go by name and day alone, whatever the facts say."""

    def answer(request: Request) -> Answer:
        asked = asked_of(request)
        said = 0.1 + 0.8 * dice(seed, asked["day"], asked["name"])
        return up(min(1.0, max(0.0, said + noise * (dice(seed, request.key) - 0.5))))

    return answer


def exact(seed: int) -> Callable[[Request], Answer]:
    """Know the very figures by heart: any other text is another question."""
    return lambda request: up(dice(seed, request.messages[-1].text))
