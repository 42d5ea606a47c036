"""What a gateway and a worker say to each other about one online request, over core NATS.

    gateway ── Ask ──► inference.<model key>, a queue group: one of the workers that serve it
    worker  ── Taken | Refused ──► the gateway's inbox
    worker  ── Part, Part, … the last one says so ──► the gateway's inbox
    gateway ── Credit as its client reads on, or Cancel ──► the worker's inbox
    worker  ── Holding every now and then; answered with the ids that nobody waits for any more

Nothing here is kept by a stream, so both sides watch each other. Parts are numbered: one that NATS
lost becomes an error, never a gap in an answer. A worker that falls silent is given up, a gateway
without a listener (NATS says "no responders") has its requests aborted. A worker sends at most
``window_bytes`` that the gateway has not passed on: a slow client holds that much and no more.

Every message is MessagePack on one connection each way, so the order in which one side says things
is the order in which the other hears them.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from vllm_batch.ids import WorkerId

WORKERS = "workers"
"""The queue group: each request goes to one of them."""

PART_BYTES_MAX = 128 * 1024
"""Largest part; a longer piece of an answer is cut. Far below the limit of any NATS server."""

PART_COST_BYTES = 128
"""What a part counts against the window beside its data: many tiny ones cost memory, too."""

ENVELOPE_BYTES_MAX = 4096
"""More than everything in an `Ask` but its body."""

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")

RefusalReason = Literal["busy", "draining", "not_ready", "not_here"]


class _Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    request_id: str


class Ask(_Message, frozen=True, tag="ask"):
    """Have ``body`` answered within ``timeout_seconds``; ``gateway`` is where it listens."""

    gateway: str
    model: str
    endpoint: str
    timeout_seconds: float
    window_bytes: int
    body: bytes


class Credit(_Message, frozen=True, tag="credit"):
    """The client has taken ``bytes`` more, costs of parts included."""

    bytes: int


class Cancel(_Message, frozen=True, tag="cancel"):
    """Nobody wants the answer any more."""


ToWorker = Ask | Credit | Cancel


class Taken(_Message, frozen=True, tag="taken"):
    """The worker has the request now."""

    worker_id: WorkerId


class Refused(_Message, frozen=True, tag="refused"):
    """The engine never got the request, for a reason of this worker alone: another may take it."""

    worker_id: WorkerId
    reason: RefusalReason


class Part(_Message, frozen=True, tag="part"):
    """A piece of the answer; the first one has its head. ``number`` counts from 0.
    ``retry_seconds``: the pause that the engine asks for, 0: none."""

    number: int
    data: bytes = b""
    last: bool = False
    status: int = 0
    content_type: str = ""
    retry_seconds: float = 0.0


class Failed(_Message, frozen=True, tag="failed"):
    """There is no (further) answer. ``code`` is one of `vllm_batch.errors` or ``timeout``."""

    code: str
    message: str


class Holding(msgspec.Struct, frozen=True, array_like=True, tag="holding"):
    """All requests of this gateway that the worker has; a request, answered with `Forgotten`."""

    worker_id: WorkerId
    request_ids: list[str]


class Forgotten(msgspec.Struct, frozen=True, array_like=True):
    """Of the requests in a `Holding`: those that nobody waits for."""

    request_ids: list[str]


ToGateway = Taken | Refused | Part | Failed | Holding

encode = msgspec.msgpack.Encoder().encode
decode_to_worker = msgspec.msgpack.Decoder(ToWorker).decode
decode_to_gateway = msgspec.msgpack.Decoder(ToGateway).decode
decode_forgotten = msgspec.msgpack.Decoder(Forgotten).decode
