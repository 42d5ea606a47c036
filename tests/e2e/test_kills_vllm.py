"""Real vLLM in a whole stack that loses its API server, its core and its agent in the middle of a
batch and of an online stream: the oracle finds nothing, the stream ends in an error, and no process
of a dead engine is left."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.faults.oracle import Oracle
from tests.faults.workload import ENDPOINT, Client, Line, Workload, results_of
from tests.real_engine import READY_SECONDS, leaked_shared_memory

from batch_gpu_worker.engines import guardian
from vllm_batch.local.stack import LocalStack

pytestmark = pytest.mark.timeout(1800)

REQUESTS = 32
SETTINGS = {
    "engine_max_num_seqs": 8,
    "in_flight_factor": 1.0,
    "chunk_requests_max": 16,
    "flush_results": 4,
    "flush_seconds": 0.5,
}


def workload(model: str, name: str) -> Workload:
    """Return a batch of slow requests. No digests: real answers do not name their requests."""
    lines, rows = [], []
    for number in range(REQUESTS):
        prompt = [{"role": "user", "content": f"Tell story {number} of {name}."}]
        body = {"model": model, "messages": prompt, "max_tokens": 60, "ignore_eos": True}
        row = {"custom_id": f"{name}-{number}", "method": "POST", "url": ENDPOINT, "body": body}
        rows.append(json.dumps(row).encode())
        lines.append(Line(f"{name}-{number}", "", fails=False))
    return Workload(lines, b"\n".join(rows) + b"\n")


class OnlineStream(threading.Thread):
    """Reads a long answer, as soon as an engine is there; ``content`` is what has come of it."""

    def __init__(self, stack: LocalStack) -> None:
        super().__init__(daemon=True)
        self.content = b""
        self._stack = stack
        self.start()

    def run(self) -> None:
        headers = {"authorization": f"Bearer {self._stack.api_key}"}
        prompt = [{"role": "user", "content": "Tell a long story."}]
        body = {"model": self._stack.model_name, "messages": prompt, "stream": True,
                "max_tokens": 900, "ignore_eos": True}  # fmt: skip
        url = f"{self._stack.api_url}/chat/completions"
        while not self.content:
            with httpx2.stream("POST", url, json=body, headers=headers, timeout=60) as answer:
                if answer.status_code == 503:
                    time.sleep(float(answer.headers["retry-after"]))
                    continue
                for piece in answer.iter_raw():
                    self.content += piece

    def error(self, seconds: float) -> Any:
        """Return the error that the answer ends with; the engine may have said it itself."""
        self.join(seconds)
        assert not self.is_alive(), "the stream hangs"
        events = self.content.removesuffix(b"data: [DONE]\n\n").strip().split(b"\n\n")
        return json.loads(events[-1].removeprefix(b"data: "))["error"]


def until(condition: Callable[[], bool], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.05)


def recorded(stack: LocalStack) -> dict[str, Any]:
    path = stack.settings.home / "run" / "engine-worker-1.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def engine_process(session: int, words: str) -> int:
    """Return the process of the engine whose command line has ``words``."""
    return next(
        pid
        for pid in guardian.session_members(session)
        if pid != session and words in Path(f"/proc/{pid}/cmdline").read_text()
    )


async def test_whatever_dies_the_batch_completes_and_no_engine_is_left(tmp_path: Path) -> None:
    before = leaked_shared_memory()
    with LocalStack(tmp_path / "home", engine="vllm", settings_overrides=SETTINGS) as stack:
        client = Client(stack)
        works = []
        for victim in ("api_server", "EngineCore", "agent"):
            stream = OnlineStream(stack)
            until(
                lambda stream=stream: stream.content.count(b"\n\n") > 2,  # type: ignore[misc]
                "a stream",
                READY_SECONDS,
            )
            work = client.submit(workload(stack.model_name, victim))
            works.append(work)
            had = results_of(client.wait_progress(work, 2))
            assert had < REQUESTS  # in the middle of it, however fast the machine is
            session = int(recorded(stack)["guardian"])
            assert len(guardian.session_members(session)) >= 3
            held = leaked_shared_memory() - before  # by name: the next engine has its own
            if victim == "agent":
                stack.service("worker-1").kill()
            else:
                os.kill(engine_process(session, victim), signal.SIGKILL)
            until(
                lambda session=session: guardian.session_members(session) == [],  # type: ignore[misc]
                f"the engine to be gone whose {victim} was killed",
                20,
            )
            until(
                lambda held=held: not held & leaked_shared_memory(),  # type: ignore[misc]
                f"the shared memory {sorted(held)} of that engine to be gone",
                20,
            )
            assert stream.error(30)["message"]
            print(f"{victim} killed after {had} results")
        for work in works:
            batch = client.wait_ended(work, 2 * READY_SECONDS)
            assert batch.status == "completed"
            assert batch.request_counts is not None
            assert batch.request_counts.completed == REQUESTS
        assert await Oracle(stack, client, works).findings() == []
        last = int(recorded(stack)["guardian"])
        client.close()
    until(lambda: guardian.session_members(last) == [], "the last engine to be gone", 20)
