"""Show that a mining session survives ``kill -9``: nothing answered is asked again, and the library is the same.

The command line mines from a dozen notes over HTTP, in a process of its own; a script on this machine, no language
model, answers. First one session is left alone. Then sessions are killed at random moments and resumed, until each is
done: after a request has arrived, while files are being written, after some seconds. A kill leaves a journal, which is
read from a copy; what it holds must never be asked again, and at most as many requests as are in flight at once may be
lost. A session that is done must have the same library, verdicts, explored formulas, series, recording and facts as the
one that was left alone, byte for byte, as many trials in its ledger, and a trail that ``audit verify`` finds whole.

One JSON line per run is appended to --out, a kill in nearly every one; the sessions lie beside it, in a folder of the
same name, so that the command resumes. Exit code 1 when anything does not hold::

    python benchmarks/proofs/kill_and_resume.py --kills 50 --out kill_and_resume.jsonl
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from resumable import Row, read_rows

# The stub server lives with the tests, in the top folder of the repository.
sys.path.append(str(Path(__file__).parents[2]))

from qlib_llm_alpha.data.embedded.write import ensure_market
from qlib_llm_alpha.evaluation.ledger import TrialLedger
from qlib_llm_alpha.llm.budget import Budget
from qlib_llm_alpha.llm.gateway import Gateway
from qlib_llm_alpha.llm.journal import Journal
from qlib_llm_alpha.llm.models import ModelRegistry
from qlib_llm_alpha.llm.settings import LLMSettings
from tests.support.scripted_model import answer
from tests.support.stub_server import StubServer

MARKET: dict[str, Any] = {"instruments": 60, "start": "2017-01-03", "end": "2020-12-31", "seed": 7}
SEARCH = ("2017-03-01", "2020-12-31")
MODEL = "scripted+slow"
DELAY_S = 0.05
CHARTS = 4

# Title to ideas: what it is, its category, its formulas. Some are misspelt, so that the model is asked to mend them;
# one reads tomorrow's price and one reads a field that is not there.
NOTES: dict[str, tuple[tuple[str, str, tuple[str, ...]], ...]] = {
    "gaps": (
        ("a gap at the open fades", "mean_reversion", ("1-$open/Ref($close,1)", "Meen(1-$open/Ref($close,1),3)")),
        ("a gap says how uncertain a stock is", "volatility", ("0-Std($open/Ref($close,1),20)",)),
    ),
    "falls": (
        ("what fell for a week recovers", "mean_reversion", ("1-$close/Ref($close,5)", "1-$close/Mean($close,10)")),
        ("what rose for a month goes on", "momentum", ("Ref($close,5)/Ref($close,25)-1",)),
    ),
    "calm": (
        ("calm stocks earn more", "volatility", ("0-Std($close/Ref($close,1),20)", "0-Mean(($high-$low)/$close,20)")),
        ("calm stocks are sound", "quality", ("0-Stdev($close/Ref($close,1),60)",)),
    ),
    "volume": (
        ("unusual volume draws buyers", "liquidity", ("$volume/Mean($volume,20)", "Ref($close,-1)/$close-1")),
        ("volume and price part", "technical", ("0-Corr($close,$volume,10)",)),
    ),
    "close": (
        ("a close near the high shows strength", "technical", ("(2*$close-$high-$low)/($high-$low)",)),
        ("strength at the close lasts", "momentum", ("Mean((2*$close-$high-$low)/($high-$low),5)",)),
    ),
    "range": (
        ("wide days are followed by falls", "technical", ("0-($high-$low)/Ref($close,1)",)),
        ("wide days are risky", "volatility", ("0-Max($high,20)/Min($low,20)", "0-Maximum($high,5)/$close")),
    ),
    "average": (
        ("the average price draws the close", "mean_reversion", ("$vwap/$close-1", "Mean($vwap,5)/$close-1")),
        ("who pays more than the average is eager", "liquidity", ("Mean($close/$vwap-1,10)",)),
    ),
    "turnover": (
        (
            "what is traded little earns more",
            "liquidity",
            ("0-Log($volume*$close)", "0-Mean($volume,5)"),
        ),
        ("what is traded more each month grows", "growth", ("Mean($volume,20)/Mean($volume,60)-1", "$turnoverrate")),
    ),
    "trend": (
        ("an old trend goes on", "momentum", ("$close/Ref($close,60)-1", "Averge($close,20)/Mean($close,60)-1")),
        ("a steep trend tires", "mean_reversion", ("0-Slope($close,10)/$close",)),
    ),
    "ranks": (
        ("a high rank in its own past falls back", "mean_reversion", ("0-Rank($close,20)",)),
        ("a rising rank goes on", "momentum", ("Rank($close,60)",)),
    ),
    "lunch": (),
}

RESULTS = (
    "library.yaml",
    "verdicts.parquet",
    "explored.parquet",
    "series.parquet",
    "recording.jsonl",
    "drafts.json",
    "report.md",
)
LAST = (*(f"session/{name}" for name in RESULTS), "session/session.json", "ledger/ledger.jsonl")
STEPS = ("filter", "categorise", "generate", "validate", "merge", "chart")
FIRST = (
    "session/plan.json",
    "session/documents.sqlite",
    "session/journal.sqlite",
    "session/audit.jsonl",
    "session/knowledge.sqlite",
    *(f"session/steps/{step}.json" for step in STEPS),
)

_FORM = "\n\nAnswer with one JSON object and nothing else"  # what the gateway adds for servers that enforce no schema


def main(argv: Sequence[str] | None = None) -> int:
    """Run until so many kills are there, then say whether everything held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how many kills")
    parser.add_argument("--seed", type=int, default=1000, help="of the moments")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one a run; appended to")
    arguments = parser.parse_args(argv)
    with StubServer(answer, delay_s=DELAY_S) as server:
        proof = Proof(arguments.out, arguments.seed, server)
        proof.run(arguments.kills)
        rows, requests = proof.rows(), len(proof.whole_keys)
    print(summary(rows, requests))
    return 0 if rows and holds(rows) else 1


