"""Online requests when something goes: workers, gateways, NATS, nobody there."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest
from tests.online_bench import (
    SECOND_HOLDS,
    Bench,
    Reading,
    body,
    gateway_alone,
    second_gateway,
)
from tests.worker_bench import until

from vllm_batch.local.handle import ServiceHandle
from vllm_batch.local.stack import LocalStack


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """NATS and a gateway; tests bring the workers."""
    with gateway_alone(tmp_path_factory.mktemp("kills")) as running:
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


async def test_without_a_worker_the_answer_names_what_is_there(bench: Bench) -> None:
    async with bench.workers(1):
        assert (await bench.chat("Hello")).status_code == 200
    async with bench.workers(1, model_name="another"):
        answer = await bench.chat("Hello")
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert "another" in answer.json()["error"]["message"]


async def test_a_stream_whose_worker_is_killed_ends_in_an_error(bench: Bench) -> None:
    async with bench.workers(1, simulated_latency_seconds=20) as (worker,):
        request = body("Hello", stream=True)
        async with bench.http.stream("POST", "/chat/completions", json=request) as answer:
            lines = answer.aiter_lines()
            assert (await anext(lines)).startswith("data: {")
            worker.kill()
            async with asyncio.timeout(60):
                rest = [line async for line in lines if line]
        error = json.loads(rest[-1].removeprefix("data: "))["error"]
        assert error["code"] == "worker_lost"


async def test_a_request_whose_worker_is_killed_is_answered_with_an_error(bench: Bench) -> None:
    async with bench.workers(1) as (worker,):
        call = asyncio.create_task(bench.chat("[[sim:sleep=20]]"))

        async def has_it() -> bool:
            return await bench.online_in_flight(worker.pid) == 1

        await until(has_it)
        worker.kill()
        answer = await asyncio.wait_for(call, 60)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "worker_lost"


async def test_a_frozen_worker_is_passed_over(bench: Bench) -> None:
    async with bench.workers(2) as (frozen, _):
        frozen.send_signal(signal.SIGSTOP)
        try:
            answers = await asyncio.gather(*(bench.chat(f"Hello {n}") for n in range(12)))
        finally:
            frozen.send_signal(signal.SIGCONT)
        assert {answer.status_code for answer in answers} == {200}


async def test_a_deadline_that_passes_before_anybody_takes_the_request_is_a_timeout(
    bench: Bench,
) -> None:
    async with bench.workers(1) as (frozen,):
        frozen.send_signal(signal.SIGSTOP)
        try:
            headers = {"x-request-timeout-seconds": "0.3"}
            answer = await bench.http.post("/chat/completions", json=body("Hello"), headers=headers)
        finally:
            frozen.send_signal(signal.SIGCONT)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")


async def test_a_gateway_that_was_frozen_gives_no_worker_up(bench: Bench) -> None:
    async with bench.workers(1, simulated_latency_seconds=12) as workers:
        stream = Reading(bench.http, body("Hello", stream=True))
        await until(lambda: stream.begun)
        gateway = bench.stack.service("api")
        gateway.kill(signal.SIGSTOP)
        try:
            await asyncio.sleep(6)  # longer than inference_silence_seconds
        finally:
            gateway.kill(signal.SIGCONT)
        assert (await stream.task).endswith(b"data: [DONE]\n\n")
        await bench.wait_held(workers, 0)


async def test_a_worker_that_ends_finishes_what_it_has_and_takes_nothing_more(
    bench: Bench,
) -> None:
    async with bench.workers(2) as (ending, _):
        calls = [asyncio.create_task(bench.chat(f"[[sim:sleep=6]] {n}")) for n in range(12)]

        async def has_some() -> bool:
            return await bench.online_in_flight(ending.pid) > 0

        await until(has_some)
        ending.send_signal(signal.SIGTERM)
        answers = await asyncio.gather(*calls, *(bench.chat(f"more {n}") for n in range(12)))
        assert {answer.status_code for answer in answers} == {200}
        assert await asyncio.wait_for(ending.wait(), 60) == 0


async def test_busy_workers_hand_on_to_free_ones(bench: Bench) -> None:
    async with bench.workers(3, engine_max_num_seqs=2):
        calls = [asyncio.create_task(bench.chat(f"[[sim:sleep=1]] {n}")) for n in range(6)]
        answers = await asyncio.gather(*calls)
        assert [answer.status_code for answer in answers].count(200) >= 5


async def test_a_full_gateway_sends_clients_away_while_another_has_room(
    bench: Bench, second: ServiceHandle
) -> None:
    async with bench.workers(1) as workers, bench.client(second.status.port) as full:
        path = "/chat/completions"
        held = [
            asyncio.create_task(full.post(path, json=body(f"[[sim:sleep=60]] {n}")))
            for n in range(SECOND_HOLDS)
        ]
        await bench.wait_held(workers, SECOND_HOLDS)
        refused = await full.post(path, json=body("one more"))
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "overloaded"
        assert int(refused.headers["retry-after"]) >= 1
        assert (await bench.chat("one more")).status_code == 200
        for call in held:
            call.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        await bench.wait_held(workers, 0, 30)
        assert (await full.post(path, json=body("one more"))).status_code == 200


async def test_a_gateway_that_is_killed_leaves_nothing_running(bench: Bench) -> None:
    async with bench.workers(1) as (worker,):
        call = asyncio.create_task(bench.chat("[[sim:sleep=60]]"))

        async def has(count: int) -> bool:
            return await bench.online_in_flight(worker.pid) == count

        await until(lambda: has(1))
        gateway = bench.stack.service("api")
        killed = gateway.kill()
        await asyncio.gather(call, return_exceptions=True)
        await until(lambda: has(0), 30)
        await asyncio.to_thread(gateway.wait_ready, other_than=killed)


async def test_a_stream_whose_gateway_is_killed_breaks_off_and_is_aborted(bench: Bench) -> None:
    async with bench.workers(1, simulated_latency_seconds=60) as workers:
        received = bytearray()

        async def read() -> None:
            request = body("Hello", stream=True)
            async with bench.http.stream("POST", "/chat/completions", json=request) as answer:
                async for piece in answer.aiter_raw():
                    received.extend(piece)

        reading = asyncio.create_task(read())
        await until(lambda: bool(received))
        gateway = bench.stack.service("api")
        killed = gateway.kill()
        with pytest.raises(httpx2.TransportError):
            await asyncio.wait_for(reading, 60)
        assert b"[DONE]" not in received
        await bench.wait_held(workers, 0, 30)
        await asyncio.to_thread(gateway.wait_ready, other_than=killed)


async def test_a_gateway_that_is_killed_takes_only_its_own_requests_along(
    bench: Bench, second: ServiceHandle
) -> None:
    async with bench.workers(2) as workers, bench.client(second.status.port) as beside:
        pids = [worker.pid for worker in workers]

        async def have(count: int) -> bool:
            return await bench.online_in_flight(*pids) == count

        theirs = [
            asyncio.create_task(
                beside.post("/chat/completions", json=body(f"[[sim:sleep=60]] {n}"))
            )
            for n in range(6)
        ]
        await until(lambda: have(6))
        ours = [asyncio.create_task(bench.chat(f"[[sim:sleep=10]] {n}")) for n in range(6)]
        await until(lambda: have(12))
        assert all([await bench.online_in_flight(pid) for pid in pids]), "both workers have some"
        killed = second.kill()
        assert {answer.status_code for answer in await asyncio.gather(*ours)} == {200}
        lost = await asyncio.gather(*theirs, return_exceptions=True)
        assert all(isinstance(error, httpx2.TransportError) for error in lost)
        await until(lambda: have(0), 30)
    await asyncio.to_thread(second.wait_restarted, killed)


@pytest.mark.parametrize(("seconds", "whole"), [(1, True), (30, False)])
async def test_a_gateway_that_ends_lets_streams_finish_for_a_while(
    bench: Bench, second: ServiceHandle, seconds: int, whole: bool
) -> None:
    """What takes longer breaks off: nobody can take the part for the whole."""
    received = bytearray()

    async def read(http: httpx2.AsyncClient) -> None:
        request = body("Hello", stream=True)
        async with http.stream("POST", "/chat/completions", json=request) as answer:
            async for piece in answer.aiter_raw():
                received.extend(piece)

    async with (
        bench.workers(1, simulated_latency_seconds=seconds) as (worker,),
        bench.client(second.status.port) as http,
    ):
        reading = asyncio.create_task(read(http))
        await until(lambda: bool(received))
        ended = second.kill(signal.SIGTERM)
        if whole:
            await reading
            assert received.endswith(b"data: [DONE]\n\n")
        else:
            with pytest.raises(httpx2.TransportError):
                await reading
            assert b"[DONE]" not in received

        async def is_idle() -> bool:
            return await bench.online_in_flight(worker.pid) == 0

        await until(is_idle, 10)
    await asyncio.to_thread(second.wait_restarted, ended)


async def test_without_nats_a_stream_ends_in_an_error_and_all_is_well_afterwards(
    bench: Bench,
) -> None:
    server = bench.stack.service("nats")
    async with bench.workers(1, simulated_latency_seconds=20) as (worker,):
        request = body("Hello", stream=True)
        async with bench.http.stream("POST", "/chat/completions", json=request) as answer:
            lines = answer.aiter_lines()
            assert (await anext(lines)).startswith("data: {")
            await asyncio.to_thread(server.hold)
            try:
                async with asyncio.timeout(60):
                    rest = [line async for line in lines if line]
                refused = await bench.chat("Hello")
            finally:
                server.release()
        assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "worker_lost"
        assert refused.status_code == 503
        await asyncio.to_thread(server.wait_ready)

        async def is_idle() -> bool:
            return {b.online_in_flight for b in await bench.beats() if b.pid == worker.pid} == {0}

        await until(is_idle)
    async with bench.workers(1):

        async def answered() -> bool:
            return (await bench.chat("Hello")).status_code == 200

        await until(answered)
