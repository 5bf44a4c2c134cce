"""Finished steps of a session, kept so that a session that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from qlib_llm_alpha.errors import ConfigError

_LOG = logging.getLogger(__name__)
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,59}", re.ASCII)
_FORMAT: Final = 1


class StepStore:
    """One JSON file for each finished step: its name, the hash of its inputs, its output.

    A file is complete or absent: it is written beside its place, brought to the disk, and renamed. A file that cannot
    be read, or whose inputs were others, counts as absent, and the step is computed again.

    Parameters
    ----------
    folder : path
        Made by the first step.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, name: str, inputs: object, compute: Callable[[], Any]) -> Any:
        """Return the output of a step: the stored one when name and inputs are the same, else a new one, stored.

        Parameters
        ----------
        name : str
            Lower-case letters, digits and ``_``; it becomes the name of a file.
        inputs : JSON value
            Everything that the output depends on.
        compute : callable
            Returns a JSON value. What it raises passes through, and nothing is stored.

        Returns
        -------
        JSON value
            As JSON gives it back, so that a resumed session sees the same types: tuples are lists, keys are texts.

        Raises
        ------
        ConfigError
            A name that is none, or inputs or an output that JSON cannot hold (NaN included).
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(f"step {name!r:.80}: expected lower-case letters, digits and _; rename the step")
        digest = hashlib.sha256(_json(inputs, name).encode("ascii")).hexdigest()
        place = self.folder / f"{name}.json"
        stored = _read(place)
        if stored is not None and stored.get("name") == name and stored.get("inputs") == digest and "output" in stored:
            _LOG.debug("step %s taken from %s", name, place.name)
            return stored["output"]
        text = _json({"format": _FORMAT, "name": name, "inputs": digest, "output": compute()}, name)
        _write(place, text)
        return json.loads(text)["output"]


def _json(value: object, name: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=True, sort_keys=True, allow_nan=False, indent=1)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"step {name} has inputs or an output that JSON cannot hold ({error}); expected texts, finite numbers, "
            "lists and mappings; convert them first"
        ) from error


def _read(place: Path) -> dict[str, Any] | None:
    try:
        stored = json.loads(place.read_text(encoding="ascii"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _LOG.warning("step file %s cannot be read (%s); the step is computed again", place.name, error)
        return None
    return stored if isinstance(stored, dict) and stored.get("format") == _FORMAT else None


def _write(place: Path, text: str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place.with_name(f"{place.name}.{os.getpid()}.part")
    with beside.open("w", encoding="ascii") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(place)
