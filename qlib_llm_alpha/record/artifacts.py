"""Write plain files through Qlib's recorder: JSON, Parquet, figures."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from qlib.workflow.recorder import Recorder

from qlib_llm_alpha.errors import RecordingError


def save_files(recorder: Recorder, folder: str, files: Mapping[str, Any]) -> None:
    """Save objects as files of a run, in the form their name asks for.

    Parameters
    ----------
    recorder : Recorder
    folder : str
        Artifact folder.
    files : mapping of str to object
        ``.json`` takes plain values (see `plain`), ``.parquet`` a frame, ``.png`` a figure, ``.md`` text.

    Raises
    ------
    RecordingError
        For another ending.
    """
    with tempfile.TemporaryDirectory() as temporary:
        for name, content in files.items():
            _write(Path(temporary) / name, content)
        recorder.save_objects(local_path=temporary, artifact_path=folder)


def metric_name(*parts: str) -> str:
    """Join parts to a metric name that MLflow takes, with ``/`` between: letters, digits, ``_ - . /`` and space."""
    return "/".join(re.sub(r"[^\w\-./ ]", "_", part) for part in parts)


def plain(value: Any) -> Any:
    """Return a value as JSON has it; NaN and NaT become None, infinities and dates text, arrays lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is pd.NaT or (isinstance(value, np.datetime64) and np.isnat(value)):
        return None
    if hasattr(value, "tolist") and not isinstance(value, np.datetime64):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _write(path: Path, content: Any) -> None:
    if path.suffix == ".json":
        path.write_text(json.dumps(plain(content), indent=1, ensure_ascii=False), encoding="utf-8")
    elif path.suffix == ".parquet" and isinstance(content, pd.DataFrame):
        content.to_parquet(path)
    elif path.suffix == ".png" and isinstance(content, Figure):
        content.savefig(path, dpi=110)
    elif path.suffix == ".md":
        path.write_text(str(content), encoding="utf-8")
    else:
        raise RecordingError(
            f"file {path.name!r} of type {type(content).__name__}: expected .json, .parquet, .png, .md"
        )
