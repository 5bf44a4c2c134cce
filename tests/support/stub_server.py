"""A server on loopback that speaks Chat Completions, embeddings and the list of models; real HTTP, no network.

The model's name chooses what it does: a personality (``oracle``), a fault (``fault-500-twice``), a kind of server
(``deepseek-like``), ``slow``, or several joined by ``+`` (``liar+slow``). A name that is none of them is answered by
the server's own personality. As a process: ``python -m tests.support.stub_server --port 0 --log FILE``; the first
line of standard output is the address, and FILE gets one JSON line for each chat request when it arrives.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import importlib
import json
import math
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from tests.support.personalities import PERSONALITIES, Asked, Memory, text_of
from tests.support.stub_faults import BLIND_TO_SCHEMAS, FAULTS, SERVERS, Call, Wire, refused

EMBEDDING_SIZE = 64


class StubServer:
    """A context manager around the server.

    Parameters
    ----------
    answer : callable, optional
        What a well-behaved model says: the request's body in, text out. Default: ``personality``.
    personality : str
        For models whose name says none.
    delay_s : float
        What ``slow`` waits before an answer.
    memory : mapping, optional
        Dates (``YYYY-MM-DD``) to answers, for ``clairvoyant``.
    log : Path, optional
        Gets a JSON line ``{"key", "model", "number"}`` for each chat request; the key is the hash of its body.
    port : int
        0 takes a free one.

    Attributes
    ----------
    hits : int
        Chat requests that arrived.
    answered : int
        Chat requests that were answered whole with status 200.
    tokens_told : int
        Tokens, prompt and answer, that whole answers reported.
    requests : list of dict
        Bodies of the chat requests, in the order of arrival.
    headers : list of dict
        Their headers.
    """

    def __init__(
        self,
        answer: Callable[[dict[str, Any]], str] | None = None,
        *,
        personality: str = "oracle",
        delay_s: float = 0.05,
        memory: Memory | None = None,
        log: Path | None = None,
        port: int = 0,
    ) -> None:
        self.answer = answer
        self.personality = personality
        self.delay_s = delay_s
        self.memory = memory
        self.hits = 0
        self.answered = 0
        self.tokens_told = 0
        self.embedded = 0
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.stopping = threading.Event()
        self._log = log
        self._lock = threading.Lock()
        self._seen: Counter[str] = Counter()
        self._http = _Http(("127.0.0.1", port), _Handler)
        self._http.stub = self
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> StubServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        """Port on loopback."""
        return int(self._http.server_address[1])

    @property
    def url(self) -> str:
        """Base URL for a client, up to and with ``/v1``."""
        return f"http://127.0.0.1:{self.port}/v1"

    def asked_by_key(self) -> Counter[str]:
        """Count chat requests by the hash of their body."""
        with self._lock:
            return Counter(body_key(one) for one in self.requests)

    def reply(self, body: dict[str, Any], headers: Mapping[str, str]) -> Wire:
        """Note a chat request and return what is sent for it."""
        number = self._note(body, headers)
        parts = str(body.get("model", "")).split("+")
        unknown = [one for one in parts if one.startswith("fault-") and one not in FAULTS]
        if unknown:
            return refused(404, f"the stub has no {unknown}; expected names of FAULTS")
        key = _told_key(headers)
        call = Call(body, number, self._text(body, number, parts), key)
        wire = call.says()
        for act in [FAULTS[one].act for one in parts if one in FAULTS] + [
            SERVERS[one] for one in parts if one in SERVERS
        ]:
            wire = act(call)
            if wire != call.says():  # what behaves well lets the next one have its way
                break
        return replace(wire, wait_s=wire.wait_s + self.delay_s) if "slow" in parts else wire

    def count_answer(self, sent: Wire) -> None:
        """Note that the last byte of a reply goes out, and what it says of tokens."""
        with self._lock:
            self.answered += 1
            self.tokens_told += _tokens_in(sent)

    def _text(self, body: dict[str, Any], number: int, parts: list[str]) -> str:
        named = [one for one in parts if one in PERSONALITIES]
        if set(parts) & set(BLIND_TO_SCHEMAS):
            body = {name: value for name, value in body.items() if name != "response_format"}
        if not named and self.answer is not None:
            return self.answer(body)
        return PERSONALITIES[named[0] if named else self.personality](Asked(body, number, self.memory))

    def _note(self, body: dict[str, Any], headers: Mapping[str, str]) -> int:
        """Return how often this conversation was asked of this model before."""
        first = next((text_of(one) for one in body.get("messages", ()) if one.get("role") == "user"), "")
        conversation = json.dumps([body.get("model"), first])
        with self._lock:
            self.hits += 1
            self.requests.append(body)
            self.headers.append(dict(headers))
            number = self._seen[conversation]
            self._seen[conversation] += 1
            if self._log is not None:
                line = {"key": body_key(body), "model": body.get("model"), "number": number}
                with self._log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
        return number


def _told_key(headers: Mapping[str, str]) -> str:
    told = (value for name, value in headers.items() if name.lower() == "authorization")
    return next(told, "").removeprefix("Bearer ")


def body_key(body: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a request's body, for counting repetitions."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode("ascii")).hexdigest()


def closed_url() -> str:
    """Return a base URL on loopback on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return f"http://127.0.0.1:{port}/v1"


