"""Writes the golden file of each event version that has none: run it once after adding one.

    python tests/unit/events/write_golden.py

Every field gets a value of its type; edit the line where another value tells a reader more. Files
that are there are never touched.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from vllm_batch.events import EVENT_TYPES, encode
from vllm_batch.events.base import Event
from vllm_batch.ids import EventId

GOLDEN = Path(__file__).with_name("golden")
WRITTEN_AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_SCALARS: dict[type[inspect.Type], Any] = {
    inspect.StrType: "text",
    inspect.IntType: 7,
    inspect.FloatType: 0.5,
    inspect.BoolType: True,
    inspect.DateTimeType: "2026-01-02T03:04:05Z",
    inspect.AnyType: "anything",
}


def example(kind: inspect.Type, default: Any = None) -> Any:
    """Return a JSON value of the type other than ``default``, which would not be written."""
    if type(kind) in _SCALARS:
        return _SCALARS[type(kind)]
    match kind:
        case inspect.LiteralType(values=values):
            return next(value for value in values if value != default)
        case inspect.UnionType(types=types):
            return example(next(t for t in types if not isinstance(t, inspect.NoneType)))
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
            return [example(item)]
        case inspect.DictType(key_type=key, value_type=value):
            return {example(key): example(value)}
        case inspect.StructType(fields=fields):
            return {f.encode_name: example(f.type, f.default) for f in fields}
    raise TypeError(f"no example for {kind}")


def line_of(cls: type[Event]) -> bytes:
    """Return an envelope with every field of ``cls`` set."""
    info = inspect.type_info(cls)
    event = msgspec.convert(example(info), cls)
    return encode(
        event,
        event_id=EventId("evt_000000000000000000000000"),
        source="test",
        time=WRITTEN_AT,
        traceparent=TRACE,
    )


def main() -> None:
    """Write what is missing."""
    for name, cls in EVENT_TYPES.items():
        path = GOLDEN / f"{name}.v{cls.VERSION}.jsonl"
        if not path.exists():
            path.write_bytes(line_of(cls) + b"\n")
            print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
