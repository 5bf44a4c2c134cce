from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from qlib_llm_alpha import wiring
from qlib_llm_alpha.cli import guard_memory
from qlib_llm_alpha.data.embedded.simulate import simulate
from qlib_llm_alpha.data.embedded.write import write_market
from qlib_llm_alpha.errors import ConfigError, LLMFailure, ReplayError, WallError
from qlib_llm_alpha.evaluation.walls import Walls
from qlib_llm_alpha.guard.memory_market import market_questions, probe_memory
from qlib_llm_alpha.guard.memory_probes import recall_probe
from qlib_llm_alpha.guard.memory_questions import Outcome
from qlib_llm_alpha.guard.memory_suite import MemoryReport, memory_report
from qlib_llm_alpha.llm.budget import Budget
from qlib_llm_alpha.llm.client import Client
from qlib_llm_alpha.llm.gateway import Gateway
from qlib_llm_alpha.llm.journal import Journal
from qlib_llm_alpha.llm.models import ModelRegistry
from qlib_llm_alpha.llm.recording import Recording
from qlib_llm_alpha.llm.settings import LLMSettings
from qlib_llm_alpha.mining.llm_session import ModelPlan
from tests.guard.memory_clients import (
    UNKNOWN,
    WALLS,
    Says,
    asked_of,
    fact_cases,
    model_info,
    questions,
    reader,
    stubborn,
    up,
)
from tests.support.stub_server import StubServer

TODAY = date(2026, 1, 15)
TEST = ("2020-07-01", "2020-12-31")
SEARCH = ("2018-06-01", "2019-12-31")


def remembering(outcomes: tuple[Outcome, ...]) -> dict[str, str]:
    return {str(one.day): "up" if one.up else "down" for one in outcomes}


def report_of(answer: Callable, cut_off: date | None = date(2019, 1, 31), **settings: object) -> MemoryReport:
    given = {"walls": WALLS, "asked_on": TODAY, "seed": 1, **settings}
    return memory_report(Says(answer), model_info(cut_off), [TEST], questions(1), fact_cases(1), **given)


def test_a_model_that_reads_and_knows_nothing_is_clean() -> None:
    client = Says(lambda request: reader(1)(request) if "Facts" in request.messages[-1].text else UNKNOWN)
    found = memory_report(
        client, model_info(date(2019, 1, 31)), [TEST], questions(1), fact_cases(1), walls=WALLS, asked_on=TODAY
    )
    assert [probe.probe for probe in found.probes] == ["recall", "false_day", "renamed", "jitter", "flips"]
    assert {probe.verdict for probe in found.probes} == {"clean"}
    assert found.badge == "model memory: clean, as every day from 2019-05-02; probes found nothing"
    assert len(client.batches) == 1
    assert found.calls == len(client.batches[0]) <= 7 * 40
    assert (found.failed, found.replayed) == (0, 0)


def test_the_badge_names_status_and_every_probe_that_fires() -> None:
    memory = remembering(questions(1))

    def answer(request):
        asked = asked_of(request)
        if "Facts" in asked["text"]:
            return stubborn(1)(request)
        return up(0.9 if memory[asked["day"]] == "up" else 0.1) if asked["day"] in memory else UNKNOWN

    found = report_of(answer, None)
    assert found.badge.startswith("model memory: unknown cut-off: treated as contaminated; RECALL p=0.0001; KEYED ON ")
    assert "DOES NOT READ" in found.badge
    assert [probe.probe for probe in found.fired] == ["recall", "renamed", "flips"]
    said = json.loads(json.dumps(found.to_dict()))
    assert said["badge"] == found.badge
    assert said["probes"][0]["p"] < 0.01
    assert "RECALL" in found.table()
    assert "MEMORY" in found.table()
    assert "proves no absence" in " ".join(found.table().split())


@pytest.mark.parametrize(
    ("cut_off", "badge"),
    [
        (date(2019, 1, 31), "model memory: clean, as every day from 2019-05-02"),
        (date(2020, 6, 30), "model memory: partial, clean only from 2020-09-29"),
        (date(2023, 1, 31), "model memory: contaminated, clean only from 2023-05-02"),
        (None, "model memory: unknown cut-off: treated as contaminated"),
    ],
)
def test_without_questions_only_dates_are_compared(cut_off: date | None, badge: str) -> None:
    found = memory_report(None, model_info(cut_off), [TEST], asked_on=TODAY)
    assert (found.badge, found.calls, found.probes) == (badge, 0, ())
    assert found.badge in found.table()


