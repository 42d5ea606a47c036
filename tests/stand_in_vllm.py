"""A server that is started like vLLM's and behaves like it where processes are concerned: it
listens on a unix socket, has children that outlive it, and can be told to misbehave.

The environment variable STAND_IN: ``fails`` (ends at once), ``slow`` (is never ready), ``stubborn``
(ignores SIGTERM), ``sick`` (answers 500 and is unhealthy after its first request).

An answer has the request (``asked``) and the command line (``argv``). An adapter is a folder; one
with a file ``hangs up`` in it gets no answer once.
"""

from __future__ import annotations

import json
import os
import signal
import socketserver
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import ClassVar

MODE = os.environ.get("STAND_IN", "")


class Handler(BaseHTTPRequestHandler):
    """Answers health, models and completions."""

    protocol_version = "HTTP/1.1"
    sick = False
    adapters: ClassVar[set[str]] = set()

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            return self._answer(200, {"data": [{"id": name} for name in self._models()]})
        return self._answer(503 if Handler.sick or MODE == "slow" else 200, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/load_lora_adapter":
            return self._load(body["lora_name"], Path(body["lora_path"]))
        if body.get("model", "") not in {"", *self._models()}:
            return self._answer(404, {"error": {"message": "no such model"}})
        if body.get("sleep"):
            time.sleep(body["sleep"])
        if MODE == "sick":
            Handler.sick = True
            return self._answer(500, {"error": {"message": "EngineDeadError"}})
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        choices = [{"text": str(os.getpid())}]
        answer = {"choices": choices, "usage": usage, "asked": body, "argv": sys.argv}
        return self._answer(200, answer)

    @staticmethod
    def _models() -> list[str]:
        return [argument("--served-model-name"), *sorted(Handler.adapters)]

    def _load(self, name: str, folder: Path) -> None:
        if (folder / "hangs up").exists():
            (folder / "hangs up").unlink()
            self.close_connection = True
            return None
        if not folder.is_dir():
            return self._answer(500, {"error": {"message": f"{folder.name} is not there"}})
        Handler.adapters.add(name)
        return self._answer(200, {})

    def _answer(self, status: int, body: dict[str, object]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - given
        return


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """One thread per connection."""

    daemon_threads = True

    def get_request(self) -> tuple[object, tuple[str, int]]:  # type: ignore[override]
        connection, _ = super().get_request()
        return connection, ("unix", 0)


def argument(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


def main() -> None:
    if MODE == "fails":
        print("CUDA error: out of memory, says the stand-in", flush=True)
        sys.exit(1)
    if MODE == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # A grandchild that ignores SIGTERM and does not notice that its parent is gone: EngineCore.
    code = "import signal,time; signal.signal(15, signal.SIG_IGN); time.sleep(1000)"
    subprocess.Popen([sys.executable, "-c", code])
    subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    print("x" * 200_000, flush=True)  # a line longer than any buffer
    Server(argument("--uds"), Handler).serve_forever()


if __name__ == "__main__":
    main()
