"""A chat: what the person rules out binds, figures are of explore, and the transcript resumes and replays."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qlib_llm_alpha.chain import Chain
from qlib_llm_alpha.cli.chat import Keyboard
from qlib_llm_alpha.data.embedded.in_memory import market_panel
from qlib_llm_alpha.data.embedded.simulate import simulate
from qlib_llm_alpha.documents.masking import Names
from qlib_llm_alpha.engine.funnel import screen
from qlib_llm_alpha.errors import ConfigError, LLMError, LLMFailure, ReplayError
from qlib_llm_alpha.evaluation.ledger import TrialLedger
from qlib_llm_alpha.evaluation.search_data import SearchData
from qlib_llm_alpha.evaluation.walls import Walls
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.llm.request import Reply, Request, Usage
from qlib_llm_alpha.llm.schema import schema_text
from qlib_llm_alpha.mining.admission import Rules
from qlib_llm_alpha.mining.asking import PROMPTS, Asking
from qlib_llm_alpha.mining.blind import Blind
from qlib_llm_alpha.mining.chat import ChatProposer, hold_chat
from qlib_llm_alpha.mining.chat_answers import ClarifyAnswer, ProposeAnswer, SpecifyAnswer, UnderstandAnswer
from qlib_llm_alpha.mining.chat_session import TRANSCRIPT, chat_with_model
from qlib_llm_alpha.mining.drafts import InnerLoop
from qlib_llm_alpha.mining.exploring import cut
from qlib_llm_alpha.mining.llm_session import ModelPlan
from qlib_llm_alpha.mining.session import Session
from qlib_llm_alpha.mining.transcript import Transcript
from qlib_llm_alpha.mining.vetoes import VetoAnswer, Vetoes
from tests.support.scripted import ScriptedClient

LABEL = parse("Ref($close,-2)/Ref($close,-1)-1", allow_future=True)
WALLS = Walls.from_segments({"train": ["2018-01-02", "2019-12-31"]})
FIELDS = ("$open", "$high", "$low", "$close", "$volume", "$amount", "$vwap")
NAMES = Names.of(instruments=["SH600000"], companies=["Kweichow Moutai"])
REVERSAL = "1-$close/Ref($close,5)"
NO_VETO: dict[str, list[str]] = {"fields": [], "operators": [], "categories": [], "formulas": []}


class Person:
    """Says what was prepared, in order; more questions than that are a mistake of the test."""

    def __init__(self, *replies: str) -> None:
        self.replies = list(replies)
        self.asked: list[str] = []
        self.shown: list[str] = []

    def ask(self, text: str) -> str:
        assert self.replies, f"nothing is left to say to: {text}"
        self.asked.append(text)
        return self.replies.pop(0)

    def say(self, text: str) -> None:
        self.shown.append(text)

    @property
    def heard(self) -> str:
        """Everything that was shown."""
        return "\n".join(self.shown)


class Interrupted(Exception):
    """The person closes the window."""


class Leaves(Person):
    """A person who leaves when all is said."""

    def ask(self, text: str) -> str:
        if not self.replies:
            raise Interrupted
        return super().ask(text)


class Writer:
    """A scripted model, no language model: formulas round by round, and fixed readings of what a person says.

    Parameters
    ----------
    rounds : sequence of sequences of str
        Formulas of each round; then nothing more.
    readings : mapping
        What is understood of a reply: ``{"vetoes": ..., "verdicts": [(number, word)], "wishes": ...}``.
    """

    def __init__(
        self,
        *rounds: Sequence[str],
        readings: dict[str, dict[str, Any]] | None = None,
        questions: Sequence[str] = (),
        ruled_out: dict[str, list[str]] | None = None,
        missing: Sequence[str] = (),
        category: str = "mean_reversion",
    ) -> None:
        self.rounds, self.readings = list(rounds), readings or {}
        self.questions, self.ruled_out = list(questions), ruled_out or {}
        self.missing, self.category = list(missing), category
        self.proposed: dict[str, Sequence[str]] = {}

    def __call__(self, request: Request) -> str:
        return json.dumps(getattr(self, request.purpose)(request.messages[-1].text))

    def chat_clarify(self, text: str) -> dict[str, Any]:
        return {"questions": self.questions}

    def chat_specify(self, text: str) -> dict[str, Any]:
        changed = "What the person said of earlier versions:\nnone" not in text
        return {
            "specification": "The return of a week, turned" + (" once more." if changed else "."),
            "missing_data": self.missing,
            "vetoes": {**NO_VETO, **self.ruled_out},
        }

    def chat_propose(self, text: str) -> dict[str, Any]:
        if text not in self.proposed:
            self.proposed[text] = self.rounds.pop(0) if self.rounds else ()
        return {
            "formulas": [
                {"name": "turn", "category": self.category, "formula": one, "explanation": "It turns the week."}
                for one in self.proposed[text]
            ]
        }

    def chat_understand(self, text: str) -> dict[str, Any]:
        said = text.rpartition("The person says:\n")[2].strip()
        found = self.readings.get(said, {})
        return {
            "vetoes": {**NO_VETO, **found.get("vetoes", {})},
            "verdicts": [{"number": number, "verdict": word} for number, word in found.get("verdicts", ())],
            "wishes": found.get("wishes", ""),
        }

    def repair(self, text: str) -> dict[str, Any]:
        return {"gives_up": False, "formula": "0-Corr($close,$volume,10)", "change": "closed the parenthesis"}


@pytest.fixture(scope="module")
def data() -> SearchData:
    market = simulate("planted", 60, "2017-06-01", "2019-12-31", 3)
    panel = market_panel(market, end=WALLS.search.end)
    return SearchData.of(panel, WALLS.search, LABEL, universe="csi300", data="planted 3")


def chat_of(
    person: Person, writer: Callable[[Request], str | LLMFailure], folder: Path, **settings: Any
) -> tuple[ChatProposer, ScriptedClient]:
    folder.mkdir(exist_ok=True)
    client = ScriptedClient(writer)
    asking = Asking(client, Blind(NAMES))
    loop = InnerLoop(asking, FIELDS, check_values=None)
    transcript = Transcript(folder / TRANSCRIPT, model=client.model, data="planted 3")
    return ChatProposer(asking, loop, person, transcript, **settings), client


def held(chat: ChatProposer, data: SearchData, **settings: Any) -> Session:
    return hold_chat(lambda first: chat, data, trials=40, rules=Rules(draws=400), nulls=0, **settings)[0]


def tried(session: Session) -> list[str]:
    return [] if session.exploration is None else [one.candidate.expression.text for one in session.exploration.found]


def test_an_idea_becomes_a_specification_formulas_figures_and_verdicts(data: SearchData, tmp_path: Path) -> None:
    person = Person("losers of the week recover", "five days", "", "good, go on", "/done")
    chat, client = chat_of(person, Writer([REVERSAL], ["$open/$close"], questions=["Over how many days?"]), tmp_path)
    ledger = TrialLedger(tmp_path / "ledger")
    session = held(chat, data, ledger=ledger, run="chat")
    assert person.asked[1] == "Over how many days?"
    assert "The return of a week, turned." in person.heard
    assert f"1. {REVERSAL} (mean_reversion)" in person.heard
    assert "It turns the week." in person.heard
    assert tried(session) == [REVERSAL, "$open/$close"]
    assert ledger.count() >= 2, "each formula that was tried is a trial"
    assert "2 formulas were tried; 2 are judged on days that nobody has seen." in person.heard
    answers = next(one for one in client.requests if one.purpose == "chat_specify").messages[-1].text
    assert "Over how many days? five days" in answers


def test_a_person_who_asks_for_shorter_windows_arrives_at_the_planted_reversal(
    data: SearchData, tmp_path: Path
) -> None:
    person = Person("losers recover", "", "shorter", "shorter still", "/done")
    readings = {said: {"wishes": said} for said in ("shorter", "shorter still")}
    rounds = (["1-$close/Ref($close,40)"], ["1-$close/Ref($close,20)"], [REVERSAL])
    session = held(chat_of(person, Writer(*rounds, readings=readings), tmp_path)[0], data)
    last = cut(data)[1]
    (planted,) = screen([parse(REVERSAL)], last.panel, last.prepared, warmup="strict", rows=last.rows)
    best = max(session.admission.judged, key=lambda one: abs(one.rank_ic))
    assert abs(best.rank_ic) >= 0.8 * abs(planted.rank_ic.mean)
    assert best.candidate.expression.text == REVERSAL


def test_no_volume_binds_in_all_later_candidates_however_often_the_model_forgets(
    data: SearchData, tmp_path: Path
) -> None:
    forgets = ["$volume/Mean($volume,5)", "Corr($close,$amount,10)", "$close/Ref($close,3)"]
    person = Person("what turns", "", "no volume please", "", "", "/done")
    readings = {"no volume please": {"vetoes": {"fields": ["$volume"]}}}
    writer = Writer([REVERSAL], forgets, ["Mean($volume,3)/$volume", "$close/Ref($close,9)"], readings=readings)
    chat, _ = chat_of(person, writer, tmp_path)
    session = held(chat, data)
    assert "Ruled out: fields $amount, $volume." in person.heard
    assert tried(session) == [REVERSAL, "$close/Ref($close,3)", "$close/Ref($close,9)"]
    assert [one.reason for one in chat.rejections] == ["vetoed"] * 3
    assert "it reads $volume, which was ruled out" in person.heard


def test_a_repair_that_brings_back_what_was_ruled_out_is_refused(data: SearchData, tmp_path: Path) -> None:
    person = Person("/veto volume", "what turns", "", "/done")
    chat, client = chat_of(person, Writer(["0-Corr($close,$open,10"]), tmp_path)
    session = held(chat, data)
    assert [one.purpose for one in client.requests].count("repair") == 1
    assert tried(session) == []
    assert [one.reason for one in chat.rejections] == ["vetoed"]


def test_what_is_ruled_out_is_no_longer_judged_although_it_was_tried(data: SearchData, tmp_path: Path) -> None:
    person = Person("what turns", "", "drop the second", "", "/done")
    readings = {"drop the second": {"verdicts": [(2, "drop"), (1, "keep"), (9, "keep")]}}
    writer = Writer([REVERSAL, "$close/$open"], ["$close/$open*2", "Mean($close/$open,3)"], readings=readings)
    chat, client = chat_of(person, writer, tmp_path)
    session = held(chat, data)
    assert "Your verdicts: keep 1, drop 2." in person.heard
    assert [one.candidate.expression.text for one in session.admission.judged] == [REVERSAL]
    assert [one.reason for one in chat.rejections] == ["vetoed", "vetoed"], "also as a part of another formula"
    last = [one for one in client.requests if one.purpose == "chat_propose"][-1].messages[-1].text
    assert f"1. {REVERSAL} |" in last
    assert "the person says: keep" in last
    assert "Ruled out by the person; a formula that has any of it is refused:\nformulas $close/$open" in last


def test_an_understanding_that_is_wrong_does_not_bind(data: SearchData, tmp_path: Path) -> None:
    person = Person("what turns", "", "no gaps", "no", "nothing of the open", "", "/done")
    readings = {
        "no gaps": {"vetoes": {"fields": ["$close"]}},
        "nothing of the open": {"vetoes": {"fields": ["open", "$gap"]}, "wishes": "longer windows"},
    }
    writer = Writer([REVERSAL], ["$open/$close", "$close/Ref($close,8)"], readings=readings)
    chat, client = chat_of(person, writer, tmp_path)
    session = held(chat, data)
    assert chat.vetoes == Vetoes(fields=("$open",))
    assert "Not known here, so not ruled out: $gap." in person.heard
    assert tried(session) == [REVERSAL, "$close/Ref($close,8)"]
    assert "- longer windows" in [one for one in client.requests if one.purpose == "chat_propose"][-1].messages[-1].text


def test_plain_words_rule_out_and_take_back_without_a_model(data: SearchData, tmp_path: Path) -> None:
    person = Person("/veto volume Corr momentum $close/Ref($close,5) nonsense(", "/allow momentum", "/done")
    chat, client = chat_of(person, Writer(), tmp_path)
    held(chat, data)
    assert chat.vetoes == Vetoes(("$amount", "$volume"), ("Corr",), (), ("$close/Ref($close,5)",))
    assert "Not known here, so not ruled out: nonsense(." in person.heard
    assert client.requests == []


def test_what_the_idea_rules_out_is_shown_with_the_specification_and_binds_once_it_is_accepted(
    data: SearchData, tmp_path: Path
) -> None:
    person = Person("reversal without volume", "once more", "", "/done")
    chat, _ = chat_of(person, Writer(["Mean($volume,5)/$volume"], ruled_out={"fields": ["$volume"]}), tmp_path)
    session = held(chat, data)
    assert "The return of a week, turned once more.\nRuled out: fields $amount, $volume." in person.heard
    assert tried(session) == []


def test_an_idea_that_needs_data_that_is_not_here_says_so(data: SearchData, tmp_path: Path) -> None:
    person = Person("guidance above expectations", "/done")
    chat, _ = chat_of(person, Writer(missing=["guidance of the management", "expectations of analysts"]), tmp_path)
    held(chat, data)
    assert "Data that it needs and that is not here: guidance of the management; expectations" in person.heard


def test_a_category_and_an_operator_that_were_ruled_out_bind(data: SearchData, tmp_path: Path) -> None:
    person = Person("/veto corr", "what turns", "", "", "/veto mean_reversion", "", "/done")
    writer = Writer(["Corr($close,$open,5)", REVERSAL], [], ["$high/$low"])
    chat, _ = chat_of(person, writer, tmp_path)
    session = held(chat, data)
    assert tried(session) == [REVERSAL]
    assert session.admission.judged == ()
    assert "which was ruled out" in person.heard


def test_prompts_show_no_date_and_no_company_that_the_person_named(data: SearchData, tmp_path: Path) -> None:
    person = Person("Kweichow Moutai since 2016-03-01, as SH600000 did", "in 2017, twice", "", "like in 2018", "/done")
    chat, client = chat_of(person, Writer([REVERSAL], questions=["How?"]), tmp_path)
    held(chat, data)
    sent = "\n".join(message.text for request in client.requests for message in request.messages)
    assert "[COMPANY]" in sent
    assert "[DATE]" in sent
    for word in ("Moutai", "2016", "2017", "2018", "600000"):
        assert word not in sent
    assert "Moutai" in (tmp_path / TRANSCRIPT).read_text(), "the transcript keeps what was said"


def test_figures_are_of_explore_and_what_follows_changes_nothing_that_is_asked(
    data: SearchData, tmp_path: Path
) -> None:
    market = simulate("planted", 60, "2017-06-01", "2019-12-31", 3)
    _, judge = cut(data)
    row = int(np.searchsorted(market.days, judge.window.start))
    for name in ("open", "high", "low", "close", "volume", "vwap", "amount"):
        getattr(market, name)[row:] *= 1.5 + 0.5 * np.sin(np.arange(len(market.days) - row))[:, None]
    other = SearchData.of(market_panel(market), WALLS.search, LABEL, universe="csi300", data="planted 3")
    sent = []
    for number, one in enumerate((data, other)):
        person = Person("what turns", "", "", "/done")
        chat, client = chat_of(person, Writer([REVERSAL, "$close/$open"], ["$high/$low"]), tmp_path / str(number))
        held(chat, one)
        sent.append([request.key for request in client.requests])
    assert sent[0] == sent[1]


def test_a_model_without_an_answer_is_told_and_the_chat_goes_on(data: SearchData, tmp_path: Path) -> None:
    person = Person("what turns", "", "in other words", "/veto volume", "", "/done")
    chat, _ = chat_of(person, lambda request: LLMFailure("refusal", "it declined"), tmp_path)
    session = held(chat, data)
    assert "The model gave no answer that can be used (refusal: it declined)." in person.heard
    assert "Your own words are taken as the specification." in person.heard
    assert tried(session) == []


def test_what_the_library_has_or_was_tried_is_not_tried_again(data: SearchData, tmp_path: Path) -> None:
    known = parse("$high/$low")
    person = Person("what turns", "", "", "/done")
    writer = Writer([REVERSAL, "2*$high/$low"], ["3-$close/Ref($close,5)", "0-$high/$low", "$close/$open"])
    chat, _ = chat_of(person, writer, tmp_path, known=[known])
    session = held(chat, data, library=[known])
    details = [one.detail for one in chat.rejections if one.reason == "duplicate"]
    assert tried(session)[0] == REVERSAL
    assert len(details) + len(tried(session)) == 5


def test_rounds_end(data: SearchData, tmp_path: Path) -> None:
    person = Person("what turns", "", "")
    chat, _ = chat_of(person, Writer([REVERSAL], ["$close/$open"]), tmp_path, rounds=1)
    session = held(chat, data)
    assert tried(session) == [REVERSAL]
    assert "These were 1 rounds, the most that one chat has." in person.heard


SAID = ("what turns", "a week", "", "no volume please", "", "", "keep the first", "", "/done")
READINGS = {
    "no volume please": {"vetoes": {"fields": ["$volume"]}},
    "keep the first": {"verdicts": [(1, "keep")], "wishes": "more of it"},
}


def writer() -> Writer:
    rounds = ([REVERSAL], ["$volume/Mean($volume,5)", "$close/$open"], ["$close/Ref($close,9)"])
    return Writer(*rounds, readings=READINGS, questions=["Over how long?"])


def test_a_transcript_is_gone_through_again_to_the_same_bytes_without_asking_the_person(
    data: SearchData, tmp_path: Path
) -> None:
    person = Person(*SAID)
    session = held(chat_of(person, writer(), tmp_path)[0], data)
    before = (tmp_path / TRANSCRIPT).read_bytes()
    again = Person()
    replayed = held(chat_of(again, writer(), tmp_path)[0], data)
    assert (tmp_path / TRANSCRIPT).read_bytes() == before
    assert tried(replayed) == tried(session)
    assert "> no volume please" in again.heard, "who comes back sees what was said"
    assert [one["text"] for one in json.loads(before)["entries"] if one["by"] == "person"] == list(SAID)


def test_a_chat_that_was_left_at_any_question_goes_on_to_the_same_end(data: SearchData, tmp_path: Path) -> None:
    held(chat_of(Person(*SAID), writer(), tmp_path / "whole")[0], data)
    whole = (tmp_path / "whole" / TRANSCRIPT).read_bytes()
    for left in range(len(SAID)):
        folder = tmp_path / str(left)
        with pytest.raises(Interrupted):
            held(chat_of(Leaves(*SAID[:left]), writer(), folder)[0], data)
        held(chat_of(Person(*SAID[left:]), writer(), folder)[0], data)
        assert (folder / TRANSCRIPT).read_bytes() == whole


def test_a_transcript_that_does_not_fit_is_refused(data: SearchData, tmp_path: Path) -> None:
    held(chat_of(Person(*SAID), writer(), tmp_path)[0], data)
    with pytest.raises(ReplayError, match="turn 3 of the transcript"):
        held(chat_of(Person(), Writer([REVERSAL], questions=["Another?"]), tmp_path)[0], data)
    with pytest.raises(ConfigError, match="go on with that model and data"):
        Transcript(tmp_path / TRANSCRIPT, model="scripted", data="other data")
    (tmp_path / "torn.json").write_text('{"format": 1')
    with pytest.raises(ConfigError, match="no transcript of a chat"):
        Transcript(tmp_path / "torn.json", model="scripted", data="planted 3")


class Endpoint:
    """Stands where a gateway does, and counts."""

    concurrency = 1

    def __init__(self, answer: Callable[[Request], str]) -> None:
        self.answers, self.asked = answer, 0

    async def answer(self, request: Request) -> Reply:
        self.asked += 1
        return Reply(self.answers(request), "stop", Usage(5, 5), request.model, "json_schema")

    async def embed(self, texts: Sequence[str], model: str) -> list[list[float]]:
        raise AssertionError("nothing is embedded in a chat")

    async def close(self) -> None:
        """Hold nothing open."""


def in_folder(folder: Path, data: SearchData, person: Person, endpoint: Endpoint | None, **plan: Any) -> Session:
    folder.mkdir(exist_ok=True)
    settings = {"mode": "record", "model": "scripted", **plan}
    return chat_with_model(
        ModelPlan(**settings),
        data,
        folder,
        person,
        fields=FIELDS,
        data_fingerprint="planted 3",
        gateway=endpoint,
        trials=40,
        rules=Rules(draws=400),
        nulls=0,
    )


def test_a_session_asks_nothing_twice_after_it_was_left_and_replays_from_its_recording(
    data: SearchData, tmp_path: Path
) -> None:
    whole, parts = Endpoint(writer()), Endpoint(writer())
    in_folder(tmp_path / "whole", data, Person(*SAID), whole)
    with pytest.raises(Interrupted):
        in_folder(tmp_path / "parts", data, Leaves(*SAID[:4]), parts)
    session = in_folder(tmp_path / "parts", data, Person(*SAID[4:]), parts)
    assert parts.asked == whole.asked
    for name in (TRANSCRIPT, "recording.jsonl"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert Chain(tmp_path / "parts" / "audit.jsonl").verify() == []
    assert "Ruled out by the person: fields $amount, $volume." in session.notes[0]
    replay = {"mode": "replay", "recording": str(tmp_path / "whole"), "model": None}
    replayed = in_folder(tmp_path / "replayed", data, Person(), None, **replay)
    assert (tmp_path / "replayed" / TRANSCRIPT).read_bytes() == (tmp_path / "whole" / TRANSCRIPT).read_bytes()
    assert tried(replayed) == tried(session)


def test_every_formula_is_in_the_audit_trail_with_its_calls_and_reason(data: SearchData, tmp_path: Path) -> None:
    in_folder(tmp_path / "one", data, Person(*SAID), Endpoint(writer()))
    rows = [json.loads(line) for line in (tmp_path / "one" / "audit.jsonl").read_text().splitlines()]
    shown = json.dumps(rows)
    for formula in (REVERSAL, "$close/$open", "$close/Ref($close,9)", "$volume/Mean($volume,5)"):
        assert formula in shown
    assert "vetoed" in shown


@pytest.mark.parametrize("schema", [ClarifyAnswer, SpecifyAnswer, ProposeAnswer, UnderstandAnswer])
def test_every_answer_has_a_strict_schema(schema: type) -> None:
    assert '"additionalProperties": false' in schema_text(schema)


def test_prompts_of_the_chat_say_their_step_and_leak_nothing() -> None:
    from qlib_llm_alpha.llm.prompt import Prompt

    for step in ("chat_clarify", "chat_specify", "chat_propose", "chat_understand"):
        prompt = Prompt.read(PROMPTS / f"{step}.md")
        assert prompt.turns[0][1].startswith(f"Step: {step}.\n")
        assert "one JSON object and nothing else" in prompt.turns[0][1]
        Blind(NAMES).scan(step, prompt.messages(dict.fromkeys(prompt.places, "")))


def test_a_veto_answer_is_read_into_what_can_be_enforced_and_what_cannot() -> None:
    answer = VetoAnswer(
        fields=["VOLUME", "$nothing"],
        operators=["mean", "+"],
        categories=["Mean reversion"],
        formulas=["$close+", "$open/$low"],
    )
    found, strange = Vetoes.read(answer, FIELDS, parse)
    assert found == Vetoes(("$amount", "$volume"), ("Add", "Mean"), ("mean_reversion",), ("$open/$low",))
    assert set(strange) == {"$nothing", "$close+"}
    assert Vetoes().text == "nothing"
    assert not Vetoes()


@pytest.mark.parametrize(
    ("formula", "against"),
    [
        ("$close/$open", ""),
        ("$volume/Mean($volume,3)", "reads $volume"),
        ("Corr($close,$open,5)", "uses Corr"),
        ("2*$high/$low", "has as a part, $high/$low"),
        ("Std($high/$low,5)", "has as a part, $high/$low"),
        ("1-$high/$low", "has as a part, $high/$low"),
        ("0.00001*$high/$low+0.00002", "has as a part, $high/$low"),
        ("Rank(3-2*$high/$low,5)", "has as a part, $high/$low"),
        ("$close/$open-2*$open/$close", "has as a part, 2*$open/$close-$close/$open"),
        ("$close/$open-3*$open/$close", ""),
        ("$low/$high", ""),
    ],
)
def test_a_veto_stops_a_formula_by_field_operator_and_part(formula: str, against: str) -> None:
    vetoes = Vetoes(fields=("$volume",), operators=("Corr",), formulas=("$high/$low", "2*$open/$close-$close/$open"))
    found = vetoes.against(parse(formula), "momentum", parse)
    assert against in found if against else not found


def test_at_the_keyboard_the_end_of_input_ends_the_chat_and_leaving_it_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def raising(error: type[BaseException]) -> Callable[[str], str]:
        def read(prompt: str) -> str:
            raise error

        return read

    monkeypatch.setattr("builtins.input", lambda prompt: "five days")
    assert Keyboard().ask("How\x1b[31m long?\nSay.") == "five days"
    assert capsys.readouterr().out == "How\\x1b[31m long?\nSay.\n"
    monkeypatch.setattr("builtins.input", raising(EOFError))
    assert Keyboard().ask("How long?") == "/done"
    monkeypatch.setattr("builtins.input", raising(KeyboardInterrupt))
    with pytest.raises(LLMError, match="--resume"):
        Keyboard().ask("How long?")
