"""What travels and is stored: an event in a CloudEvents 1.0 envelope (JSON)."""

from __future__ import annotations

from datetime import datetime
from functools import cache

import msgspec

from vllm_batch.errors import UnknownEvent
from vllm_batch.events.base import Event
from vllm_batch.events.registry import EVENT_TYPES
from vllm_batch.events.upcasters import upcast
from vllm_batch.ids import EventId


class Envelope(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """CloudEvents attributes around ``data``; ``subject`` is the aggregate (``batch_…/7``).

    ``traceparent`` is the W3C trace context of the deed that caused the event.
    """

    specversion: str
    id: EventId
    type: str
    source: str
    subject: str
    time: datetime
    dataversion: int
    data: msgspec.Raw
    traceparent: str | None = None


class Recorded(msgspec.Struct, frozen=True):
    """An event with its place in the log: ``seq`` is the stream sequence, from 1."""

    seq: int
    id: EventId
    time: datetime
    source: str
    event: Event
    traceparent: str | None = None


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Envelope)


@cache
def _data_decoder(cls: type[Event]) -> msgspec.json.Decoder[Event]:
    return msgspec.json.Decoder(cls)


def encode(
    event: Event,
    *,
    event_id: EventId,
    source: str,
    time: datetime,
    traceparent: str | None = None,
) -> bytes:
    """Return the envelope of ``event`` as JSON."""
    return _encoder.encode(
        Envelope(
            specversion="1.0",
            id=event_id,
            type=event.TYPE,
            source=source,
            subject="/".join(event.aggregate_id()),
            time=time,
            dataversion=event.VERSION,
            data=msgspec.Raw(_encoder.encode(event)),
            traceparent=traceparent,
        )
    )


def decode(payload: bytes, seq: int) -> Recorded:
    """Read an envelope back, old versions included.

    Raises:
        UnknownEvent: the type or version is not known to this release.
    """
    try:
        envelope = _decoder.decode(payload)
    except msgspec.DecodeError as error:
        raise UnknownEvent(f"event {seq} of the log is not an envelope: {error}") from error
    cls = EVENT_TYPES.get(envelope.type)
    if cls is None:
        raise UnknownEvent(f"event {seq} has the unknown type {envelope.type!r}")
    if envelope.dataversion == cls.VERSION:
        event = _data_decoder(cls).decode(envelope.data)
    else:
        event = upcast(cls, envelope.dataversion, envelope.data)
    return Recorded(seq, envelope.id, envelope.time, envelope.source, event, envelope.traceparent)
