"""Online requests in the middle of their answers: clients that leave or are slow, deadlines, a
short absence of NATS, names and models that change meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import psutil
import pytest
from tests.facts import append
from tests.online_bench import MODEL, Bench, Reading, body, gateway_alone, second_gateway
from tests.orchestrator_bench import NO_POSTGRES, leading
from tests.worker_bench import until, worker_process

from vllm_batch import ids, model_orders
from vllm_batch.events.model import ModelLoadRequested, ModelRegistered
from vllm_batch.local.handle import ServiceHandle
from vllm_batch.local.stack import LocalStack

MIB = 1024 * 1024
DONE = b"data: [DONE]\n\n"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """NATS and a gateway; tests bring the workers."""
    with gateway_alone(tmp_path_factory.mktemp("streams")) as running:
        yield running


@pytest.fixture(scope="module")
def second(stack: LocalStack) -> ServiceHandle:
    """Another gateway of the same stack."""
    return second_gateway(stack)


@pytest.fixture
async def bench(stack: LocalStack) -> AsyncIterator[Bench]:
    made = Bench(stack)
    async with made.http:
        yield made


def error_at_the_end(content: bytes) -> str:
    """Return the code of the error that a broken answer ends with."""
    assert content.endswith(b"\n\n")
    last = content.strip().rsplit(b"\n\n", 1)[-1]
    code: str = json.loads(last.removeprefix(b"data: "))["error"]["code"]
    return code


def text_of(content: bytes) -> str:
    events = content.strip().split(b"\n\n")
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events[:-1]]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


async def test_of_many_clients_at_two_gateways_only_those_that_leave_are_aborted(
    bench: Bench, second: ServiceHandle
) -> None:
    async with (
        bench.workers(2, simulated_latency_seconds=15) as workers,
        bench.client(second.status.port) as other,
    ):
        streams = [
            Reading(http, body(f"{n}", stream=True))
            for n in range(8)
            for http in (bench.http, other)
        ]
        await until(lambda: all(stream.begun for stream in streams))
        assert all([await bench.online_in_flight(worker.pid) for worker in workers])
        await asyncio.gather(*(stream.leave() for stream in streams[::3]))
        staying = [stream for n, stream in enumerate(streams) if n % 3]
        await bench.wait_held(workers, len(staying))
        for content in await asyncio.gather(*(stream.task for stream in staying)):
            assert content.endswith(DONE)
            assert text_of(content).startswith("simulated answer")
        await bench.wait_held(workers, 0)


async def test_slow_clients_cost_the_gateway_a_window_each(bench: Bench) -> None:
    """Four clients stop reading answers of 12 MB, larger than every buffer between; another one
    reads its own in the meantime. One of the four reads on, and gets every byte."""
    tokens = 60_000
    async with bench.workers(1, simulated_output_tokens=tokens) as workers:
        assert (await bench.chat("warm up")).status_code == 200
        gateway = psutil.Process(bench.stack.service("api").pid)
        before = gateway.memory_info().rss
        slow = [
            bench.http.stream("POST", "/chat/completions", json=body(f"{n}", stream=True))
            for n in range(4)
        ]
        answers = [await one.__aenter__() for one in slow]
        try:
            whole = await Reading(bench.http, body("fast", stream=True)).task
            assert whole.endswith(DONE)
            assert len(whole) > 10 * MIB
            grown = gateway.memory_info().rss - before
            assert grown < len(whole), f"{grown / MIB:.0f} MiB for answers of four times that"
            await bench.wait_held(workers, 4)
            first = answers[0].aiter_raw()
            content = b"".join([piece async for piece in first])
            assert content.count(b"\n\n") == tokens + 2
        finally:
            for one in slow:
                await one.__aexit__(None, None, None)
        await bench.wait_held(workers, 0)


async def test_a_deadline_in_mid_stream_ends_it_with_an_error(bench: Bench) -> None:
    slow = {"simulated_latency_seconds": 60, "simulated_output_tokens": 600}
    async with bench.workers(1, **slow) as workers:
        timed = {"x-request-timeout-seconds": "5"}
        stream = Reading(bench.http, body("Hello", stream=True), **timed)
        content = await asyncio.wait_for(stream.task, 60)
        assert content.startswith(b'data: {"id"')
        assert error_at_the_end(content) == "timeout"
        await bench.wait_held(workers, 0, 30)


async def test_a_deadline_or_a_client_may_end_while_the_request_waits_in_the_engine(
    bench: Bench,
) -> None:
    one = {
        "engine_max_num_seqs": 1, "inference_in_flight_factor": 3, "simulated_latency_seconds": 0.1,
    }  # fmt: skip
    async with bench.workers(1, **one) as workers:
        running = asyncio.create_task(bench.chat("[[sim:sleep=20]]"))
        await bench.wait_held(workers, 1)
        timed = {"x-request-timeout-seconds": "2"}
        late = await bench.http.post("/chat/completions", json=body("late"), headers=timed)
        assert late.status_code == 504
        assert late.json()["error"]["code"] == "timeout"
        assert late.headers["x-should-retry"] == "false"
        for stream in (False, True):
            leaving = Reading(bench.http, body("leaving", stream=stream))
            await bench.wait_held(workers, 2)
            await leaving.leave()
            await bench.wait_held(workers, 1, 10)
        waiting = asyncio.create_task(bench.chat("patient"))
        assert {answer.status_code for answer in await asyncio.gather(running, waiting)} == {200}


async def test_a_short_absence_of_nats_leaves_no_gap_and_no_hang(
    bench: Bench, second: ServiceHandle
) -> None:
    """A stream is whole, or it ends in an error: what NATS lost is noticed."""
    async with (
        bench.workers(2, simulated_latency_seconds=3, simulated_output_tokens=100) as workers,
        bench.client(second.status.port) as other,
    ):
        streams = [
            Reading(http, body(f"{n}", stream=True))
            for n in range(4)
            for http in (bench.http, other)
        ]
        await until(lambda: all(stream.begun for stream in streams))
        nats = bench.stack.service("nats")
        killed = nats.kill()
        contents = await asyncio.wait_for(asyncio.gather(*(s.task for s in streams)), 60)
        for content in contents:
            if content.endswith(DONE):
                assert content.count(b"\n\n") == 102
            else:
                assert error_at_the_end(content) in {"worker_lost", "answer_broken"}
        await asyncio.to_thread(nats.wait_ready, other_than=killed)
        await bench.wait_held(workers, 0)

        async def answered() -> bool:
            requests = (http.post("/embeddings", json={"model": MODEL, "input": "a"})
                        for http in (bench.http, other))  # fmt: skip
            return {one.status_code for one in await asyncio.gather(*requests)} == {200}

        await until(answered)


async def test_the_official_client_raises_where_a_stream_breaks(bench: Bench) -> None:
    async with (
        bench.workers(1, simulated_latency_seconds=20) as (worker,),
        bench.official() as client,
    ):
        asked: list[Any] = [{"role": "user", "content": "Hello"}]
        streams: list[Any] = [
            await client.chat.completions.create(model=MODEL, messages=asked, stream=True),
            await client.completions.create(model=MODEL, prompt="Hello", stream=True),
            await client.responses.create(model=MODEL, input="Hello", stream=True),
        ]
        for stream in streams:
            await anext(aiter(stream))
        worker.kill()
        for stream in streams:
            with pytest.raises(openai.APIError, match="worker"):
                await asyncio.wait_for(exhausted(stream), 15)


async def exhausted(stream: Any) -> None:
    async for _ in stream:
        pass


def registered(name: str, *aliases: str) -> ModelRegistered:
    return ModelRegistered(
        model_key=ids.model_key(name), name=name, source=f"models/{name}",
        aliases=list(aliases), requested_by="test",
    )  # fmt: skip


async def test_an_alias_that_moves_takes_only_new_requests_along(bench: Bench) -> None:
    alias, other = ids.new("alias-"), ids.new("other-")
    settings = bench.settings("other", model_name=other)
    async with bench.store() as store:
        await append(store, registered(MODEL, alias), registered(other))
        async with bench.workers(1, simulated_latency_seconds=2), worker_process(settings):

            async def means(model: str) -> bool:
                answer = await bench.chat("[[sim:sleep=0]]", model=alias, stream=True)
                return f'"model":"{model}"' in answer.text

            async def is_served() -> bool:
                return (await bench.chat("there?", model=other)).status_code == 200

            await until(is_served)
            stream = Reading(bench.http, body("Hello", model=alias, stream=True))
            await until(lambda: stream.begun)
            await model_orders.alias(store, other, add=[alias], requested_by="test", force=True)
            await until(lambda: means(other), 10)
            content = await stream.task
            assert content.endswith(DONE)
            assert content.count(b'"model":"%b"' % MODEL.encode()) == content.count(b"data: {")
        await model_orders.retire(store, other, requested_by="test")

        async def is_gone() -> bool:
            answer = await bench.chat("Hello", model=other)
            return answer.json()["error"]["code"] == "model_not_found"

        await until(is_gone)  # whoever has served it; a gateway learns of it from the log


@pytest.mark.parametrize(("seconds", "whole"), [(2, True), (30, False)])
async def test_a_swap_lets_streams_finish_for_a_while(
    bench: Bench, seconds: int, whole: bool
) -> None:
    home, wanted = ids.new("home-"), ids.new("wanted-")
    quick = {"reconcile_seconds": 0.1, "postgres_dsn": NO_POSTGRES, "simulated_load_seconds": 0.1}
    worker = {"model_name": home, "model_drain_seconds": 4, "simulated_latency_seconds": seconds}
    async with (
        bench.store() as store,
        leading(bench.settings("leader", **quick)),
        bench.workers(1, **quick, **worker) as workers,
    ):
        stream = Reading(bench.http, body("Hello", model=home, stream=True))
        await until(lambda: stream.begun)
        order = ModelLoadRequested(model_key=ids.model_key(wanted), requested_by="test")
        await append(store, registered(wanted), order)
        content = await asyncio.wait_for(stream.task, 60)
        if whole:
            assert content.endswith(DONE)
        else:
            assert error_at_the_end(content) == "worker_stopped"

        async def is_served() -> bool:
            answer = await bench.chat("[[sim:400]]", model=wanted)  # an answer at once
            return answer.status_code == 400

        async def is_named() -> bool:
            refused = await bench.chat("Hello", model=home)
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            message: str = refused.json()["error"]["message"]
            return f"Served now: {wanted}." in message

        await until(is_served)
        await until(is_named)  # a gateway hears of it with the worker's next heartbeat
        await bench.wait_held(workers, 0)
        await model_orders.retire(store, wanted, requested_by="test")