@dataclass(frozen=True)
class Moment:
    """When a process is killed: a name, what has to be true, and how many seconds after that."""

    name: str
    reached: Callable[[], bool]
    later_s: float = 0.0


@dataclass
class Proof:
    """The sessions of one seed, and the rows that were written about them.

    Parameters
    ----------
    out : Path
        JSON lines; the sessions lie in a folder beside it.
    seed : int
    server : StubServer
        Running.
    """

    out: Path
    seed: int
    server: StubServer
    whole_keys: frozenset[str] = frozenset()
    whole_seconds: float = 0.0
    asking_seconds: float = 0.0
    home: Path = field(init=False)

    def __post_init__(self) -> None:
        self.home = self.out.with_suffix("").absolute()

    def rows(self) -> list[Row]:
        """Return the rows of this seed so far."""
        return [row for row in read_rows(self.out) if row["seed"] == self.seed]

    def run(self, kills: int) -> None:
        """Mine once without a kill, then kill and resume; stops at the first thing that does not hold."""
        self.home.mkdir(parents=True, exist_ok=True)
        ensure_market(self.home / "market", **MARKET)
        write_notes(self.home / "notes")
        (self.home / "models.yaml").write_text(f"models:\n  {MODEL}:\n    images: true\n", encoding="utf-8")
        self._mine_whole()
        while True:
            rows = self.rows()
            killed = sum(row["killed"] for row in rows)
            if (killed >= kills and (not rows or not rows[-1]["killed"])) or not holds(rows):
                return
            text = json.dumps(self._next_run(rows, may_kill=killed < kills))
            print(text, flush=True)
            with self.out.open("a", encoding="utf-8") as file:
                file.write(text + "\n")

    def _mine_whole(self) -> None:
        place = self.home / "whole"
        shutil.rmtree(place, ignore_errors=True)
        began, first = time.perf_counter(), self.server.hits
        child = self._start(place)
        times: list[float] = []
        while child.poll() is None:
            if self.server.hits > first + len(times):
                times.append(time.perf_counter() - began)
            time.sleep(0.001)
        if child.returncode:
            raise SystemExit(f"the session that was left alone ended with {child.returncode}:\n{_log_of(place)}")
        self.whole_seconds, self.asking_seconds = time.perf_counter() - began, times[-1] - times[0]
        self.whole_keys = kept_keys(place)
        asked = [key_of(body) for body in self.server.requests[first:]]
        if sorted(asked) != sorted(self.whole_keys):
            raise SystemExit("the requests of the session that was left alone are not those of its journal")

    def _next_run(self, rows: Sequence[Row], *, may_kill: bool) -> Row:
        session = sum(not row["killed"] for row in rows)
        place = self.home / f"session_{session}"
        before, mark = kept_keys(place), self.server.hits
        seen = {name: stamps(place / name) for name in (*FIRST, *LAST)}
        child = self._start(place)
        moment = self._moment(len(rows), place, before, mark, child) if may_kill else None
        began = time.perf_counter()
        while child.poll() is None:
            if moment is not None and moment.reached():
                time.sleep(moment.later_s)
                child.kill()
                break
            time.sleep(0.0005)
        ended = child.wait()
        time.sleep(0.05)  # what the server still holds of the dead process arrives
        asked = [key_of(body) for body in self.server.requests[mark:]]
        kept = kept_keys(place)
        late = [name for name in LAST if stamps(place / name) != seen[name]]
        row: Row = {
            "seed": self.seed,
            "run": len(rows),
            "session": session,
            "moment": "none" if moment is None else moment.name,
            "killed": ended == -9,
            "where": where(len(kept), len(self.whole_keys), late) if ended == -9 else "",
            "asked": len(asked),
            "kept_before": len(before),
            "kept": len(kept),
            "asked_again": sum(key in before for key in asked) + len(asked) - len(set(asked)),
            "lost": len(set(asked) - kept),
            "seconds": round(time.perf_counter() - began, 2),
        }
        return row if ended == -9 else {**row, **self._ended(place, ended, asked, rows, session)}

    def _ended(self, place: Path, code: int, asked: Sequence[str], rows: Sequence[Row], session: int) -> Row:
        """Compare a session that is done with the one that was left alone."""
        if code:
            return {"exit": code, "said": _log_of(place)[-500:]}
        earlier = sum(row["asked"] for row in rows if row["session"] == session)
        verify = [_command(), "audit", "verify", str(place / "session")]
        audit = subprocess.run(verify, capture_output=True, check=False)  # noqa: S603 - a command of ours
        found = {
            "exit": code,
            "repeats": earlier + len(asked) - len(self.whole_keys),
            "differs": differences(self.home / "whole", place),
            "audit_exit": audit.returncode,
        }
        if not found["differs"] and not audit.returncode:
            shutil.rmtree(place)
        return found

    def _moment(
        self, number: int, place: Path, before: frozenset[str], mark: int, child: subprocess.Popen[bytes]
    ) -> Moment | None:
        """Draw when a run is killed; None lets it end."""
        rng = np.random.default_rng([self.seed, number])
        left = len(self.whole_keys - before)
        if left and rng.random() < 0.6:
            count = int(rng.integers(1, left + 1))
            return Moment(f"request {count}", lambda: self.server.hits - mark >= count, rng.uniform(0, 2 * DELAY_S))
        if not left and rng.random() < 0.2:
            return None
        if rng.random() < 0.6:
            names = [name for name in FIRST if not (place / name).exists()] + list(LAST)
            name = names[rng.integers(len(names))]
            there = stamps(place / name)
            # At once, or so much later that the file may be whole.
            return Moment(f"file {name}", lambda: stamps(place / name) != there, rng.choice([0.0, 0.001, 0.01]))
        # Of the seconds that a run takes, those in which it asks shrink as it is resumed.
        seconds = rng.uniform(0, self.whole_seconds - self.asking_seconds)
        due = time.perf_counter() + seconds
        return Moment(f"second {seconds:.2f}", lambda: time.perf_counter() >= due)

    def _start(self, place: Path) -> subprocess.Popen[bytes]:
        place.mkdir(exist_ok=True)
        options = {
            "--provider": self.home / "market",
            "--universe": "csi300",
            "--start": SEARCH[0],
            "--end": SEARCH[1],
            "--proposer": "llm",
            "--mode": "record",
            "--documents": self.home / "notes",
            "--models": self.home / "models.yaml",
            "--charts": CHARTS,
            "--trials": 100,
            "--ledger": place / "ledger",
            "--out": place / "session",
        }
        environment = {name: text for name, text in os.environ.items() if not name.startswith(("OPENAI_", "LLM_"))}
        environment |= {"OPENAI_BASE_URL": self.server.url, "OPENAI_API_KEY": "made-up", "OPENAI_MODEL": MODEL}
        with (place / "log.txt").open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - a command of ours
                [_command(), "mine", *(str(part) for pair in options.items() for part in pair), "--resume"],
                cwd=place,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )


