"""Making the read models anew, and proving that they are what the log says.

`rebuild` drops the schema and replays. `verify` replays into a schema beside it, up to the very
event the live one has reached, and compares a hash of every table.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from vllm_batch.errors import ProjectionError
from vllm_batch.event_store import EventStore
from vllm_batch.postgres import migrate, queries
from vllm_batch.postgres.connection import NOT_FILLED, Connection, connect
from vllm_batch.projections.runner import Projector
from vllm_batch.settings import Settings

SCHEMA_BYTES_MAX = 63
_VERIFY_SUFFIX = "_verify"

Progress = Callable[[int, int], None]
"""Hears the sequence that is reached and the one that is aimed at."""


class TableHash(msgspec.Struct, frozen=True):
    """What a table holds: two tables with the same rows have the same hash."""

    rows: int
    hash: str


class Comparison(msgspec.Struct, frozen=True):
    """One table as it is and as a replay makes it."""

    table: str
    live: TableHash
    replayed: TableHash

    @property
    def identical(self) -> bool:
        """Whether the two hold the same rows."""
        return self.live == self.replayed


class Verification(msgspec.Struct, frozen=True):
    """The outcome of a verification at event ``seq``."""

    seq: int
    tables: list[Comparison]

    @property
    def identical(self) -> bool:
        """Whether every table holds what the log says."""
        return all(table.identical for table in self.tables)


class Standing(msgspec.Struct, frozen=True):
    """How far the read models are. ``seq`` is None where there are none yet."""

    schema: str
    seq: int | None
    log_ends_at: int
    same_log: bool
    rows: dict[str, int]


async def rebuild(store: EventStore, settings: Settings, *, progress: Progress) -> int:
    """Drop the schema and replay the log to its present end; return the sequence reached.

    A projector that runs meanwhile starts anew too; between them every event is written once.
    """
    target = await store.last_sequence()
    async with connect(settings) as connection:
        await migrate.drop(connection, settings.postgres_schema)
    projector = Projector(store, settings, on_batch=lambda seq: progress(seq, target))
    return await projector.catch_up(target)


async def verify(store: EventStore, settings: Settings, *, progress: Progress) -> Verification:
    """Compare the live tables with a replay of the log up to the same event.

    Raises:
        ProjectionError: there is nothing to verify, or another verification is running.
        ForeignStream: the read models were filled from another log.
    """
    sql = queries.load("vllm_batch.projections", "queries.sql")
    live_schema = settings.postgres_schema
    schema = live_schema[: SCHEMA_BYTES_MAX - len(_VERIFY_SUFFIX)] + _VERIFY_SUFFIX
    async with connect(settings) as connection:
        if not await connection.fetchval(sql["only_verifier"], schema):
            raise ProjectionError(f"another verification uses the schema {schema!r}")
        # The same refusal of a foreign log as the projector's, before hours of replay.
        await Projector(store, settings).catch_up(0)
        seq, live = await _snapshot(connection, live_schema)
        try:
            await migrate.drop(connection, schema)
            replay = Projector(
                store, settings, schema=schema, on_batch=lambda done: progress(done, seq)
            )
            await replay.catch_up(seq)
            _, replayed = await _snapshot(connection, schema)
        finally:
            await migrate.drop(connection, schema)
    nothing = TableHash(0, "no such table")
    names = sorted(live.keys() | replayed.keys())
    return Verification(
        seq, [Comparison(n, live.get(n, nothing), replayed.get(n, nothing)) for n in names]
    )


async def standing(store: EventStore, settings: Settings) -> Standing:
    """Return how far the read models are behind the log."""
    sql = queries.load("vllm_batch.projections", "queries.sql")
    last, identity = await store.last_sequence(), await store.identity()
    schema = settings.postgres_schema
    async with connect(settings) as connection:
        try:
            checkpoint = await connection.fetchrow(sql["read_checkpoint"])
        except NOT_FILLED:
            checkpoint = None
        if checkpoint is None:
            return Standing(schema, None, last, True, {})
        _, tables = await _snapshot(connection, schema)
    rows = {name: table.rows for name, table in tables.items()}
    same = checkpoint["log_identity"] == identity
    return Standing(schema, checkpoint["seq"], last, same, rows)


async def _snapshot(connection: Connection, schema: str) -> tuple[int, dict[str, TableHash]]:
    """Return the checkpoint and the hash of every table, all at one moment."""
    sql = queries.load("vllm_batch.projections", "queries.sql")
    prefix = migrate.quoted(schema)
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        seq = await connection.fetchval(sql["checkpoint_of"].format(schema=prefix))
        hashes = {}
        for record in await connection.fetch(sql["table_names"], schema):
            name = record["relname"]
            table = f"{prefix}.{migrate.quoted(name)}"
            found = await connection.fetchrow(sql["hash_table"].format(table=table))
            if found is not None:
                hashes[name] = TableHash(found["rows"], found["hash"])
    return int(seq), hashes
