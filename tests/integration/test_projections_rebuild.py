"""Read models are disposable: made anew from a real log they are the same, and a change shows."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from tests.facts import PROJECT, run_a_batch, submitted, uploaded

from vllm_batch.errors import ForeignStream, ProjectionError, ProjectionUnavailable
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.ids import JobId
from vllm_batch.local.stack import LocalStack
from vllm_batch.postgres.connection import connect
from vllm_batch.projections import rebuild
from vllm_batch.projections.read_models import ReadModels
from vllm_batch.projections.runner import Projector
from vllm_batch.settings import Settings
from vllm_batch.tasks import end


def quiet(_seq: int, _target: int) -> None:
    """Nobody looks at the progress."""


@pytest.fixture
def settings(settings: Settings, postgres_dsn: str) -> Settings:
    return settings.model_copy(update={"postgres_dsn": SecretStr(postgres_dsn)})


@pytest.fixture
async def filled(event_store: JetStreamEventStore, settings: Settings) -> JetStreamEventStore:
    for number in range(5):
        await run_a_batch(event_store, f"batch_{number}")
    await Projector(event_store, settings).catch_up(await event_store.last_sequence())
    return event_store


async def test_a_rebuild_gives_the_same_rows(
    filled: JetStreamEventStore, settings: Settings
) -> None:
    before = await rebuild.verify(filled, settings, progress=quiet)
    assert before.identical
    assert {t.table: t.live.rows for t in before.tables}["job"] == 5
    heard: list[tuple[int, int]] = []
    seq = await rebuild.rebuild(filled, settings, progress=lambda *pair: heard.append(pair))
    assert seq == before.seq == 50
    assert heard[-1] == (50, 50)
    after = await rebuild.verify(filled, settings, progress=quiet)
    assert [t.live for t in after.tables] == [t.live for t in before.tables]


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("chunk", "UPDATE chunk SET completed = 1 WHERE job_id = 'batch_3' AND chunk = 0"),
        ("job", "DELETE FROM job WHERE job_id = 'batch_3'"),
        ("job", "UPDATE job SET metadata = NULL WHERE job_id = 'batch_3'"),
    ],
)
async def test_a_changed_row_is_found_and_the_verification_leaves_nothing_behind(
    filled: JetStreamEventStore, settings: Settings, table: str, change: str
) -> None:
    async with connect(settings) as connection:
        await connection.execute(change)
        found = await rebuild.verify(filled, settings, progress=quiet)
        assert not found.identical
        assert [t.table for t in found.tables if not t.identical] == [table]
        left = "SELECT count(*) FROM pg_namespace WHERE nspname ~ 'verify'"
        assert await connection.fetchval(left) == 0


async def test_a_rebuild_repairs_what_a_foreign_log_left(
    event_store: JetStreamEventStore, settings: Settings
) -> None:
    await event_store.append(submitted("batch_1"), expected=0)
    projector = Projector(event_store, settings)
    await projector.catch_up(1)
    async with connect(settings) as connection:
        await connection.execute("UPDATE checkpoint SET log_identity = 'another'")
    with pytest.raises(ForeignStream):
        await rebuild.verify(event_store, settings, progress=quiet)
    assert not (await rebuild.standing(event_store, settings)).same_log
    await rebuild.rebuild(event_store, settings, progress=quiet)
    assert (await rebuild.verify(event_store, settings, progress=quiet)).identical


async def test_lists_and_a_live_projector_survive_a_rebuild(
    filled: JetStreamEventStore, settings: Settings
) -> None:
    live = asyncio.create_task(Projector(filled, settings).run())
    try:
        async with ReadModels.connect(settings) as models:
            assert len((await models.batches(PROJECT, limit=10))[0]) == 5
            await rebuild.rebuild(filled, settings, progress=quiet)
            recorded = await filled.append(submitted("batch_new"), expected=0)
            await reached(models, recorded.seq)
            assert len((await models.batches(PROJECT, limit=10))[0]) == 6
        assert (await rebuild.verify(filled, settings, progress=quiet)).identical
    finally:
        await end(live)


async def test_two_verifications_do_not_meet(
    filled: JetStreamEventStore, settings: Settings
) -> None:
    results = await asyncio.gather(
        *(rebuild.verify(filled, settings, progress=quiet) for _ in range(2)),
        return_exceptions=True,
    )
    assert [type(r) for r in results].count(ProjectionError) <= 1
    assert all(r.identical for r in results if isinstance(r, rebuild.Verification))


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[LocalStack]:
    """A server that the test may kill."""
    with LocalStack(tmp_path / "own", only={"postgres"}) as stack:
        yield stack


@pytest.fixture
async def over_own(
    event_store: JetStreamEventStore, settings: Settings, own_postgres: LocalStack
) -> AsyncIterator[tuple[Settings, ReadModels]]:
    dsn = own_postgres.settings.postgres_dsn
    settings = settings.model_copy(update={"postgres_dsn": dsn})
    live = asyncio.create_task(Projector(event_store, settings).run())
    await event_store.append(submitted("batch_0"), expected=0)
    async with ReadModels.connect(settings) as models:
        await reached(models, 1)
        yield settings, models
    await end(live)


async def reached(models: ReadModels, seq: int) -> None:
    async with asyncio.timeout(120):
        while models.seq < seq:
            await asyncio.sleep(0.02)


async def refused_quickly(models: ReadModels) -> None:
    started = time.monotonic()
    with pytest.raises(ProjectionUnavailable):
        await models.batches(PROJECT, limit=1)
    assert time.monotonic() - started <= 5.0


async def ended(pids: list[int]) -> None:
    async with asyncio.timeout(60):
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            await asyncio.sleep(0.01)


async def test_postgres_may_be_killed_and_come_back(
    event_store: JetStreamEventStore,
    over_own: tuple[Settings, ReadModels],
    own_postgres: LocalStack,
) -> None:
    settings, models = over_own
    for round_number in range(1, 4):
        backends = backends_of(os.getpgid(own_postgres.service("postgres").pid))
        await asyncio.to_thread(own_postgres.service("postgres").hold)
        await ended(backends)  # one that was idle may answer once more, and rightly
        await refused_quickly(models)
        recorded = await event_store.append(submitted(f"batch_{round_number}"), expected=0)
        started = time.monotonic()
        assert not await models.wait_for(recorded.seq, 5)
        assert time.monotonic() - started < 4
        await asyncio.to_thread(own_postgres.service("postgres").release)
        await reached(models, recorded.seq)
        assert await models.batch(PROJECT, JobId(f"batch_{round_number}")) is not None
    assert (await rebuild.verify(event_store, settings, progress=quiet)).identical


async def test_a_frozen_postgres_is_noticed_and_waited_for(
    event_store: JetStreamEventStore,
    over_own: tuple[Settings, ReadModels],
    own_postgres: LocalStack,
) -> None:
    _, models = over_own
    group = os.getpgid(own_postgres.service("postgres").pid)
    frozen = [group, *backends_of(group)]
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(5):
            await refused_quickly(models)
        recorded = await event_store.append(submitted("batch_1"), expected=0)
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    await reached(models, recorded.seq)
    assert await models.batch(PROJECT, JobId("batch_1")) is not None


def backends_of(parent: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(parent).children(recursive=True)]


async def test_the_commands_rebuild_verify_and_show(
    filled: JetStreamEventStore, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_BATCH_HOME", str(settings.home))
    monkeypatch.setenv("VLLM_BATCH_NATS_URL", settings.nats_url)
    monkeypatch.setenv("VLLM_BATCH_POSTGRES_DSN", settings.postgres_dsn.get_secret_value())

    async def run(*arguments: str) -> tuple[int, str]:
        command = (sys.executable, "-m", "vllm_batch.cli", *arguments)
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout

    code, text = await run("projections", "verify", "--json")
    assert (code, json.loads(text)["identical"]) == (0, True)
    async with connect(settings) as connection:
        await connection.execute("DELETE FROM file")
        await connection.execute("UPDATE job SET total = 1")
    code, text = await run("projections", "verify", "--json")
    tables = json.loads(text)["tables"]
    assert (code, tables["job"]["identical"], tables["chunk"]["identical"]) == (1, False, True)
    assert (await run("projections", "verify"))[0] == 1
    code, text = await run("projections", "rebuild", "--json")
    assert (code, json.loads(text)) == (0, {"seq": 50})
    assert (await run("projections", "verify"))[0] == 0
    code, text = await run("projections", "status", "--json")
    status = json.loads(text)
    assert (code, status["behind"], status["rows"]["chunk"]) == (0, 0, 10)

    await filled.append(uploaded("file-x"), expected=0)
    code, text = await run("events", "tail", "file.>", "--from", "1", "--no-follow", "--json")
    assert (code, json.loads(text)["data"]["file_id"]) == (0, "file-x")
    code, text = await run(
        "events", "tail", "job.submitted.*", "--from", "beginning", "--no-follow"
    )
    assert (code, len(text.splitlines())) == (0, 5)
    code, text = await run("events", "show", "51")
    assert (code, json.loads(text)["type"]) == (0, "file.uploaded")
    first = json.loads((await run("events", "show", "21"))[1])["time"]
    code, text = await run("events", "tail", "--from", first, "--no-follow", "--json")
    assert json.loads(text.splitlines()[0])["seq"] == 21
    assert (await run("events", "tail", "--from", "yesterdayish", "--no-follow"))[0] == 1
