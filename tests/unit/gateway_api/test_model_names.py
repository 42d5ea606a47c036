"""Which workers are asked first."""

from __future__ import annotations

from typing import cast

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from tests.facts import START

from batch_gateway.api.model_names import ModelNames
from vllm_batch.clock import ManualClock
from vllm_batch.heartbeats import Heartbeat
from vllm_batch.ids import WorkerId


async def test_those_with_room_are_asked_before_those_that_are_full() -> None:
    """Only so many are asked: a small worker that is full has less online work than a large one
    with room."""
    names = ModelNames(cast("Client", None), ManualClock(START), lease_seconds=10.0)
    workers = {f"small-{n}": (8, 8) for n in range(4)} | {"large": (256, 100), "idle": (8, 0)}
    for name, (max_num_seqs, in_flight) in workers.items():
        beat = Heartbeat(
            worker_id=WorkerId(name), name=name, host="h", pid=1, time=START, state="ready",
            engine="vllm", models=["m"], online_in_flight=in_flight, max_num_seqs=max_num_seqs,
        )  # fmt: skip
        await names._heard(Msg(_client=None, data=msgspec.json.encode(beat)))  # type: ignore[arg-type]
    assert names.serving("m")[:2] == ["idle", "large"]
