"""The program of a fresh process: ``python -m qlib_llm_alpha.guard.child FOLDER`` reads a job there and does it."""

from __future__ import annotations

import logging
import os
import pickle
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import qlib
from qlib.data.dataset import DatasetH
from qlib.data.dataset.handler import DataHandler, DataHandlerLP
from qlib.utils import init_instance_by_config

from qlib_llm_alpha.guard.fresh_process import JOB, RESULT, Built, FitWindow, Job

QUIET: Final = {"class": "QuietExpManager", "module_path": "qlib_llm_alpha.guard.quiet_recorder", "kwargs": {}}


def main(folder: Path) -> None:
    """Do the job of a folder and write what it gave, or why it gave nothing."""
    with (folder / JOB).open("rb") as file:
        paths, environment, packed = pickle.load(file)  # noqa: S301
    sys.path.extend(path for path in paths if path and path not in sys.path)
    os.environ.update(environment)
    try:
        # Only now: the job may hold a function of a module that lies on these paths.
        job: Job = pickle.loads(packed)  # noqa: S301
        sys.path[:0] = [path for path in job.paths if path not in sys.path]
        built = _do(job)
    except Exception as error:  # noqa: BLE001 - whatever a user's handler raises is the answer
        traceback.print_exc()
        built = Built(error=f"{type(error).__name__}: {' '.join(str(error).split())}")
    with (folder / RESULT).open("wb") as file:
        pickle.dump(built, file, protocol=pickle.HIGHEST_PROTOCOL)


def _do(job: Job) -> Built:
    # Nothing is recorded: a guard must not write into the store of the user's experiments.
    settings = {**job.qlib_init, "provider_uri": job.provider, "exp_manager": QUIET}
    qlib.init(**{"logging_level": logging.ERROR, **settings})
    if not isinstance(job.handler, Mapping):
        frame = job.handler(job.provider)
        return Built(kind=getattr(job.handler, "__name__", "signal"), infer=_sorted(_as_frame(frame)))
    first = None
    if job.first is not None:
        first = _features(_handler(job.first).fetch(col_set=DataHandler.CS_RAW))
    handler = _handler(job.handler)
    built = _frames(handler)
    built.first = first
    if job.segments is not None:
        dataset = _dataset(job, handler)
        for name in job.segments:
            _read_segment(dataset, name, built)
        if job.model is not None:
            built.predictions = _predictions(job, dataset)
    return built


def _handler(config: Mapping[str, Any]) -> Any:
    return init_instance_by_config(dict(config), accept_types=DataHandler)


def _frames(handler: Any) -> Built:
    infer = handler.fetch(col_set=DataHandler.CS_RAW)
    built = Built(kind=type(handler).__name__, infer=_sorted(_features(infer)), label=_sorted(_label(infer)))
    if not isinstance(handler, DataHandlerLP):
        return built
    built.fits = [_fit_window(processor) for processor in handler.get_all_processors() if _is_fitted(processor)]
    learn = _sorted(_features(handler.fetch(col_set=DataHandler.CS_RAW, data_key=DataHandlerLP.DK_L)))
    if not learn.equals(built.infer.reindex(learn.index)):
        built.learn = learn
    if not handler.drop_raw:
        raw = handler.fetch(col_set=DataHandler.CS_RAW, data_key=DataHandlerLP.DK_R)
        built.label = _sorted(_label(raw))
        frame = _sorted(_features(raw))
        if not frame.equals(built.infer):
            built.raw = frame
    return built


def _is_fitted(processor: Any) -> bool:
    return hasattr(processor, "fit_start_time") and hasattr(processor, "fit_end_time")


def _fit_window(processor: Any) -> FitWindow:
    ends = (processor.fit_start_time, processor.fit_end_time)
    start, end = (None if value is None else f"{pd.Timestamp(value):%Y-%m-%d}" for value in ends)
    return FitWindow(type(processor).__name__, start, end)


def _is_label(frame: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.bool_]]:
    names = frame.columns.get_level_values(0)
    return np.array([str(name).lower().startswith("label") for name in names], dtype=np.bool_)


def _features(frame: pd.DataFrame) -> pd.DataFrame:
    return _flat(frame.loc[:, ~_is_label(frame)])


def _label(frame: pd.DataFrame) -> pd.DataFrame:
    return _flat(frame.loc[:, _is_label(frame)])


def _flat(frame: pd.DataFrame) -> pd.DataFrame:
    if isinstance(frame.columns, pd.MultiIndex):
        flat: pd.DataFrame = frame.set_axis(frame.columns.get_level_values(-1), axis=1)
        return flat
    return frame


def _as_frame(values: Any) -> pd.DataFrame:
    if isinstance(values, pd.Series):
        return values.to_frame("signal" if values.name is None else values.name)
    if not isinstance(values, pd.DataFrame):
        raise TypeError(f"the function returned {type(values).__name__}; expected a frame (datetime, instrument)")
    return _features(values)


def _sorted(frame: pd.DataFrame) -> pd.DataFrame:
    if "datetime" in frame.index.names and frame.index.names[0] != "datetime":
        frame = frame.reorder_levels(["datetime", "instrument"])
    if list(frame.index.names) != ["datetime", "instrument"]:
        frame = frame.rename_axis(["datetime", "instrument"])
    return frame if frame.index.is_monotonic_increasing else frame.sort_index()


def _dataset(job: Job, handler: Any) -> Any:
    config = dict(job.dataset or {"class": "DatasetH", "module_path": "qlib.data.dataset"})
    config["kwargs"] = {**config.get("kwargs", {}), "handler": handler, "segments": dict(job.segments or {})}
    return init_instance_by_config(config, accept_types=DatasetH)


def _read_segment(dataset: Any, name: str, built: Built) -> None:
    for key in (DataHandlerLP.DK_I, DataHandlerLP.DK_L):
        try:
            rows = dataset.prepare(name, col_set=["feature", "label"], data_key=key)
        except Exception as error:  # noqa: BLE001 - Qlib's answer to this segment is the finding
            built.segment_errors[name] = f"{type(error).__name__}: {error}"
            return
        index = rows.get_index() if hasattr(rows, "get_index") else rows.index
        days = pd.DatetimeIndex(index.get_level_values("datetime"))
        built.segments.setdefault(name, {})[key] = pd.Series(1, index=days).groupby(level=0).sum()


def _predictions(job: Job, dataset: Any) -> pd.DataFrame:
    model = init_instance_by_config(dict(job.model or {}))
    model.fit(dataset)
    # What was learned is asked about rows that are the same on every provider.
    dataset.segments = {**dataset.segments, "test": (job.predict_from, job.predict_until)}
    found = model.predict(dataset)
    frame = found.to_frame("score") if isinstance(found, pd.Series) else found
    return _sorted(frame)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
