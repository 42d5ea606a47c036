"""The leader and workers with several models, over a real event log; the engine is simulated."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from tests.facts import append
from tests.orchestrator_bench import NO_POSTGRES, LogBench, leading
from tests.unit.orchestrator.bench import job_submitted, request
from tests.worker_bench import running_agent, until, worker_process

from vllm_batch import ids, model_listing, model_orders
from vllm_batch.aggregates.job import JobStatus
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events import Event, WorkerReady
from vllm_batch.events.model import (
    ModelFailed,
    ModelLoading,
    ModelLoadRequested,
    ModelReady,
    ModelRegistered,
    ModelRetired,
    ModelUnloaded,
)
from vllm_batch.ids import JobId
from vllm_batch.messaging import subjects
from vllm_batch.settings import Settings

HOME = "at-home"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(
        update={
            "postgres_dsn": NO_POSTGRES,
            "model_name": HOME,
            "chunk_requests_max": 4,
            "lease_seconds": 1.0,
            "heartbeat_seconds": 0.2,
            "reconcile_seconds": 0.1,
            "model_residency_seconds_min": 60.0,
            "model_drain_seconds": 0.3,
            "model_retry_seconds": 60.0,
            "simulated_load_seconds": 0.1,
        }
    )


@pytest.fixture
def bench(event_store: JetStreamEventStore, settings: Settings) -> LogBench:
    return LogBench(event_store, settings)


def registered(name: str, **more: Any) -> ModelRegistered:
    return ModelRegistered(
        model_key=ids.model_key(name), name=name, requested_by="test",
        **{"source": f"models/{name}", **more},
    )  # fmt: skip


async def submit(bench: LogBench, model: str, count: int = 20, **changes: Any) -> JobId:
    lines = [request(f"{model}-{n}", model=model) for n in range(count)]
    return (await bench.submit(model, b"".join(lines), **changes)).job_id


async def answered_by(bench: LogBench, job_id: JobId) -> tuple[list[Any], set[Any]]:
    """Return a finished job's custom_ids, and the models that its answers name."""
    job = await bench.reach(job_id)
    assert job.status is JobStatus.COMPLETED
    assert job.ended is not None
    assert job.ended.failed == 0
    lines: Any = await bench.file_lines(job.ended.output_file_id)
    models = {line["response"]["body"]["model"] for line in lines}
    return [line["custom_id"] for line in lines], models


async def names(bench: LogBench, kind: type[Event]) -> list[str]:
    """Return the names of the models that the log has events of this kind of."""
    known = {ids.model_key(name): name for name in (HOME, "other", "tuned", "broken")}
    return [known[event.model_key] for event in await bench.events(subjects.every(kind))]


async def loaded_times(bench: LogBench, times: int) -> bool:
    return len(await names(bench, ModelLoading)) == times


def has_failed(bench: LogBench) -> Callable[[], Any]:
    async def failed() -> bool:
        return bool(await names(bench, ModelFailed))

    return failed


async def test_two_bases_and_an_adapter_take_one_swap(bench: LogBench, settings: Settings) -> None:
    await append(bench.store, registered("other"), registered("tuned", base=HOME))
    async with leading(settings), running_agent(settings):
        jobs = {model: await submit(bench, model) for model in ("other", HOME, "tuned")}
        for model, job_id in jobs.items():
            order = [f"{model}-{n}" for n in range(20)]
            assert await answered_by(bench, job_id) == (order, {model})
        loads = await names(bench, ModelLoading)
        assert sorted(loads) == ["other", "tuned"], "one swap, and one adapter without a swap"
        assert (await names(bench, ModelReady)).count("other") == 1
        ready = [event.models for event in await bench.events(subjects.every(WorkerReady))]
    assert ["other"] in ready
    assert [HOME, "tuned"] in ready


async def test_two_models_whose_batches_alternate_take_one_swap(
    bench: LogBench, settings: Settings
) -> None:
    """Each new batch is for the other model; the one that is loaded is worked off first."""
    await append(bench.store, registered("other"))
    slow = settings.model_copy(
        update={"simulated_latency_seconds": 0.2, "engine_max_num_seqs": 4, "in_flight_factor": 1.0}
    )
    async with running_agent(slow):
        async with asyncio.timeout(120):
            while not await bench.events(subjects.every(WorkerReady)):  # its model is known then
                await asyncio.sleep(0.05)
        jobs = []
        for number in range(6):
            model = ("other", HOME)[number % 2]
            lines = [request(f"{number}-{n}", model=model) for n in range(12)]
            jobs.append((model, (await bench.submit(f"{number}", b"".join(lines))).job_id))
        async with leading(slow):
            for model, job_id in reversed(jobs):
                assert (await answered_by(bench, job_id))[1] == {model}
        bases = [event.models[0] for event in await bench.events(subjects.every(WorkerReady))
                 if event.models]  # fmt: skip
    swaps = [new for old, new in pairwise(bases) if new != old]
    assert swaps in (["other"], ["other", HOME]), "the first batch may come before its rival"


