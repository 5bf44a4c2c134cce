"""Check a task before anything is built: Qlib finds a misspelt key only after the model has been fitted."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
import qlib.workflow.record_temp
from qlib.backtest import backtest
from qlib.backtest.exchange import Exchange
from qlib.data import D
from qlib.data.dataset.handler import DataHandlerLP
from qlib.utils import get_callable_kwargs

from qlib_llm_alpha.data.preflight import check_dates, provider_root
from qlib_llm_alpha.errors import ConfigError, ProviderError
from qlib_llm_alpha.evaluation.walls import Walls

TASK_KEYS = ("model", "dataset", "record", "reweighter")
CLASS_KEYS = ("class", "func", "module_path", "kwargs")
PORTFOLIO_KEYS = ("strategy", "executor", "backtest")
# Where Qlib looks for a class that is named without a module.
DEFAULT_MODULES: dict[str, Any] = {"record": qlib.workflow.record_temp}


def check_task(task: Mapping[str, Any]) -> None:
    """Refuse a task that cannot run, before anything is loaded or fitted.

    Parameters
    ----------
    task : mapping
        The ``task`` of a workflow, as Qlib reads it.

    Raises
    ------
    ConfigError
        A misspelt key anywhere, a class that does not exist, segments that overlap or are out of order, dates outside
        the calendar, a backtest that ends on the calendar's last day.
    ProviderError
        A missing provider or benchmark.
    """
    _check_keys(task, TASK_KEYS, "task")
    for place, config, module in _classes(task, "task", None):
        _check_class(config, place, module)
    provider_root()
    dataset = task.get("dataset", {})
    segments = dataset.get("kwargs", {}).get("segments") if isinstance(dataset, Mapping) else None
    if isinstance(segments, Mapping):
        for segment in Walls.from_segments(segments).segments:
            check_dates(segment.start, segment.end, what=f"segment {segment.name!r}")
    for place, config in _backtests(task):
        _check_backtest(config, place)


def _classes(node: Any, place: str, module: Any) -> Iterator[tuple[str, Mapping[str, Any], Any]]:
    """Walk the task and give each mapping that names a class, with the module Qlib would look in."""
    if isinstance(node, Mapping):
        if "class" in node:
            yield place, node, module
        for key, value in node.items():
            yield from _classes(value, f"{place}.{key}", DEFAULT_MODULES.get(str(key)))
    elif isinstance(node, list):
        for position, value in enumerate(node):
            yield from _classes(value, f"{place}[{position}]", module)


def _check_class(config: Mapping[str, Any], place: str, module: Any) -> None:
    _check_keys(config, CLASS_KEYS, place)
    if "module_path" not in config and "." not in str(config["class"]) and module is None:
        return  # Qlib supplies a default module that only the place itself knows (processors, executors)
    try:
        kind, kwargs = get_callable_kwargs(dict(config), default_module=module)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{place}: class {config['class']!r} in module {config.get('module_path')!r} cannot be found ({error}); "
            "mend the name or install the package"
        ) from error
    accepted = _keywords(kind)
    if accepted is not None:
        _check_keys(kwargs or {}, accepted, f"{place}.kwargs of {kind.__name__}")


def _keywords(kind: Any) -> tuple[str, ...] | None:
    """Names a class takes, following ``**kwargs`` to its parents; None when anything goes."""
    names: list[str] = []
    for parent in kind.__mro__ if inspect.isclass(kind) else (kind,):
        if inspect.isclass(parent) and "__init__" not in vars(parent):
            continue
        parameters = inspect.signature(parent).parameters.values()
        names += [p.name for p in parameters if p.kind not in {p.VAR_KEYWORD, p.VAR_POSITIONAL}]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            if inspect.isclass(kind) and issubclass(kind, DataHandlerLP):
                names.append("label")  # Qlib's handlers take it out of their **kwargs
            return tuple(names)
    return None


def _backtests(node: Any, place: str = "task") -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(node, Mapping):
        if "strategy" in node and "backtest" in node:
            yield place, node
        for key, value in node.items():
            yield from _backtests(value, f"{place}.{key}")
    elif isinstance(node, list):
        for position, value in enumerate(node):
            yield from _backtests(value, f"{place}[{position}]")


def _check_backtest(config: Mapping[str, Any], place: str) -> None:
    _check_keys(config, PORTFOLIO_KEYS, place)
    settings = config["backtest"]
    _check_keys(settings, tuple(inspect.signature(backtest).parameters), f"{place}.backtest")
    exchange = settings.get("exchange_kwargs", {})
    if "exchange" not in exchange:
        _check_keys(
            exchange, (*inspect.signature(Exchange).parameters, "exchange"), f"{place}.backtest.exchange_kwargs"
        )
    start, end = settings.get("start_time"), settings.get("end_time")
    check_dates(start, end, what=f"{place}.backtest")
    last = D.calendar()[-1]
    if end is not None and pd.Timestamp(str(end)) >= last:
        raise ConfigError(
            f"{place}.backtest ends {end}, and the calendar on {last.date()}; Qlib needs one trading day after the "
            "end: end a day earlier or import more bars"
        )
    benchmark = settings.get("benchmark")
    if isinstance(benchmark, str) and D.features([benchmark], ["$close"], start, end).dropna().empty:
        raise ProviderError(
            f"{place}.backtest.benchmark {benchmark!r} has no $close between {start} and {end}; name an index that "
            "the provider has"
        )


def _check_keys(given: Mapping[str, Any], known: tuple[str, ...], place: str) -> None:
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"{place}: unknown key {key!r}; expected some of {sorted(known)}{hint}")
