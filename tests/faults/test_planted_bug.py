"""The oracle turns red: a worker without fencing wakes up after its lease, and is found out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.faults.conftest import Bench, StartBench
from tests.faults.test_freezes import log_of, taken_over, until
from vllm_batch.events import ChunkCompleted, ChunkProgressed, WorkerReady, WorkerStarted
from vllm_batch.local.programs import environment_of

ROOT = Path(__file__).parents[2]


@contextmanager
def unfenced_worker(bench: Bench, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    settings = bench.stack.settings
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    environment = environment_of({**given, "worker_name": "unfenced"})
    command = (sys.executable, "-m", "tests.faults.unfenced_worker")
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **environment}, stderr=output
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait(10)


async def test_the_oracle_finds_the_zombie_writes_of_a_worker_without_fencing(
    start_bench: StartBench, tmp_path: Path
) -> None:
    bench = start_bench(workers=1)
    with unfenced_worker(bench, tmp_path / "unfenced.log") as zombie:

        async def ready() -> bool:
            log = await log_of(bench, "worker.>")
            names = {
                e.event.worker_id: e.event.name for e in log if isinstance(e.event, WorkerStarted)
            }
            return any(
                isinstance(e.event, WorkerReady) and names[e.event.worker_id] == "unfenced"
                for e in log
            )

        await until(ready)
        work = bench.submit("planted", 4000)
        bench.client.wait_progress(work, 500)
        zombie.send_signal(signal.SIGSTOP)
        await until(lambda: taken_over(bench))
        before = len(await zombie_results(bench))
        zombie.send_signal(signal.SIGCONT)

        async def wrote_again() -> bool:
            return len(await zombie_results(bench)) > before

        await until(wrote_again)
        with suppress(TimeoutError):  # such a batch need not end
            bench.client.wait_ended(work, 30)
        findings = await bench.oracle.findings(kills=1)
    assert any("lease_lost: epoch" in text for text in findings), findings


async def zombie_results(bench: Bench) -> list[int]:
    return [
        recorded.seq
        for recorded in await log_of(bench, "chunk.>")
        if isinstance(recorded.event, ChunkProgressed | ChunkCompleted)
        and recorded.source == "unfenced"
    ]