def test_no_line_of_the_table_breaks_a_date() -> None:
    found = memory_report(None, model_info(date(2020, 6, 30)), [TEST, TEST], asked_on=TODAY)
    for width in range(30, 110):
        lines = found.table(width).splitlines()
        assert not [line for line in lines if line.endswith("-") and line.strip("-")], width


def test_who_remembers_days_after_its_stated_cut_off_contradicts_it() -> None:
    memory = remembering(questions(1))
    knows = lambda request: up(0.9 if memory.get(asked_of(request)["day"]) == "up" else 0.1)  # noqa: E731
    assert report_of(knows, date(2017, 1, 1)).contradicted
    assert "STATED CUT-OFF CONTRADICTED" in report_of(knows, date(2017, 1, 1)).badge
    assert not report_of(knows, date(2019, 1, 1)).contradicted
    assert not report_of(knows, None).contradicted
    assert not report_of(lambda _: UNKNOWN, date(2017, 1, 1)).contradicted


def test_answers_that_people_gave_have_no_memory_to_probe_and_nothing_is_asked() -> None:
    client = Says(lambda _: UNKNOWN)
    found = memory_report(
        client,
        model_info(None),
        [TEST],
        questions(1),
        walls=WALLS,
        asked_on=TODAY,
        written_by="people (written by the authors for the embedded market)",
    )
    assert client.batches == []
    assert found.probes == ()
    assert "no memory to probe" in found.sentence
    assert found.badge.startswith("model memory: none, the answers were given by people")


def test_outcomes_need_walls_and_may_not_be_sealed() -> None:
    with pytest.raises(ConfigError, match="without walls"):
        report_of(lambda _: UNKNOWN, walls=None)
    with pytest.raises(WallError, match="nothing sealed"):
        report_of(lambda _: UNKNOWN, walls=Walls.from_segments({"train": SEARCH}))


def test_failures_are_counted_and_when_all_fail_nothing_is_said() -> None:
    found = report_of(lambda _: LLMFailure("refusal", "it will not say"))
    assert found.failed == found.calls
    assert {probe.verdict for probe in found.probes} == {"not applicable"}
    assert not found.fired


@pytest.fixture
def stub() -> StubServer:
    with StubServer() as server:
        yield server


def endpoint(stub: StubServer, model: str) -> Gateway:
    settings = LLMSettings(base_url=stub.url, model=model)
    return Gateway(settings, ModelRegistry.of(), Budget())


def over_http(stub: StubServer, model: str, folder: Path, seed: int) -> object:
    with Journal(folder / f"{model}-{seed}.sqlite") as journal:
        client = Client(mode="live", model=model, journal=journal, gateway=endpoint(stub, model))
        with client:
            return recall_probe(client, questions(seed), WALLS, seed=seed)


def test_over_http_the_clairvoyant_is_found_and_neither_oracle_nor_amnesiac(stub: StubServer, tmp_path: Path) -> None:
    stub.memory = remembering(questions(0))
    found = {model: over_http(stub, model, tmp_path, 0) for model in ("clairvoyant", "oracle", "amnesiac")}
    assert found["clairvoyant"].p < 0.01
    assert found["clairvoyant"].counts["right"] == 40
    assert not found["oracle"].fired
    assert found["oracle"].counts["answered"] == 40
    assert found["amnesiac"].counts["answered"] == 0
    assert stub.hits == 120


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory") / "market"
    write_market(simulate("noise", 20, "2018-01-02", "2020-12-31", 5), folder)
    return folder


def plan(**settings: object) -> ModelPlan:
    return ModelPlan(**{"mode": "live", "model": "oracle", **settings})


