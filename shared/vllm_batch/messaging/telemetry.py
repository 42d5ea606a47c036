"""Reading telemetry back: every worker's last heartbeat, and the newest log lines.

Reads the TELEMETRY stream by direct gets, which cost no consumer. What is older than the stream's
age is gone, and heartbeats may have been lost: nobody decides about leases by this.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.errors import Error as JetStreamError

from vllm_batch.errors import EventStoreUnavailable
from vllm_batch.heartbeats import Heartbeat
from vllm_batch.ids import WorkerId
from vllm_batch.log_stream import LogLine
from vllm_batch.messaging import subjects, topology

ANSWER_SECONDS = 5.0
POLL_SECONDS = 0.3
BATCH = 500
_NOTHING_THERE = frozenset({"204", "404"})


@dataclass(frozen=True, slots=True)
class LoggedLine:
    """A log line with its place in the stream and whose it is."""

    seq: int
    worker_id: WorkerId
    line: LogLine


@dataclass(frozen=True, slots=True)
class Tail:
    """The newest lines, oldest first. ``total``: how many the stream holds; ``after``: the last
    sequence that was looked at, to go on from."""

    lines: list[LoggedLine]
    total: int
    after: int


@dataclass(frozen=True, slots=True)
class _Raw:
    seq: int
    subject: str
    data: bytes
    time: datetime


Whose = Callable[[WorkerId], bool | None]
"""Tells whether a process's lines are wanted; None: nobody knows yet whose it is."""


def anybody(_: WorkerId) -> bool:
    """Want every line."""
    return True


async def last_heartbeats(client: Client) -> dict[WorkerId, tuple[Heartbeat, datetime]]:
    """Return each worker's last heartbeat, with the time NATS took it in.

    Raises:
        EventStoreUnavailable: the stream does not answer.
    """
    request = {"multi_last": [subjects.ALL_HEARTBEATS]}
    messages, _ = await _direct_get(client, request)
    found: dict[WorkerId, tuple[Heartbeat, datetime]] = {}
    for message in messages:
        try:
            beat = msgspec.json.decode(message.data, type=Heartbeat)
        except msgspec.DecodeError:
            continue  # of another release
        found[beat.worker_id] = (beat, message.time)
    return found


async def tail(client: Client, *, workers: Sequence[WorkerId] | None, count: int) -> Tail:
    """Return the last ``count`` log lines of some workers, or of all.

    Raises:
        EventStoreUnavailable: the stream does not answer.
    """
    first, last = await _bounds(client)
    left = [await _left_from(client, subject, first) for subject in _subjects(workers)]
    lines: list[LoggedLine] = []
    if count:
        after = await before_last(client, workers=workers, count=count)
        async for page in past_pages(client, workers=workers, after=after, until=last):
            lines += page
    lines.sort(key=lambda line: line.seq)
    return Tail(lines[-count:] if count else [], sum(left), last)


async def last_sequence(client: Client) -> int:
    """Return the sequence of what came last. Raises EventStoreUnavailable."""
    return (await _bounds(client))[1]


async def before_last(client: Client, *, workers: Sequence[WorkerId] | None, count: int) -> int:
    """Return the sequence after which there are ``count`` log lines, or all where there are fewer.

    ``workers``: those of which lines are counted, all where it is None; of the processes of one
    worker the oldest first.

    Raises:
        EventStoreUnavailable: the stream does not answer.
    """
    first, last = await _bounds(client)
    for subject in reversed(_subjects(workers)):
        total = await _left_from(client, subject, first)
        if total >= count:
            return await _start_of_last(client, subject, count, (first, last + 1), total) - 1
        count -= total
    return max(first, 1) - 1


async def past_pages(
    client: Client, *, workers: Sequence[WorkerId] | None, after: int, until: int
) -> AsyncIterator[list[LoggedLine]]:
    """Yield the log lines after one sequence up to another, up to BATCH at a time: one worker's
    after the other's, each in order.

    Raises:
        EventStoreUnavailable: the stream does not answer.
    """
    for subject in _subjects(workers):
        start, pending = after + 1, 1
        while pending and start <= until:
            request = {"seq": start, "next_by_subj": subject, "batch": BATCH}
            messages, pending = await _direct_get(client, request)
            if lines := _lines(message for message in messages if message.seq <= until):
                yield lines
            start = messages[-1].seq + 1 if messages else until + 1


