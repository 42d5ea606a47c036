"""The vLLM adapter's care for its processes, with a stand-in that starts in no time. What it does
with the real server is in tests/e2e."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import msgspec
import psutil
import pytest
from tests.conftest import NatsServer
from tests.worker_bench import stand_in_python, until, worker_process

from batch_gpu_worker.answers import fit_for_batch
from batch_gpu_worker.engines import guardian
from batch_gpu_worker.engines.vllm import VllmEngine
from vllm_batch.errors import EngineCrashed, EngineDown, EngineFailed
from vllm_batch.settings import Settings

COMPLETIONS = "/v1/completions"


@pytest.fixture
def vllm_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    monkeypatch.setenv("STAND_IN_MARK", str(tmp_path))
    python = stand_in_python(tmp_path, monkeypatch)
    yield Settings(
        home=tmp_path / "a home", engine="vllm", model="org/stand-in", engine_python=python
    )
    for process in psutil.process_iter():  # what left the session of a killed guardian
        with contextlib.suppress(psutil.Error):
            if process.environ().get("STAND_IN_MARK") == str(tmp_path):
                process.kill()


@asynccontextmanager
async def started(settings: Settings) -> AsyncIterator[VllmEngine]:
    engine = VllmEngine(settings)
    await engine.start()
    try:
        await asyncio.wait_for(engine.ready.wait(), 120)
        yield engine
    finally:
        await engine.stop()


def everything_below(engine: VllmEngine) -> list[psutil.Process]:
    head = psutil.Process(json.loads(engine.record.read_text())["guardian"])
    return [head, *head.children(recursive=True)]


def gone(processes: list[psutil.Process]) -> bool:
    return not any(is_left(process) for process in processes)


def is_left(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False  # between the two questions


async def pid_that_answers(engine: VllmEngine) -> int:
    answer = await engine.complete(COMPLETIONS, b"{}")
    return int(msgspec.json.decode(answer.body)["choices"][0]["text"])


async def test_it_starts_answers_and_leaves_nothing(vllm_settings: Settings) -> None:
    async with started(vllm_settings) as engine:
        assert await engine.models() == ["stand-in"]
        assert await pid_that_answers(engine) == engine.pid
        below = everything_below(engine)
        assert len(below) >= 4  # guardian, server, and its two children
        assert engine.record.parent.stat().st_mode & 0o777 == 0o700
    assert gone(below)
    assert not engine.record.exists()


async def test_a_server_that_ignores_sigterm_is_killed(
    vllm_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "stubborn")
    async with started(vllm_settings) as engine:
        below = everything_below(engine)
    assert gone(below)


@pytest.mark.parametrize("victim", [0, 1])
async def test_a_killed_server_or_guardian_is_replaced_and_leaves_nothing(
    vllm_settings: Settings, victim: int
) -> None:
    async with started(vllm_settings) as engine:
        below = everything_below(engine)
        held = asyncio.create_task(engine.complete(COMPLETIONS, b'{"sleep":60}'))
        await pid_that_answers(engine)
        os.kill(below[victim].pid, signal.SIGKILL)
        with pytest.raises(EngineCrashed):
            await asyncio.wait_for(held, 120)
        if victim == 1:  # who lost its guardian may leave what left its session: nobody knows it
            await until(lambda: gone(below))
        else:
            await until(lambda: gone(below[:3]))
            below[3].kill()
        await asyncio.wait_for(engine.ready.wait(), 120)
        assert await pid_that_answers(engine) == engine.pid
        assert engine.pid not in {process.pid for process in below}


async def test_online_requests_go_before_those_of_batches(vllm_settings: Settings) -> None:
    """vLLM is told so, whatever the request or the worker's own arguments say."""
    settings = vllm_settings.model_copy(
        update={"engine_args": ("--scheduling-policy", "fcfs", "--dtype=half")}
    )
    async with started(settings) as engine:
        body = b'{"prompt":"x","priority":-9}'
        async with engine.stream(COMPLETIONS, body) as answer:
            online = msgspec.json.decode(b"".join([piece async for piece in answer.pieces]))
        of_batch = await engine.complete(COMPLETIONS, fit_for_batch(body))
    assert online["asked"] == {"prompt": "x", "priority": -1}
    assert msgspec.json.decode(of_batch.body)["asked"] == {"prompt": "x"}
    policies = [
        policy for option, policy in pairwise(online["argv"]) if option == "--scheduling-policy"
    ]
    assert policies[-1] == "priority", "the last one counts"


async def crash(engine: VllmEngine) -> None:
    """Kill the server, and wait until the next one is ready."""
    assert engine.pid is not None
    before = engine.pid
    os.kill(before, signal.SIGKILL)
    await until(lambda: engine.pid not in {before, None} and engine.ready.is_set())


async def test_adapters_are_loaded_again_after_a_crash(
    vllm_settings: Settings, tmp_path: Path
) -> None:
    """Also where the server gives no answer at first; a lost one would be a 404 to its requests."""
    folder = tmp_path / "tuned"
    folder.mkdir()
    async with started(vllm_settings) as engine:
        await engine.load_adapter("tuned", str(folder))
        (folder / "hangs up").touch()
        await crash(engine)
        assert not (folder / "hangs up").exists()
        assert await engine.models() == ["stand-in", "tuned"]
        assert (await engine.complete(COMPLETIONS, b'{"model":"tuned"}')).status == 200