async def test_with_an_empty_registry_nobody_is_told_anything(
    bench: LogBench, settings: Settings
) -> None:
    async with leading(settings), running_agent(settings):
        assert (await answered_by(bench, await submit(bench, HOME)))[1] == {HOME}
    ready = await bench.events(subjects.every(WorkerReady))
    assert [event.models for event in ready] == [[HOME]]


async def test_a_model_that_cannot_be_loaded_costs_the_worker_nothing_but_time(
    bench: LogBench, settings: Settings
) -> None:
    await append(bench.store, registered("broken", source="[[sim:broken]]"))
    async with leading(settings), running_agent(settings) as worker:
        waiting = await submit(bench, "broken")
        await until(has_failed(bench))
        assert (await answered_by(bench, await submit(bench, HOME)))[1] == {HOME}
        (failed,) = await bench.events(subjects.every(ModelFailed))
        assert failed.reason == "simulated: it is broken"
        assert worker.agent.monitor.restarts == 0, "a swap is no death of an engine"
        assert (await bench.job(waiting)).status is JobStatus.RUNNING
    assert await names(bench, ModelLoading) == ["broken"], "it is not tried over and over"


async def test_a_model_whose_replacement_cannot_be_loaded_shows_that_and_is_left_alone(
    bench: LogBench, settings: Settings
) -> None:
    """The worker goes on with what it had, and is not stopped again and again for another try."""
    key = ids.model_key("other")
    wanted = ModelLoadRequested(model_key=key, requested_by="test")
    await append(bench.store, registered("other"), wanted)

    async def is_shown(status: str) -> bool:
        return (await model_listing.model(bench.store, "other")).status == status

    async with leading(settings), worker_process(settings):
        await until(lambda: is_shown("ready"))
        await append(bench.store, registered("other", source="[[sim:broken]]"))
        assert not await is_shown("ready")
        await until(lambda: is_shown("failed"))
        assert (await answered_by(bench, await submit(bench, "other")))[1] == {"other"}
        shown = await model_listing.model(bench.store, "other")
        assert [(one.status, one.reason) for one in shown.workers] == [
            ("failed", "simulated: it is broken")
        ]
        assert await names(bench, ModelLoading) == ["other", "other"]
        await append(bench.store, wanted)  # asked for again, it is tried again
        await until(lambda: loaded_times(bench, 3))
        await until(lambda: is_shown("failed"))


async def test_a_batch_of_a_model_that_nobody_can_serve_waits_until_its_window_closes(
    bench: LogBench, settings: Settings
) -> None:
    await append(bench.store, registered("broken", source="[[sim:broken]]"))
    async with leading(settings), running_agent(settings):
        waiting = await submit(bench, "broken", expires_at=int(time.time()) + 20)
        await until(has_failed(bench))
        assert (await bench.job(waiting)).status is JobStatus.RUNNING
        job = await bench.reach(waiting)
        assert job.status is JobStatus.EXPIRED
        assert job.ended is not None
        lines: Any = await bench.file_lines(job.ended.error_file_id)
        assert [line["custom_id"] for line in lines] == [f"broken-{n}" for n in range(20)]
        assert {line["error"]["code"] for line in lines} == {"batch_expired"}


async def test_an_adapter_that_cannot_be_loaded_leaves_its_base_alone(
    bench: LogBench, settings: Settings
) -> None:
    await append(bench.store, registered("broken", base=HOME, source="[[sim:broken]]"))
    async with leading(settings), running_agent(settings):
        await submit(bench, "broken")
        await until(has_failed(bench))
        assert (await answered_by(bench, await submit(bench, HOME)))[1] == {HOME}
    assert await names(bench, ModelFailed) == ["broken"]