def write_notes(folder: Path) -> None:
    """Write one document for each entry of :data:`NOTES`, as the scripted model reads them."""
    folder.mkdir(exist_ok=True)
    for title, ideas in NOTES.items():
        lines = ["---", f"title: {title}", "source: made up", "published: 2015-06-12", "---"]
        for idea, category, formulas in ideas:
            lines += [f"Factor idea: {idea}", f"Category: {category}", *(f"Formula: {one}" for one in formulas)]
        text = "\n".join(lines if ideas else [*lines, "Lunch is at noon."]) + "\n"
        if not (folder / f"{title}.md").exists():
            (folder / f"{title}.md").write_text(text, encoding="utf-8")


def key_of(body: Mapping[str, Any]) -> str:
    """Return the key under which the journal keeps the answer to the body of a chat request."""
    messages = [_message(one) for one in body["messages"]]
    content = {
        "model": body["model"],
        "revision": "",
        "messages": messages,
        "temperature": body["temperature"],
        "max_tokens": body["max_tokens"],
        "sample": 0,
        "schema": body["response_format"]["json_schema"]["schema"],
    }
    text = json.dumps(content, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def kept_keys(place: Path) -> frozenset[str]:
    """Return the keys of all committed answers; read from a copy, so that the session finds what the kill left."""
    journal = place / "session" / "journal.sqlite"
    if not journal.exists():
        return frozenset()
    with tempfile.TemporaryDirectory() as folder:
        for file in (journal, journal.with_name("journal.sqlite-wal")):
            if file.exists():
                shutil.copy(file, folder)
        with Journal(Path(folder) / journal.name) as copied:
            return frozenset(copied.reply_keys())


def stamps(path: Path) -> dict[str, int]:
    """Return when a file, and drafts of it, were last written."""
    found = {}
    for one in path.parent.glob(f"{path.name}*"):
        try:
            found[one.name] = one.stat().st_mtime_ns
        except FileNotFoundError:  # a draft that took its place in between
            continue
    return found


def where(kept: int, total: int, late: Sequence[str]) -> str:
    """Say in what a run was killed, from what it left."""
    if not kept:
        return "before the first answer"
    if kept < total:
        return "between answers"
    if "session/session.json" in late:
        return "when all was written"
    return "while writing" if any(name.startswith("session/") for name in late) else "while scoring"


def differences(whole: Path, place: Path) -> list[str]:
    """Name what a session has that the one that was left alone has not."""
    found = [name for name in RESULTS if _bytes(whole / "session" / name) != _bytes(place / "session" / name)]
    found += [] if _facts(whole) == _facts(place) else ["session.json"]
    ledgers = [TrialLedger(one / "ledger") for one in (whole, place)]
    found += [] if ledgers[0].count() == ledgers[1].count() else ["trials in the ledger"]
    return found + [f"ledger: {fault.detail}" for fault in ledgers[1].verify()]


def concurrency() -> int:
    """Return how many requests the command has in flight at once."""
    return Gateway(LLMSettings(base_url="http://127.0.0.1:9/v1", model=MODEL), ModelRegistry.of(), Budget()).concurrency


def holds(rows: Sequence[Row]) -> bool:
    """Say whether nothing was asked twice, no kill lost too much, and every session that is done is as it should be."""
    most = concurrency()
    return all(not row["asked_again"] and row["lost"] <= most for row in rows) and all(
        not row["exit"] and not row["differs"] and not row["audit_exit"] for row in rows if not row["killed"]
    )


def summary(rows: Sequence[Row], requests: int) -> str:
    """Count kills, repetitions and sessions."""
    kills = [row for row in rows if row["killed"]]
    ended = [row for row in rows if not row["killed"]]
    if not kills:
        return "no kills"
    most = max(row["lost"] for row in kills)
    counts = ", ".join(f"{count} {place}" for place, count in Counter(row["where"] for row in kills).most_common())
    same = sum(row["exit"] == 0 and not row["differs"] for row in ended)
    whole = sum(row.get("audit_exit") == 0 for row in ended)
    return "\n".join(
        [
            f"{len(kills)} kills in {len(ended)} sessions of {requests} requests: {counts}",
            f"committed answers asked again: {sum(row['asked_again'] for row in rows)}",
            f"requests lost by a kill: at most {most} (in flight at once: {concurrency()}), "
            f"{sum(row['lost'] for row in kills)} in all, {sum(row.get('repeats', 0) for row in ended)} repeated",
            f"sessions whose results are those of the one left alone, byte for byte: {same} of {len(ended)}",
            f"sessions whose trail is whole: {whole} of {len(ended)}",
            f"everything held: {'yes' if holds(rows) else 'NO'}",
        ]
    )


def _command() -> str:
    return str(Path(sys.executable).with_name("qlib-llm-alpha"))


def _message(turn: Mapping[str, Any]) -> dict[str, Any]:
    content = turn["content"]
    parts: list[dict[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
    images = [base64.b64decode(one["image_url"]["url"].partition(",")[2]) for one in parts if one["type"] != "text"]
    text = "".join(one["text"] for one in parts if one["type"] == "text")
    return {
        "role": turn["role"],
        "text": text.partition(_FORM)[0] if turn["role"] == "system" else text,
        "images": [hashlib.sha256(image).hexdigest() for image in images],
    }


def _facts(place: Path) -> dict[str, Any]:
    """Return what a session says of itself, but for the head of its trail, in which times are."""
    facts = json.loads((place / "session" / "session.json").read_text(encoding="utf-8"))
    return {name: value for name, value in facts.items() if name != "audit"}


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _log_of(place: Path) -> str:
    return (place / "log.txt").read_text(encoding="utf-8", errors="replace")


if __name__ == "__main__":
    raise SystemExit(main())
