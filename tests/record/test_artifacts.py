from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from mlflow.utils.validation import _validate_metric_name

from qlib_llm_alpha.errors import RecordingError
from qlib_llm_alpha.record.artifacts import metric_name, plain, save_files


class FolderRecorder:
    """Stands for Qlib's recorder: copies what it is given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save_objects(self, local_path: str, artifact_path: str) -> None:
        target = self.folder / artifact_path
        target.mkdir(parents=True)
        for path in Path(local_path).iterdir():
            (target / path.name).write_bytes(path.read_bytes())


def test_files_are_written_in_the_form_their_name_asks_for(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.0, np.nan]})
    files = {"t.json": {"x": np.float64(1.5)}, "f.parquet": frame, "p.png": Figure(), "s.md": "# Text é"}
    save_files(FolderRecorder(tmp_path), "folder", files)
    assert json.loads((tmp_path / "folder/t.json").read_text()) == {"x": 1.5}
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "folder/f.parquet"), frame)
    assert (tmp_path / "folder/p.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "folder/s.md").read_text(encoding="utf-8") == "# Text é"


@pytest.mark.parametrize(("name", "content"), [("a.pkl", {}), ("a.parquet", {"x": 1}), ("a.png", "x"), ("a", 1)])
def test_another_form_is_refused_and_nothing_is_saved(name: str, content: object, tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=f"file '{name}'"):
        save_files(FolderRecorder(tmp_path), "folder", {"first.md": "x", name: content})
    assert list(tmp_path.iterdir()) == []


def test_values_become_what_json_has() -> None:
    given = {
        1: np.int64(2),
        "nan": math.nan,
        "inf": math.inf,
        "list": (np.float64(0.5), True, None),
        "day": np.datetime64("2020-01-31"),
        "stamp": pd.Timestamp("2020-01-31"),
        "never": [pd.NaT, np.datetime64("NaT")],
        "array": np.array([1.0, np.nan]),
        "frame": pd.Series([1.0]),
    }
    assert plain(given) == {
        "1": 2,
        "nan": None,
        "inf": "inf",
        "list": [0.5, True, None],
        "day": "2020-01-31",
        "stamp": "2020-01-31 00:00:00",
        "never": [None, None],
        "array": [1.0, None],
        "frame": [1.0],
    }
    assert json.loads(json.dumps(plain(given), allow_nan=False))


@pytest.mark.parametrize("part", ["IC(5d)!", "a=b", "涨停", "x:y", "rank ic", "a/b"])
def test_metric_names_are_taken_by_mlflow(part: str) -> None:
    _validate_metric_name(metric_name("gate", part, "IC"))
