"""How a batch of events becomes rows of one table: load what is needed, fold in Python, save once.

A row is a pure function of the log: no clock, no defaults of the database. Each row that a batch
touches is written once, with its last value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, Generic, TypeVar

import asyncpg
import msgspec

from vllm_batch.events import Event, Recorded
from vllm_batch.postgres import queries
from vllm_batch.postgres.connection import Connection

Row = TypeVar("Row", bound=msgspec.Struct)
Key = tuple[Any, ...]

CACHED_ROWS_MAX = 20_000


@dataclass(frozen=True)
class Table(Generic[Row]):
    """One read model: which events concern it and how they change a row.

    ``first`` is what an aggregate begins with: its row cannot be there yet and is not looked for.
    """

    name: str
    row: type[Row]
    key: tuple[str, ...]
    events: tuple[type[Event], ...]
    first: type[Event] | UnionType | None
    keys: Callable[[Event], Iterable[Key]]
    evolve: Callable[[Row | None, Recorded, Key], Row]


class TableWriter(Generic[Row]):
    """Folds batches into a table, remembering rows it has written lately.

    The memory is good as long as nobody else wrote the table; the projector's checkpoint tells,
    and it calls `forget` when it does not know.
    """

    def __init__(self, table: Table[Row]) -> None:
        self.table = table
        self._sql = queries.load("vllm_batch.projections", "queries.sql")
        self._rows: dict[Key, Row] = {}

    def forget(self) -> None:
        """Drop what is remembered: the table may have changed."""
        self._rows.clear()

    async def write(self, connection: Connection, events: Sequence[Recorded]) -> None:
        """Fold ``events`` (all of them of this table's types) and save the rows they change.

        Raises:
            ProjectionError: an event does not fit the rows before it.
        """
        table = self.table
        keyed = [(key, event) for event in events for key in table.keys(event.event)]
        await self._load(connection, keyed)
        changed: dict[Key, Row] = {}
        for key, event in keyed:
            before = changed.get(key) or self._rows.get(key)
            changed[key] = table.evolve(before, event, key)
        await connection.execute(self._sql[f"save_{table.name}"], encode_rows(changed.values()))
        if len(self._rows) + len(changed) > CACHED_ROWS_MAX:
            self._rows.clear()
        self._rows.update(changed)

    async def _load(self, connection: Connection, keyed: Iterable[tuple[Key, Recorded]]) -> None:
        first = self.table.first
        known: set[Key] = set()
        missing: dict[Key, None] = {}
        for key, recorded in keyed:
            if key in self._rows or key in known:
                continue
            if first is not None and isinstance(recorded.event, first):
                known.add(key)
            else:
                missing[key] = None
        if not missing:
            return
        columns = [list(column) for column in zip(*missing, strict=True)]
        for record in await connection.fetch(self._sql[f"load_{self.table.name}"], *columns):
            row = row_of(self.table.row, record)
            self._rows[tuple(getattr(row, name) for name in self.table.key)] = row


def row_of(cls: type[Row], record: asyncpg.Record) -> Row:
    """Return a database record as its struct."""
    return msgspec.convert(dict(record), cls)


def encode_rows(rows: Iterable[msgspec.Struct]) -> bytes:
    """Return rows as JSON that Postgres accepts: its text cannot hold the character U+0000."""
    encoded = msgspec.json.encode(list(rows))
    if b"\\u0000" in encoded:
        encoded = msgspec.json.encode(_without_nul(msgspec.json.decode(encoded)))
    return encoded


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\x00", "\ufffd")
    if isinstance(value, list):
        return [_without_nul(item) for item in value]
    if isinstance(value, dict):
        return {_without_nul(key): _without_nul(item) for key, item in value.items()}
    return value
