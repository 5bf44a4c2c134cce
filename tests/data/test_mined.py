"""Sessions from a provider: the same call gives the same library, however often it was stopped."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from qlib_llm_alpha.data.mined import Ground, MiningRequest, compare_mining, run_mining
from qlib_llm_alpha.errors import ConfigError, DocumentError, LLMError, ReplayError
from qlib_llm_alpha.evaluation.ledger import TrialLedger
from qlib_llm_alpha.library.factor_set import load_factor_set
from qlib_llm_alpha.llm.audit import trace_factor
from qlib_llm_alpha.llm.request import Request
from qlib_llm_alpha.mining.exploring import cut
from qlib_llm_alpha.mining.llm_session import ModelPlan
from qlib_llm_alpha.mining.session_audit import verify
from tests.support.scripted_gateway import ScriptedGateway
from tests.support.scripted_model import answer_request

pytestmark = pytest.mark.slow  # each test runs whole sessions

LABEL = "Ref($close,-2)/Ref($close,-1)-1"

GAPS = """---
title: Gaps
source: desk notes
published: 2015-06-12
---
Factor idea: gaps at the open fade
Category: mean_reversion
Formula: 1-$open/Ref($close,1)
Formula: (1-$open/Ref($close,1))/Std($change,20)
Formula: Meen(1-$open/Ref($close,1),3)
"""
VOLUME = """---
title: Volume
source: desk notes
published: 2015-06-12
---
Factor idea: unusual volume draws buyers
Category: liquidity
Formula: $volume/Mean($volume,20)
Formula: Ref($close,-1)/$close-1
"""
LUNCH = """---
title: Lunch
source: canteen
published: 2015-06-12
---
Lunch is at noon.
"""


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    for name, text in (("gaps.md", GAPS), ("lunch.md", LUNCH)):
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def request_for(small_provider: Path, notes: Path) -> Callable[..., MiningRequest]:
    def make(**changes: Any) -> MiningRequest:
        model = {"mode": "record", "model": "scripted", "documents": str(notes), **changes.pop("model", {})}
        asked = {
            "provider": small_provider,
            "universe": "csi300",
            "start": "2018-03-01",
            "end": "2019-12-31",
            "label": LABEL,
            "proposer": "llm",
            "trials": 20,
            "model": ModelPlan(**model),
        }
        return MiningRequest(**{**asked, **changes})

    return make


def test_a_session_from_documents_ends_with_candidates_calls_quotes_and_an_audit(
    request_for: Callable[..., MiningRequest], tmp_path: Path
) -> None:
    ledger = TrialLedger(tmp_path / "ledger")
    out = tmp_path / "out"
    gateway = ScriptedGateway()
    run_mining(request_for(), out, ledger, gateway=gateway)
    facts = json.loads((out / "session.json").read_text())
    assert facts["exploration"]["trials"] == 3  # the misspelt one was repaired
    assert facts["exploration"]["trials"] <= ledger.count()
    assert set(ledger.trials()["proposer"]) == {"scripted", "profile"}
    assert verify(out) == []
    lineage = trace_factor(out, "1-$open/Ref($close,1)")
    assert [call["purpose"] for call in lineage.calls] == ["categorise", "generate"]
    assert len(lineage.documents) == len(lineage.quotes) == 1
    assert all(request.as_of < "2019-12-31" for request in gateway.requests)


def test_the_same_call_gives_the_same_bytes_and_replay_asks_nobody(
    request_for: Callable[..., MiningRequest], tmp_path: Path
) -> None:
    for name in ("one", "two"):
        run_mining(request_for(), tmp_path / name, None, gateway=ScriptedGateway())
    replay = {"mode": "replay", "model": None, "recording": str(tmp_path / "one")}
    run_mining(request_for(model=replay), tmp_path / "three", None)
    for file in ("recording.jsonl", "verdicts.parquet", "explored.parquet", "drafts.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    for file in ("verdicts.parquet", "explored.parquet", "drafts.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "three" / file).read_bytes()
    same = [(tmp_path / name / "library.yaml") for name in ("one", "two", "three")]
    assert len({path.read_bytes() if path.exists() else b"" for path in same}) == 1


def test_replay_without_a_recorded_answer_is_an_error_that_says_what_is_missing(
    request_for: Callable[..., MiningRequest], notes: Path, tmp_path: Path
) -> None:
    run_mining(request_for(), tmp_path / "one", None, gateway=ScriptedGateway())
    (notes / "volume.md").write_text(VOLUME, encoding="utf-8")
    replay = {"mode": "replay", "model": None, "recording": str(tmp_path / "one")}
    with pytest.raises(ReplayError, match="no recorded answer for filter"):
        run_mining(request_for(model=replay), tmp_path / "two", None)
    with pytest.raises(ReplayError, match="belongs to other data"):
        run_mining(request_for(model=replay, end="2019-11-29"), tmp_path / "three", None)


def test_a_stopped_session_goes_on_and_asks_for_no_answer_twice(
    request_for: Callable[..., MiningRequest], tmp_path: Path
) -> None:
    whole = ScriptedGateway()
    run_mining(request_for(), tmp_path / "whole", None, gateway=whole)
    out, asked = tmp_path / "stopped", []
    for _ in range(len(whole.requests)):
        gateway = ScriptedGateway(stop_after=1)
        with contextlib.suppress(LLMError):
            run_mining(request_for(), out, None, resume=True, gateway=gateway)
        asked += [request.key for request in gateway.requests]
    run_mining(request_for(), out, None, resume=True, gateway=ScriptedGateway(stop_after=0))
    assert sorted(asked) == sorted(request.key for request in whole.requests)
    assert (out / "verdicts.parquet").read_bytes() == (tmp_path / "whole" / "verdicts.parquet").read_bytes()
    assert verify(out) == []


def test_a_session_is_not_resumed_with_another_plan_and_a_folder_is_not_taken_twice(
    request_for: Callable[..., MiningRequest], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_mining(request_for(), out, None, gateway=ScriptedGateway())
    with pytest.raises(ConfigError, match="holds a session"):
        run_mining(request_for(), out, None, gateway=ScriptedGateway())
    with pytest.raises(ConfigError, match=r"was begun with .*'trials': 20.*'trials': 21"):
        run_mining(request_for(trials=21), out, None, resume=True, gateway=ScriptedGateway())


def test_a_document_more_extends_a_library_and_leaves_what_it_has(
    request_for: Callable[..., MiningRequest], notes: Path, tmp_path: Path
) -> None:
    first = ScriptedGateway()
    before = run_mining(request_for(alpha=1.0), tmp_path / "one", None, gateway=first)
    assert before is not None
    (notes / "volume.md").write_text(VOLUME, encoding="utf-8")
    second = ScriptedGateway()
    after = run_mining(request_for(alpha=1.0, extend=tmp_path / "one"), tmp_path / "two", None, gateway=second)
    assert after is not None
    assert after.factors[: len(before.factors)] == before.factors
    old, new = ((tmp_path / name / "library.yaml").read_text() for name in ("one", "two"))
    assert new.startswith(old.rstrip("\n"))
    sent = "\n".join(message.text for request in second.requests for message in request.messages)
    assert not [factor for factor in before.factors if factor.expression.text in sent], "what passed judge is not told"
    assert "err twice as often" in (tmp_path / "two" / "report.md").read_text()
    shown = {document for request in second.requests for document in request.documents}
    assert not shown & {document for request in first.requests for document in request.documents}
    assert load_factor_set(tmp_path / "two" / "library.yaml") == after


def without_bars_after(provider: Path, day: str, folder: Path) -> Path:
    """Copy a provider and replace every bar after a day by NaN."""
    shutil.copytree(provider, folder)
    rows = sum(one <= day for one in (folder / "calendars" / "day.txt").read_text().split())
    for file in folder.glob("features/*/*.day.bin"):
        values = np.fromfile(file, "<f4")
        values[1:][max(0, rows - int(values[0])) :] = np.nan
        values.tofile(file)
    return folder


@pytest.mark.parametrize("proposer", ["llm", "genetic"])
def test_nothing_of_judge_reaches_a_prompt_a_chart_or_a_figure_of_explore(
    proposer: str, request_for: Callable[..., MiningRequest], small_provider: Path, tmp_path: Path
) -> None:
    request = request_for(model={"charts": 2, "models": sees_images(tmp_path)}, trials=30, proposer=proposer)
    first, _ = cut(Ground.of(request).data)
    gone = without_bars_after(small_provider, str(first.window.end), tmp_path / "gone")
    keys = []
    for number, provider in enumerate((small_provider, gone)):
        gateway = ScriptedGateway()
        run_mining(replace(request, provider=provider), tmp_path / str(number), None, gateway=gateway)
        keys.append([one.key for one in gateway.requests])
    assert keys[0] == keys[1]
    if proposer == "llm":
        assert {one.purpose for one in gateway.requests} >= {"filter", "generate", "review", "chart"}
    explored = [(tmp_path / str(number) / "explored.parquet").read_bytes() for number in (0, 1)]
    assert explored[0] == explored[1]
    verdicts = [(tmp_path / str(number) / "verdicts.parquet").read_bytes() for number in (0, 1)]
    assert verdicts[0] != verdicts[1], "judge itself was there"


def test_nothing_after_search_changes_a_prompt_or_a_verdict(
    request_for: Callable[..., MiningRequest], small_provider: Path, tmp_path: Path
) -> None:
    gone = without_bars_after(small_provider, "2019-12-31", tmp_path / "gone")
    keys = []
    for number, provider in enumerate((small_provider, gone)):
        gateway = ScriptedGateway()
        model = {"charts": 2, "models": sees_images(tmp_path)}
        run_mining(request_for(provider=provider, model=model), tmp_path / str(number), None, gateway=gateway)
        # A key hashes every text and every image of its request.
        keys.append([request.key for request in gateway.requests])
    assert keys[0] == keys[1]
    assert any(message.images for request in gateway.requests for message in request.messages)
    for file in ("verdicts.parquet", "explored.parquet", "series.parquet", "recording.jsonl"):
        assert (tmp_path / "0" / file).read_bytes() == (tmp_path / "1" / file).read_bytes(), file


def sees_images(folder: Path) -> Path:
    registry = folder / "models.yaml"
    registry.write_text("models:\n  scripted: {images: true}\n", encoding="utf-8")
    return registry


def test_charts_are_not_drawn_for_a_model_that_may_not_see_them(
    request_for: Callable[..., MiningRequest], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="not known to see images"):
        run_mining(request_for(model={"charts": 1}), tmp_path / "out", None, gateway=ScriptedGateway())


def test_a_library_that_knows_later_days_is_neither_known_nor_extended(
    request_for: Callable[..., MiningRequest], tmp_path: Path
) -> None:
    run_mining(request_for(alpha=1.0), tmp_path / "one", None, gateway=ScriptedGateway())
    library = tmp_path / "one" / "library.yaml"
    genetic = {"proposer": "genetic", "formulas": (str(library),)}
    for later in ({"extend": tmp_path / "one"}, {"library": str(library)}, genetic):
        with pytest.raises(ConfigError, match="was chosen with bars up to 2019-12-31, and search ends on 2019-10-31"):
            run_mining(request_for(end="2019-10-31", **later), tmp_path / "two", None, gateway=ScriptedGateway())


def test_a_comparison_with_a_model_that_has_nothing_to_say_still_ends(
    request_for: Callable[..., MiningRequest], notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (notes / "gaps.md").unlink()
    monkeypatch.setattr("qlib_llm_alpha.mining.llm_session.Gateway", lambda *settings: ScriptedGateway())
    ledger = TrialLedger(tmp_path / "ledger")
    table = compare_mining(request_for(trials=10), ["random", "llm"], tmp_path / "out", ledger)
    assert [row.trials for row in table.rows] == [0, 0, 0, 10]


def test_a_second_process_is_kept_out_of_a_session(request_for: Callable[..., MiningRequest], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with contextlib.suppress(LLMError):
        run_mining(request_for(), out, None, gateway=ScriptedGateway(stop_after=1))
    with FileLock(out / ".lock"), pytest.raises(ConfigError, match="another process is at work"):
        run_mining(request_for(), out, None, resume=True, gateway=ScriptedGateway())


def test_a_library_that_was_mined_is_known_but_not_told(
    request_for: Callable[..., MiningRequest], tmp_path: Path
) -> None:
    found = run_mining(request_for(alpha=1.0), tmp_path / "one", None, gateway=ScriptedGateway())
    assert found is not None
    sent = []
    for library in (str(tmp_path / "one" / "library.yaml"), "starter"):
        gateway = ScriptedGateway()
        run_mining(request_for(library=library), tmp_path / f"with {library[-7:]}", None, gateway=gateway)
        sent.append("\n".join(message.text for request in gateway.requests for message in request.messages))
    listed = [text.split("Known already:")[1].split("What earlier rounds taught:")[0] for text in sent]
    assert str(load_factor_set("starter").factors[0].expression) in listed[1]
    assert not [factor for factor in found.factors if factor.expression.text in listed[0]]


def test_documents_of_later_days_are_left_out_and_nothing_but_such_is_refused(
    request_for: Callable[..., MiningRequest], notes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (notes / "volume.md").write_text(VOLUME.replace("2015", "2021"), encoding="utf-8")
    gateway = ScriptedGateway()
    run_mining(request_for(), tmp_path / "one", None, gateway=gateway)
    assert not any("unusual volume" in message.text for request in gateway.requests for message in request.messages)
    assert "1 documents were not there by" in caplog.text
    (notes / "gaps.md").unlink()
    (notes / "lunch.md").unlink()
    with pytest.raises(DocumentError, match="none of the 1 documents"):
        run_mining(request_for(), tmp_path / "two", None, gateway=ScriptedGateway())


def test_dates_codes_and_listed_names_never_go_out(
    request_for: Callable[..., MiningRequest], notes: Path, tmp_path: Path
) -> None:
    told = GAPS.replace("gaps at the open fade", "on 2014-03-05 SH600000 of the CSI 300, Acme Steel, gapped and faded")
    (notes / "gaps.md").write_text(told, encoding="utf-8")
    names = tmp_path / "names.txt"
    names.write_text("Acme Steel\n", encoding="utf-8")
    gateway = ScriptedGateway()
    run_mining(request_for(model={"names": names}), tmp_path / "out", None, gateway=gateway)
    sent = "\n".join(message.text for request in gateway.requests for message in request.messages)
    assert "gapped and faded" in sent
    assert not any(word in sent for word in ("2014", "600000", "CSI 300", "Acme"))


def test_a_model_that_ends_in_the_middle_leaves_what_it_said(
    request_for: Callable[..., MiningRequest], tmp_path: Path
) -> None:
    def breaking(request: Request) -> str:
        if request.purpose == "generate":
            raise LLMError("the line is dead")
        return answer_request(request)

    with pytest.raises(LLMError, match="the line is dead"):
        run_mining(request_for(), tmp_path / "out", None, gateway=ScriptedGateway(breaking))
    rest = ScriptedGateway()
    run_mining(request_for(), tmp_path / "out", None, resume=True, gateway=rest)
    assert {request.purpose for request in rest.requests} >= {"generate"}
    assert not {request.purpose for request in rest.requests} & {"filter", "categorise"}


def test_a_comparison_of_a_model_replays_from_the_folder_of_one_that_was_recorded(
    request_for: Callable[..., MiningRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = TrialLedger(tmp_path / "ledger")
    made = partial(ScriptedGateway)
    monkeypatch.setattr("qlib_llm_alpha.mining.llm_session.Gateway", lambda *settings: made())
    first = compare_mining(request_for(), ["random", "llm"], tmp_path / "one", ledger)
    assert [row.feedback for row in first.rows] == ["true", "none", "shuffled", "-"]
    assert len({row.trials for row in first.rows}) == 1
    assert all(row.scripted for row in first.rows[:3])
    replay = {"mode": "replay", "model": None, "recording": str(tmp_path / "one")}
    second = compare_mining(request_for(model={**replay, "model": "scripted"}), ["llm"], tmp_path / "two", ledger)
    assert [row.judge_t for row in second.rows] == [row.judge_t for row in first.rows[:3]]
    with pytest.raises(ConfigError, match="holds no answers for the search llm_true"):
        compare_mining(request_for(model={**replay, "recording": None}), ["llm"], tmp_path / "three", ledger)


def test_the_genetic_proposer_runs_from_a_provider_and_resumes_to_the_same_bytes(
    request_for: Callable[..., MiningRequest], tmp_path: Path
) -> None:
    request = request_for(proposer="genetic", trials=60, formulas=("starter",))
    for name in ("one", "two"):
        run_mining(request, tmp_path / name, None)
    for file in ("verdicts.parquet", "explored.parquet"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert len(json.loads((tmp_path / "one" / "plan.json").read_text())["search"]) == 64


def test_a_comparison_has_a_row_for_each_search_and_its_controls(
    request_for: Callable[..., MiningRequest], tmp_path: Path
) -> None:
    ledger = TrialLedger(tmp_path / "ledger")
    table = compare_mining(request_for(trials=40, proposer="random"), ["random", "genetic"], tmp_path / "out", ledger)
    assert [(row.proposer, row.feedback) for row in table.rows] == [
        ("random", "-"),
        ("genetic", "true"),
        ("genetic", "none"),
        ("genetic", "shuffled"),
    ]
    assert {row.trials for row in table.rows} == {40}
    assert "genetic" in (tmp_path / "out" / "comparison.md").read_text()
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["equal_trials"]
