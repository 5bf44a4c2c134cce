"""Check a task before anything is built: Qlib finds a misspelt key only after the model has been fitted."""

from __future__ import annotations

import ast
import difflib
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
import qlib.backtest.executor
import qlib.data.dataset.loader
import qlib.data.dataset.processor
import qlib.workflow.record_temp
from qlib.backtest import backtest, get_exchange
from qlib.backtest.exchange import Exchange
from qlib.backtest.executor import BaseExecutor
from qlib.config import MODE_CONF, C, _default_config, _default_region_config
from qlib.data import D
from qlib.data.dataset import Dataset
from qlib.utils import get_callable_kwargs

from qlib_llm_alpha.data.handler import LABEL, FactorSetHandler
from qlib_llm_alpha.data.preflight import check_dates, check_inside, check_label, provider_root
from qlib_llm_alpha.errors import ConfigError, ProviderError
from qlib_llm_alpha.evaluation.walls import Walls
from qlib_llm_alpha.gating.mixture import GATES

TASK_KEYS = ("model", "dataset", "record", "reweighter")
CLASS_KEYS = ("class", "func", "module_path", "kwargs")
PORTFOLIO_KEYS = ("strategy", "executor", "backtest")
# Where Qlib looks for a class that is named without a module.
DEFAULT_MODULES: dict[str, Any] = {
    "record": qlib.workflow.record_temp,
    "data_loader": qlib.data.dataset.loader,
    "infer_processors": qlib.data.dataset.processor,
    "learn_processors": qlib.data.dataset.processor,
    "shared_processors": qlib.data.dataset.processor,
}
# Where it looks nowhere, and fails after the model has been fitted.
NEED_MODULE = (
    *("model", "dataset", "handler", "dataloader_l"),
    *("strategy", "executor", "exchange", "inner_executor", "inner_strategy"),
)
# By name: a record room does not import a strategy.
GATED_STRATEGY = ("qlib_llm_alpha.strategy.gated", "GatedTopkStrategy")
# Classes that take any keyword and drop it, or hand it to a method: what their kinds accept beside named parameters.
ENDS: dict[type, tuple[str, ...]] = {Dataset: ("handler_kwargs",), BaseExecutor: ()}
SIMILAR = 0.8  # share of letters from which a setting that Qlib does not know is taken for a misspelt one


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
        the calendar, segments outside the handler's dates, processors fitted on days of a later segment than train, a
        label that reaches over a whole segment, a backtest outside the test segment or the exchange's dates, a backtest
        that ends on the calendar's last day, a ``topk``, ``n_drop`` or ``gate`` that ``GatedTopkStrategy`` refuses.
    ProviderError
        A missing provider or benchmark.

    Notes
    -----
    A class that takes any keyword, such as ``LGBModel``, which hands its own to LightGBM, is not checked for keywords.
    Dates are checked against daily calendars only.
    """
    _check_settings(C)
    _check_keys(task, TASK_KEYS, "task")
    for name in ("model", "dataset"):
        if not task.get(name):
            raise ConfigError(f"task: has {sorted(task)} and no {name!r}; expected both model and dataset: add it")
    for place, config, module in classes_of(task, "task", None):
        _check_class(config, place, module)
    for place, config in backtests_of(task):
        _check_portfolio(config, place)
    if not _daily():
        return
    dataset = task["dataset"]
    settings = dataset.get("kwargs") or {} if isinstance(dataset, Mapping) else {}
    walls = None
    if isinstance(settings.get("segments"), Mapping):
        walls = Walls.from_segments(closed_segments(settings["segments"]))
        for segment in walls.segments:
            check_dates(segment.start, segment.end, what=f"segment {segment.name!r}")
        if isinstance(settings.get("handler"), Mapping):
            _check_handler(settings["handler"], walls)
    for place, config in backtests_of(task):
        _check_backtest(config["backtest"], f"{place}.backtest", walls)


def closed_segments(segments: Mapping[str, Any]) -> dict[str, Any]:
    """Replace an end that is left open, as Qlib allows, by that of the calendar.

    Parameters
    ----------
    segments : mapping
        As a dataset has them: two ends each, or a slice.

    Returns
    -------
    dict
        Two ends each; one that is left open stays None on a provider without a daily calendar.
    """
    calendar = D.calendar() if _daily() else [None]
    closed = {}
    for name, ends in segments.items():
        if isinstance(ends, slice):
            ends = (ends.start, ends.stop)
        if isinstance(ends, (list, tuple)) and len(ends) == 2:
            first, last = ends
            ends = (calendar[0] if first is None else first, calendar[-1] if last is None else last)
        closed[str(name)] = ends
    return closed


def _check_settings(settings: Any) -> None:
    """Refuse what looks like a misspelt key of ``qlib_init``; Qlib warns of it and goes on without."""
    known = {*_default_config, *_default_region_config["cn"], *(key for mode in MODE_CONF.values() for key in mode)}
    for key in getattr(settings, "_config", settings):
        close = difflib.get_close_matches(str(key), known, n=1, cutoff=SIMILAR)
        if key not in known and close:
            raise ConfigError(f"qlib_init: unknown key {key!r}; did you mean {close[0]!r}? Mend the name")
    for key in ("dataset_provider", "exp_manager"):
        config = settings.get(key)
        if isinstance(config, Mapping):
            _check_class(config, f"qlib_init.{key}", None)


def _daily() -> bool:
    """Whether the provider has a daily calendar to check dates against; ProviderError when it has none at all."""
    uris = C.dpm.provider_uri
    if not {"day", C.DEFAULT_FREQ} & set(uris):
        return False
    root = C.dpm.get_data_uri("day")
    if not (root / "calendars" / "day.txt").is_file() and list(root.glob("calendars/*.txt")):
        return False  # intraday bars only
    provider_root()
    return True


def classes_of(node: Any, place: str, module: Any) -> Iterator[tuple[str, Mapping[str, Any], Any]]:
    """Walk the task and give each mapping that names a class, with the module Qlib would look in."""
    if isinstance(node, Mapping):
        if "class" in node or ("module_path" in node and "func" not in node):
            yield place, node, module
        for key, value in node.items():
            yield from classes_of(value, f"{place}.{key}", DEFAULT_MODULES.get(str(key)))
    elif isinstance(node, (list, tuple)):
        for position, value in enumerate(node):
            yield from classes_of(value, f"{place}[{position}]", module)


def _check_class(config: Mapping[str, Any], place: str, module: Any) -> None:
    _check_keys(config, CLASS_KEYS, place)
    if "class" not in config:
        raise ConfigError(f"{place}: {dict(config)!r} names no class; expected class, module_path and kwargs: add it")
    if not config.get("module_path") and "." not in str(config["class"]) and module is None:
        if place.rsplit(".", 1)[-1].split("[")[0] in NEED_MODULE and isinstance(config["class"], str):
            raise ConfigError(
                f"{place}: class {config['class']!r} is named without a module, and Qlib looks in none by itself here; "
                "add module_path"
            )
        return
    try:
        kind, kwargs = get_callable_kwargs(dict(config), default_module=module)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{place}: class {config['class']!r} in module {config.get('module_path')!r} cannot be found ({error}); "
            "mend the name or install the package"
        ) from error
    if not isinstance(kwargs or {}, Mapping):
        raise ConfigError(f"{place}.kwargs: {kwargs!r}; expected a mapping of keyword to value")
    accepted = _keywords(kind)
    if accepted is not None:
        _check_keys(kwargs or {}, accepted, f"{place}.kwargs of {kind.__name__}")
    if (kind.__module__, kind.__name__) == GATED_STRATEGY:
        _check_gated_strategy(kwargs or {}, f"{place}.kwargs")


def _check_gated_strategy(kwargs: Mapping[str, Any], place: str) -> None:
    topk, n_drop, gate = kwargs.get("topk"), kwargs.get("n_drop"), kwargs.get("gate")
    for name, value in (("topk", topk), ("n_drop", n_drop)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{place}: {name} is {value!r}; expected a whole number of names: give topk 50, n_drop 5")
    if not 0 < kwargs["n_drop"] <= kwargs["topk"]:
        raise ConfigError(f"{place}: topk is {topk!r} and n_drop {n_drop!r}; expected 0 < n_drop <= topk: mend them")
    if gate is not None and gate not in GATES:
        raise ConfigError(f"{place}: gate is {gate!r}; expected one of {list(GATES)}: choose one or leave it out")


def _keywords(kind: Any) -> tuple[str, ...] | None:
    """Names a class takes, following ``**kwargs`` to its parents; None when anything goes."""
    names: list[str] = []
    for parent in kind.__mro__ if inspect.isclass(kind) else (kind,):
        if inspect.isclass(parent) and "__init__" not in vars(parent):
            continue
        parameters = inspect.signature(parent).parameters.values()
        names += [p.name for p in parameters if p.kind not in {p.VAR_KEYWORD, p.VAR_POSITIONAL}]
        rest = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None)
        if rest is None:
            return tuple(names)
        if parent in ENDS:
            return (*names, *ENDS[parent])
        taken = _taken(parent.__init__ if inspect.isclass(parent) else parent, rest)
        if taken is None:
            return None
        names += taken.names
        if not taken.handed_on:
            return tuple(names)
    return None


class _Taken(ast.NodeVisitor):
    """What a function does with its ``**kwargs``: the keys it takes out, and whether it hands on the rest."""

    def __init__(self, rest: str) -> None:
        self.rest = rest
        self.names: list[str] = []
        self.handed_on = False
        self.emptied = False
        self.other_use = False

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func
        if isinstance(function, ast.Attribute) and self._is_rest(function.value) and node.args:
            key = node.args[0]
            if function.attr in {"pop", "get"} and isinstance(key, ast.Constant):
                self.names.append(str(key.value))
                for argument in node.args[1:]:
                    self.visit(argument)
                return
        if isinstance(function, ast.Name) and function.id == "len" and node.args and self._is_rest(node.args[0]):
            self.emptied = True  # `if len(kwargs) > 0: raise`, as Exchange does
            return
        if isinstance(function, ast.Attribute) and function.attr == "__init__":
            self.handed_on |= any(word.arg is None and self._is_rest(word.value) for word in node.keywords)
            for argument in [*node.args, *(word.value for word in node.keywords if not self._is_rest(word.value))]:
                self.visit(argument)
            return
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        """Skip: a message may show the rest."""

    def visit_Name(self, node: ast.Name) -> None:
        self.other_use |= node.id == self.rest

    def _is_rest(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Name) and node.id == self.rest


def _taken(function: Any, rest: str) -> _Taken | None:
    """Read the source of a function; None when its ``**kwargs`` may be anything."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    taken = _Taken(rest)
    taken.visit(tree)
    return None if taken.other_use or not (taken.handed_on or taken.emptied) else taken


