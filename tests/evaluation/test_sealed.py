from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.evaluation.openings import Opening, OpeningKey
from qlib_llm_alpha.evaluation.sealed import open_sealed
from qlib_llm_alpha.evaluation.statistics import hac_t


def opened(start: str, end: str) -> Opening:
    """Return an opening as the ledger gives it."""
    key = OpeningKey("a configuration", "a set", "some data", "cn", start, end)
    return Opening(key, repeated=False, forced="", study="", cells=1, openings=1, row=0, spent=False)


OPENING = opened("2020-01-01", "2020-01-31")
INDEX = pd.MultiIndex.from_product(
    [pd.date_range("2020-01-01", "2020-01-20"), [f"SH{n:06d}" for n in range(15)]], names=["datetime", "instrument"]
)
RNG = np.random.default_rng(2)
LABEL = pd.Series(RNG.standard_normal(300), index=INDEX, name="LABEL0")
SCORES = pd.DataFrame({"score": 0.4 * LABEL + RNG.standard_normal(300), "ridge": RNG.standard_normal(300)}, index=INDEX)


def test_every_column_is_measured_day_by_day() -> None:
    label = LABEL.copy()
    label.iloc[-30:] = np.nan
    opening = open_sealed(SCORES, label, OPENING, reference="ridge")
    daily = {
        name: np.array([spearmanr(day[name], LABEL[day.index]).statistic for _, day in SCORES.groupby("datetime")])
        for name in SCORES
    }
    table = opening.table()
    assert list(table.index) == ["score", "ridge"]
    assert table.loc["score", "n_days"] == 18
    assert table.loc["score", "rank_ic"] == pytest.approx(daily["score"][:18].mean())
    assert np.isnan(opening.daily_ic["score"][18:]).all()
    gain = opening.daily_ic["score"] - opening.daily_ic["ridge"]
    assert table.loc["score", "gain"] == pytest.approx(np.nanmean(gain))
    assert table.loc["score", "t_gain"] == pytest.approx(hac_t(gain))
    assert np.isnan(table.loc["ridge", "gain"])
    assert opening.daily().columns.tolist()[0] == ("ic", "score")
    assert opening.daily().index.name == "datetime"


def test_row_order_and_level_order_do_not_matter() -> None:
    first = open_sealed(SCORES, LABEL, OPENING)
    second = open_sealed(SCORES.sample(frac=1, random_state=1), LABEL.swaplevel().sort_index(), OPENING)
    pd.testing.assert_frame_equal(first.table(), second.table())


def test_without_a_reference_there_is_no_gain_and_without_labels_no_result() -> None:
    row = open_sealed(SCORES, LABEL * np.nan, OPENING).rows[0]
    assert row.n_days == 0
    assert np.isnan([row.ic, row.rank_ic, row.hit_rate, row.gain]).all()


def test_what_cannot_be_opened_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"beyond the opened segment 'test' .2020-01-05 to 2020-01-31"):
        open_sealed(SCORES, LABEL, opened("2020-01-05", "2020-01-31"))
    with pytest.raises(ConfigError, match="reference 'lasso'"):
        open_sealed(SCORES, LABEL, OPENING, reference="lasso")
    with pytest.raises(ConfigError, match="at least one"):
        open_sealed(SCORES[[]], LABEL, OPENING)
