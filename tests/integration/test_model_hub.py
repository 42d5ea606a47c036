"""Looking at a model on a hub: a server beside us answers the hub client's real calls."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

from vllm_batch import model_source
from vllm_batch.errors import InvalidInput

CONFIG = json.dumps({"hidden_size": 8, "model_type": "llama"}).encode()
FILES = {"config.json": len(CONFIG), "model.safetensors": 1200, "pytorch_model.bin": 1300}


class Hub(BaseHTTPRequestHandler):
    """Knows ``org/there``, ``org/gated`` and ``org/empty``."""

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/org/there"):
            siblings = [{"rfilename": name, "size": size} for name, size in FILES.items()]
            self._answer(json.dumps({"id": "org/there", "siblings": siblings}).encode())
        elif self.path.startswith("/api/models/org/empty"):
            self._answer(b'{"id": "org/empty", "siblings": []}')
        elif self.path.startswith("/org/there/resolve/main/config.json"):
            self._answer(CONFIG)
        elif self.path.startswith("/api/models/org/gated"):
            self._answer(b"{}", 403, {"x-error-code": "GatedRepo"})
        else:
            self._answer(b"{}", 404, {"x-error-code": "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815 - its name there

    def _answer(
        self, body: bytes, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        marks = {"x-repo-commit": "0" * 40, "etag": '"1"', "content-length": str(len(body))}
        for name, value in (marks | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Stay quiet."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield
        server.shutdown()
        thread.join()


def test_a_model_that_is_there(hub: None) -> None:
    found = model_source.look("org/there", adapter=False)
    assert found.config == {"hidden_size": 8, "model_type": "llama"}
    assert found.weight_bytes == 1200
    assert not found.warnings


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("org/nowhere", "has no model org/nowhere"),
        ("org/empty", r"no config\.json"),
        ("not a/hub/id", "neither a folder nor a hub id"),
    ],
)
def test_what_is_not_there_is_refused(hub: None, source: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        model_source.look(source, adapter=False)


def test_a_model_is_no_adapter(hub: None) -> None:
    with pytest.raises(InvalidInput, match="no adapter"):
        model_source.look("org/there", adapter=True)


def test_what_cannot_be_seen_is_said(hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "licence" in model_source.look("org/gated", adapter=False).warnings[0]
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in model_source.look("org/there", adapter=False).warnings[0]
