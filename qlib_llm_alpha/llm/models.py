"""The model registry: what we know of a model before we ask it, from a file that the user may add to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, get_args

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.llm.settings import is_loopback

SchemaMode = Literal["json_schema", "json_object_schema", "json_object", "prompt"]
LADDER: Final[tuple[SchemaMode, ...]] = get_args(SchemaMode)
SHIPPED: Final = Path(__file__).with_name("models.yaml")


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model; the defaults are what is assumed of one that nobody described.

    Parameters
    ----------
    name : str
        As the endpoint knows it.
    revision : str
        Of the weights, where the user pins one; part of a request's key.
    knowledge_cutoff : date, optional
        Last day of what the model was trained on. None is unknown and counts as today.
    privacy : str
        ``local``: texts marked private may go there. ``remote``: they may not.
    images : bool
        Sees images. A server may take an image that its model never sees, so ask this before sending one.
    schema_modes : tuple of str
        Rungs of the ladder that the endpoint is known to take, best first; empty is unknown: all are tried.
    max_tokens_field : str
        How the endpoint calls the limit of the answer.
    price_per_million : (float, float), optional
        US dollars for a million tokens of prompt and of answer. None is unknown, never free.
    context : int, optional
        Tokens of prompt and answer together; None is unknown.
    fine_tuned_until : date, optional
        Last day of what it was fine-tuned on later; None when it was not, or nobody said so.
    image_tokens : int
        The most that one image can count as, for the budget.

    Notes
    -----
    ``max(knowledge_cutoff, fine_tuned_until)`` is the last day that the model can remember.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    revision: str = ""
    knowledge_cutoff: date | None = None
    privacy: Literal["local", "remote"] = "remote"
    images: bool = False
    schema_modes: tuple[SchemaMode, ...] = ()
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    price_per_million: tuple[float, float] | None = None
    context: int | None = None
    fine_tuned_until: date | None = None
    image_tokens: int = 50_000

    def __post_init__(self) -> None:
        if self.price_per_million is not None and not all(0 <= price < 1e6 for price in self.price_per_million):
            raise ValueError("price_per_million must be two numbers of dollars from 0 on")
        if self.image_tokens < 0 or (self.context is not None and self.context < 1):
            raise ValueError("image_tokens and context must be counts of tokens")


class ModelRegistry:
    """Models by name.

    Parameters
    ----------
    entries : mapping of str to mapping
        Fields of :class:`ModelInfo` by the model's name; what is left out keeps its default.
    """

    def __init__(self, entries: Mapping[str, Mapping[str, Any]]) -> None:
        self._models = {name: _info(name, entry) for name, entry in entries.items()}
        self._stated = {name for name, entry in entries.items() if "privacy" in entry}

    @classmethod
    def of(cls, path: Path | None = None) -> ModelRegistry:
        """Read the file of this package, then the user's.

        A model in the user's file replaces the one of the same name as a whole, so that nothing of an entry that the
        user did not see stays.

        Raises
        ------
        ConfigError
            A file cannot be read, or an entry holds a field or a value that means nothing.
        """
        entries = dict(_entries(SHIPPED))
        if path is not None:
            entries.update(_entries(path))
        return cls(entries)

    def get(self, name: str, base_url: str = "") -> ModelInfo:
        """Return what is known of a model; of an unknown one, that nothing is.

        Where the file does not state ``privacy``, a loopback ``base_url`` makes the model local and any other remote.
        A stated ``privacy`` holds wherever the model is asked: state ``local`` for a server of your own house, and
        ``remote`` for a relay on this machine that passes texts on.
        """
        info = self._models.get(name) or ModelInfo(name)
        if name in self._stated:
            return info
        return replace(info, privacy="local" if is_loopback(base_url) else "remote")

    def names(self) -> tuple[str, ...]:
        """Return the names of the models that are described, sorted."""
        return tuple(sorted(self._models))


_ENTRY: Final = TypeAdapter(ModelInfo)


def _info(name: str, entry: Mapping[str, Any]) -> ModelInfo:
    try:
        return _ENTRY.validate_python({**entry, "name": name})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the entry"
        known = ", ".join(field.name for field in fields(ModelInfo) if field.name != "name")
        raise ConfigError(
            f"model {name!r} in the model registry: {place}: {first['msg']}; expected fields among {known}; mend the "
            "entry"
        ) from error


@cache
def _shipped() -> Mapping[str, Any]:
    return _read(SHIPPED)


def _entries(path: Path) -> Mapping[str, Mapping[str, Any]]:
    content = _shipped() if path == SHIPPED else _read(path)
    models = content.get("models")
    if not isinstance(models, dict) or not all(
        isinstance(name, str) and isinstance(entry, dict) for name, entry in models.items()
    ):
        raise ConfigError(
            f"the model registry {path.name} has no 'models' with an entry for each name; expected 'models:' and "
            "below it 'name: {field: value}'; see llm/models.yaml of this package"
        )
    return models


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"the model registry {path.name} cannot be read ({error}); expected a YAML file; mend the path or the file"
        ) from error
    return content if isinstance(content, dict) else {}
