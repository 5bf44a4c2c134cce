"""Whether the language models that proposed a run's factors can know the days on which they are tested."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any, Final

from qlib_llm_alpha.guard.model_window import WindowStatus, is_written, plain_name, window_status
from qlib_llm_alpha.library.factor_set import FactorSet
from qlib_llm_alpha.llm.models import ModelInfo, ModelRegistry
from qlib_llm_alpha.record.openings import configured_set, handler_of
from qlib_llm_alpha.record.task_check import closed_segments

NO_MODELS: Final = ("seed", "human", "random", "genetic")
"""Origins of factors that no language model proposed."""


def memory_of(dataset: Any, *, today: date, registry: ModelRegistry | None = None) -> dict[str, WindowStatus | None]:
    """Say what each model among the origins of a dataset's factors can know of its test segment.

    Parameters
    ----------
    dataset : DatasetH or mapping
        With a factor set's handler, or the configuration of one; any other has no origins.
    today : date
        An unknown cut-off counts as this day.
    registry : ModelRegistry, optional
        Default: the one of this package.

    Returns
    -------
    dict of str to WindowStatus or None
        By origin, sorted; None for answers that people wrote. Empty without a model, or without a test segment.
    """
    factors = factor_set_of(dataset)
    origins = [] if factors is None else sorted({factor.origin for factor in factors.factors} - set(NO_MODELS))
    ends = _test_ends(dataset) if origins else None
    if ends is None:
        return {}
    known = ModelRegistry.of() if registry is None else registry
    return {
        origin: None if is_written(origin) else window_status(*ends, info_of(origin, known), today=today)
        for origin in origins
    }


def memory_words(memory: Mapping[str, WindowStatus | None]) -> tuple[str, ...]:
    """Return, for each origin, what the evidence line says of it."""
    return tuple(
        f"{origin}: {'none, a stated rule or people gave the answers' if status is None else status.words}"
        for origin, status in memory.items()
    )


def info_of(origin: str, registry: ModelRegistry) -> ModelInfo:
    """Return what is known of the model that an origin names; of several of that name, the one that knows most.

    Names are compared by their letters and digits: mining writes ``gpt-4o`` as ``gpt_4o``.
    """
    named = [name for name in registry.names() if plain_name(origin) in (plain_name(name), f"model_{plain_name(name)}")]
    infos = [registry.get(name) for name in named] or [ModelInfo(origin)]
    return max(infos, key=_known_until)


def factor_set_of(dataset: Any) -> FactorSet | None:
    """Return the factor set of a dataset or of its configuration; None for another handler."""
    handler = handler_of(dataset)
    found = getattr(handler, "factor_set", None)
    return found if isinstance(found, FactorSet) else configured_set(handler)


def _known_until(info: ModelInfo) -> date:
    if info.knowledge_cutoff is None:
        return date.max
    return max(info.knowledge_cutoff, info.fine_tuned_until or info.knowledge_cutoff)


def _test_ends(dataset: Any) -> tuple[Any, Any] | None:
    given = (dataset.get("kwargs") or {}).get("segments") if isinstance(dataset, Mapping) else None
    segments = given if isinstance(dataset, Mapping) else getattr(dataset, "segments", None)
    if not isinstance(segments, Mapping) or segments.get("test") is None:
        return None
    ends = segments["test"]
    if isinstance(ends, slice) or None in ends:
        ends = closed_segments({"test": ends})["test"]
    return ends[0], ends[1]
