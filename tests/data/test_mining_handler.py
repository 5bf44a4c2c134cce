"""The handler that mines: replay on the market it is bound to, a frozen set elsewhere, errors that say what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qlib_llm_alpha.data.embedded.write import ensure_market
from qlib_llm_alpha.data.mining_handler import LLMAlphaHandler
from qlib_llm_alpha.errors import ConfigError, LibraryError, LLMFailure, ReplayError
from qlib_llm_alpha.evaluation.ledger import TrialLedger
from qlib_llm_alpha.library.factor_set import load_factor_set
from qlib_llm_alpha.mining.llm_session import EMBEDDED, SHIPPED
from qlib_llm_alpha.mining.session_audit import verify
from tests.support.provider import END, START, TRAIN, open_provider
from tests.support.record_embedded import handler_keywords, record

SHIPPED_LIBRARY = SHIPPED / EMBEDDED / "library.yaml"


@pytest.fixture(autouse=True)
def no_model_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL", "LLM_MODE", "LLM_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


def small(tmp_path: Path, **changes: Any) -> LLMAlphaHandler:
    settings: dict[str, Any] = {
        "instruments": "csi300",
        "start_time": START,
        "end_time": END,
        "fit_start_time": TRAIN[0],
        "fit_end_time": TRAIN[1],
        "sessions": str(tmp_path / "sessions"),
    }
    return LLMAlphaHandler(**(settings | changes))


def test_on_other_data_and_without_a_key_the_recorded_set_stands_in_and_the_log_says_so(
    qlib_small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handler = small(tmp_path)
    frozen = load_factor_set(SHIPPED_LIBRARY)
    assert handler.factor_set.names == load_factor_set("starter").names + frozen.names
    assert handler.factor_set.as_of == frozen.as_of
    assert "nothing is mined here" in caplog.text
    assert "OPENAI_API_KEY and LLM_MODE=live" in caplog.text
    assert not (tmp_path / "sessions").exists()
    assert list(handler.fetch(col_set="feature").columns) == list(handler.factor_set.names)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"fit_start_time": None}, ConfigError, "expected both"),
        ({"llm_mode": "dream"}, ConfigError, "expected live, record or replay"),
        ({"llm_mode": "live"}, LLMFailure, "OPENAI_API_KEY"),
        ({"base": "alpha158"}, LibraryError, "has warmup: qlib; expected strict"),
        ({"recording": "nowhere.jsonl"}, Exception, "nowhere.jsonl"),
        ({"label": [[], []]}, ConfigError, "expected an expression to mine for"),
    ],
)
def test_what_cannot_be_mined_says_why(
    qlib_small: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        small(tmp_path, **changes)


@pytest.mark.slow
def test_the_main_job_replays_the_recording_and_finds_the_shipped_library(tmp_path: Path, recorder_store: Path) -> None:
    market = tmp_path / "market"
    ensure_market(market)
    open_provider(market, recorder_store)
    keywords = {**handler_keywords(), "start_time": "2020-01-02", "end_time": "2020-12-31"}
    shipped = load_factor_set(SHIPPED_LIBRARY)
    found = [LLMAlphaHandler(**keywords, sessions=str(tmp_path / name)).factor_set for name in ("one", "two")]
    assert found[0] == found[1]
    assert found[0].names == load_factor_set(keywords["base"]).names + shipped.names
    sessions = [next(path for path in (tmp_path / name).iterdir() if path.is_dir()) for name in ("one", "two")]
    for file in ("library.yaml", "verdicts.parquet", "explored.parquet", "drafts.json"):
        assert (sessions[0] / file).read_bytes() == (sessions[1] / file).read_bytes()
    assert (sessions[0] / "library.yaml").read_bytes() == SHIPPED_LIBRARY.read_bytes()
    assert verify(sessions[0]) == []
    tried = TrialLedger(recorder_store / "ledger").trials()
    assert "written_by_the_authors" in set(tried["proposer"])
    with pytest.raises(ReplayError, match="no recorded answer"):
        LLMAlphaHandler(**{**keywords, "documents": str(_one_note(tmp_path))}, sessions=str(tmp_path / "three"))

    # What is shipped is what the written answers give.
    record(market, tmp_path)
    assert (tmp_path / "recording.jsonl").read_bytes() == (SHIPPED / EMBEDDED / "recording.jsonl").read_bytes()


def _one_note(folder: Path) -> Path:
    notes = folder / "notes"
    notes.mkdir()
    (notes / "note.md").write_text("---\npublished: 2015-01-01\n---\nCalm names earn more.\n", encoding="utf-8")
    return notes