def test_a_recording_is_replayed_with_its_model_and_day_and_asks_nobody(
    stub: StubServer, provider: Path, tmp_path: Path
) -> None:
    settings = {"start": SEARCH[0], "end": SEARCH[1], "windows": [TEST], "questions": 6, "seed": 3}
    recorded = probe_memory(
        provider,
        "all",
        plan(mode="record"),
        tmp_path / "made",
        **settings,
        today=date(2021, 3, 1),
        gateway=endpoint(stub, "oracle"),
    )
    hits = stub.hits
    assert 6 <= hits <= 42
    assert recorded.asked_on == date(2021, 3, 1)
    header = Recording.load(tmp_path / "made" / "recording.jsonl").header
    assert (header["model"], header["asked_on"]) == ("oracle", "2021-03-01")
    replay = plan(mode="replay", model=None, recording=str(tmp_path / "made"))
    replayed = probe_memory(provider, "all", replay, tmp_path / "again", **settings, today=TODAY)
    assert (replayed.model, replayed.asked_on) == ("oracle", date(2021, 3, 1))
    assert replayed.replayed == replayed.calls
    assert [probe.to_dict() for probe in replayed.probes] == [probe.to_dict() for probe in recorded.probes]
    assert "counts as today, 2021-03-01" in replayed.sentence
    assert stub.hits == hits
    with pytest.raises(ReplayError):
        probe_memory(provider, "all", replay, tmp_path / "other", **{**settings, "seed": 4}, today=TODAY)


def test_what_was_answered_is_not_asked_again(stub: StubServer, provider: Path, tmp_path: Path) -> None:
    settings = {"start": SEARCH[0], "end": SEARCH[1], "questions": 4, "today": TODAY}
    hits = 0
    for _ in range(2):
        found = probe_memory(provider, "all", plan(), tmp_path / "kept", **settings, gateway=endpoint(stub, "oracle"))
        hits = hits or stub.hits
    assert stub.hits == hits == found.calls
    assert found.replayed == found.calls


def test_the_shipped_recording_has_no_memory_to_probe(provider: Path, tmp_path: Path) -> None:
    embedded = ModelPlan(mode="replay")
    found = probe_memory(
        provider, "all", embedded, tmp_path / "none", start=SEARCH[0], end=SEARCH[1], windows=[TEST], today=TODAY
    )
    assert "written by" in found.written_by
    assert "no memory to probe" in found.sentence
    assert not (tmp_path / "none").exists()


def test_no_bar_after_the_last_day_is_read_and_test_must_come_after_it(provider: Path, tmp_path: Path) -> None:
    outcomes, cases = market_questions(provider, "all", Walls.from_segments({"train": SEARCH}), seed=2)
    assert len(outcomes) == 40
    assert len(cases) >= 35
    assert max(one.known_on for one in outcomes) <= date.fromisoformat(SEARCH[1])
    market = simulate("noise", 20, "2018-01-02", "2019-12-31", 5)
    write_market(market, tmp_path / "short")
    assert market_questions(tmp_path / "short", "all", Walls.from_segments({"train": SEARCH}), seed=2)[0]
    settings = {"start": SEARCH[0], "end": SEARCH[1], "today": TODAY}
    with pytest.raises(ConfigError, match="not after 'train'"):
        probe_memory(provider, "all", plan(), tmp_path, **settings, windows=[("2019-07-01", "2020-12-31")])
    with pytest.raises(ConfigError, match="questions is -1"):
        probe_memory(provider, "all", plan(), tmp_path, **settings, questions=-1)


def test_the_command_prints_the_report_and_ends_with_1_when_memory_is_found(
    stub: StubServer,
    provider: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What wiring does is done here with the stub's gateway in place of the environment's endpoint."""

    def wired(place: Path, universe: str, out: Path, **given: object) -> MemoryReport:
        names = ("mode", "model", "models", "recording", "budget_usd", "budget_tokens")
        asked = ModelPlan(**{name: given.pop(name) for name in names})
        return probe_memory(place, universe, asked, out, **given, today=TODAY, gateway=endpoint(stub, str(asked.model)))

    monkeypatch.setattr(wiring, "probe_model_memory", wired, raising=False)
    outcomes, _ = market_questions(provider, "all", Walls.from_segments({"train": SEARCH}), count=20, seed=0)
    stub.memory = remembering(outcomes)
    parser = argparse.ArgumentParser()
    guard_memory.add_memory(parser.add_subparsers())

    def run(*more: str) -> int:
        words = ["memory", "--provider", str(provider), "--start", SEARCH[0], "--end", SEARCH[1], "--test", *TEST]
        args = parser.parse_args([*words, "--mode", "live", "--questions", "20", *more])
        return int(args.run(args))

    assert run("--model", "clairvoyant", "--out", str(tmp_path / "a")) == 1
    printed = capsys.readouterr().out
    assert "; RECALL p=0.000" in printed
    assert "unknown cut-off" in printed
    assert run("--model", "amnesiac", "--out", str(tmp_path / "b"), "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["model"] == "amnesiac"
    assert np.isclose(said["probes"][0]["counts"]["answered"], 0)