async def follow(client: Client, *, of: Whose = anybody, after: int) -> AsyncIterator[LoggedLine]:
    """Yield the log lines that come after a sequence, for ever; asks every POLL_SECONDS."""
    async for page in follow_pages(client, of=of, after=after):
        for line in page:
            yield line


async def follow_pages(
    client: Client, *, of: Whose = anybody, after: int
) -> AsyncIterator[list[LoggedLine]]:
    """Yield what `follow` yields, up to BATCH lines at a time."""
    unknown: list[LoggedLine] = []
    while True:
        request = {"seq": after + 1, "next_by_subj": subjects.ALL_LOGS, "batch": BATCH}
        try:
            messages, _ = await _direct_get(client, request)
        except EventStoreUnavailable:
            messages = []  # it comes back, and nothing is skipped
        read = [*unknown, *_lines(messages)]
        unknown = [line for line in read if of(line.worker_id) is None][-BATCH:]
        if lines := [line for line in read if of(line.worker_id)]:
            yield lines
        if messages:
            after = messages[-1].seq
        else:
            await asyncio.sleep(POLL_SECONDS)


async def _bounds(client: Client) -> tuple[int, int]:
    """Return the first and the last sequence of the stream."""
    js = client.jetstream(timeout=ANSWER_SECONDS)
    try:
        state = (await js.stream_info(topology.TELEMETRY)).state
    except (JetStreamError, nats.errors.Error, TimeoutError) as error:
        raise EventStoreUnavailable(f"telemetry does not answer: {error!r}") from error
    return int(state.first_seq), int(state.last_seq)


async def _left_from(client: Client, subject: str, seq: int) -> int:
    """Return how many messages of ``subject`` there are from ``seq`` on."""
    request = {"seq": max(seq, 1), "next_by_subj": subject, "batch": 1}
    messages, pending = await _direct_get(client, request)
    return len(messages) + pending if messages else 0


async def _start_of_last(
    client: Client, subject: str, count: int, bounds: tuple[int, int], total: int
) -> int:
    """Return a sequence from which on there are ``count`` messages, found by halving."""
    low, high = max(bounds[0], 1), max(bounds[1], 1)
    if total <= count:
        return low
    while high - low > 1:
        middle = (low + high) // 2
        left = await _left_from(client, subject, middle)
        if left >= count:
            low = middle
        else:
            high = middle
        if left == count:
            break
    return low


def _subjects(workers: Sequence[WorkerId] | None) -> list[str]:
    return [subjects.ALL_LOGS] if workers is None else [subjects.log(one) for one in workers]


def _lines(messages: Iterable[_Raw]) -> list[LoggedLine]:
    found: list[LoggedLine] = []
    for message in messages:
        with suppress(msgspec.DecodeError):  # of another release
            line = msgspec.json.decode(message.data, type=LogLine)
            worker_id = WorkerId(message.subject.rpartition(".")[2])
            found.append(LoggedLine(message.seq, worker_id, line))
    return found


def _raw(headers: dict[str, str], data: bytes) -> _Raw:
    time = datetime.fromisoformat(headers["Nats-Time-Stamp"])
    return _Raw(int(headers["Nats-Sequence"]), headers["Nats-Subject"], data, time)


async def _direct_get(client: Client, request: dict[str, Any]) -> tuple[list[_Raw], int]:
    """Return what the request finds, and how many there are after that.

    Raises:
        EventStoreUnavailable: no answer in time.
    """
    inbox = client.new_inbox()
    done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    found: list[_Raw] = []

    async def receive(message: Msg) -> None:
        headers = message.headers or {}
        status = headers.get("Status")
        if status is None:
            found.append(_raw(headers, message.data))
        elif not done.done():
            if status in _NOTHING_THERE:
                done.set_result(int(headers.get("Nats-Num-Pending", 0)))
            else:
                why = f"telemetry cannot be read: {status} {headers.get('Description', '')}"
                done.set_exception(EventStoreUnavailable(why))

    try:
        subscription = await client.subscribe(inbox, cb=receive)
        try:
            await client.publish(
                f"$JS.API.DIRECT.GET.{topology.TELEMETRY}",
                msgspec.json.encode(request),
                reply=inbox,
            )
            async with asyncio.timeout(ANSWER_SECONDS):
                pending = await done
        finally:
            await subscription.unsubscribe()
    except (nats.errors.Error, TimeoutError) as error:
        raise EventStoreUnavailable(f"telemetry does not answer: {error!r}") from error
    return found, pending
