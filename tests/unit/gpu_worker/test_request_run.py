"""One request: every way it can go ends as exactly one result line."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from tests.unit.gpu_worker.bench import ScriptedEngine, effort_meter, held, line

from batch_gpu_worker.engines.base import EngineResponse
from batch_gpu_worker.holdings import Request
from batch_gpu_worker.request_run import RequestRunner, TimeLimit
from batch_gpu_worker.ward import Ward
from vllm_batch.errors import EngineCrashed, EngineDown, EngineUnavailable
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.events import Usage
from vllm_batch.settings import Settings

OK = EngineResponse(
    200, b'{"text":"hi","usage":{"prompt_tokens":2,"completion_tokens":3}}', "req-7"
)
BUSY = EngineResponse(429, b'{"error":{"message":"slow down"}}')
BROKEN = EngineResponse(500, b'{"error":{"message":"oh"}}')


def watched(engine: ScriptedEngine) -> Ward:
    """Return a ward that hears of the engine's deaths."""
    ward = Ward(engine)
    engine.on_death = lambda death: ward.engine_died(blame=death.reason == "crashed")
    return ward


async def run(
    engine: ScriptedEngine,
    tmp_path: Path,
    *,
    given: bytes = line(0),
    alias: str | None = None,
    **settings: Any,
) -> tuple[bool, dict[str, Any], Usage]:
    """Return (failed, result line, usage) of one request against ``engine``."""
    defaults: dict[str, Any] = {"retry_backoff_seconds": 0.001, "request_attempts_max": 3}
    limits = Settings(home=tmp_path, **(defaults | settings))
    time_limit = TimeLimit(limits.request_timeout_seconds, time.monotonic)
    runner = RequestRunner(
        engine, limits, time_limit, random.Random(1), watched(engine), effort=effort_meter()
    )
    chunk = await held(MemoryEventStore(), count=1, alias=alias)

    async def look() -> None:
        while True:
            await asyncio.sleep(0.005)
            time_limit.look()

    async def one() -> tuple[Any, Usage]:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        return await runner.run(Request(chunk, 0, given), task)

    looking = asyncio.create_task(look())
    try:
        result, usage = await asyncio.wait_for(asyncio.create_task(one()), 10)
    finally:
        looking.cancel()
    assert result.index == 0
    return result.failed, msgspec.json.decode(result.line), usage


@pytest.mark.parametrize(
    ("asked", "limit", "least"), [(0.2, 10.0, 0.2), (60.0, 0.1, 0.1), (None, 10.0, 0.0)]
)
async def test_a_pause_that_the_engine_asks_for_is_kept_within_a_limit(
    tmp_path: Path, asked: float | None, limit: float, least: float
) -> None:
    busy = EngineResponse(429, b'{"error":{"message":"slow down"}}', retry_seconds=asked)
    began = time.monotonic()
    failed, _, _ = await run(ScriptedEngine(busy, OK), tmp_path, retry_after_seconds_max=limit)
    assert not failed
    assert least <= time.monotonic() - began < 10


async def test_an_answer_becomes_a_result_line(tmp_path: Path) -> None:
    failed, answer, usage = await run(ScriptedEngine(OK), tmp_path)
    assert not failed
    assert answer["custom_id"] == "r0"
    assert answer["id"].startswith("batch_req_")
    assert answer["error"] is None
    assert answer["response"]["status_code"] == 200
    assert answer["response"]["request_id"] == "req-7"
    assert answer["response"]["body"]["text"] == "hi"
    assert usage == Usage(2, 0, 3, 0)


async def test_a_request_id_is_made_up_where_the_engine_gives_none(tmp_path: Path) -> None:
    _, answer, _ = await run(ScriptedEngine(EngineResponse(200, b"{}")), tmp_path)
    assert answer["response"]["request_id"].startswith("req_")


async def test_a_refusal_is_passed_through_and_not_tried_again(tmp_path: Path) -> None:
    body = b'{"error":{"message":"temperature must be at most 2","code":400}}'
    engine = ScriptedEngine(EngineResponse(400, body))
    failed, answer, usage = await run(engine, tmp_path)
    assert failed
    assert answer["error"] is None
    assert answer["response"]["status_code"] == 400
    assert answer["response"]["body"]["error"]["message"] == "temperature must be at most 2"
    assert usage == Usage()
    assert len(engine.bodies) == 1


@pytest.mark.parametrize(
    "passing", [BUSY, BROKEN, EngineUnavailable("reset"), EngineDown("down"), EngineCrashed("x")]
)
async def test_what_passes_is_tried_again(
    tmp_path: Path, passing: EngineResponse | Exception
) -> None:
    engine = ScriptedEngine(passing, passing, OK)
    failed, _, _ = await run(engine, tmp_path)
    assert not failed
    assert len(engine.bodies) == 3


