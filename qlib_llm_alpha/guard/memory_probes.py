"""Whether a language model answers from memory: five probes, each a question to it and a test of what it says.

==========  ==========================================================  ==========================================
probe       what is asked                                               memory shows as
==========  ==========================================================  ==========================================
recall      day and name only: did it rise or fall?                     more right answers than chance gives
false_day   the same of days that no calendar has, or far in the        days that were are claimed to be known,
            future                                                      days that were not are not
renamed     the same facts under another name and day                   answers that move
jitter      figures changed by 0.1 to 1 percent                         answers that move: exact values are keys
flips       facts turned into their opposite                            answers that do not move
==========  ==========================================================  ==========================================

A server may answer the same question differently twice, so that the facts are asked about twice as they are, and a
change counts only beyond what the repetition shows. Tests are exact or by random turning, one-sided, at p < 0.01. What
a probe does not find proves no absence: models recognise many masked firms and days.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite, nan
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, rankdata

from qlib_llm_alpha.errors import LLMFailure, PanelError
from qlib_llm_alpha.evaluation.statistics import finite_or_none
from qlib_llm_alpha.evaluation.walls import Walls
from qlib_llm_alpha.guard.memory_questions import (
    HORIZON,
    Answer,
    Case,
    Outcome,
    check_outcomes,
    false_day_requests,
    flipped,
    forecast_requests,
    jittered,
    recall_requests,
    renamed,
)
from qlib_llm_alpha.llm.request import Completion, Request

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Answers = Sequence[Completion | LLMFailure]
Verdict = Literal["memory", "claims", "guessing", "clean", "not applicable"]

LEVEL: Final = 0.01
"""A probe fires below this p."""
DRAWS: Final = 9999
LEAST_PAIRS: Final = 8
"""Fewer answered pairs cannot reach the level by turning signs: 2 to the power of -7 is 0.008."""
MATERIAL: Final = 0.05
"""A smaller mean change of a probability is no change."""
SAME_ORDER: Final = 0.9
"""Rank correlation from which on two sets of answers are the same."""


class Asks(Protocol):
    """What the probes need of ``llm.client.Client``."""

    model: str
    revision: str

    def complete(self, requests: Sequence[Request]) -> list[Completion | LLMFailure]:
        """Answer requests in their order."""
        ...


@dataclass(frozen=True)
class ProbeFinding:
    """What one probe says about one model.

    It is no ``guard.finding.Finding``: that accuses a handler of knowing the future, this a model of having read it,
    and a probe may also find that a model guesses.

    Parameters
    ----------
    probe : str
        ``recall``, ``false_day``, ``renamed``, ``jitter`` or ``flips``.
    model : str
    verdict : {"memory", "claims", "guessing", "clean", "not applicable"}
        ``claims``: it answers as if it remembered. ``guessing``: it answers what nobody can know. ``not applicable``:
        too few usable answers; the sentence says so.
    statistic, p : float
        NaN where there is none.
    counts : mapping
        Numbers for programs: asked, answered, failed, and what the sentence names.
    sentence : str
    """

    probe: str
    model: str
    verdict: Verdict
    statistic: float
    p: float
    counts: Mapping[str, float]
    sentence: str

    @property
    def fired(self) -> bool:
        """Whether it found memory."""
        return self.verdict == "memory"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        counts = {name: finite_or_none(value) for name, value in self.counts.items()}
        return {name: finite_or_none(value) for name, value in asdict(self).items()} | {"counts": counts}


def recall_probe(
    client: Asks, outcomes: Sequence[Outcome], walls: Walls, *, horizon: int = HORIZON, seed: int = 0
) -> ProbeFinding:
    """Ask by day and name only what happened; nothing in the question tells it.

    Parameters
    ----------
    client : Asks
    outcomes : sequence of Outcome
        As from ``memory_questions.draw_outcomes``.
    walls : Walls
        Of the run: outcomes outside search and tune are refused.
    horizon : int
        Trading days, as the outcomes have it.
    seed : int
        Of the permutations.

    Raises
    ------
    WallError, ConfigError
        An outcome that may not be looked at; several of one day.
    """
    check_outcomes(outcomes, walls)
    answers = client.complete(recall_requests(outcomes, client.model, client.revision, horizon=horizon))
    return score_recall(outcomes, answers, model=client.model, seed=seed)


def false_day_probe(client: Asks, outcomes: Sequence[Outcome], walls: Walls, *, horizon: int = HORIZON) -> ProbeFinding:
    """Ask the same of days that were and of days that cannot be known; parameters as for :func:`recall_probe`."""
    check_outcomes(outcomes, walls)
    real = recall_requests(outcomes, client.model, client.revision, horizon=horizon)
    false = false_day_requests(outcomes, client.model, client.revision, horizon=horizon)
    answers = client.complete([*real, *false])
    return score_false_days(answers[: len(real)], answers[len(real) :], model=client.model)


def facts_probes(
    client: Asks, cases: Sequence[Case], *, horizon: int = HORIZON, seed: int = 0
) -> tuple[ProbeFinding, ProbeFinding, ProbeFinding]:
    """Ask about facts as they are, twice, and as they are changed: the probes ``renamed``, ``jitter`` and ``flips``.

    Parameters
    ----------
    client : Asks
    cases : sequence of Case
    horizon : int
        Trading days.
    seed : int
        Of invented names, of changed figures, and of the tests.
    """
    asked = facts_requests(cases, client.model, client.revision, horizon=horizon, seed=seed)
    answers = client.complete([request for part in asked.values() for request in part])
    return score_facts(cases, shared_out(answers, asked), model=client.model, seed=seed)


def facts_requests(
    cases: Sequence[Case], model: str, revision: str = "", *, horizon: int = HORIZON, seed: int = 0
) -> dict[str, list[Request]]:
    """Return the questions of :func:`facts_probes` by name."""

    def asked(some: Sequence[Case], sample: int = 0) -> list[Request]:
        return forecast_requests(some, model, revision, horizon=horizon, sample=sample)

    return {
        "original": asked(cases),
        "repeat": asked(cases, sample=1),
        "renamed": asked(renamed(cases, seed=seed)),
        "jitter": asked(jittered(cases, seed=seed)),
        "flips": asked([case for _, _, case in flipped(cases)]),
    }


def shared_out(answers: Answers, asked: Mapping[str, Sequence[Request]]) -> dict[str, Answers]:
    """Cut the answers of one call into the parts that were asked, in their order."""
    parts, begin = {}, 0
    for name, requests in asked.items():
        parts[name] = answers[begin : begin + len(requests)]
        begin += len(requests)
    return parts


def score_recall(
    outcomes: Sequence[Outcome], answers: Answers, *, model: str = "", seed: int = 0, draws: int = DRAWS
) -> ProbeFinding:
    """Test whether a model was right more often than chance.

    Two tests must agree, and the larger p counts. The exact binomial test of the answered questions; its chance is that
    of answers in these shares of up and down, at least one half, so that a market that mostly rose does not accuse who
    always says up. And a permutation of what happened over the days, with each answer weighted by its probability.

    Parameters
    ----------
    outcomes : sequence of Outcome
    answers : sequence of Completion or LLMFailure
        One for each; a failure is no answer.
    model : str
    seed, draws : int
        Of the permutations.

    Raises
    ------
    PanelError
        Not one answer for each outcome.
    """
    _same_length(len(outcomes), answers)
    said, unknown = signed(answers), _unknown(answers)
    truth = np.array([1.0 if one.up else -1.0 for one in outcomes])
    given = np.isfinite(said) & (said != 0)
    asked, answered = len(outcomes), int(given.sum())
    right = int((np.sign(said[given]) == truth[given]).sum())
    failed = sum(isinstance(answer, LLMFailure) for answer in answers)
    counts = {
        "asked": asked,
        "answered": answered,
        "right": right,
        "failed": failed,
        "mass_unknown": float(unknown[~np.isnan(unknown)].mean()) if not np.isnan(unknown).all() else nan,
    }
    if asked == 0 or failed == asked:
        return _not_applicable("recall", model, counts, f"{failed} of {asked} questions failed, and none was answered")
    share = right / answered if answered else nan
    p = 1.0
    if answered:
        ups = float((said[given] > 0).mean())
        rose = float((truth[given] > 0).mean())
        chance = max(0.5, ups * rose + (1.0 - ups) * (1.0 - rose))
        counts["chance"] = chance
        exact = float(binom.sf(right - 1, answered, chance))
        p = max(exact, _permutation_p(said[given], truth[given], seed, draws))
    words = (
        f"asked by day and name only, {model or 'the model'} answered {answered} of {asked} questions, {right} of them "
        f"right ({_p_words(p)})"
    )
    if p < LEVEL:
        return ProbeFinding("recall", model, "memory", share, p, counts, f"{words}: it remembers")
    return ProbeFinding("recall", model, "clean", share, p, counts, f"{words}: no more than chance gives")


def score_false_days(real: Answers, false: Answers, *, model: str = "") -> ProbeFinding:
    """Compare the answers about days that were with those about days that cannot be known.

    The statistic is the share of real days that were answered less that of false days; p is that of McNemar's exact
    test that real days are answered more often. ``claims``: they are, whether or not the answers are right, which only
    the recall probe can say. ``guessing``: at least half of the false days are answered, so that answers of this model
    claim nothing; their share is the rate to compare its answers to real days with.

    Parameters
    ----------
    real, false : sequence of Completion or LLMFailure
        Pairs, in one order. A pair with a failure does not count.
    model : str
    """
    _same_length(len(real), false)
    whole = np.array(
        [not isinstance(a, LLMFailure) and not isinstance(b, LLMFailure) for a, b in zip(real, false, strict=True)],
        dtype=np.bool_,
    )
    on_real, on_false = (np.isfinite(signed(answers))[whole] for answers in (real, false))
    pairs = int(whole.sum())
    only_real, only_false = int((on_real & ~on_false).sum()), int((on_false & ~on_real).sum())
    counts: dict[str, float] = {
        "asked": len(real),
        "pairs": pairs,
        "answered_real": int(on_real.sum()),
        "answered_false": int(on_false.sum()),
        "only_real": only_real,
        "only_false": only_false,
        "surety_real": _surety(real, whole),
        "surety_false": _surety(false, whole),
    }
    if pairs < LEAST_PAIRS:
        return _not_applicable("false_day", model, counts, f"only {pairs} pairs were answered without a failure")
    shares = float(on_real.mean()), float(on_false.mean())
    discordant = only_real + only_false
    p = float(binom.sf(only_real - 1, discordant, 0.5)) if discordant else 1.0
    words = f"it answered {shares[0]:.0%} of {pairs} days that were and {shares[1]:.0%} of days that cannot be known"
    verdict: Verdict = "clean"
    if p < LEVEL:
        verdict, words = "claims", f"{words} ({_p_words(p)}): it claims to know the days that were"
    elif shares[1] >= 0.5:
        verdict, words = "guessing", f"{words}: it guesses, and its answers claim nothing"
    else:
        words = f"{words} ({_p_words(p)}): it claims no more of the days that were"
    return ProbeFinding("false_day", model, verdict, shares[0] - shares[1], p, counts, words)


def score_facts(
    cases: Sequence[Case], answers: Mapping[str, Answers], *, model: str = "", seed: int = 0, draws: int = DRAWS
) -> tuple[ProbeFinding, ProbeFinding, ProbeFinding]:
    """Score the answers to :func:`facts_requests`, by the same names."""
    original, repeat = up_probability(answers["original"]), up_probability(answers["repeat"])
    turned = np.full(len(cases), nan)
    # A case that no way changes was not asked again.
    turned[[place for place, _, _ in flipped(cases)]] = up_probability(answers["flips"])
    other_name, other_figures = up_probability(answers["renamed"]), up_probability(answers["jitter"])
    return (
        score_unmoved("renamed", original, repeat, other_name, model=model, seed=seed, draws=draws),
        score_unmoved("jitter", original, repeat, other_figures, model=model, seed=seed, draws=draws),
        score_flips(original, repeat, turned, model=model, seed=seed, draws=draws),
    )


def score_unmoved(
    probe: Literal["renamed", "jitter"],
    original: Array,
    repeat: Array,
    changed: Array,
    *,
    model: str = "",
    seed: int = 0,
    draws: int = DRAWS,
) -> ProbeFinding:
    """Test whether a change that means nothing moves the answers.

    It fires when answers move more than in the repetition (signs of the paired differences turned at random, p < 0.01),
    the order of the answers is not kept (rank correlation below 0.9), and the mean move is 0.05 or more.

    Parameters
    ----------
    probe : {"renamed", "jitter"}
    original, repeat, changed : array, (n,)
        Probability of a rise as :func:`up_probability` has it; NaN left out.
    model : str
    seed, draws : int
        Of the random turning.
    """
    there = np.isfinite(original) & np.isfinite(repeat) & np.isfinite(changed)
    pairs = int(there.sum())
    before, again, after = original[there], repeat[there], changed[there]
    moves, noise = np.abs(after - before), np.abs(again - before)
    correlation = _rank_correlation(before, after)
    counts: dict[str, float] = {
        "asked": len(original),
        "pairs": pairs,
        "rank_correlation": correlation,
        "mean_move": float(moves.mean()) if pairs else nan,
        "mean_move_repeated": float(noise.mean()) if pairs else nan,
        "same_direction": float(((before > 0.5) == (after > 0.5)).mean()) if pairs else nan,
        "surety_change": float((np.abs(after - 0.5) - np.abs(before - 0.5)).mean()) if pairs else nan,
    }
    if pairs < LEAST_PAIRS:
        return _not_applicable(probe, model, counts, f"only {pairs} of {len(original)} cases were answered each time")
    p = _turning_p(moves - noise, seed, draws)
    kept = correlation >= SAME_ORDER or not isfinite(correlation)
    what = "under other names and days" if probe == "renamed" else "when figures change by 0.1 to 1 percent"
    order = f"rank correlation {correlation:.2f}, " if isfinite(correlation) else ""
    words = f"{what}, {pairs} answers move by {counts['mean_move']:.3f} on average ({order}{_p_words(p)})"
    if p < LEVEL and not kept and counts["mean_move"] >= MATERIAL:
        key = "names and days" if probe == "renamed" else "exact figures"
        return ProbeFinding(probe, model, "memory", correlation, p, counts, f"{words}: {key} are its key to something")
    return ProbeFinding(probe, model, "clean", correlation, p, counts, f"{words}: it stays with its answers")


def score_flips(
    original: Array, repeat: Array, turned: Array, *, model: str = "", seed: int = 0, draws: int = DRAWS
) -> ProbeFinding:
    """Test whether facts that are turned into their opposite move the answers that way.

    The statistic is the mean move away from the first answer's side, less that of the repetition; p is that of turned
    signs, small for a model that reads. It is found to remember (or not to read) when that cannot be shown.

    Parameters
    ----------
    original, repeat, turned : array, (n,)
        Probability of a rise; NaN left out, and first answers of exactly one half.
    model : str
    seed, draws : int
        Of the random turning.
    """
    there = np.isfinite(original) & np.isfinite(repeat) & np.isfinite(turned) & (original != 0.5)
    pairs = int(there.sum())
    moved = np.sign(original[there] - 0.5) * (repeat[there] - turned[there])
    over = (original[there] > 0.5) != (turned[there] > 0.5)
    counts: dict[str, float] = {"asked": len(turned), "pairs": pairs, "changed_sides": int(over.sum())}
    if pairs < LEAST_PAIRS:
        return _not_applicable("flips", model, counts, f"only {pairs} of {len(turned)} cases were answered each time")
    mean, p = float(moved.mean()), _turning_p(moved, seed, draws)
    words = (
        f"when facts are turned into their opposite, {counts['changed_sides']} of {pairs} answers change sides, and "
        f"they move by {mean:.3f} on average ({_p_words(p)})"
    )
    if p < LEVEL and mean >= MATERIAL:
        return ProbeFinding("flips", model, "clean", mean, p, counts, f"{words}: it reads what it is given")
    what = "it does not read what it is given, and recalls or guesses"
    return ProbeFinding("flips", model, "memory", mean, p, counts, f"{words}: {what}")


def signed(answers: Answers) -> Array:
    """Return each answer's probability with the sign of its direction, (n,); NaN for unknown and for failures."""
    found = np.full(len(answers), nan)
    for place, answer in enumerate(answers):
        value = _answer(answer)
        if value is not None and value.direction != "unknown":
            found[place] = value.probability if value.direction == "up" else -value.probability
    return found


