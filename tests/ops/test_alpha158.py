from __future__ import annotations

import yaml
from qlib.contrib.data.loader import Alpha158DL

from qlib_llm_alpha.library.factor_set import load_factor_set
from tests.ops.alpha158_source import PATH, alpha158_yaml


def test_the_set_on_disk_is_what_qlib_defines_today() -> None:
    expressions, names = Alpha158DL.get_feature_config()
    rows = yaml.safe_load(PATH.read_text(encoding="utf-8"))["factors"]
    assert [row["expression"] for row in rows] == expressions
    assert [row["name"] for row in rows] == names


def test_the_file_is_the_one_that_the_script_writes() -> None:
    assert PATH.read_text(encoding="utf-8") == alpha158_yaml()


def test_the_set_keeps_names_order_and_qlibs_partial_windows() -> None:
    loaded = load_factor_set("alpha158")
    assert list(loaded.names) == Alpha158DL.get_feature_config()[1]
    assert loaded.warmup == "qlib"
    assert loaded.lookback == 60