async def test_an_error_that_stays_is_given_with_its_body(tmp_path: Path) -> None:
    engine = ScriptedEngine(BROKEN)
    failed, answer, _ = await run(engine, tmp_path)
    assert failed
    assert answer["response"]["status_code"] == 500
    assert answer["response"]["body"] == {"error": {"message": "oh"}}
    assert len(engine.bodies) == 3


async def test_no_answer_at_all_is_an_error_line(tmp_path: Path) -> None:
    failed, answer, _ = await run(ScriptedEngine(EngineUnavailable("reset by peer")), tmp_path)
    assert failed
    assert answer["response"] is None
    assert answer["error"]["code"] == "engine_error"
    assert "reset by peer" in answer["error"]["message"]


async def test_an_engine_that_is_down_costs_no_tries(tmp_path: Path) -> None:
    engine = ScriptedEngine(*[EngineDown("loading")] * 8, OK)
    failed, _, _ = await run(engine, tmp_path, request_attempts_max=1)
    assert not failed


async def test_requests_wait_while_the_engine_is_not_ready(tmp_path: Path) -> None:
    engine = ScriptedEngine(OK)
    engine.ready.clear()
    running = asyncio.create_task(run(engine, tmp_path, request_timeout_seconds=0.02))
    done, _ = await asyncio.wait({running}, timeout=0.1)
    assert not done  # and the time limit does not count while it waits
    assert engine.bodies == []
    engine.ready.set()
    failed, _, _ = await running
    assert not failed


async def test_a_request_that_crashes_the_engine_thrice_is_given_up(tmp_path: Path) -> None:
    engine = ScriptedEngine(EngineCrashed("dead"))
    failed, answer, _ = await run(engine, tmp_path, request_attempts_max=9)
    assert failed
    assert answer["error"]["code"] == "engine_crash"
    assert len(engine.bodies) == 3


async def test_a_request_that_takes_too_long_is_ended_in_the_engine(tmp_path: Path) -> None:
    aborted = asyncio.Event()

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            aborted.set()

    engine = ScriptedEngine(hang)
    failed, answer, _ = await run(engine, tmp_path, request_timeout_seconds=0.03)
    assert failed
    assert answer["error"]["code"] == "request_timeout"
    assert aborted.is_set()
    assert len(engine.bodies) == 1


async def test_a_cancelled_request_ends_without_a_result(tmp_path: Path) -> None:
    engine = ScriptedEngine(asyncio.Event().wait)
    running = asyncio.create_task(run(engine, tmp_path))
    while not engine.bodies:
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


@pytest.mark.parametrize("body", [b"data: {}", b"", b"[1]", b'{"a":"\xff"}'])
async def test_a_success_that_is_no_json_object_never_breaks_a_line(
    tmp_path: Path, body: bytes
) -> None:
    failed, answer, _ = await run(ScriptedEngine(EngineResponse(200, body)), tmp_path)
    assert failed
    assert answer["error"]["code"] == "engine_error"


async def test_answers_over_several_lines_end_in_one(tmp_path: Path) -> None:
    pretty = EngineResponse(200, '{\n  "text": "a\u2028b"\n}'.encode())
    failed, answer, _ = await run(ScriptedEngine(pretty), tmp_path)
    assert not failed
    assert answer["response"]["body"] == {"text": "a\u2028b"}


async def test_a_batch_body_never_streams(tmp_path: Path) -> None:
    engine = ScriptedEngine(OK)
    given = line(0, '{"model":"m","stream":true,"seed":9007199254740993}')
    await run(engine, tmp_path, given=given)
    assert engine.bodies == [b'{"model":"m","seed":9007199254740993}']


async def test_an_engine_is_asked_for_the_model_that_an_alias_means(tmp_path: Path) -> None:
    engine = ScriptedEngine(OK)
    given = line(0, '{"seed":9007199254740993,"model":"best"}')
    await run(engine, tmp_path, given=given, alias="best")
    assert engine.bodies == [b'{"seed":9007199254740993,"model":"m"}']


@pytest.mark.parametrize("given", [b'{"custom_id":"r0"}', b"nonsense", b'{"custom_id":5}'])
async def test_a_line_that_is_no_request_gets_an_error_line(tmp_path: Path, given: bytes) -> None:
    engine = ScriptedEngine(OK)
    failed, answer, _ = await run(engine, tmp_path, given=given)
    assert failed
    assert answer["error"]["code"] == "invalid_json_line"
    assert answer["custom_id"] in {"r0", ""}
    assert engine.bodies == []


async def test_deep_nesting_is_an_error_line_or_passed_on_but_never_a_crash(
    tmp_path: Path,
) -> None:
    engine = ScriptedEngine(OK)
    deep = line(0, '{"model":"m","stream":true,"x":' + "[" * 50_000 + "]" * 50_000 + "}")
    failed, answer, _ = await run(engine, tmp_path, given=deep)
    assert failed
    assert answer["error"]["code"] == "invalid_json_line"
    assert answer["custom_id"] == "r0"
