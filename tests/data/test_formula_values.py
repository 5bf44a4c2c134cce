"""Formulas on a provider as a frame and as scores: with numba and without, and what happens between batches."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qlib_llm_alpha.data.formula_values import formula_frame, formula_scores
from qlib_llm_alpha.errors import ConfigError, ProviderError
from qlib_llm_alpha.evaluation.ledger import TrialLedger
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.factor.operators import OPERATORS
from qlib_llm_alpha.library.formula_file import ReadFormula

ROOT = Path(__file__).parents[2]
LABEL = parse("Ref($close,-2)/Ref($close,-1)-1", allow_future=True)
SAMPLES = {
    "boolean": "($change>0)",
    "number": "2",
    "count": "5",
    "fraction": "0.3",
    "tail": "0.1",
    "window": "7",
    "shift": "2",
    "period": "2019",
    "group": "$industry",
    "instrument": "'SH000300'",
}


def of(text: str, name: str = "") -> ReadFormula:
    return ReadFormula(name or text, text, parse(text))


def one_of_each() -> list[str]:
    """Return a formula for each operator of the table."""
    found = []
    for one in OPERATORS.values():
        series = iter(["$$eps_q"] if one.lookback == "reported" else ["$change", "($close/$open-1)"])
        arguments = [SAMPLES.get(kind) or next(series) for _, kind in one.arguments]
        if one.name == "Clip":
            arguments[1:] = ["-0.01", "0.02"]
        call = f"{one.name}({','.join(arguments)})"
        found.append(f"If({call},$high,$low)" if one.unit in ("boolean", "compare") else call)
    return found


def test_one_bad_formula_costs_no_other_and_batches_do_not_matter(small_provider: Path) -> None:
    good = [of(f"Mean($close,{window})/$close") for window in range(2, 42)]
    bad = ReadFormula("bad", "Ref($close,-1)", None, "[look_ahead] it reads the future")
    done: list[tuple[int, int]] = []
    found = formula_frame(
        [*good[:20], bad, *good[20:]],
        small_provider,
        "csi300",
        start="2021-06-01",
        progress=lambda *at: done.append(at),
    )
    assert found.refused == {"bad": "[look_ahead] it reads the future"}
    assert list(found.values.columns) == [one.name for one in good]
    assert done[-1] == (40, 40)
    alone = formula_frame([good[37]], small_provider, "csi300", start="2021-06-01").values
    pd.testing.assert_frame_equal(found.values[[good[37].name]], alone, check_exact=True)


def test_scores_come_in_the_order_of_the_formulas(small_provider: Path) -> None:
    refused = ReadFormula("no", "Ref($close,-1)", None, "[look_ahead] it reads the future")
    found = formula_scores([of("$volume"), refused, of("$close")], small_provider, "csi300", LABEL).scores
    assert [one.name for one in found] == ["$volume", "no", "$close"]
    assert [bool(one.refused) for one in found] == [False, True, False]
    assert found[1].to_dict()["ic"] is None
    assert json.loads(json.dumps(found[0].to_dict()))["days"] == found[0].days > 500


def test_the_daily_series_is_what_the_scores_are_means_of_and_is_nan_where_refused(small_provider: Path) -> None:
    refused = ReadFormula("no", "Ref($close,-1)", None, "[look_ahead] it reads the future")
    dates = {"start": "2020-01-02", "end": "2020-12-31"}
    found = formula_scores(
        [of("$volume"), refused, of("$close/($close>2*$high)")], small_provider, "csi300", LABEL, **dates
    )
    assert found.rank_ic.shape == (len(found.days), 3)
    assert np.nanmean(found.rank_ic[:, 0]) == pytest.approx(found.scores[0].rank_ic)
    assert np.isnan(found.rank_ic[:, 1:]).all()
    assert (found.basis.start, found.basis.end) == (str(found.days[0]), str(found.days[-1]))


def test_a_day_whose_label_is_a_mean_over_days_after_the_end_does_not_count(small_provider: Path) -> None:
    week = parse("Mean(Ref($close,-6),5)/Ref($close,-1)-1", allow_future=True)
    found = formula_scores([of("$volume")], small_provider, "csi300", week, start="2020-12-01", end="2020-12-31")
    every = formula_scores([of("$volume")], small_provider, "csi300", LABEL, start="2020-12-01", end="2020-12-31")
    assert week.lookahead == 6
    assert found.scores[0].days == every.scores[0].days - 4


def test_trials_are_entered_with_their_proposer_and_days(small_provider: Path, tmp_path: Path) -> None:
    found = formula_scores([of("$volume"), of("$close")], small_provider, "all", LABEL, end="2020-06-30")
    ledger = TrialLedger(tmp_path)
    who = {parse("$close").id: "genetic"}
    assert found.enter(ledger, data="d", run="r", proposers=who) == 2
    assert found.enter(ledger, data="d", run="r", proposers=who) == 0
    assert list(ledger.trials()["proposer"]) == ["human", "genetic"]
    np.testing.assert_array_equal(ledger.series().to_numpy(), found.rank_ic)


def test_a_set_on_reports_is_refused_where_the_provider_has_none(small_provider: Path, tmp_path: Path) -> None:
    for name in ("calendars", "instruments", "features"):
        (tmp_path / name).symlink_to(small_provider / name)
    found = formula_frame([of("P($$eps_q)/$close"), of("$close")], tmp_path, "csi300")
    assert list(found.values.columns) == ["$close"]
    assert found.refused["P($$eps_q)/$close"].startswith(
        "[unknown_field] no instrument of the provider has ['$$eps_q']"
    )


def test_a_label_has_to_look_ahead_and_a_universe_has_to_exist(small_provider: Path) -> None:
    with pytest.raises(ConfigError, match="no forecast"):
        formula_scores([of("$close")], small_provider, "csi300", parse("$close/Ref($close,1)-1"))
    with pytest.raises(ProviderError, match="csi301"):
        formula_frame([of("$close")], small_provider, "csi301")


WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = None
from qlib_llm_alpha.cli import main
from qlib_llm_alpha.engine.kernels.registry import HAVE_NUMBA
assert not HAVE_NUMBA
sys.exit(main())
"""


