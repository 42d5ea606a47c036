"""The projector: follows the log and writes what it says into Postgres, for ever.

Reads every event; writes the read models and the checkpoint, together in one transaction per
batch. Several may run: the checkpoint moves by compare-and-set, so only one of them gets through.
Postgres may be away at any time; nothing but the lists depends on it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import aclosing

import structlog

from vllm_batch.errors import BatchError, ForeignStream, ProjectionError
from vllm_batch.event_store import EventStore
from vllm_batch.events import Event, Recorded
from vllm_batch.postgres import migrate, queries
from vllm_batch.postgres.connection import AWAY, NOT_FILLED, Connection, connect
from vllm_batch.projections import (
    api_keys,
    chunks,
    files,
    jobs,
    labeling,
    models,
    training,
    usage,
    workers,
)
from vllm_batch.projections.table import Table, TableWriter
from vllm_batch.settings import Settings
from vllm_batch.tasks import first_to_end

log = structlog.get_logger(__name__)

TABLES: tuple[Table, ...] = (  # type: ignore[type-arg]
    jobs.TABLE,
    chunks.TABLE,
    files.TABLE,
    api_keys.TABLE,
    workers.TABLE,
    workers.MODEL_TABLE,
    models.TABLE,
    models.ON_WORKER_TABLE,
    usage.TABLE,
    training.TABLE,
    training.DATASET_TABLE,
    labeling.ANNOTATION_TABLE,
    labeling.PROJECT_TABLE,
    labeling.ACCURACY_TABLE,
)
TRANSACTION_SECONDS = 60.0
# Under load a transaction per event costs more CPU than everything else here. An event after a
# quiet moment is written at once; those that follow it closely share the next transaction.
GATHER_SECONDS = 0.025
GATHERED_EVENTS = 500
WATCH_SECONDS = 5.0
_BACKOFF_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Overtaken(Exception):
    """Another projector moved the checkpoint, or it was reset: read it again."""


class Projector:
    """Keeps one schema up to date with one event log."""

    def __init__(
        self,
        store: EventStore,
        settings: Settings,
        *,
        schema: str | None = None,
        on_batch: Callable[[int], None] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """``schema`` defaults to the settings'; ``on_batch`` hears every sequence reached."""
        self._store = store
        self._settings = settings
        self._schema = schema or settings.postgres_schema
        self._on_batch = on_batch or (lambda _seq: None)
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not a secret
        self._sql = queries.load("vllm_batch.projections", "queries.sql")
        self._writers = [TableWriter(table) for table in TABLES]
        self._interested: dict[type[Event], list[int]] = {}
        for index, table in enumerate(TABLES):
            for event in table.events:
                self._interested.setdefault(event, []).append(index)
        self._writing = asyncio.Lock()
        self._seq = -1

    async def run(self) -> None:
        """Project for ever, whatever happens to Postgres. Only cancelling ends it.

        What it cannot project it does not skip: it says so in the log and tries again.
        """
        failures = 0
        while True:
            before = self._seq
            try:
                await self._session(until=None)
            except Overtaken:
                log.info("another projector is ahead", schema=self._schema)
            except (*AWAY, *NOT_FILLED) as error:
                log.warning("projections wait for Postgres", error=repr(error))
            except BatchError as error:
                log.error("projections stand still", at=self._seq, error=str(error))
            except Exception:  # a duty's outermost loop: it must outlive any event
                log.exception("projections stand still", at=self._seq)
            failures = 0 if self._seq != before else failures + 1
            pause = _BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS) - 1)]
            await asyncio.sleep(pause * self._rng.uniform(0.7, 1.3))

    async def catch_up(self, target: int) -> int:
        """Project up to ``target`` exactly (or whatever others have reached); return where it is.

        Raises:
            ForeignStream: the schema was filled from another log.
            ProjectionError: an event does not fit.
            One of AWAY: Postgres cannot be reached.
        """
        while True:
            try:
                await self._session(until=target)
            except Overtaken:
                continue
            return self._seq

    async def _session(self, *, until: int | None) -> None:
        async with connect(self._settings, schema=self._schema) as connection:
            async with asyncio.timeout(TRANSACTION_SECONDS):
                await migrate.migrate(connection, self._schema)
                await self._find_position(connection)
            if until is None:
                await first_to_end(self._follow(connection), self._watch(connection))
            elif self._seq < until:
                await self._follow_to(connection, until)

    async def _follow(self, connection: Connection) -> None:
        async with aclosing(self._store.follow([">"], after=self._seq)) as batches:  # type: ignore[type-var]
            async for batch in batches:
                await self._write(connection, batch)
                if len(batch) < GATHERED_EVENTS:
                    await asyncio.sleep(GATHER_SECONDS)

    async def _follow_to(self, connection: Connection, until: int) -> None:
        async with aclosing(self._store.follow([">"], after=self._seq)) as batches:  # type: ignore[type-var]
            async for batch in batches:
                await self._write(connection, [e for e in batch if e.seq <= until])
                if batch[-1].seq >= until:
                    return

    async def _watch(self, connection: Connection) -> None:
        """Look at the checkpoint now and then, so that a quiet log hides no loss or rebuild."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            async with self._writing, asyncio.timeout(TRANSACTION_SECONDS):
                checkpoint = await connection.fetchrow(self._sql["read_checkpoint"])
                if checkpoint is None or checkpoint["seq"] != self._seq:
                    raise Overtaken

    async def _find_position(self, connection: Connection) -> None:
        for writer in self._writers:
            writer.forget()
        identity = await self._store.identity()
        await connection.execute(self._sql["create_checkpoint"], identity)
        checkpoint = await connection.fetchrow(self._sql["read_checkpoint"])
        if checkpoint is None:
            raise ProjectionError("the checkpoint vanished")
        last = await self._store.last_sequence()
        remedy = "run `vllm-batch projections rebuild`, or correct the address of one of the two"
        if checkpoint["log_identity"] != identity:
            raise ForeignStream(
                f"the schema {self._schema!r} was filled from another event log; {remedy}"
            )
        if checkpoint["seq"] > last:
            raise ForeignStream(
                f"the schema {self._schema!r} is at event {checkpoint['seq']}, but the event log "
                f"ends at {last}: it lost events or was replaced; {remedy}"
            )
        self._seq = checkpoint["seq"]
        log.info("projecting", schema=self._schema, after=self._seq, behind=last - self._seq)

    async def _write(self, connection: Connection, batch: Sequence[Recorded]) -> None:
        """Write one batch with its checkpoint; all of it or nothing.

        Raises:
            Overtaken: the checkpoint is not where this projector left it.
        """
        by_table: list[list[Recorded]] = [[] for _ in TABLES]
        for recorded in batch:
            for index in self._interested.get(type(recorded.event), ()):
                by_table[index].append(recorded)
        seq = batch[-1].seq
        async with (
            self._writing,
            asyncio.timeout(TRANSACTION_SECONDS),
            connection.transaction(),
        ):
            moved = await connection.execute(self._sql["advance_checkpoint"], self._seq, seq)
            if moved != "UPDATE 1":
                raise Overtaken
            for writer, events in zip(self._writers, by_table, strict=True):
                if events:
                    await writer.write(connection, events)
            await connection.execute(self._sql["announce"], channel(self._schema), str(seq))
        self._seq = seq
        self._on_batch(seq)


def channel(schema: str) -> str:
    """Return the notification channel that carries a schema's checkpoint."""
    return f"{schema}_checkpoint"
