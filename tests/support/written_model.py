"""Answers that were written by hand, given as a model would give them: what the shipped recording is made of.

It knows which document a request shows, which formula it asks to repair and which round it is; of finance it knows
nothing. Whatever it is not prepared for is an error, so that a recording never holds an answer by accident.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qlib_llm_alpha.library.yaml_text import read_mapping
from qlib_llm_alpha.llm.request import Reply, Request, Usage
from qlib_llm_alpha.mining.llm_session import EMBEDDED, SHIPPED, documents_of

MODEL = "written-by-the-authors"


class WrittenGateway:
    """Answers from a file where a gateway would ask a server.

    Parameters
    ----------
    answers : Path
        As ``recordings/embedded/answers.yaml``.
    documents : str
        Folder of the documents, in whose order of names their ids are told apart.
    """

    concurrency = 1

    def __init__(self, answers: Path = SHIPPED / EMBEDDED / "answers.yaml", documents: str = EMBEDDED) -> None:
        self._answers = read_mapping(answers.read_text(encoding="utf-8"), answers.name)
        folder = SHIPPED / EMBEDDED / "documents" if documents == EMBEDDED else Path(documents)
        names = sorted(path.stem for path in folder.glob("*.md"))
        self._about = {
            document.id: self._answers["documents"][name]
            for name, document in zip(names, documents_of(documents), strict=True)
        }
        self._reviewed = self._proposed = 0

    async def answer(self, request: Request) -> Reply:
        """Return what was written for a request."""
        value = getattr(self, f"_{request.purpose}")(request)
        text = json.dumps(value, ensure_ascii=False)
        shown = sum(len(message.text) for message in request.messages)
        # Four characters a token, as an estimate: nothing was counted, since no model was asked.
        return Reply(text, "stop", Usage(shown // 4, len(text) // 4), MODEL, "json_schema")

    async def embed(self, texts: Sequence[str], model: str, *, private: bool = False) -> list[list[float]]:
        raise NotImplementedError("nothing was written about embeddings")

    async def close(self) -> None:
        """Nothing is open."""

    def _filter(self, request: Request) -> dict[str, Any]:
        about = self._of(request)
        return {"relevant": about["relevant"], "reason": about["reason"]}

    def _categorise(self, request: Request) -> dict[str, Any]:
        ideas = self._of(request)["ideas"]
        return {
            "items": [
                {"category": one["category"], "summary": one["summary"], "evidence": _evidence(one)} for one in ideas
            ]
        }

    def _generate(self, request: Request) -> dict[str, Any]:
        if not request.documents:
            written = self._answers["rounds"][self._proposed]["candidates"]
            self._proposed += 1
            return {"candidates": [{**one, "evidence": []} for one in written]}
        asked = request.messages[-1].text.rsplit("Category:", 1)[1].split()[0]
        return {
            "candidates": [
                {**{name: value for name, value in one.items() if name != "quotes"}, "category": asked}
                | {"evidence": _evidence(one)}
                for one in self._of(request)["candidates"][asked]
            ]
        }

    def _repair(self, request: Request) -> dict[str, Any]:
        for one in self._answers["repairs"]:
            if one["formula"] in request.messages[-1].text:
                return {"gives_up": not one["becomes"], "formula": one["becomes"], "change": one["change"]}
        raise LookupError(f"no repair was written for {request.messages[-1].text[-600:]!r}")

    def _review(self, request: Request) -> dict[str, Any]:
        written = self._answers["rounds"][self._reviewed]
        self._reviewed += 1
        return {"lesson": written["lesson"], "keep_directions": written["keep"], "drop_directions": written["drop"]}

    def _of(self, request: Request) -> Mapping[str, Any]:
        (document,) = request.documents
        about: Mapping[str, Any] = self._about[document]
        return about


def _evidence(one: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"document": "D1", "quote": quote} for quote in one["quotes"]]
