"""A stand-in for the Hugging Face hub: it answers the hub client's real calls."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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


@contextmanager
def served(address: str = "127.0.0.1") -> Iterator[str]:
    """Yield the URL of a hub, for ``HF_ENDPOINT``."""
    with ThreadingHTTPServer((address, 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://{address}:{server.server_port}"
        server.shutdown()
        thread.join()
