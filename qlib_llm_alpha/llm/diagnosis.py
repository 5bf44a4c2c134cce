"""What of this machine and of the endpoint is as it should be, and what to type where it is not.

Each check is a value: looking never raises, and nothing of a key is in what it says.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import os
import re
import struct
import sys
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from pydantic import BaseModel

from qlib_llm_alpha.errors import ConfigError, LLMError, LLMFailure
from qlib_llm_alpha.llm.budget import Budget
from qlib_llm_alpha.llm.models import ModelInfo, ModelRegistry
from qlib_llm_alpha.llm.reading import read_answer
from qlib_llm_alpha.llm.recording import Recording
from qlib_llm_alpha.llm.request import Message, Reply, Request
from qlib_llm_alpha.llm.settings import LLMSettings, redact

__all__ = ["Check", "Diagnosis", "diagnose"]

State = Literal["fine", "note", "mend"]

PYTHONS: Final = ((3, 10), (3, 12))
PACKAGE: Final = "qlib_llm_alpha"
TOKENS: Final = 200_000
"""Tokens that a probe may use at most; what it uses is some hundred."""

_DEADLINE_S: Final = 60.0
_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")
_RUNGS: Final = {
    "json_schema": "the strictest: the server holds the model to the schema",
    "json_object_schema": "the server promises JSON, the schema is in the request",
    "json_object": "the server promises JSON, the schema is in the prompt",
    "prompt": "the server promises nothing, the schema is in the prompt",
}
_NEXT: Final[Mapping[str, str]] = {
    "auth": "export OPENAI_API_KEY=... with a key that this endpoint knows",
    "quota": "top up the account, or export OPENAI_BASE_URL=... and OPENAI_MODEL=... of another endpoint",
    "rate_limit": "wait a minute and type `qlib-llm-alpha doctor --probe` again",
    "timeout": "see whether the server is busy, then type `qlib-llm-alpha doctor --probe` again",
    "gave_up": "see whether the server is busy, then type `qlib-llm-alpha doctor --probe` again",
    "connection": "start the server, or export OPENAI_BASE_URL=... with its address up to and with /v1",
    "server": "see the log of the server, then type `qlib-llm-alpha doctor --probe` again",
    "bad_request": "export OPENAI_MODEL=... with a name that the endpoint knows, and OPENAI_BASE_URL=... up to /v1",
    "malformed_reply": "export OPENAI_BASE_URL=... with the address of an OpenAI-compatible server, up to and with /v1",
    "truncated": "choose a model that answers in fewer tokens: export OPENAI_MODEL=...",
    "blank": "choose another model: export OPENAI_MODEL=...",
    "refusal": "choose another model: export OPENAI_MODEL=...",
    "filtered": "choose another model: export OPENAI_MODEL=...",
    "invalid": "choose another model: export OPENAI_MODEL=...",
}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Parameters
    ----------
    topic : str
    state : {"fine", "note", "mend"}
        ``note``: works, but somebody should know; ``mend``: something does not work.
    detail : str
    next : str
        What to type or do; never empty with ``mend``.
    """

    topic: str
    state: State
    detail: str
    next: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was looked at, in a fixed order."""

    checks: tuple[Check, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing has to be mended."""
        return all(check.state != "mend" for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"healthy": self.healthy, "checks": [asdict(check) for check in self.checks]}