async def test_an_adapter_that_cannot_be_loaded_again_is_lost_before_it_is_asked_for(
    vllm_settings: Settings, tmp_path: Path
) -> None:
    folders = {name: tmp_path / name for name in ("gone", "kept")}
    lost: list[tuple[str, str, bool]] = []
    async with started(vllm_settings) as engine:
        engine.on_adapter_lost = lambda name, why: lost.append((name, why, engine.ready.is_set()))
        for name, folder in folders.items():
            folder.mkdir()
            await engine.load_adapter(name, str(folder))
        folders["gone"].rmdir()
        await crash(engine)
        assert lost == [("gone", "vLLM: gone is not there", False)]
        assert await engine.models() == ["stand-in", "kept"]
        await crash(engine)
        assert len(lost) == 1, "it is forgotten"


async def test_a_sick_server_is_no_answer_and_is_replaced(
    vllm_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "sick")
    monkeypatch.setattr("batch_gpu_worker.engines.vllm.VERDICT_SECONDS", 0.3)
    async with started(vllm_settings) as engine:
        below = everything_below(engine)
        calls = [engine.complete(COMPLETIONS, b"{}") for _ in range(5)]
        outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 120)
        assert {type(outcome) for outcome in outcomes} == {EngineCrashed}
        await until(lambda: gone(below[:3]))
        await asyncio.wait_for(engine.ready.wait(), 120)


async def test_what_does_not_start_is_given_up_with_its_last_words(
    vllm_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "fails")
    engine = VllmEngine(vllm_settings)
    await engine.start()
    with pytest.raises(EngineFailed, match="CUDA error: out of memory, says the stand-in"):
        await asyncio.wait_for(engine.wait_failed(), 120)
    with pytest.raises(EngineDown):
        await engine.complete(COMPLETIONS, b"{}")
    await engine.stop()


async def test_what_is_never_ready_is_given_up_in_time(
    vllm_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "slow")
    settings = vllm_settings.model_copy(update={"engine_ready_seconds": 0.5})
    engine = VllmEngine(settings)
    await engine.start()
    with pytest.raises(EngineFailed):
        await asyncio.wait_for(engine.wait_failed(), 120)
    await engine.stop()


async def test_a_python_that_is_not_there_is_given_up(vllm_settings: Settings) -> None:
    settings = vllm_settings.model_copy(update={"engine_python": Path("/nonexistent/python")})
    engine = VllmEngine(settings)
    await engine.start()
    with pytest.raises(EngineFailed, match="cannot run /nonexistent/python"):
        await asyncio.wait_for(engine.wait_failed(), 120)
    await engine.stop()


@pytest.mark.usefixtures("event_store")  # a gateway has made the streams
async def test_no_engine_outlives_a_worker_however_it_ends(
    vllm_settings: Settings, nats_server: NatsServer
) -> None:
    settings = vllm_settings.model_copy(update={"nats_url": nats_server.url})
    record = settings.home / "run" / f"engine-{settings.worker_name}.json"
    for number in (signal.SIGKILL, signal.SIGTERM):
        async with worker_process(settings) as worker:
            await until(record.exists)
            head = psutil.Process(json.loads(record.read_text())["guardian"])
            await until(lambda head=head: len(head.children(recursive=True)) >= 3)
            below = [head, *head.children(recursive=True)]
            worker.send_signal(number)
            await asyncio.wait_for(worker.wait(), 120)
        await until(lambda below=below: gone(below))


@pytest.mark.usefixtures("event_store")  # a gateway has made the streams
async def test_what_an_earlier_worker_left_is_killed_first(
    vllm_settings: Settings, nats_server: NatsServer
) -> None:
    settings = vllm_settings.model_copy(update={"nats_url": nats_server.url})
    record = settings.home / "run" / f"engine-{settings.worker_name}.json"
    async with worker_process(settings) as worker:
        await until(record.exists)
        session = json.loads(record.read_text())["guardian"]
        await until(lambda: len(guardian.session_members(session)) >= 3)
        left = [psutil.Process(pid) for pid in guardian.session_members(session)]
        # All at once: nobody is left to clean up, but the server dies with its guardian.
        for process in (left[0], psutil.Process(worker.pid)):
            process.suspend()
        left[0].kill()
        psutil.Process(worker.pid).kill()
        await worker.wait()
    orphans = [process for process in left if not gone([process])]
    assert orphans
    async with started(settings):
        assert gone(left)


def test_a_record_of_another_boot_or_of_a_reused_pid_kills_nobody(tmp_path: Path) -> None:
    own_session = os.getsid(0)
    record = tmp_path / "record.json"
    for boot, begun in (("another boot", 0), (guardian.boot_id(), 2**62)):
        known = {"guardian": own_session, "server": 1, "started": begun, "boot_id": boot}
        record.write_text(json.dumps(known))
        assert guardian.kill_recorded(record) == []
        assert not record.exists()
    record.write_text("nonsense")
    assert guardian.kill_recorded(record) == []
    assert guardian.kill_recorded(tmp_path / "missing") == []
