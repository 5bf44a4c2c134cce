"""The basis of a figure: one readable line, and no field that means nothing."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.evaluation.basis import Basis, check_period

FIELDS: dict[str, Any] = {
    "label": "Ref($close,-2)/Ref($close,-1)-1",
    "horizon": 2,
    "ic_kind": "rank_ic",
    "universe": "csi300",
    "membership": "members of the day",
    "start": "2018-07-02",
    "end": "2021-12-29",
    "cost_bps": None,
    "trials": 2083,
}


def test_the_sentence_names_everything() -> None:
    assert Basis(**FIELDS).sentence == (
        "rank IC against Ref($close,-2)/Ref($close,-1)-1, horizon 2, csi300 (members of the day), "
        "2018-07-02 to 2021-12-29, no cost, N = 2083"
    )


def test_the_sentence_says_what_was_not_counted_and_what_it_cost() -> None:
    basis = Basis(**{**FIELDS, "ic_kind": "ic", "cost_bps": 12.5, "trials": None})
    assert basis.sentence.startswith("IC against")
    assert basis.sentence.endswith(", cost 12.5 bps, N not counted")


def test_a_cost_of_nothing_is_a_cost_and_no_trials_are_a_count() -> None:
    assert Basis(**{**FIELDS, "cost_bps": 0, "trials": 0}).sentence.endswith("cost 0 bps, N = 0")


def test_it_goes_to_json_also_from_numpy_numbers() -> None:
    plain = Basis(**{**FIELDS, "horizon": np.int64(2), "cost_bps": np.float32(10), "trials": np.int32(5)}).to_dict()
    assert json.loads(json.dumps(plain)) == {**FIELDS, "cost_bps": 10.0, "trials": 5}
    assert list(plain) == list(FIELDS)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("label", "", "label of a basis is ''; expected words"),
        ("universe", "  ", "universe of a basis is"),
        ("membership", None, "membership of a basis is None"),
        ("horizon", -1, "horizon is -1; expected 0 or more trading days"),
        ("horizon", 2.0, "horizon is 2.0"),
        ("horizon", True, "horizon is True"),
        ("ic_kind", "rank", r"ic_kind is 'rank'; expected one of \['ic', 'rank_ic'\]"),
        ("start", "2018-7-2", "start is '2018-7-2'; expected a day as YYYY-MM-DD"),
        ("start", "2018-02-30", "start is '2018-02-30'"),
        ("end", np.datetime64("2021-12-29"), "end is"),
        ("end", "NaT", "end is 'NaT'"),
        ("end", "2018-07-01", "runs from '2018-07-02' to '2018-07-01'; expected start <= end"),
        ("cost_bps", -1.0, "cost_bps is -1.0; expected 0 or more basis points"),
        ("cost_bps", float("nan"), "cost_bps is nan"),
        ("cost_bps", float("inf"), "cost_bps is inf"),
        ("cost_bps", False, "cost_bps is False"),
        ("trials", -1, "trials is -1; expected a count"),
        ("trials", 3.5, "trials is 3.5"),
    ],
)
def test_a_field_that_means_nothing_is_refused(field: str, value: object, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        Basis(**{**FIELDS, field: value})


def test_a_period_may_be_one_day() -> None:
    check_period("2020-02-29", "2020-02-29")