class Endpoint(Protocol):
    """What a probe asks; :class:`~qlib_llm_alpha.llm.gateway.Gateway` is one."""

    async def answer(self, request: Request) -> Reply:
        """Return the reply of a server."""
        ...

    async def embed(self, texts: Sequence[str], model: str) -> list[list[float]]:
        """Return one vector for each text."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


def diagnose(
    env: Mapping[str, str] = os.environ,
    *,
    models: Path | None = None,
    recordings: Iterable[Path] = (),
    probe: bool = False,
) -> Diagnosis:
    """Look at Python, packages, the engine's cache, the settings of the model, recordings, and the endpoint if asked.

    Parameters
    ----------
    env : mapping
        As the process's environment; see :meth:`~qlib_llm_alpha.llm.settings.LLMSettings.from_environment`.
    models : Path, optional
        The user's own model registry.
    recordings : iterable of Path
        Recordings to look into.
    probe : bool
        Send the endpoint three small requests: an answer to a schema, an image, an embedding. They cost some hundred
        tokens, and nothing of the user's is in them.
    """
    checks = [_python(), *_packages(), _engine()]
    try:
        settings = LLMSettings.from_environment(env)
    except ConfigError as error:
        checks.append(Check("settings", "mend", str(error), "set the variable that is named"))
        return Diagnosis((*checks, *_recordings(recordings)))
    checks += _settings(settings, asked=probe)
    try:
        registry = ModelRegistry.of(models)
    except ConfigError as error:
        checks.append(Check("registry", "mend", str(error), "mend the file, or leave --models out"))
        return Diagnosis((*checks, *_recordings(recordings)))
    checks += [_registered(registry, settings), *_recordings(recordings)]
    if probe:
        checks += _probed(settings, registry)
    return Diagnosis(tuple(checks))


def _python() -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    lowest, highest = (f"{major}.{minor}" for major, minor in PYTHONS)
    if PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        return Check("Python", "fine", f"{version}; {lowest} to {highest} are supported")
    return Check(
        "Python", "mend", f"{version}; {lowest} to {highest} are supported", f"make an environment of Python {highest}"
    )


def _packages() -> list[Check]:
    """Name the versions of what this package requires; whether they fit each other is pip's to say."""
    try:
        own, required = importlib.metadata.version(PACKAGE), importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return [Check("packages", "mend", f"{PACKAGE} is not installed here", f"pip install {PACKAGE}")]
    found, missing = [f"{PACKAGE} {own}"], []
    for line in sorted(required):
        named = _NAME.match(line)
        if named is None or "extra ==" in line:
            continue
        try:
            found.append(f"{named[0]} {importlib.metadata.version(named[0])}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(line)
    checks = [Check("packages", "fine", ", ".join(found))]
    if missing:
        wanted = " ".join(f"'{line}'" for line in missing)
        checks.append(Check("packages", "mend", f"missing: {', '.join(missing)}", f"pip install {wanted}"))
    return checks


def _engine() -> Check:
    """Say whether the engine's kernels are compiled for this Python; importing them takes a moment, so only here."""
    from qlib_llm_alpha.engine.kernels.registry import HAVE_NUMBA, KERNELS

    importlib.import_module("qlib_llm_alpha.engine.evaluate")  # brings the kernels with it
    if not HAVE_NUMBA:
        return Check("engine", "mend", "numba cannot be imported; everything would be slow", "pip install numba")
    folders = {Path(one.run.stats.cache_path) for one in KERNELS.values() if hasattr(one.run, "stats")}
    suffix = f".py{sys.version_info[0]}{sys.version_info[1]}.nbi"
    kept = sum(1 for folder in folders if folder.is_dir() for file in folder.iterdir() if file.name.endswith(suffix))
    if kept:
        return Check("engine", "fine", f"{kept} compiled functions are on disk for this Python")
    return Check(
        "engine",
        "note",
        "no compiled function is on disk: the first evaluation takes up to a minute longer",
        "qlib-llm-alpha warmup",
    )


def _settings(settings: LLMSettings, *, asked: bool) -> list[Check]:
    place = "this machine" if settings.is_local else "a remote endpoint"
    checks = [
        Check("endpoint", "fine", f"{redact(settings.base_url, [settings.key])} ({place})"),
        Check("model", "fine", settings.model),
    ]
    if settings.has_key:
        checks.append(Check("key", "fine", "set (never shown)"))
    elif settings.is_local:
        checks.append(Check("key", "fine", "not set; servers on this machine mostly need none"))
    else:
        state: State = "mend" if asked else "note"
        detail = "not set: recorded sessions replay, but nothing can be asked"
        checks.append(Check("key", state, detail, "export OPENAI_API_KEY=..."))
    checks.append(Check("mode", "fine", settings.mode or "not set; commands say which they use"))
    if settings.offline:
        next_step = "unset LLM_OFFLINE" if asked else "unset LLM_OFFLINE when a model is to be asked"
        checks.append(Check("offline switch", "mend" if asked else "note", "set: no real call may start", next_step))
    else:
        checks.append(Check("offline switch", "fine", "not set: calls may start"))
    return checks


def _registered(registry: ModelRegistry, settings: LLMSettings) -> Check:
    info = registry.get(settings.model, settings.base_url)
    cutoff = f"knows until {info.knowledge_cutoff}" if info.knowledge_cutoff else "knows until an unknown day"
    price = (
        "price unknown"
        if info.price_per_million is None
        else f"{info.price_per_million[0]:g} and {info.price_per_million[1]:g} USD for a million tokens in and out"
    )
    images = "sees images" if info.images else "no images are sent to it"
    detail = f"{cutoff}; {price}; {info.privacy}; {images}"
    lacking = _lacking(info)
    if not lacking:
        return Check("registry", "fine", detail)
    return Check(
        "registry",
        "note",
        f"{detail}. {' '.join(lacking)}",
        f"describe {settings.model!r} in a file of your own and name it with --models",
    )


def _lacking(info: ModelInfo) -> list[str]:
    found = []
    if info.knowledge_cutoff is None:
        found.append("An unknown cut-off counts as today: no test window is clean.")
    if info.price_per_million is None and info.privacy == "remote":
        found.append("Without a price only a budget in tokens can be set.")
    return found


def _recordings(paths: Iterable[Path]) -> list[Check]:
    checks = []
    for path in paths:
        try:
            found = Recording.load(path)
        except LLMError as error:
            checks.append(Check("recording", "mend", str(error), "restore the file"))
            continue
        words = f"{path.name}: {len(found.answers)} answers of {found.header.get('model', 'an unknown model')}"
        checks.append(Check("recording", "fine", words))
    return checks


class _Ready(BaseModel):
    """What a probe asks for."""

    word: Literal["ready"]
    number: int


class _Colours(BaseModel):
    """What a probe asks of an image; nine answers, so that a guess is mostly wrong."""

    left: Literal["red", "green", "blue"]
    right: Literal["red", "green", "blue"]


def _probed(settings: LLMSettings, registry: ModelRegistry) -> list[Check]:
    from qlib_llm_alpha.llm.gateway import Gateway

    endpoint = Gateway(
        settings, registry, Budget(tokens=TOKENS), timeout_s=_DEADLINE_S, deadline_s=_DEADLINE_S, retries=0
    )
    info = registry.get(settings.model, settings.base_url)
    return asyncio.run(_probe(endpoint, settings, info))


async def _probe(endpoint: Endpoint, settings: LLMSettings, info: ModelInfo) -> list[Check]:
    try:
        checks, answered = await _probe_schema(endpoint, settings, info)
        if answered:
            checks.append(await _probe_image(endpoint, settings, info))
            checks.append(await _probe_embedding(endpoint, settings))
        return checks
    finally:
        await endpoint.close()


async def _probe_schema(endpoint: Endpoint, settings: LLMSettings, info: ModelInfo) -> tuple[list[Check], bool]:
    request = _request("Answer with the word ready and the number 7.", _Ready, settings, info)
    try:
        reply = await endpoint.answer(request)
    except LLMError as error:
        return [_failed("answer", error, settings)], False
    read = read_answer(reply.text, _Ready)
    checks = [
        Check("answer", "fine", f"{reply.model or 'a model without a name'} in {reply.seconds:.1f} s"),
        Check("schema", "fine", f"{reply.mode}: {_RUNGS.get(reply.mode, 'an unknown rung')}"),
    ]
    if not isinstance(read, _Ready):
        detail = f"{reply.mode}, but the answer (ended by {reply.finish}) does not fit: {read.problem:.200}"
        # One that says something may mend it when told what is wrong; one that says nothing will not.
        state: State = "mend" if read.blank else "note"
        checks[1] = Check("schema", state, detail, "expect repairs, or choose another model: export OPENAI_MODEL=...")
    usage = reply.usage
    if usage.prompt is None or usage.answer is None:
        detail = "not reported; the worst case is booked on the budget for each call"
        checks.append(Check("usage", "note", detail, "set --budget-tokens with room to spare"))
    else:
        checks.append(Check("usage", "fine", f"reported: {usage.prompt} and {usage.answer} tokens for the probe"))
    return checks, True


async def _probe_image(endpoint: Endpoint, settings: LLMSettings, info: ModelInfo) -> Check:
    question = "Which colour fills the left half of the picture, and which the right half: red, green or blue?"
    request = _request(question, _Colours, settings, info, images=(_picture(),))
    try:
        reply = await endpoint.answer(request)
    except LLMFailure as error:
        if error.kind in ("auth", "quota", "rate_limit"):
            return _failed("images", error, settings)
        return Check("images", "note", f"not taken ({error.kind})", "leave --charts out")
    except LLMError as error:
        return Check("images", "note", f"not asked: {redact(str(error), [settings.key]):.200}", "leave --charts out")
    if read_answer(reply.text, _Colours) != _Colours(left="blue", right="red"):
        detail = "taken, but the model does not say what is in them; it may not see any"
        return Check("images", "note", detail, "leave --charts out")
    if info.images:
        return Check("images", "fine", "taken and seen")
    return Check(
        "images", "note", "taken and seen, but the registry does not say so", "set images: true in a file for --models"
    )


async def _probe_embedding(endpoint: Endpoint, settings: LLMSettings) -> Check:
    try:
        vectors = await endpoint.embed(["ready"], settings.model)
    except LLMError as error:
        kind = error.kind if isinstance(error, LLMFailure) else type(error).__name__
        detail = f"not given by {settings.model} ({kind}); documents are searched by words, which needs none"
        return Check("embeddings", "note", detail)
    return Check("embeddings", "fine", f"{len(vectors[0]) if vectors else 0} numbers for a text")


def _request(
    question: str,
    schema: type[BaseModel],
    settings: LLMSettings,
    info: ModelInfo,
    images: tuple[bytes, ...] = (),
) -> Request:
    messages = (
        Message("system", "Step: probe.\nAnswer with one JSON object and nothing else."),
        Message("user", question, images),
    )
    return Request("probe", messages, schema, settings.model, revision=info.revision, max_tokens=1024)


def _failed(topic: str, error: LLMError, settings: LLMSettings) -> Check:
    detail = redact(str(error), [settings.key])
    if isinstance(error, LLMFailure):
        return Check(topic, "mend", detail, _NEXT.get(error.kind, "type `qlib-llm-alpha doctor --probe` again"))
    return Check(topic, "mend", detail, "do what the message says")


def _picture() -> bytes:
    """Return 32 x 16 points as PNG, the left half blue, the right half red."""
    row = b"\0" + bytes((0, 0, 255)) * 16 + bytes((255, 0, 0)) * 16
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", 32, 16, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(row * 16)),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in parts
    )
    return b"\x89PNG\r\n\x1a\n" + body