def test_without_numba_every_operator_and_score_has_the_same_numbers(small_provider: Path, tmp_path: Path) -> None:
    texts = one_of_each()
    (tmp_path / "formulas.txt").write_text("\n".join(texts))
    options = [str(tmp_path / "formulas.txt"), "--provider", str(small_provider), "--universe", "csi300"]
    options += ["--start", "2020-01-02", "--end", "2020-12-31"]
    for call in (
        ["eval", "--out", str(tmp_path / "values.parquet")],
        ["score", "--out", str(tmp_path / "s.parquet"), "--ledger", str(tmp_path / "ledger")],
    ):
        command = [sys.executable, "-c", WITHOUT_NUMBA, "factor", call[0], *options, *call[1:]]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        # Some are the same for all names of a day, such as those of the index, and have no score.
        assert done.returncode == (0 if call[0] == "eval" else 1), done.stderr
    formulas = [of(text) for text in texts]
    dates = {"start": "2020-01-02", "end": "2020-12-31"}
    ours = formula_frame(formulas, small_provider, "csi300", **dates).values
    plain = pd.read_parquet(tmp_path / "values.parquet").set_index(["datetime", "instrument"])
    assert len(ours.columns) == len(OPERATORS)
    for name in ours.columns:
        np.testing.assert_allclose(plain[name], ours[name], rtol=1e-6, atol=1e-9, err_msg=name)
    scores = pd.read_parquet(tmp_path / "s.parquet").set_index("name")
    for one in formula_scores(formulas, small_provider, "csi300", LABEL, **dates).scores:
        assert scores["refused"][one.name] == one.refused
        for what in ("ic", "rank_ic", "t_ic", "turnover", "autocorrelation", "coverage"):
            expected = pytest.approx(getattr(one, what), rel=1e-6, abs=1e-6, nan_ok=True)
            assert scores[what][one.name] == expected, (one.name, what)
