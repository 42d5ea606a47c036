"""What people are shown of a model on the workers that live."""

from __future__ import annotations

import pytest
from tests.facts import START

from vllm_batch import ids, model_listing
from vllm_batch.events import Event, Recorded, WorkerReady, WorkerStarted
from vllm_batch.events.model import ModelFailed, ModelReady, ModelRegistered
from vllm_batch.fleet import Fleet
from vllm_batch.ids import EventId, WorkerId
from vllm_batch.model_listing import ModelOnWorker, ModelStatus
from vllm_batch.model_registry import ModelRegistry

W = WorkerId("worker_1")
KEY = ids.model_key("m")
READY = ModelReady(model_key=KEY, worker_id=W, worker_name="gpu-1", load_seconds=1.0)
FAILED = ModelFailed(model_key=KEY, worker_id=W, worker_name="gpu-1", reason="no memory")


def registered(source: str) -> ModelRegistered:
    return ModelRegistered(model_key=KEY, name="m", source=source, requested_by="test")


def shown(engine: str, *history: Event) -> ModelStatus:
    """Return what is shown of ``m``, which the worker serves by that name."""
    registry, fleet = ModelRegistry(), Fleet()
    worker = (
        WorkerStarted(worker_id=W, name="gpu-1", host="h", pid=1, engine=engine, version="1"),
        WorkerReady(worker_id=W, models=["m"], in_flight_max=1),
    )
    for number, event in enumerate((*worker, *history), 1):
        one = Recorded(number, EventId(f"evt_{number}"), START, "test", event)
        registry.apply(one)
        fleet.apply(one)
    (found,) = model_listing.listed(registry, fleet)
    return found


def test_what_was_registered_anew_is_not_ready_before_a_worker_says_so() -> None:
    replaced = shown("vllm", registered("old"), READY, registered("new"))
    assert (replaced.status, replaced.workers) == ("idle", [])
    assert shown("vllm", registered("old"), READY, registered("new"), READY).status == "ready"


def test_what_a_worker_could_not_load_has_failed_though_it_serves_the_name() -> None:
    found = shown("vllm", registered("old"), READY, registered("new"), FAILED)
    assert found.status == "failed"
    assert found.workers == [ModelOnWorker(worker="gpu-1", status="failed", reason="no memory")]


@pytest.mark.parametrize("history", [(), (registered("org/m"),)])
def test_a_server_of_somebody_else_serves_what_it_names(history: tuple[Event, ...]) -> None:
    assert shown("openai", *history).status == "ready"