async def test_what_does_not_finish_in_time_is_given_back_and_done_later(
    bench: LogBench, settings: Settings
) -> None:
    """A batch of whose window half is over takes the engine from one with slow requests."""
    await append(bench.store, registered("other"))
    slow = [request(f"slow-{n}", model=HOME) for n in range(3)]
    slow[1] = slow[1].replace(b'"x": ""', b'"x": "[[sim:sleep=20]]"')
    async with leading(settings), running_agent(settings) as worker:
        first = (await bench.submit("first", b"".join(slow))).job_id
        await until(lambda: worker.agent.admission.in_engine == 1)
        now = datetime.now(UTC)
        lines = [request(f"other-{n}", model="other") for n in range(20)]
        await bench.upload("other", b"".join(lines))
        # Two minutes old, one to go: of its window more than half is over.
        event = job_submitted("other", expires_at=int(now.timestamp()) + 60)
        await bench.store.append(event, expected=0, at=now - timedelta(seconds=120))
        assert (await answered_by(bench, event.job_id))[1] == {"other"}
        assert (await bench.job(first)).status is JobStatus.RUNNING
        assert await answered_by(bench, first) == ([f"slow-{n}" for n in range(3)], {HOME})
    assert await names(bench, ModelUnloaded) == ["other"]


async def test_what_is_wanted_is_loaded_and_what_is_retired_is_unloaded(
    bench: LogBench, settings: Settings
) -> None:
    key = ids.model_key("tuned")
    await append(
        bench.store,
        registered("tuned", base=HOME),
        ModelLoadRequested(model_key=key, requested_by="test"),
    )

    async def serves(models: list[str]) -> bool:
        ready = await bench.events(subjects.every(WorkerReady))
        return bool(ready) and ready[-1].models == models

    async with leading(settings), running_agent(settings):
        await until(lambda: serves([HOME, "tuned"]))
        await append(bench.store, ModelRetired(model_key=key, requested_by="test"))
        await until(lambda: serves([HOME]))
        assert (await answered_by(bench, await submit(bench, HOME)))[1] == {HOME}


async def test_batches_of_models_that_are_removed_are_finished(
    bench: LogBench, settings: Settings
) -> None:
    """Of a base that has to be loaded first, and of an adapter that is loaded already."""
    removed = {"other": registered("other"), "tuned": registered("tuned", base=HOME)}
    await append(bench.store, *removed.values())
    async with leading(settings), running_agent(settings):
        slow = [request(f"slow-{n}", model="tuned") for n in range(8)]
        slow[0] = slow[0].replace(b'"x": ""', b'"x": "[[sim:sleep=1]]"')
        jobs = {
            "tuned": (await bench.submit("tuned", b"".join(slow))).job_id,
            "other": await submit(bench, "other"),
        }
        for job_id in jobs.values():
            await bench.reach(job_id, JobStatus.RUNNING)
        for name in removed:
            await model_orders.retire(bench.store, name, requested_by="test")
        for model, job_id in jobs.items():
            assert (await answered_by(bench, job_id))[1] == {model}
        late = await bench.submit("late", request("late", model="other"))
        refused = await bench.reach(late.job_id)
        assert refused.status is JobStatus.FAILED, "nobody may ask for it any more"

        async def is_unloaded() -> bool:
            ready = await bench.events(subjects.every(WorkerReady))
            return "tuned" not in ready[-1].models

        await until(is_unloaded)


async def test_a_worker_that_dies_while_it_loads_is_replaced_by_another(
    bench: LogBench, settings: Settings
) -> None:
    await append(bench.store, registered("other"))
    slow = settings.model_copy(update={"simulated_load_seconds": 60.0, "worker_name": "slow"})
    async with leading(settings):
        async with worker_process(slow):
            job_id = await submit(bench, "other")

            async def is_loading() -> bool:
                return await names(bench, ModelLoading) == ["other"]

            await until(is_loading)
        async with running_agent(settings):
            assert (await answered_by(bench, job_id))[1] == {"other"}


async def test_more_workers_share_what_waits(bench: LogBench, settings: Settings) -> None:
    await append(bench.store, registered("other"))
    busy = settings.model_copy(
        update={"simulated_latency_seconds": 0.2, "engine_max_num_seqs": 4, "in_flight_factor": 1.0}
    )
    second = busy.model_copy(update={"worker_name": "second"})
    async with leading(busy), running_agent(busy), running_agent(second):
        assert (await answered_by(bench, await submit(bench, "other", count=200)))[1] == {"other"}
    assert await names(bench, ModelLoading) == ["other", "other"]