def backtests_of(node: Any, place: str = "task") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Walk a task and give each mapping that names a strategy and a backtest, with its place."""
    if isinstance(node, Mapping):
        if isinstance(node.get("strategy"), Mapping) and ("backtest" in node or place.endswith(".config")):
            yield place, node
        for key, value in node.items():
            yield from backtests_of(value, f"{place}.{key}")
    elif isinstance(node, (list, tuple)):
        for position, value in enumerate(node):
            yield from backtests_of(value, f"{place}[{position}]")


def _check_portfolio(config: Mapping[str, Any], place: str) -> None:
    _check_keys(config, PORTFOLIO_KEYS, place)
    settings = config.get("backtest")
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{place}: backtest is {settings!r}; expected start_time, end_time, account, ...: add it")
    _check_keys(settings, tuple(inspect.signature(backtest).parameters), f"{place}.backtest")
    exchange = settings.get("exchange_kwargs") or {}
    known = {*inspect.signature(get_exchange).parameters, *(_keywords(Exchange) or ())} - {"kwargs"}
    _check_keys(exchange, tuple(known), f"{place}.backtest.exchange_kwargs")
    ignored = sorted(set(exchange) - {"exchange"})
    if exchange.get("exchange") is not None and ignored:
        raise ConfigError(
            f"{place}.backtest.exchange_kwargs: Qlib ignores {ignored} beside 'exchange'; move them into "
            "exchange.kwargs or leave them out"
        )


def _check_handler(config: Mapping[str, Any], walls: Walls) -> None:
    """Refuse dates of a handler that do not go with the segments, and a label longer than a fitted segment."""
    kind, _ = get_callable_kwargs(dict(config))
    kwargs = config.get("kwargs") or {}
    start, end, fit_end = (kwargs.get(name) for name in ("start_time", "end_time", "fit_end_time"))
    check_dates(start, end, what="handler start_time, end_time")
    for segment in walls.segments:
        check_inside(
            (segment.start, segment.end),
            (start, end),
            what=f"segment {segment.name!r}",
            where="handler's start_time and end_time",
        )
    check_dates(None, fit_end, what="handler fit_end_time")
    # The days between two segments belong to neither: a train that is purged by hand ends a few days before the fit.
    later = walls.segments[1:]
    if fit_end is not None and later and pd.Timestamp(str(fit_end)) >= pd.Timestamp(later[0].start):
        raise ConfigError(
            f"handler fit_end_time is {fit_end}, and segment {later[0].name!r} begins {later[0].start}; expected the "
            f"processors to be fitted on train alone, which ends {walls.train.end}: set fit_end_time to that day"
        )
    if inspect.isclass(kind) and issubclass(kind, FactorSetHandler):
        for text in _label_texts(kwargs.get("label")):
            for fitted in (walls.train, walls.valid):
                if fitted is not None:
                    days = len(D.calendar(fitted.start, fitted.end))
                    check_label(text, days=days, what=f"segment {fitted.name!r}")


def _label_texts(label: Any) -> list[str]:
    """Return the expressions of a handler's ``label``; nothing for a form that the handler itself refuses."""
    if label is None:
        return [LABEL]
    if isinstance(label, str):
        return [label]
    if isinstance(label, (list, tuple)) and len(label) == 2 and isinstance(label[0], (list, tuple)):
        label = label[0]
    return [text for text in label if isinstance(text, str)] if isinstance(label, (list, tuple)) else []


