"""Bringing a schema up to date: numbered .sql files, each applied once, one process at a time.

Owns the table ``migration``. A migration that changes what rows mean empties the tables and sets
the checkpoint to 0; the projector then fills them again from the log.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib import resources

import structlog

from vllm_batch.errors import ProjectionError
from vllm_batch.postgres import queries
from vllm_batch.postgres.connection import Connection

log = structlog.get_logger(__name__)

_PACKAGE = "vllm_batch.postgres"
_FILE = re.compile(r"^(\d{4})_\w+\.sql$")


@cache
def migrations() -> dict[int, str]:
    """Return the SQL of every migration by its number."""
    folder = resources.files(_PACKAGE).joinpath("migrations")
    found = {}
    for entry in folder.iterdir():
        if match := _FILE.match(entry.name):
            found[int(match[1])] = entry.read_text(encoding="utf-8")
    return dict(sorted(found.items()))


def quoted(schema: str) -> str:
    """Return ``schema`` as an identifier; settings allow plain lower-case names only."""
    return '"' + schema.replace('"', '""') + '"'


async def migrate(connection: Connection, schema: str) -> None:
    """Create ``schema`` where it is missing and apply what is new. ``search_path`` must be set.

    Raises:
        ProjectionError: the database was migrated by a newer release.
    """
    sql = queries.load(_PACKAGE, "migrate.sql")
    known = migrations()
    async with connection.transaction():
        await connection.execute(sql["lock"], _lock_key(schema))
        await connection.execute(sql["create_schema"].format(schema=quoted(schema)))
        await connection.execute(sql["create_migration_table"])
        done = {row["number"] for row in await connection.fetch(sql["applied"])}
        if newer := done - known.keys():
            raise ProjectionError(
                f"the schema {schema!r} has migration {max(newer)}, which this release does not "
                "know: upgrade this process, or run `vllm-batch projections rebuild`"
            )
        for number, statements in known.items():
            if number not in done:
                await connection.execute(statements)
                await connection.execute(sql["record"], number)
                log.info("schema migrated", schema=schema, migration=number)


async def drop(connection: Connection, schema: str) -> None:
    """Remove ``schema`` with everything in it."""
    sql = queries.load(_PACKAGE, "migrate.sql")
    async with connection.transaction():
        await connection.execute(sql["lock"], _lock_key(schema))
        await connection.execute(sql["drop_schema"].format(schema=quoted(schema)))


def _lock_key(schema: str) -> int:
    digest = hashlib.blake2b(f"vllm-batch {schema}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
