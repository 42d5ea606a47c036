"""Connecting to the projections' database, and which of its errors mean that it is away."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import msgspec

from vllm_batch.settings import Settings

if TYPE_CHECKING:  # only its stubs know what a connection's rows are
    Connection = asyncpg.Connection[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]
else:
    Connection, Pool = asyncpg.Connection, asyncpg.Pool

CONNECT_SECONDS = 5.0
CLOSE_SECONDS = 2.0

# Everything that a server can answer or a network can do while it is stopped, starting,
# failing over or being rebuilt. A wrong query is none of them.
AWAY: tuple[type[Exception], ...] = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)
NOT_FILLED: tuple[type[Exception], ...] = (
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
    asyncpg.InvalidSchemaNameError,
)


def arguments(settings: Settings, *, schema: str | None = None) -> dict[str, Any]:
    """Return what asyncpg needs to connect with ``schema`` (default: the projections') in front.

    ``synchronous_commit`` is off on purpose: the checkpoint is written in the projection's own
    transaction, so a commit lost in a crash is only read from the event log again.
    """
    return {
        "dsn": settings.postgres_dsn.get_secret_value(),
        "timeout": CONNECT_SECONDS,
        "server_settings": {
            "search_path": schema or settings.postgres_schema,
            "application_name": "vllm-batch",
            "synchronous_commit": "off",
            "timezone": "UTC",
            "jit": "off",
        },
    }


async def prepare(connection: Any) -> None:
    """Let JSON come back as values; what goes in is encoded already (`msgspec.json.encode`)."""
    for name in ("json", "jsonb"):
        await connection.set_type_codec(
            name,
            schema="pg_catalog",
            encoder=lambda encoded: encoded.decode(),
            decoder=msgspec.json.decode,
        )


@asynccontextmanager
async def connect(settings: Settings, *, schema: str | None = None) -> AsyncIterator[Connection]:
    """Yield a connection of its own.

    Raises:
        One of AWAY: the database cannot be reached.
    """
    connection = await asyncpg.connect(**arguments(settings, schema=schema))
    try:
        await prepare(connection)
        yield connection
    finally:
        try:
            await connection.close(timeout=CLOSE_SECONDS)
        except AWAY:
            connection.terminate()
