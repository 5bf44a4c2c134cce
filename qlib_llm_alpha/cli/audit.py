"""``qlib-llm-alpha audit``: whether a session's record is whole, and where a factor comes from."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlib_llm_alpha import wiring
from qlib_llm_alpha.cli.printing import shown

if TYPE_CHECKING:
    from qlib_llm_alpha.llm.audit import Lineage


def add_parser(commands: Any) -> None:
    """Add ``audit`` and its sub-commands."""
    parser = commands.add_parser(
        "audit",
        help="check a session's record, trace a factor",
        description="The audit trail of a mining session: calls to models, candidates, quotes, verdicts.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    verify = actions.add_parser(
        "verify",
        help="find what was changed in or removed from a session",
        description="Compare the trail with the journal, the documents, the library, the drafts and the transcript of "
        "a session. Figures in session.json, report.md and the tables are not compared. Exit code 0: all fits; 1: the "
        "faults are named, a file that cannot be read among them; 2: bad call.",
    )
    verify.set_defaults(run=_verify)
    trace = actions.add_parser(
        "trace",
        help="show which calls, prompts, documents and quotes a factor comes from",
        description="Follow a factor back to the calls, prompts, documents and quotes it comes from.",
    )
    for action in (verify, trace):
        action.add_argument("session", type=Path, metavar="SESSION", help="folder of a mining session")
    trace.add_argument("factor", metavar="FACTOR", help="name, id or formula of a candidate")
    trace.set_defaults(run=_trace)
    for action in (verify, trace):
        action.add_argument("--json", action="store_true", help="print JSON")


def _verify(args: argparse.Namespace) -> int:
    faults = wiring.verify_session(args.session)
    if args.json:
        print(json.dumps([asdict(fault) for fault in faults], indent=1))
    elif faults:
        for fault in faults:
            print(shown(fault.detail if fault.row is None else f"row {fault.row}: {fault.detail}"))
    else:
        print(f"{args.session}: trail, journal and what they point to are as they were written")
    return 1 if faults else 0


def _trace(args: argparse.Namespace) -> int:
    found = wiring.trace_factor(args.session, args.factor)
    if args.json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        for line in _lines(found):
            print(shown(line))
    return 0


def _lines(found: Lineage) -> Iterator[str]:
    yield f"{found.name or found.factor_id} ({found.factor_id}): {found.expression}"
    for candidate in found.candidates:
        reason = f" ({candidate['reason']})" if candidate["reason"] else ""
        verdict = candidate["verdict"] or "no verdict"
        yield f"  row {candidate['row']}: proposed by {candidate['proposer']}; {verdict}{reason}"
    yield f"Calls: {len(found.calls)}" + ("" if found.calls else "; no model was asked for it")
    for call in found.calls:
        yield f"  {_call_line(call)}"
    yield f"Documents shown: {len(found.documents)}"
    for document in found.documents:
        yield f"  {document}"
    yield f"Quotes found in them: {len(found.quotes)}"
    for quote in found.quotes:
        place = f"characters {quote['start']} to {quote['end']}"
        yield f"  {quote['document']}, {place}, SHA-256 {quote['sha256'][:12]}"
    if found.session is not None:
        library = found.session["library"] or "none"
        yield f"Session: data {found.session['data']}, settings {found.session['settings']}, library {library}"


def _call_line(call: Mapping[str, Any]) -> str:
    if "purpose" not in call:
        return f"{call['key'][:12]}: the trail has no row of this call"
    prompt = call["prompt"]
    said = "no prompt file" if prompt is None else f"prompt {prompt['name']} version {prompt['version']}"
    dated = f"; as of {call['as_of']}" if call["as_of"] else ""
    cutoff = call["knowledge_cutoff"] or "unknown"
    return (
        f"{call['key'][:12]}: {call['purpose']} by {call['returned_model'] or call['model']} (knowledge cut-off "
        f"{cutoff}); {said}; {len(call['documents'])} documents{dated}"
    )
