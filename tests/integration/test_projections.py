"""The projector and the read models over a real Postgres; the log is the twin in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from pydantic import SecretStr
from tests.facts import (
    CREATED,
    PROJECT,
    START,
    append,
    ended,
    run_a_batch,
    submitted,
    uploaded,
)

from vllm_batch.aggregates.chunk import ChunkStatus
from vllm_batch.aggregates.job import JobStatus
from vllm_batch.clock import ManualClock
from vllm_batch.errors import ForeignStream, NotFound, ProjectionError, ProjectionUnavailable
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.events import (
    ApiKeyCreated,
    ApiKeyRevoked,
    ChunkClosed,
    ChunkCompleted,
    Event,
    FileDeleted,
    JobCancelled,
    JobCancelRequested,
    JobFailed,
    JobFinalizing,
    JobStarted,
    LineError,
    Usage,
    WorkerLost,
    WorkerReady,
    WorkerStarted,
)
from vllm_batch.ids import FileId, JobId, KeyId, ProjectId, WorkerId
from vllm_batch.postgres import migrate, queries
from vllm_batch.postgres.connection import connect
from vllm_batch.projections import from_log, runner
from vllm_batch.projections.read_models import ReadModels
from vllm_batch.projections.runner import Projector
from vllm_batch.settings import Settings
from vllm_batch.tasks import end


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def store(clock: ManualClock) -> MemoryEventStore:
    return MemoryEventStore(clock=clock)


@pytest.fixture
def settings(tmp_path: Path, postgres_dsn: str) -> Settings:
    return Settings(home=tmp_path, postgres_dsn=SecretStr(postgres_dsn))


@asynccontextmanager
async def projecting(store: MemoryEventStore, settings: Settings) -> AsyncIterator[ReadModels]:
    task = asyncio.create_task(Projector(store, settings).run())
    try:
        async with ReadModels.connect(settings) as models:
            yield models
    finally:
        await end(task)


async def eventually(condition: Callable[[], Awaitable[bool]], seconds: float = 120) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


async def caught_up(models: ReadModels, store: MemoryEventStore) -> None:
    seq = await store.last_sequence()

    async def reached() -> bool:
        return models.seq >= seq

    await eventually(reached)


async def test_a_running_batch_counts_its_chunks_and_an_ended_one_its_last_event(
    store: MemoryEventStore, settings: Settings, clock: ManualClock
) -> None:
    async with projecting(store, settings) as models:
        await run_a_batch(store)
        await caught_up(models, store)
        row = await models.batch(PROJECT, JobId("batch_1"))
        assert row is not None
        assert row.status is JobStatus.RUNNING
        assert (row.total, row.completed, row.failed) == (20, 7, 1)
        assert row.usage == Usage(35, 2, 14, 0)
        assert list((row.metadata or {}).items()) == [("z", "1"), ("a", "2")]
        assert (row.created_at, row.in_progress_at) == (CREATED, CREATED)
        assert row == await from_log.batch(store, PROJECT, JobId("batch_1"))

        clock.advance(60)
        finalizing = JobFinalizing(job_id=JobId("batch_1"), outcome="completed")
        await append(store, finalizing)
        clock.advance(-3600)  # a clock that is set back must not reorder a batch's times
        await append(store, ended("batch_1"))
        await caught_up(models, store)
        row = await models.batch(PROJECT, JobId("batch_1"))
        assert row is not None
        assert (row.completed, row.failed, row.usage) == (19, 1, Usage(95, 2, 38, 0))
        assert (row.output_file_id, row.error_file_id) == ("file-out", "file-err")
        assert row.finalizing_at == row.completed_at == CREATED + 60
        assert row == await from_log.batch(store, PROJECT, JobId("batch_1"))


async def test_failed_and_cancelled_batches_show_why_and_when(
    store: MemoryEventStore, settings: Settings
) -> None:
    error = LineError("invalid_json_line", "line 3 is not JSON", line=3)
    async with projecting(store, settings) as models:
        await append(
            store,
            submitted("bad"),
            JobFailed(job_id=JobId("bad"), errors=[error], error_count=7),
            submitted("gone"),
            JobCancelRequested(job_id=JobId("gone")),
            JobFinalizing(job_id=JobId("gone"), outcome="cancelled"),
            ended("gone", JobCancelled),
        )
        await caught_up(models, store)
        bad = await models.batch(PROJECT, JobId("bad"))
        assert bad is not None
        assert (bad.status, bad.errors, bad.failed_at) == (JobStatus.FAILED, [error], CREATED)
        gone = await models.batch(PROJECT, JobId("gone"))
        assert gone is not None
        assert gone.status is JobStatus.CANCELLED
        assert gone.cancelling_at == gone.cancelled_at == CREATED
        assert gone.completed_at is None


async def test_lists_page_newest_first_without_gaps_or_repeats(
    store: MemoryEventStore, settings: Settings
) -> None:
    names = [f"batch_{number}" for number in range(7)]
    async with projecting(store, settings) as models:
        await append(store, *(submitted(name) for name in names), submitted("x", project="other"))
        await caught_up(models, store)
        seen: list[str] = []
        after: JobId | None = None
        more = True
        while more:
            rows, more = await models.batches(PROJECT, limit=3, after=after)
            seen += [row.job_id for row in rows]
            after = rows[-1].job_id
            await append(store, submitted(f"later_{after}"))
        assert seen == names[::-1]
        with pytest.raises(NotFound):
            await models.batches(PROJECT, limit=3, after=JobId("x"))
        assert await models.batch(PROJECT, JobId("x")) is None


async def test_a_deleted_file_leaves_the_lists_but_remains_a_cursor(
    store: MemoryEventStore, settings: Settings
) -> None:
    async with projecting(store, settings) as models:
        await append(store, *(uploaded(f"file-{n}") for n in range(4)))
        await append(store, uploaded("file-v", purpose="vision"))
        await append(store, FileDeleted(file_id=FileId("file-2"), reason="requested"))
        await caught_up(models, store)

        async def listed(**query: object) -> list[str]:
            rows, _ = await models.files(PROJECT, limit=10, **query)  # type: ignore[arg-type]
            return [row.file_id for row in rows]

        assert await listed() == ["file-v", "file-3", "file-1", "file-0"]
        assert await listed(order="asc", purpose="batch") == ["file-0", "file-1", "file-3"]
        assert await listed(after=FileId("file-2")) == ["file-1", "file-0"]
        assert await listed(after=FileId("file-2"), order="asc") == ["file-3", "file-v"]
        rows, more = await models.files(PROJECT, limit=2)
        assert ([row.file_id for row in rows], more) == (["file-v", "file-3"], True)
        assert await models.file(PROJECT, FileId("file-2")) is None
        assert await from_log.file(store, PROJECT, FileId("file-2")) is None
        kept = await models.file(PROJECT, FileId("file-1"))
        assert kept is not None
        assert kept == await from_log.file(store, PROJECT, FileId("file-1"))
        assert await models.file(ProjectId("other"), FileId("file-1")) is None


async def test_an_input_is_in_use_until_its_batch_ends(
    store: MemoryEventStore, settings: Settings
) -> None:
    async with projecting(store, settings) as models:
        await append(store, submitted("batch_1"))
        await caught_up(models, store)
        assert await models.input_in_use(FileId("file-in"))
        assert not await models.input_in_use(FileId("file-other"))
        await append(store, JobFailed(job_id=JobId("batch_1"), errors=[], error_count=1))
        await caught_up(models, store)
        assert not await models.input_in_use(FileId("file-in"))


async def test_workers_models_and_keys(store: MemoryEventStore, settings: Settings) -> None:
    def started(worker: str) -> Event:
        return WorkerStarted(
            worker_id=WorkerId(worker), name="gpu-1", host="h", pid=1, engine="simulated",
            version="1",
        )  # fmt: skip

    def ready(worker: str, *names: str) -> Event:
        return WorkerReady(worker_id=WorkerId(worker), models=list(names), in_flight_max=8)

    key = ApiKeyCreated(key_id=KeyId("key_1"), project=PROJECT, name="n", prefix="sk", sha256="f")
    async with projecting(store, settings) as models:
        await append(store, started("w1"), ready("w1", "b", "a"), started("w2"), ready("w2", "b"))
        await append(store, WorkerLost(worker_id=WorkerId("w1"), reason="silent"))
        await append(store, key, ApiKeyRevoked(key_id=KeyId("key_1")))
        await caught_up(models, store)
        assert [model.name for model in await models.models()] == ["a", "b"]
        workers = await models.workers()
        assert [(w.worker_id, w.status, w.reason) for w in workers] == [
            ("w1", "lost", "silent"),
            ("w2", "ready", None),
        ]
        await append(store, ready("w1", "a"))
        await caught_up(models, store)
        back = (await models.workers())[0]
        assert (back.status, back.models, back.ended_at, back.reason) == (
            "ready",
            ["a"],
            None,
            None,
        )
        assert [(k.key_id, k.revoked_at) for k in await models.api_keys()] == [("key_1", CREATED)]


async def test_text_that_postgres_cannot_hold_does_not_stop_the_projector(
    store: MemoryEventStore, settings: Settings
) -> None:
    async with projecting(store, settings) as models:
        await append(store, uploaded("file-1", filename="a\x00b\\u0000'\"é💥.jsonl"))
        await append(store, submitted("batch_1", metadata={"k\x00": "v\x00"}))
        await caught_up(models, store)
        file = await models.file(PROJECT, FileId("file-1"))
        assert file is not None
        assert file.filename == "a\ufffdb\\u0000'\"é💥.jsonl"
        batch = await models.batch(PROJECT, JobId("batch_1"))
        assert batch is not None
        assert batch.metadata == {"k\ufffd": "v\ufffd"}


async def test_waiting_for_a_sequence_ends_when_it_is_projected(
    store: MemoryEventStore, settings: Settings
) -> None:
    async with projecting(store, settings) as models:
        await append(store, submitted("batch_0"))
        await caught_up(models, store)
        waiters = [asyncio.create_task(models.wait_for(seq, 10)) for seq in (3, 2, 4)]
        assert not await models.wait_for(2, 0.01)
        await append(store, submitted("batch_1"), submitted("batch_2"), submitted("batch_3"))
        assert await asyncio.gather(*waiters) == [True, True, True]
        assert await models.batch(PROJECT, JobId("batch_3")) is not None


async def test_two_projectors_write_every_event_once(
    store: MemoryEventStore, settings: Settings
) -> None:
    async with projecting(store, settings) as models, projecting(store, settings):
        for number in range(30):
            await run_a_batch(store, f"batch_{number}")
        await caught_up(models, store)
        rows, _ = await models.batches(PROJECT, limit=100)
        assert [(row.completed, row.failed) for row in rows] == [(7, 1)] * 30


async def test_the_checkpoint_and_the_rows_move_together(
    store: MemoryEventStore, settings: Settings
) -> None:
    await append(store, submitted("batch_1"), submitted("batch_2"))
    projector = Projector(store, settings)
    assert await projector.catch_up(1) == 1
    async with connect(settings) as connection:
        assert await connection.fetchval("SELECT array_agg(job_id) FROM job") == ["batch_1"]
        assert await connection.fetchval("SELECT seq FROM checkpoint") == 1
        # An event that does not fit its rows stops the projector where it is.
        await append(store, JobStarted(job_id=JobId("batch_x"), total=1, chunks=1, model="m"))
        with pytest.raises(ProjectionError, match=r"event 3 .*no known job"):
            await projector.catch_up(3)
        assert await connection.fetchval("SELECT seq FROM checkpoint") == 1
        assert await connection.fetchval("SELECT count(*) FROM job") == 1


async def test_rows_out_of_the_writers_memory_are_read_back(
    store: MemoryEventStore, settings: Settings
) -> None:
    await run_a_batch(store)
    seq = await store.last_sequence()
    await Projector(store, settings).catch_up(seq)
    await append(
        store,
        ChunkCompleted(
            job_id=JobId("batch_1"), chunk=1, epoch=2, worker_id=WorkerId("w3"),
            completed=10, failed=0, usage=Usage(50, 0, 20, 0),
        ),
        JobFinalizing(job_id=JobId("batch_1"), outcome="completed"),
    )  # fmt: skip
    await Projector(store, settings).catch_up(seq + 2)
    async with connect(settings) as connection:
        row = await connection.fetchrow("SELECT * FROM chunk WHERE chunk = 1")
        assert row is not None
        assert (row["status"], row["epoch"], row["worker_id"], row["completed"]) == (
            ChunkStatus.COMPLETED, 2, "w3", 10,
        )  # fmt: skip


async def test_another_log_or_a_shorter_one_is_refused_by_name(
    store: MemoryEventStore, settings: Settings, clock: ManualClock
) -> None:
    await append(store, submitted("batch_1"), submitted("batch_2"))
    await Projector(store, settings).catch_up(2)
    with pytest.raises(ForeignStream, match="projections rebuild"):
        await Projector(MemoryEventStore(clock=clock), settings).catch_up(1)
    async with connect(settings) as connection:
        await connection.execute("UPDATE checkpoint SET seq = 3")
    with pytest.raises(ForeignStream, match="projections rebuild"):
        await Projector(store, settings).catch_up(4)


async def test_questions_before_anything_was_projected_are_refused(settings: Settings) -> None:
    async with ReadModels.connect(settings) as models:
        assert not models.available
        with pytest.raises(ProjectionUnavailable):
            await models.models()
        assert not await models.wait_for(1, 10)


async def test_the_migrations_add_up_to_the_schema(settings: Settings) -> None:
    async def description(schema: str) -> list[tuple[object, ...]]:
        async with connect(settings, schema=schema) as connection:
            found = await connection.fetch(
                """
                SELECT table_name || '.' || column_name AS name,
                    concat_ws(' ', ordinal_position, data_type, is_nullable, column_default) AS what
                FROM information_schema.columns WHERE table_schema = $1
                UNION ALL
                SELECT indexname, replace(indexdef, $1 || '.', '') FROM pg_indexes
                WHERE schemaname = $1
                UNION ALL
                SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint
                WHERE connamespace = $1::regnamespace
                UNION ALL
                SELECT relname, reloptions::text FROM pg_class WHERE relnamespace = $1::regnamespace
                ORDER BY 1, 2
                """,
                schema,
            )
            return [tuple(row) for row in found]

    async with connect(settings, schema="migrated") as connection:
        await migrate.migrate(connection, "migrated")
        await migrate.migrate(connection, "migrated")  # nothing left to do
    async with connect(settings, schema="written") as connection:
        await connection.execute("CREATE SCHEMA written")
        text = Path(migrate.__file__).with_name("schema.sql").read_text(encoding="utf-8")
        await connection.execute(text)
    assert await description("migrated") == await description("written") != []


async def test_a_database_of_a_newer_release_is_left_alone(settings: Settings) -> None:
    async with connect(settings) as connection:
        await migrate.migrate(connection, settings.postgres_schema)
        await connection.execute("INSERT INTO migration VALUES (9999)")
        with pytest.raises(ProjectionError, match="9999"):
            await migrate.migrate(connection, settings.postgres_schema)


async def test_every_query_is_accepted_by_the_schema(settings: Settings) -> None:
    async with connect(settings) as connection:
        await migrate.migrate(connection, settings.postgres_schema)
        for file in ("queries.sql", "read_models.sql"):
            for name, sql in queries.load("vllm_batch.projections", file).items():
                try:
                    await connection.prepare(
                        sql.format(table="job", schema=settings.postgres_schema)
                    )
                except asyncpg.PostgresError as error:
                    pytest.fail(f"{file}: {name}: {error}")


async def test_a_lost_schema_is_noticed_although_nothing_happens(
    store: MemoryEventStore, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "WATCH_SECONDS", 0.1)
    async with projecting(store, settings) as models:
        await append(store, submitted("batch_1"))
        await caught_up(models, store)
        async with connect(settings) as connection:
            await migrate.drop(connection, settings.postgres_schema)

        async def there_again() -> bool:
            try:
                return await models.batch(PROJECT, JobId("batch_1")) is not None
            except ProjectionUnavailable:
                return False

        await eventually(there_again)


async def test_what_is_given_up_as_stuck_counts_as_failed(
    store: MemoryEventStore, settings: Settings
) -> None:
    async with projecting(store, settings) as models:
        await run_a_batch(store)
        await append(store, ChunkClosed(job_id=JobId("batch_1"), chunk=1, reason="stuck"))
        await caught_up(models, store)
        row = await models.batch(PROJECT, JobId("batch_1"))
        assert row is not None
        assert (row.completed, row.failed) == (7, 1 + 7)
        assert row == await from_log.batch(store, PROJECT, JobId("batch_1"))