def up_probability(answers: Answers) -> Array:
    """Return the probability of a rise that each answer states, (n,); NaN for unknown and for failures."""
    said = signed(answers)
    return np.where(np.signbit(said), 1.0 + said, said)


def _answer(answer: Completion | LLMFailure) -> Answer | None:
    if isinstance(answer, LLMFailure) or not isinstance(answer.value, Answer):
        return None
    return answer.value


def _unknown(answers: Answers) -> Array:
    """Return the probability that each answer gives to not knowing; NaN for failures."""
    found = np.full(len(answers), nan)
    for place, answer in enumerate(answers):
        value = _answer(answer)
        if value is not None:
            found[place] = value.probability if value.direction == "unknown" else 0.0
    return found


def _surety(answers: Answers, whole: Mask) -> float:
    said = np.abs(signed(answers)[whole])
    said = said[np.isfinite(said)]
    return float(said.mean()) if len(said) else nan


def _permutation_p(said: Array, truth: Array, seed: int, draws: int) -> float:
    """Return how often the answers agree as well with what happened in another order of the days."""
    rng = np.random.default_rng(seed)
    orders = rng.permuted(np.tile(truth, (draws, 1)), axis=1)
    return float((1 + int((orders @ said >= said @ truth - 1e-9).sum())) / (1 + draws))


def _turning_p(differences: Array, seed: int, draws: int) -> float:
    """Return how often a mean is as large when the sign of each difference is drawn."""
    rng = np.random.default_rng(seed)
    signs = rng.choice(np.array([-1.0, 1.0]), size=(draws, len(differences)))
    return float((1 + int((signs @ differences >= differences.sum() - 1e-9).sum())) / (1 + draws))


def _rank_correlation(one: Array, other: Array) -> float:
    """Return Spearman's rank correlation; NaN when one side does not vary."""
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return nan
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])


def _p_words(p: float) -> str:
    return f"p {p:.4f}" if p >= 0.0001 else "p below 0.0001"


def _not_applicable(probe: str, model: str, counts: Mapping[str, float], why: str) -> ProbeFinding:
    return ProbeFinding(probe, model, "not applicable", nan, nan, counts, f"{why}: nothing can be said")


def _same_length(count: int, answers: Answers) -> None:
    if len(answers) != count:
        raise PanelError(f"{count} questions have {len(answers)} answers; expected one for each, in order")