def _check_backtest(settings: Mapping[str, Any], place: str, walls: Walls | None) -> None:
    start, end = settings.get("start_time"), settings.get("end_time")
    check_dates(start, end, what=place)
    last = D.calendar(future=True)[-1]
    if end is not None and pd.Timestamp(str(end)) >= last:
        raise ConfigError(
            f"{place} ends {end}, and the calendar on {last.date()}; Qlib needs one trading day after the end: end a "
            "day earlier or import more bars"
        )
    if walls is not None and walls.test is not None:
        check_inside((start, end), (walls.test.start, walls.test.end), what=place, where="segment 'test'")
    exchange = (settings.get("exchange_kwargs") or {}).get("exchange")
    if isinstance(exchange, Mapping):
        kwargs = exchange.get("kwargs") or {}
        open_days = (kwargs.get("start_time"), kwargs.get("end_time"))
        check_dates(*open_days, what=f"{place}.exchange_kwargs.exchange.kwargs")
        check_inside((start, end), open_days, what=place, where="exchange's start_time and end_time")
    benchmark = settings.get("benchmark", inspect.signature(backtest).parameters["benchmark"].default)
    if isinstance(benchmark, str) and D.features([benchmark], ["$close"], start, end).dropna().empty:
        raise ProviderError(
            f"{place}.benchmark {benchmark!r} has no $close between {start} and {end}; name an index that the provider "
            "has"
        )


def _check_keys(given: Mapping[str, Any], known: tuple[str, ...], place: str) -> None:
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "; mend the name or leave it out"
            raise ConfigError(f"{place}: unknown key {key!r}; expected some of {sorted(set(known))}{hint}")
