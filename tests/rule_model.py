"""A model server that answers by a rule, on loopback: for tests of who asks, not of who answers.

Texts with "love" are Positive, all others Negative. A text with "rubbish" gets words instead of
JSON, one with "slow" an answer only after `release`. What was asked is kept. A model whose name is
in ``contrary`` says the contrary.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SCORE = 0.75
LOGPROB = -0.2876820724517809  # of 0.75


class RuleModel:
    """``url`` is its root; ``asked`` has every body it got, ``busy`` how often it refuses first."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: list[dict[str, Any]] = []
        self.busy = 0
        self.contrary: set[str] = set()
        self.released = threading.Event()
        self.slow_arrived = threading.Event()

    def content(self, body: dict[str, Any]) -> str:
        """Return what it says."""
        text = body["messages"][-1]["content"]
        if "slow" in text:
            self.slow_arrived.set()
            self.released.wait(60)
        if "rubbish" in text:
            return "I would rather not say."
        properties = body["response_format"]["json_schema"]["schema"]["properties"]
        if "verdict" in properties:
            wrong = text.endswith('"Negative"}') and "love" in text
            return json.dumps({"verdict": "wrong" if wrong else "right", "reason": "It reads so."})
        loves = ("love" in text) != (body["model"] in self.contrary)
        return json.dumps({"sentiment": "Positive" if loves else "Negative"})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512
    model: RuleModel


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a bridge that was killed
            super().handle()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        model = self.server.model
        model.asked.append(body)
        if model.busy > 0:
            model.busy -= 1
            return self._answer(429, {"error": {"message": "busy"}}, {"Retry-After": "0"})
        content = model.content(body)
        message = {"role": "assistant", "content": content}
        logprobs = {"content": [{"token": content, "logprob": LOGPROB}]}
        choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "stop"}
        return self._answer(200, {"model": body["model"], "choices": [choice]}, {})

    def _answer(self, status: int, body: dict[str, Any], headers: dict[str, str]) -> None:
        encoded = json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass


@contextmanager
def running() -> Iterator[RuleModel]:
    """Yield a server that runs."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.model = RuleModel(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.model
        server.model.released.set()
        server.shutdown()
        thread.join()