def embedding(text: str) -> list[float]:
    """Return a unit vector from hashed character pairs: texts with common words lie near each other."""
    vector = [0.0] * EMBEDDING_SIZE
    for pair in zip(text.lower(), text.lower()[1:] + " ", strict=True):
        vector[int(hashlib.sha256("".join(pair).encode("utf-8", "replace")).hexdigest()[:8], 16) % EMBEDDING_SIZE] += 1
    length = math.sqrt(sum(one * one for one in vector)) or 1.0
    return [one / length for one in vector]


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    stub: StubServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> bool:
        if self.path.rstrip("/") != "/v1/models":
            return self._send(refused(404, f"no page {self.path}"))
        names = [*PERSONALITIES, *SERVERS, *FAULTS]
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "stub"} for name in names]
        return self._send(Wire(json.dumps({"object": "list", "data": data}).encode("ascii")))

    def do_POST(self) -> bool:
        raw = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        try:
            body = json.loads(raw)
        except ValueError:
            return self._send(refused(400, "the body is no JSON"))
        stub = cast(_Http, self.server).stub
        if self.path.startswith("/v1/chat/completions"):
            wire = stub.reply(body, dict(self.headers.items()))
            good = wire.status == 200 and wire.cut is None
            return self._send(wire, last=lambda: stub.count_answer(wire) if good else None)
        if self.path.startswith("/v1/embeddings"):
            stub.embedded += 1
            return self._send(_embedded(body))
        return self._send(refused(404, f"no page {self.path}"))

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are in ``StubServer.requests``, not on standard error."""

    def _send(self, wire: Wire, last: Callable[[], None] = lambda: None) -> bool:
        """Send it as it says, ``last`` being called before its last byte; return whether it went out whole."""
        stopping = cast(_Http, self.server).stub.stopping
        if wire.wait_s and stopping.wait(wire.wait_s):
            wire = replace(wire, hang_up=True)
        whole = wire.cut is None and not wire.hang_up
        with contextlib.suppress(OSError):
            if not wire.hang_up:
                self.send_response(wire.status)
                for name, value in wire.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(wire.body)))
                self.end_headers()
                self._send_body(wire, stopping, last)
            if whole:
                return True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True
        return False

    def _send_body(self, wire: Wire, stopping: threading.Event, last: Callable[[], None]) -> None:
        # Counted before a client can have it all, so that no reader is ahead of the count.
        body = wire.body[: wire.cut]
        for at in range(len(body) - 1 if wire.drip_s else 0):
            self.wfile.write(body[at : at + 1])
            if stopping.wait(wire.drip_s):
                raise ConnectionAbortedError
        last()
        self.wfile.write(body[-1:] if wire.drip_s else body)


def _tokens_in(sent: Wire) -> int:
    """Return the tokens that a reader finds; none in what says falsely that it is compressed."""
    if "Content-Encoding" in sent.headers:
        return 0
    try:
        usage = json.loads(sent.body)["usage"]
        return int(usage["prompt_tokens"]) + int(usage["completion_tokens"])
    except (ValueError, TypeError, KeyError):
        return 0


def _embedded(body: Mapping[str, Any]) -> Wire:
    if "no-embeddings" in str(body.get("model", "")):
        return refused(500, "this model was started without embeddings")
    texts = body.get("input", [])
    data = []
    for index, text in enumerate([texts] if isinstance(texts, str) else texts):
        vector = embedding(str(text))
        packed = base64.b64encode(struct.pack(f"<{EMBEDDING_SIZE}f", *vector)).decode("ascii")
        shown = packed if body.get("encoding_format") == "base64" else vector
        data.append({"object": "embedding", "index": index, "embedding": shown})
    usage = {"prompt_tokens": sum(len(str(one)) for one in texts) // 4 + 1, "total_tokens": 1}
    reply = {"object": "list", "model": body.get("model"), "data": data, "usage": usage}
    return Wire(json.dumps(reply).encode("ascii"))


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--personality", default="oracle", choices=sorted(PERSONALITIES))
    parser.add_argument("--answer", metavar="MODULE:FUNCTION", help="what a well-behaved model says")
    parser.add_argument("--delay", type=float, default=0.05, help="seconds that `slow` waits")
    parser.add_argument("--log", type=Path)
    given = parser.parse_args()
    answer = None
    if given.answer:
        module, _, function = given.answer.partition(":")
        answer = getattr(importlib.import_module(module), function)
    stub = StubServer(answer, personality=given.personality, delay_s=given.delay, log=given.log, port=given.port)
    with stub:
        sys.stdout.write(stub.url + "\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main()
