"""Whole stacks to break: real processes, the simulated engine, an oracle that judges them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.faults.oracle import Oracle
from tests.faults.workload import Client, Workload, make
from vllm_batch.local.stack import LocalStack

# Small enough that a takeover is a matter of seconds, large enough that much is in flight.
SETTINGS: dict[str, Any] = {
    "engine_max_num_seqs": 16,
    "in_flight_factor": 2.0,
    "flush_results": 32,
    "flush_seconds": 0.5,
    "chunk_requests_max": 64,
    "simulated_latency_seconds": 0.1,
    "heartbeat_seconds": 0.5,
    "lease_seconds": 3.0,
    "leader_lease_seconds": 1.5,
    "append_timeout_seconds": 5.0,
}


@dataclass
class Bench:
    """One running stack, its client, and the batches it was given."""

    stack: LocalStack
    client: Client
    journal: Path
    works: list[Workload] = field(default_factory=list)

    def submit(self, name: str, requests: int, **options: Any) -> Workload:
        """Send a batch."""
        work = make(name, requests, model=self.stack.model_name, **options)
        self.works.append(work)
        return self.client.submit(work)

    @property
    def oracle(self) -> Oracle:
        """Judge of all batches sent so far."""
        return Oracle(self.stack, self.client, self.works, self.journal)


StartBench = Callable[..., Bench]


@pytest.fixture
def start_bench(tmp_path: Path) -> Iterator[StartBench]:
    """Start a stack: `start_bench(workers=2, lease_seconds=1.0)`. All are stopped at the end."""
    with ExitStack() as running:

        def start(*, workers: int = 1, orchestrators: int = 1, **settings: Any) -> Bench:
            journal = tmp_path / "executed"
            overrides = {**SETTINGS, "simulated_journal": str(journal), **settings}
            stack = running.enter_context(
                LocalStack(
                    tmp_path / "home",
                    workers=workers,
                    orchestrators=orchestrators,
                    settings_overrides=overrides,
                )
            )
            client = Client(stack)
            running.callback(client.close)
            return Bench(stack, client, journal)

        yield start
