from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from qlib_llm_alpha.errors import ConfigError, PanelError
from qlib_llm_alpha.evaluation.scorecard import Scorecard, score_factor
from qlib_llm_alpha.evaluation.walls import Walls

DAYS = np.arange("2020-01-01", "2020-03-01", dtype="datetime64[D]")
WALLS = Walls.from_segments(
    {
        "train": ("2020-01-01", "2020-01-31"),
        "valid": ("2020-02-01", "2020-02-15"),
        "test": ("2020-02-16", "2020-02-29"),
    }
)
RNG = np.random.default_rng(5)
SCORE = RNG.standard_normal((60, 20))
LABEL = 0.3 * SCORE + RNG.standard_normal((60, 20))
REGIME = np.where(np.arange(60) % 3 == 0, "bear", "bull")


def card(**change: object) -> Scorecard:
    parts: dict[str, object] = {"score": SCORE, "label": LABEL, "days": DAYS, "walls": WALLS, "factor": "momentum"}
    return score_factor(**(parts | change))  # type: ignore[arg-type]


def test_a_card_agrees_with_a_loop_over_the_purged_days() -> None:
    scored = card(factor_id="ab12", regime=REGIME, decay_lags=(1, 2))
    daily = np.array([spearmanr(SCORE[day], LABEL[day]).statistic for day in range(29)])
    assert (scored.factor, scored.factor_id, scored.segment, scored.horizon) == ("momentum", "ab12", "train", 2)
    assert (scored.start, scored.end, scored.n_days) == ("2020-01-01", "2020-01-29", 29)
    assert scored.rank_ic == pytest.approx(daily.mean())
    assert scored.rank_icir == pytest.approx(daily.mean() / daily.std(ddof=1))
    assert scored.hit_rate == pytest.approx(np.mean(daily > 0))
    assert scored.by_regime["bear"] == pytest.approx(daily[::3].mean())
    assert scored.coverage == 1.0
    assert 0.5 < scored.turnover <= 1.0
    older = np.array([spearmanr(SCORE[day - 2], LABEL[day]).statistic for day in range(2, 29)])
    assert scored.decay[2] == pytest.approx(older.mean())


def test_outcomes_after_the_purge_change_nothing() -> None:
    poisoned = LABEL.copy()
    poisoned[29:] = np.nan
    assert card(label=poisoned) == card()


def test_names_outside_the_universe_do_not_count() -> None:
    member = np.ones(SCORE.shape, dtype=bool)
    member[:, 12:] = False
    assert card(member=member).rank_ic == card(score=SCORE[:, :12], label=LABEL[:, :12]).rank_ic
    assert card(member=member).coverage == 1.0


def test_the_sealed_segment_is_refused() -> None:
    with pytest.raises(ConfigError, match="sealed"):
        card(segment="test")


def test_a_card_without_evidence_is_all_missing_and_prints_as_json() -> None:
    empty = card(score=np.full(SCORE.shape, np.nan), segment="valid", decay_lags=(1,), regime=REGIME)
    assert (empty.n_days, empty.start, empty.coverage) == (0, "", 0.0)
    plain = json.loads(json.dumps(empty.to_dict(), allow_nan=False))
    assert plain["rank_ic"] is None
    assert plain["decay"] == {"1": None}
    assert plain["by_regime"] == {"bear": None, "bull": None}


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(PanelError, match="align"):
        card(label=LABEL[:, :3])
    with pytest.raises(PanelError, match="regime has 3"):
        card(regime=REGIME[:3])
    with pytest.raises(ConfigError, match="below 1"):
        card(decay_lags=(0,))
