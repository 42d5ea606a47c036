"""What the HTTP servers refuse before an endpoint sees it, asked over real sockets."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from vllm_batch.local.stack import LocalStack

HEADER_SECONDS = 1.5


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    overrides = {"http_header_seconds": HEADER_SECONDS, "body_depth_max": 50}
    with LocalStack(
        tmp_path_factory.mktemp("home"), only={"nats", "api"}, settings_overrides=overrides
    ) as running:
        yield running


class Wire:
    """A connection on which anything may be said."""

    def __init__(self, stack: LocalStack) -> None:
        self._socket = socket.create_connection(("127.0.0.1", stack.settings.api_port), 20)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def say(self, data: bytes) -> None:
        self._socket.sendall(data)

    def answer(self) -> tuple[int, dict[str, str], Any]:
        """Return status, headers and body of the answer, after which the server closes."""
        data = bytearray()
        # It need not read what it refused.
        with contextlib.suppress(ConnectionResetError):
            while piece := self._socket.recv(65536):
                data += piece
        head, _, body = bytes(data).partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return int(status.split()[1]), headers, json.loads(body)


@pytest.mark.parametrize(
    "said",
    [
        b"nonsense\r\n\r\n",
        b"GET /v1/models HTTP/9.9\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nbad header\r\n\r\n",
        b"POST /v1/batches HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_http_is_refused_in_the_envelope(stack: LocalStack, said: bytes) -> None:
    with Wire(stack) as wire:
        wire.say(said)
        status, headers, body = wire.answer()
    assert status == 400
    assert headers["content-type"] == "application/json"
    assert body["error"]["type"] == "invalid_request_error"
    assert body["error"]["code"] == "invalid_http"


def test_a_head_that_is_too_large_is_refused_wherever_it_is_large(stack: LocalStack) -> None:
    limit = stack.settings.http_header_bytes_max
    heads = (
        b"GET /v1/models?" + b"a" * limit + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx: " + b"a" * limit + b"\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\n" + b"x: " + b"a" * (limit * 8),  # and no end of it
        b"GET /v1/models HTTP/1.1\r\n" + (b"x: " + b"a" * 5000 + b"\r\n") * 20 + b"\r\n",
    )
    for head in heads:
        with Wire(stack) as wire:
            # It may be refused before its end.
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                wire.say(head)
            status, _, body = wire.answer()
        assert (status, body["error"]["code"]) == (431, "headers_too_large")


def test_too_many_headers_are_refused(stack: LocalStack) -> None:
    most = stack.settings.http_headers_max
    for count, refused in ((most, False), (most + 1, True)):
        headers = [b"host: x", *(b"x%d: 1" % number for number in range(count - 2))]
        head = b"GET /healthz HTTP/1.1\r\n" + b"\r\n".join((*headers, b"connection: close"))
        with Wire(stack) as wire:
            wire.say(head + b"\r\n\r\n")
            status, _, body = wire.answer()
        assert (status == 431) is refused, body


def test_a_head_that_drips_is_ended(stack: LocalStack) -> None:
    begun = time.monotonic()
    with Wire(stack) as wire:
        wire.say(b"GET /v1/models HTTP/1.1\r\n")
        status, _, body = wire.answer()
    assert (status, body["error"]["code"]) == (408, "request_timeout")
    assert time.monotonic() - begun >= HEADER_SECONDS * 0.9


def test_headers_of_ordinary_size_and_kept_connections_go_through(stack: LocalStack) -> None:
    key = {"authorization": f"Bearer {stack.api_key}"}
    with httpx.Client(base_url=stack.api_url, headers=key, timeout=30) as http:
        for length in (1, 8000, 30_000):
            answer = http.get("/models", headers={"x-something": "a" * length})
            assert answer.status_code == 200
        time.sleep(HEADER_SECONDS * 1.2)  # a connection that is kept is no head that drips
        assert http.get("/models").status_code == 200


@pytest.mark.parametrize("path", ["/batches", "/chat/completions", "/inference", "/uploads"])
@pytest.mark.parametrize("kind", ["list", "object"])
def test_json_that_is_nested_too_deep_is_refused(stack: LocalStack, path: str, kind: str) -> None:
    def nested(depth: int) -> bytes:
        opening, closing = (b"[", b"]") if kind == "list" else (b'{"a":', b"}")
        inner = opening * depth + b'"[[[{{{"' + closing * depth
        return b'{"model": "m", "prompt": "x", "messages": [], "deep": ' + inner + b"}"

    key = {"authorization": f"Bearer {stack.api_key}", "content-type": "application/json"}
    with httpx.Client(base_url=stack.api_url, headers=key, timeout=30) as http:
        for depth, refused in ((30, False), (49, False), (50, True), (400, True), (100_000, True)):
            answer = http.post(path, content=nested(depth))
            message = answer.json()["error"]["message"]
            assert answer.status_code in {400, 404, 503}, message
            assert ("nested" in message) is refused, (depth, message)


def test_answers_have_security_headers(stack: LocalStack) -> None:
    for path in ("/healthz", "/v1/models", "/nowhere", "/v1/events"):
        answer = httpx.get(f"http://127.0.0.1:{stack.settings.api_port}{path}", timeout=30)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "server" not in answer.headers
        assert "strict-transport-security" not in answer.headers


def test_bodies_that_are_too_large_are_refused(stack: LocalStack) -> None:
    key = {"authorization": f"Bearer {stack.api_key}"}
    body = b'{"a": "' + b"x" * stack.settings.body_bytes_max + b'"}'
    url = f"{stack.api_url}/batches"
    assert httpx.post(url, content=body, headers=key, timeout=30).status_code == 413
    assert httpx.post(url, content=iter([body]), headers=key, timeout=30).status_code == 413


def test_a_certificate_that_is_missing_is_said_plainly(tmp_path: Path) -> None:
    from vllm_batch.errors import StackError
    from vllm_batch.tls import client_context, server_pair

    other = tmp_path / "other.pem"
    other.write_text("nothing")
    missing = tmp_path / "missing.pem"
    cases = (
        ((other, None), "VLLM_BATCH_API_TLS_CERT is set and VLLM_BATCH_API_TLS_KEY is not"),
        ((None, other), "VLLM_BATCH_API_TLS_KEY is set and VLLM_BATCH_API_TLS_CERT is not"),
        ((missing, other), "VLLM_BATCH_API_TLS_CERT: cannot read .*missing.pem: No such file"),
        ((other, missing), "VLLM_BATCH_API_TLS_KEY: cannot read .*missing.pem: No such file"),
        ((other, other), "are no certificate and its key"),
    )
    for (cert, key), said in cases:
        with pytest.raises(StackError, match=said):
            server_pair(cert, key, setting="api_tls")
    with pytest.raises(StackError, match="VLLM_BATCH_NATS_TLS_CA: cannot read"):
        client_context(ca=missing, cert=None, key=None, setting="nats_tls")
    with pytest.raises(StackError, match=r"VLLM_BATCH_NATS_TLS_CA: .* holds no certificate"):
        client_context(ca=other, cert=None, key=None, setting="nats_tls")
