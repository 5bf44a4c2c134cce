"""Find every class of a kind in a room, so that a new one is held to the suite at once."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


def subclasses(room: ModuleType, parent: type[T]) -> tuple[type[T], ...]:
    """Return the subclasses of `parent` that the modules of a room define, by name."""
    found = set()
    for info in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
        module = importlib.import_module(info.name)
        for _, candidate in inspect.getmembers(module, inspect.isclass):
            # The module first: on Python 3.10 an alias such as list[int] passes for a class and cannot be asked.
            if candidate.__module__ == module.__name__ and issubclass(candidate, parent):
                found.add(candidate)
    return tuple(sorted(found, key=lambda kind: kind.__name__))
