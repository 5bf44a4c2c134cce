"""Make the recording that the main job replays: ``python -m tests.support.record_embedded --provider .data/embedded``.

Writes ``recording.jsonl`` and ``library.yaml`` beside the answers that they are made of. The search is that of the
handler in ``workflows/llm_alpha.yaml``, read from there.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from qlib_llm_alpha.data.fingerprint import market_name
from qlib_llm_alpha.data.mined import Ground, run_mining
from qlib_llm_alpha.data.mining_handler import mining_request
from qlib_llm_alpha.llm.audit import JOURNAL
from qlib_llm_alpha.llm.journal import Journal
from qlib_llm_alpha.llm.recording import Recording
from qlib_llm_alpha.mining.llm_session import EMBEDDED, RECORDING, SHIPPED
from qlib_llm_alpha.mining.session import LIBRARY
from tests.support.written_model import MODEL, WrittenGateway

WORKFLOW = Path(__file__).resolve().parents[2] / "workflows" / "llm_alpha.yaml"
NOTE = "written by the authors of qlib_llm_alpha for the embedded market; no model was asked"


def handler_keywords(workflow: Path = WORKFLOW) -> dict[str, Any]:
    """Return the keywords of the handler in a workflow."""
    text = re.sub(r"\{\{.*?\}\}", "provider", workflow.read_text(encoding="utf-8"))
    kwargs: dict[str, Any] = yaml.safe_load(text)["data_handler_config"]
    return kwargs


def record(provider: Path, into: Path) -> None:
    """Run the session with the written answers and write recording and library to a folder."""
    request = mining_request(provider, llm_mode="record", llm_model=MODEL, **handler_keywords())
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "session"
        library = run_mining(request, out, None, gateway=WrittenGateway())
        with Journal(out / JOURNAL) as journal:
            header = {
                "model": MODEL,
                "data": Ground.of(request).fingerprint,
                "made_by": "python -m tests.support.record_embedded",
                "note": NOTE,
                "market": market_name(provider, ""),
            }
            Recording.write(into / RECORDING, journal, tuple(Recording.load(out / RECORDING).answers), header)
        if library is None:
            raise SystemExit("nothing was admitted; expected a library: look at the answers")
        library.save(into / LIBRARY)
        sys.stdout.write((out / "report.md").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--provider", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=SHIPPED / EMBEDDED)
    arguments = parser.parse_args()
    record(arguments.provider, arguments.out)


if __name__ == "__main__":
    main()
