"""Each kind of leak, seeded once, is caught by the guard that is meant for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qlib_llm_alpha.guard.suite import check_signal
from tests.guard.subjects import STOCK, asked, handler, only
from tests.support.leaky import HONEST, LABEL, close_over_mean, tomorrow
from tests.support.provider import TEST, TRAIN, VALID

LEAKY = "tests.support.leaky"
# Every one builds a handler several times, each in a process of its own.
pytestmark = pytest.mark.slow


def model(name: str, **kwargs: Any) -> dict[str, Any]:
    return {"class": name, "module_path": LEAKY, "kwargs": kwargs}


def test_poison_catches_a_formula_of_the_next_close_and_says_where(small_provider: Path) -> None:
    found = only(asked(small_provider, handler("Columns", features=[*HONEST, "Ref($close, -1)/$close"]), "poison"))
    assert found.verdict == "leak"
    assert found.evidence["columns"] == ["x3"]
    assert found.evidence["day"] <= found.evidence["after"]
    assert found.evidence["old"] != found.evidence["new"]
    assert found.evidence["instrument"] in found.detail


def test_poison_catches_a_column_shifted_with_pandas(small_provider: Path) -> None:
    assert only(asked(small_provider, handler("MadeWithPandas", make="shifted"), "poison")).verdict == "leak"


def test_poison_catches_a_centred_rolling_mean(small_provider: Path) -> None:
    assert only(asked(small_provider, handler("MadeWithPandas", make="centred"), "poison")).verdict == "leak"


def test_poison_catches_gaps_filled_from_later_days(small_provider: Path) -> None:
    found = only(asked(small_provider, handler("MadeWithPandas", make="backfilled"), "poison", days=4))
    assert found.verdict == "leak"


def test_poison_catches_a_universe_chosen_by_hindsight(small_provider: Path) -> None:
    config = handler("HindsightUniverse")
    del config["kwargs"]["instruments"]
    found = only(asked(small_provider, config, "poison"))
    assert found.verdict == "leak"
    assert "not the same, first" in found.detail


def test_truncation_catches_a_formula_of_the_next_close(small_provider: Path) -> None:
    found = only(asked(small_provider, handler("Columns", features=["Ref($close, -1)/$close"]), "truncation", days=1))
    assert found.verdict == "leak"
    assert found.evidence["new"] == "nan"


def test_extended_window_catches_a_mean_that_expands_from_the_start_of_the_query(small_provider: Path) -> None:
    found = only(asked(small_provider, handler("MadeWithPandas", make="expanding"), "extended_window"))
    assert found.verdict == "leak"
    assert found.evidence["changed"] == "start"


def test_extended_window_catches_the_first_value_of_the_query(small_provider: Path) -> None:
    found = only(asked(small_provider, handler("Columns", features=["$close/Ref($close, 0)"]), "extended_window"))
    assert found.verdict == "leak"


def test_lag_catches_the_label_as_a_feature(small_provider: Path) -> None:
    found = only(asked(small_provider, handler("Columns", features=[*HONEST, LABEL]), "lag"))
    assert found.verdict == "leak"
    assert found.evidence["columns"] == ["x3"]
    assert found.evidence["largest"] > 10 * found.evidence["bound"]
    assert abs(found.evidence["z_by_lag"]["+2"]) > 50 > 5 > abs(found.evidence["z_by_lag"]["+1"])


def test_lag_catches_todays_return_dated_yesterday_which_the_label_does_not_show(small_provider: Path) -> None:
    found = only(asked(small_provider, handler("MadeWithPandas", make="dated a day early"), "lag"))
    assert found.verdict == "leak"
    assert found.evidence["against"] == "+1"
    assert abs(found.evidence["z_by_lag"]["label LABEL0"]) < 5


def test_normaliser_catches_processors_fitted_after_train_by_their_dates(small_provider: Path) -> None:
    found = only(asked(small_provider, handler("LateZScore", fit_until=TEST[1]), "normaliser"))
    assert found.verdict == "leak"
    assert f"ZScoreNorm up to {TEST[1]}" in found.detail


def test_normaliser_catches_a_processor_fitted_on_all_days_that_names_none(small_provider: Path) -> None:
    config = handler("Columns", infer_processors=[{"class": "WholeZScore", "module_path": LEAKY}])
    found = only(asked(small_provider, config, "normaliser"))
    assert found.verdict == "leak"
    assert found.evidence["fits"] == []


def test_label_reach_counts_the_labels_that_read_the_next_segment(small_provider: Path) -> None:
    touching = {"train": ["2019-06-03", "2020-07-31"], "valid": ["2020-08-03", "2020-12-31"], "test": list(TEST)}
    found = only(
        asked(small_provider, handler("Columns"), "label_reach", segments=touching, model=model("MeanOfSegments"))
    )
    assert found.verdict == "leak"
    assert found.evidence["horizon"] == 2
    assert found.evidence["late"]["train"]["days"] == 2
    assert found.evidence["late"]["train"]["next"] == "valid"
    assert 2 * 15 < found.evidence["late"]["valid"]["labels"] <= 2 * 40


def test_label_reach_is_clean_with_a_gap_or_a_model_that_leaves_the_rows_out(small_provider: Path) -> None:
    gap = {"train": ["2019-06-03", "2020-07-29"], "valid": ["2020-08-03", "2020-12-29"], "test": list(TEST)}
    found = asked(small_provider, handler("Columns"), "label_reach", segments=gap, model=model("MeanOfSegments"))
    assert only(found).verdict == "clean"
    purging = asked(small_provider, handler("Columns"), "label_reach", model=model("Purging"))
    assert only(purging).verdict == "clean"
    assert only(asked(small_provider, handler("Columns"), "label_reach")).verdict == "not applicable"


def test_segments_catches_days_in_train_and_test(small_provider: Path) -> None:
    overlapping = {"train": ["2019-06-03", "2021-02-26"], "test": list(TEST)}
    found = only(asked(small_provider, handler("Columns"), "segments", segments=overlapping))
    assert found.verdict == "leak"
    assert "train and test share" in found.detail


def test_segments_catches_train_after_test(small_provider: Path) -> None:
    reversed_order = {"train": list(TEST), "test": list(TRAIN)}
    assert only(asked(small_provider, handler("Columns"), "segments", segments=reversed_order)).verdict == "leak"


def test_segments_catches_a_list_of_one_date_which_qlib_takes_for_everything_up_to_it(small_provider: Path) -> None:
    as_list = {"train": list(TRAIN), "valid": list(VALID), "test": ["2021-06-28"]}
    found = only(asked(small_provider, handler("Columns"), "segments", segments=as_list))
    assert found.verdict == "leak"
    assert found.evidence["test"]["first"] == "2019-06-03"


def test_segments_catches_an_end_left_open_so_that_train_holds_test(small_provider: Path) -> None:
    as_list = {"train": [TRAIN[0], None], "valid": list(VALID), "test": list(TEST)}
    found = only(asked(small_provider, handler("Columns"), "segments", segments=as_list))
    assert found.verdict == "leak"
    assert "train and test share" in found.detail


def test_stale_cache_catches_a_file_that_is_not_named_by_dates(small_provider: Path) -> None:
    found = only(asked(small_provider, handler("CachedWithoutDates"), "stale_cache"))
    assert found.verdict == "leak"
    assert "dates included" in found.detail


def test_model_poison_catches_a_model_that_reads_test_in_fit(small_provider: Path) -> None:
    config = handler("Columns", features=HONEST[:1])
    caught = asked(small_provider, config, "model_poison", model=model("MeanOfSegments", segments=["train", "test"]))
    assert only(caught).verdict == "leak"
    assert "reads days after" in only(caught).detail
    honest = asked(small_provider, config, "model_poison", model=model("MeanOfSegments", segments=["train", "valid"]))
    assert only(honest).verdict == "clean"


def test_model_poison_does_not_judge_a_fit_that_is_never_the_same(small_provider: Path) -> None:
    found = only(asked(small_provider, handler("Columns"), "model_poison", model=model("Unseeded")))
    assert found.verdict == "not applicable"
    assert "seed" in found.detail


def test_a_signal_of_a_users_own_function_is_judged_by_what_it_computes(small_provider: Path) -> None:
    caught = check_signal(tomorrow, small_provider, qlib_settings=STOCK)
    assert [finding.verdict for finding in caught.findings] == ["leak", "leak", "leak"]
    assert check_signal(close_over_mean, small_provider, qlib_settings=STOCK).verdict == "clean"
