"""The read models of a log, row by row, as text that a later release can be compared with."""

from __future__ import annotations

import json
from typing import Any

from vllm_batch.event_store import EventStore
from vllm_batch.postgres import migrate
from vllm_batch.postgres.connection import connect
from vllm_batch.projections import rebuild
from vllm_batch.settings import Settings

NAME = "read_models.json"

Rows = dict[str, list[dict[str, Any]]]
_TABLES = """
SELECT relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace
WHERE n.nspname = $1 AND relkind IN ('r', 'v') AND relname NOT IN ('checkpoint', 'migration')
"""


async def replay(store: EventStore, settings: Settings) -> Rows:
    """Make the read models anew; return the rows of every table and view, in a fixed order."""
    await rebuild.rebuild(store, settings, progress=lambda _done, _of: None)
    rows: Rows = {}
    async with connect(settings) as connection:
        for (table,) in await connection.fetch(_TABLES, settings.postgres_schema):
            found = await connection.fetch(
                f"SELECT row_to_json(t)::text FROM {migrate.quoted(table)} AS t"
            )
            rows[table] = in_order([json.loads(text) for (text,) in found])
    return rows


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows in an order that does not depend on where they came from."""
    return sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))


def as_then(then: Rows, now: Rows) -> Rows:
    """Return of ``now`` the tables and columns that there were ``then``: later ones may be more."""
    return {
        table: in_order(
            [
                {name: value for name, value in row.items() if not rows or name in rows[0]}
                for row in now.get(table, [])
            ]
        )
        for table, rows in then.items()
    }
