from __future__ import annotations

import re
from pathlib import Path

from qlib_llm_alpha.library.factor_set import builtin_names, load_factor_set, read_factor_set

TEXT = (Path(__file__).parents[2] / "docs" / "factor_library.md").read_text(encoding="utf-8")


def test_the_table_of_builtin_sets_is_true() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+)(?: / (\d+))? \|.*\| (\w+) \|$", TEXT, flags=re.MULTILINE)
    assert sorted(row[0] for row in rows) == sorted(builtin_names())
    for name, scale_free, literal, warmup in rows:
        assert len(load_factor_set(name).factors) == int(scale_free)
        assert len(load_factor_set(name, mode="literal").factors) == int(literal or scale_free)
        assert load_factor_set(name).warmup == warmup


def test_the_example_of_a_set_loads() -> None:
    (example,) = re.findall(r"```yaml\n(name: mine.*?)```", TEXT, flags=re.DOTALL)
    assert read_factor_set(example).names == ("short_reversal",)
