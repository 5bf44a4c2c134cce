"""Read a workflow file as ``qrun`` does, and run the guards on what it describes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, meta
from qlib.utils.data import update_config
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.guard.finding import GuardReport
from qlib_llm_alpha.guard.fresh_process import import_paths
from qlib_llm_alpha.guard.suite import run_guards
from qlib_llm_alpha.guard.warm_process import TIMEOUT_S


@dataclass(frozen=True)
class Workflow:
    """The parts of a workflow file that the guards read.

    Parameters
    ----------
    qlib_init, handler, dataset, segments : mapping
    model : mapping or None
    provider : Path
    paths : tuple of str
        Folders from which its modules are imported.
    """

    qlib_init: Mapping[str, Any]
    handler: Mapping[str, Any]
    dataset: Mapping[str, Any]
    segments: Mapping[str, Any]
    model: Mapping[str, Any] | None
    provider: Path
    paths: tuple[str, ...]


def read_workflow(path: str | Path) -> Workflow:
    """Read a workflow file: Jinja with the environment, ``BASE_CONFIG_PATH``, ``sys``, as in ``qrun``.

    Raises
    ------
    ConfigError
        A file that is no workflow, or one without provider, handler or segments.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{str(path)!r} is no file; expected a workflow YAML as for qrun; correct the path")
    config = _loaded(file)
    if config.get("BASE_CONFIG_PATH"):
        base = Path(config["BASE_CONFIG_PATH"])
        base = base if base.exists() else file.absolute().parent / base
        if not base.is_file():
            raise ConfigError(
                f"BASE_CONFIG_PATH {config['BASE_CONFIG_PATH']!r} is no file, here or beside {str(path)!r}"
            )
        config = update_config(_loaded(base, render=False), config)
    settings = _part(config, "qlib_init", path)
    dataset = _part(_part(config, "task", path), "dataset", path)
    kwargs = _part(dataset, "kwargs", path)
    provider = settings.get("provider_uri", "~/.qlib/qlib_data/cn_data")
    if isinstance(provider, Mapping):
        provider = provider.get("day", next(iter(provider.values()), ""))
    others = {name: value for name, value in kwargs.items() if name not in ("handler", "segments")}
    return Workflow(
        qlib_init={name: value for name, value in settings.items() if name != "provider_uri"},
        handler=_part(kwargs, "handler", path),
        dataset={**dataset, "kwargs": others},
        segments=_part(kwargs, "segments", path),
        model=config["task"].get("model"),
        provider=Path(str(provider)).expanduser().absolute(),
        paths=import_paths(config.get("sys"), file),
    )


def guard_workflow(
    path: str | Path,
    *,
    guards: Sequence[str] | None = None,
    with_model: bool = False,
    days: int = 2,
    seed: int = 0,
    workers: int = 2,
    timeout_s: float = TIMEOUT_S,
) -> GuardReport:
    """Run the guards on the handler, the segments and the model of a workflow file; see ``run_guards``."""
    workflow = read_workflow(path)
    return run_guards(
        workflow.handler,
        workflow.qlib_init,
        workflow.segments,
        workflow.provider,
        guards=guards,
        model_config=workflow.model,
        dataset_config=workflow.dataset,
        paths=workflow.paths,
        with_model=with_model,
        days=days,
        seed=seed,
        workers=workers,
        timeout_s=timeout_s,
    )


def _loaded(file: Path, *, render: bool = True) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
        config = YAML(typ="safe", pure=True).load(_rendered(text) if render else text)
    except (TemplateError, YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(file)!r} cannot be read as a workflow YAML: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{str(file)!r} holds {type(config).__name__}; expected a mapping with qlib_init and task")
    return config


def _rendered(text: str) -> str:
    # As qlib.cli.run.render_template, which also logs the variables' values: they may be secrets.
    template = Template(text)
    names = meta.find_undeclared_variables(template.environment.parse(text))
    rendered: str = template.render({name: os.environ[name] for name in names if name in os.environ})
    return rendered


def _part(config: Mapping[str, Any], name: str, path: str | Path) -> Mapping[str, Any]:
    part = config.get(name)
    if not isinstance(part, Mapping):
        raise ConfigError(f"{str(path)!r}: {name} is {part!r}; expected a mapping as in a qrun workflow; add it")
    return part
