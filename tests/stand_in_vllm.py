"""A server that is started like vLLM's and behaves like it where processes are concerned: it
listens on a unix socket, has children that outlive it, and can be told to misbehave.

The environment variable STAND_IN: ``fails`` (ends at once), ``slow`` (is never ready), ``stubborn``
(ignores SIGTERM), ``sick`` (answers 500 and is unhealthy after its first request).
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

MODE = os.environ.get("STAND_IN", "")


class Handler(BaseHTTPRequestHandler):
    """Answers health, models and completions."""

    protocol_version = "HTTP/1.1"
    sick = False

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            return self._answer(200, {"data": [{"id": argument("--served-model-name")}]})
        return self._answer(503 if Handler.sick or MODE == "slow" else 200, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body.get("sleep"):
            time.sleep(body["sleep"])
        if MODE == "sick":
            Handler.sick = True
            return self._answer(500, {"error": {"message": "EngineDeadError"}})
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        return self._answer(200, {"choices": [{"text": str(os.getpid())}], "usage": usage})

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
