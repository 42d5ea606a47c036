"""The catalogue: every event as an AsyncAPI 3.0 document, made from the structs themselves.

For tools outside: what may be subscribed to, on which subject, and what each message holds. Nothing
here is written by hand, so it cannot say anything else than the code does.
https://www.asyncapi.com/docs/reference/specification/v3.0.0
"""

from __future__ import annotations

import inspect
from typing import Any

import msgspec

from vllm_batch.events.base import Event
from vllm_batch.events.registry import EVENT_TYPES

_REFERENCE = "#/components/schemas/{name}"
_DESCRIPTION = (
    "Everything that happens, as CloudEvents 1.0 in JSON on NATS JetStream (stream EVENTS). "
    "A subject is the event's type, then the ids of what it happened to. "
    "Events are never changed; a new `dataversion` stands beside the old ones."
)


def asyncapi(version: str, *, server: str = "nats://127.0.0.1:4222") -> dict[str, Any]:
    """Return the document. ``version``: of this release; ``server``: URL of a NATS server, or of
    several, comma-separated; a password in it is left out."""
    protocol, _, rest = server.partition(",")[0].partition("://")
    host = rest.partition("/")[0].rpartition("@")[2]
    classes = [EVENT_TYPES[name] for name in sorted(EVENT_TYPES)]
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "vllm-batch events", "version": version, "description": _DESCRIPTION},
        "defaultContentType": "application/cloudevents+json",
        "servers": {"nats": {"host": host, "protocol": protocol}},
        "channels": {cls.__name__: _channel(cls) for cls in classes},
        "operations": {cls.__name__: _operation(cls) for cls in classes},
        "components": {
            "messages": {cls.__name__: _message(cls) for cls in classes},
            "schemas": _schemas(classes),
        },
    }


def _channel(cls: type[Event]) -> dict[str, Any]:
    parameters = {name: {"description": f"{name} of the event's data"} for name in cls.AGGREGATE}
    return {
        "address": ".".join((cls.TYPE, *(f"{{{name}}}" for name in cls.AGGREGATE))),
        "description": _summary(cls),
        "parameters": parameters,
        "messages": {cls.__name__: {"$ref": f"#/components/messages/{cls.__name__}"}},
    }


def _operation(cls: type[Event]) -> dict[str, Any]:
    return {
        "action": "send",
        "channel": {"$ref": f"#/channels/{cls.__name__}"},
        "summary": _summary(cls),
    }


def _message(cls: type[Event]) -> dict[str, Any]:
    """Return the envelope with this type's data."""
    attributes: dict[str, Any] = {
        "specversion": {"const": "1.0"},
        "id": {"type": "string"},
        "type": {"const": cls.TYPE},
        "source": {"type": "string", "description": "the service that recorded it"},
        "subject": {"type": "string", "description": "/".join(cls.AGGREGATE)},
        "time": {"type": "string", "format": "date-time"},
        "dataversion": {"const": cls.VERSION},
        "traceparent": {"type": "string", "description": "W3C trace context"},
        "data": {"$ref": _REFERENCE.format(name=cls.__name__)},
    }
    return {
        "name": cls.TYPE,
        "title": cls.__name__,
        "summary": _summary(cls),
        "contentType": "application/cloudevents+json",
        "payload": {
            "type": "object",
            "properties": attributes,
            "required": [name for name in attributes if name != "traceparent"],
        },
    }


def _schemas(classes: list[type[Event]]) -> dict[str, Any]:
    _, components = msgspec.json.schema_components(classes, ref_template=_REFERENCE)
    return dict(components)


def _summary(cls: type[Event]) -> str:
    """Return the first paragraph of the struct's docstring, in one line."""
    return " ".join(inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].split())
