"""What an engine of somebody else's says, through gateway, NATS and worker: byte for byte, its
pauses too, and a clear end where it breaks off. The engine is an HTTP server that plays scripts.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest
from tests.worker_bench import until

from vllm_batch.local.stack import LocalStack

MODEL = "remote"
CHUNK = b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n'
LONG = b"data: " + b"x" * 3_000_000 + b"\n\n"
STREAMS: dict[str, list[bytes]] = {
    "usual": [CHUNK % b"a", CHUNK % b"b", b"data: [DONE]\n\n"],
    "carriage returns": [CHUNK.replace(b"\n\n", b"\r\n\r\n") % b"a", b"data: [DONE]\r\n\r\n"],
    "comments and names": [b": ping\n\n", b"event: response.created\nid: 7\nretry: 5\n",
                           b"data: 1\ndata: 2\n\n", b"data: [DONE]\n\n"],
    "cut in letters": [CHUNK.partition(b"%")[0], b"\xe2\x82", b"\xac\xf0\x9f", b"\x98\x80",
                       b"\"}]}\n", b"\n"],
    "no end of line": [CHUNK % b"a", b"data: [DONE]"],
    "long": [LONG, CHUNK % b"after"],
    "not text": [bytes(range(256)) * 4],
    "empty": [],
}  # fmt: skip
REFUSALS: dict[str, tuple[int, dict[str, str], bytes]] = {
    "busy": (429, {"retry-after": "7"}, b'{"error":{"message":"slow down","code":"rate_limit"}}'),
    "busy, no pause": (429, {}, b'{"error":{"message":"slow down"}}'),
    "away": (503, {"retry-after": "0.2"}, b'{"error": {"message": "loading"}}'),
    "html": (502, {"content-type": "text/html"}, b"<html>Bad Gateway</html>"),
    "refused": (400, {}, b'{ "error" : {"message":"caf\\u00e9 \xc3\xa9", "param":null} }'),
}
WHOLE = b'{"object":"chat.completion",  "id":"1", "choices":[{"message":{"content":"Hi"}}]}'


class Scripted(BaseHTTPRequestHandler):
    """Does what the prompt is the name of."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._whole(200, {}, json.dumps({"data": [{"id": MODEL}]}).encode())

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt: str = request["messages"][0]["content"]
        if prompt in STREAMS:
            self._stream(STREAMS[prompt])
        elif prompt in REFUSALS:
            self._whole(*REFUSALS[prompt])
        elif prompt == "dated":
            date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
            self._whole(429, {"retry-after": date}, b"{}")
        elif prompt == "breaks off":
            self._stream([CHUNK % b"a", b"data: {"], whole=False)
        elif prompt == "breaks off early":
            self.close_connection = True
        elif prompt == "large":
            self._whole(200, {}, b'{"data": "%b"}' % (b"x" * 3_000_000))
        elif prompt == "no completion":
            self._whole(200, {}, b'{"hello": 1}')
        else:
            self._whole(200, {}, WHOLE)

    def _whole(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in {"content-type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, pieces: list[bytes], *, whole: bool = True) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.flush()
            time.sleep(0.01)  # so that the pieces travel one by one
        if whole:
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - given
        return


@contextmanager
def scripted_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Scripted) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


@pytest.fixture(scope="module")
def direct() -> Iterator[str]:
    """The engine's own address."""
    with scripted_server() as url:
        yield url


@pytest.fixture(scope="module")
def stack(direct: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    home = tmp_path_factory.mktemp("engines")
    settings = {
        "engine_url": direct, "heartbeat_seconds": 0.1, "inference_answer_bytes_max": 2_000_000
    }  # fmt: skip
    with LocalStack(
        home, only={"nats", "api", "worker"}, engine="openai", settings_overrides=settings
    ) as running:
        yield running


@pytest.fixture
async def http(stack: LocalStack) -> AsyncIterator[httpx2.AsyncClient]:
    headers = {"authorization": f"Bearer {stack.api_key}"}
    async with httpx2.AsyncClient(base_url=stack.api_url, headers=headers, timeout=30) as client:

        async def served() -> bool:
            return (await client.post("/chat/completions", json=chat("there?"))).status_code == 200

        await until(served)
        yield client


def chat(prompt: str, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}], **fields}


@pytest.mark.parametrize("prompt", [*STREAMS, *REFUSALS, "whole"])
async def test_every_byte_is_the_engines(
    http: httpx2.AsyncClient, direct: str, prompt: str
) -> None:
    request = chat(prompt, stream=True)
    async with httpx2.AsyncClient(base_url=direct) as engine:
        expected = await engine.post("/chat/completions", json=request)
    passed_on = await http.post("/chat/completions", json=request)
    for answer in (passed_on, expected):
        assert answer.status_code == (REFUSALS[prompt][0] if prompt in REFUSALS else 200)
    assert passed_on.headers["content-type"] == expected.headers["content-type"]
    assert passed_on.content == expected.content


@pytest.mark.parametrize(
    ("prompt", "seconds"),
    [
        ("busy", range(7, 8)), ("busy, no pause", range(1, 2)), ("away", range(1, 2)),
        ("dated", range(20, 31)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/chat/completions", "/inference"])
async def test_a_pause_that_the_engine_asks_for_reaches_the_client(
    http: httpx2.AsyncClient, path: str, prompt: str, seconds: range
) -> None:
    answer = await http.post(path, json=chat(prompt))
    assert answer.status_code in {429, 503}
    assert int(answer.headers["retry-after"]) in seconds


async def test_an_answer_that_needs_no_pause_names_none(http: httpx2.AsyncClient) -> None:
    for prompt in ("whole", "refused", "html"):
        assert (
            "retry-after" not in (await http.post("/chat/completions", json=chat(prompt))).headers
        )


async def test_an_engine_that_breaks_off_in_mid_stream(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/chat/completions", json=chat("breaks off", stream=True))
    assert answer.status_code == 200
    assert answer.content.startswith(CHUNK % b"a")
    last = answer.content.strip().rsplit(b"\n\n", 1)[-1]
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "engine_unavailable"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_says_nothing(http: httpx2.AsyncClient, stream: bool) -> None:
    answer = await http.post("/chat/completions", json=chat("breaks off early", stream=stream))
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "engine_unavailable"
    assert int(answer.headers["retry-after"]) >= 1


async def test_an_answer_that_is_too_large_is_cut_off_unless_it_streams(
    http: httpx2.AsyncClient,
) -> None:
    answer = await http.post("/chat/completions", json=chat("large"))
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "answer_too_large"
    assert answer.headers["x-should-retry"] == "false"
    streamed = await http.post("/chat/completions", json=chat("long", stream=True))
    assert len(streamed.content) > 3_000_000


async def test_a_plain_answer_without_usage_or_sense(http: httpx2.AsyncClient) -> None:
    said = (await http.post("/inference", json=chat("whole"))).json()
    assert (said["text"], said["model"], said["usage"]) == ("Hi", MODEL, {})
    odd = await http.post("/inference", json=chat("no completion"))
    assert odd.status_code == 503
    assert odd.json()["error"]["code"] == "engine_error"
