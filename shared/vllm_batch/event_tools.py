"""Tools outside that read events over NATS, each a user of its own: granted, listed, revoked.

Reads and appends ``tool.*``. What NATS lets them do is in `messaging.permissions`; each tool has a
durable consumer of its own, which keeps its place in the log.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from contextlib import suppress

import msgspec
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

from vllm_batch import ids
from vllm_batch.errors import InvalidInput, NotFound, Rejected
from vllm_batch.event_store import EventStore, append_decided
from vllm_batch.events import EVENT_TYPES, Event, Recorded, ToolGranted, ToolRevoked
from vllm_batch.messaging import permissions, subjects, topology
from vllm_batch.messaging.nats_users import Tool
from vllm_batch.messaging.permissions import Role

SUBJECTS_MAX = 50
ACK_WAIT_SECONDS = 60.0
ACKS_WAITING_MAX = 1000
_PASSWORD_BYTES = 24
# The password is random and long: the rounds only have to be those of a bcrypt hash.
_BCRYPT_ROUNDS = 8
_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,80}|\*")


class Grant(msgspec.Struct, frozen=True):
    """A tool that may connect, as the log has it. ``granted_at``: RFC 3339."""

    name: str
    subjects: list[str]
    granted_at: str
    granted_by: str
    password_hash: str

    @property
    def tool(self) -> Tool:
        """The tool as nats-server has to know it."""
        return Tool(self.name, tuple(self.subjects), self.password_hash)


async def load(store: EventStore) -> list[Grant]:
    """Return the tools that may connect now, by name.

    Raises:
        EventStoreUnavailable: the log does not answer.
    """
    found: dict[str, Grant | None] = {}
    async for batch in store.read(subjects.ALL_TOOLS):
        for recorded in batch:
            found[recorded.event.aggregate_id()[0]] = _evolve(None, recorded)
    return sorted((grant for grant in found.values() if grant), key=lambda grant: grant.name)


async def grant(
    store: EventStore, name: str, wanted: Sequence[str], *, requested_by: str
) -> tuple[Grant, str]:
    """Record that a tool may read events; return that and its password, which is shown once.

    Raises:
        InvalidInput: the name or a subject cannot be granted.
        Rejected: the tool has a grant.
    """
    check_name(name)
    chosen = checked_subjects(wanted)
    password = secrets.token_hex(_PASSWORD_BYTES)
    event = ToolGranted(
        tool_key=ids.tool_key(name), name=name, requested_by=requested_by, subjects=chosen,
        password_hash=_bcrypt(password),
    )  # fmt: skip

    def decide(state: Grant | None) -> Event:
        if state is not None:
            raise Rejected(f"{name} has a grant; `vllm-batch events revoke {name}` ends it")
        return event

    recorded, _ = await append_decided(store, _subject(name), _evolve, decide)
    return _granted(recorded, event), password


async def revoke(store: EventStore, name: str, *, requested_by: str) -> None:
    """Record that a tool may not connect any more.

    Raises:
        NotFound: it has no grant.
    """

    def decide(state: Grant | None) -> Event:
        if state is None:
            raise NotFound(f"{name[:64]!r} has no grant; `vllm-batch events grants` lists them")
        return ToolRevoked(tool_key=ids.tool_key(name), name=name, requested_by=requested_by)

    await append_decided(store, _subject(name), _evolve, decide)


async def make_consumer(js: JetStreamContext, tool: Grant, *, after: int | None) -> None:
    """Make the durable consumer of a tool: it begins after a sequence, or with what comes (None).

    Raises:
        nats.js.errors.Error: JetStream refuses it, or is away.
    """
    start = DeliverPolicy.NEW if after is None else DeliverPolicy.BY_START_SEQUENCE
    await js.add_consumer(
        topology.EVENTS,
        ConsumerConfig(
            durable_name=permissions.tool_consumer(tool.name),
            description=f"events for {tool.name}",
            filter_subjects=tool.subjects,
            deliver_policy=start,
            opt_start_seq=None if after is None else after + 1,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT_SECONDS,
            max_ack_pending=ACKS_WAITING_MAX,
        ),
    )


async def delete_consumer(js: JetStreamContext, name: str) -> None:
    """Delete the durable consumer of a tool, if it is there."""
    with suppress(NotFoundError):
        await js.delete_consumer(topology.EVENTS, permissions.tool_consumer(name))


def check_name(name: str) -> None:
    """Raise InvalidInput unless ``name`` can be that of a tool's user."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{name[:40]!r} is no name for a tool: a letter, then letters, digits and hyphens, all "
            "lower case, 32 at most",
            param="name",
        )
    if name in {str(role) for role in Role}:
        raise InvalidInput(f"{name} is a user of one of the services", param="name")


def checked_subjects(wanted: Sequence[str]) -> list[str]:
    """Return subjects that may be granted, without those that others cover.

    Raises:
        InvalidInput: one is no subject of events, or would show hashes of passwords and keys.
    """
    for subject in wanted:
        _check_subject(subject)
    if not 0 < len(wanted) <= SUBJECTS_MAX:
        raise InvalidInput(f"name 1 to {SUBJECTS_MAX} subjects", param="subjects")
    unique = list(dict.fromkeys(wanted))
    chosen = [
        one for one in unique if not any(_covers(other, one) for other in unique if other != one)
    ]
    for number, one in enumerate(chosen):
        for other in chosen[:number]:
            if _overlap(one.split("."), other.split(".")):
                raise InvalidInput(
                    f"{other} and {one} overlap: name one that covers both", param="subjects"
                )
    return chosen


def _check_subject(subject: str) -> None:
    noun, *tokens = subject.split(".")
    nouns = {name.partition(".")[0] for name in EVENT_TYPES}
    hidden = {name.partition(".")[0] for name, cls in EVENT_TYPES.items() if cls.HIDDEN}
    if noun in hidden:
        raise InvalidInput(
            f"{noun} events hold hashes of passwords or keys, which no tool may read",
            param="subjects",
        )
    middle, last = tokens[:-1], tokens[-1:]
    well_formed = (
        bool(tokens)
        and all(_TOKEN.fullmatch(token) for token in middle)
        and (last == [">"] or bool(_TOKEN.fullmatch(last[0])))
    )
    if noun not in nouns or not well_formed:
        raise InvalidInput(
            f"{subject[:60]!r} is no subject of events: it begins with one of "
            f"{', '.join(sorted(nouns - hidden))}, such as job.completed.* or job.>",
            param="subjects",
        )
    event_type = f"{noun}.{tokens[0]}"
    if noun == "worker" and event_type not in EVENT_TYPES:
        raise InvalidInput(
            "name the type of worker events, such as worker.lost.*: heartbeats and logs of workers "
            "are under the same noun",
            param="subjects",
        )
    if tokens[0] not in {"*", ">"} and event_type not in EVENT_TYPES:
        raise InvalidInput(
            f"there is no event {event_type}; `vllm-batch events catalogue` has them all",
            param="subjects",
        )


def _covers(wide: str, narrow: str) -> bool:
    """Tell whether every subject under ``narrow`` is under ``wide``."""
    wide_tokens, narrow_tokens = wide.split("."), narrow.split(".")
    for number, part in enumerate(wide_tokens):
        if part == ">":
            return len(narrow_tokens) > number
        if number >= len(narrow_tokens) or narrow_tokens[number] == ">":
            return False
        if part not in {"*", narrow_tokens[number]}:
            return False
    return len(wide_tokens) == len(narrow_tokens)


def _overlap(one: list[str], other: list[str]) -> bool:
    """Tell whether a subject can be under both."""
    for mine, theirs in zip(one, other, strict=False):
        if ">" in {mine, theirs}:
            return True
        if "*" not in {mine, theirs} and mine != theirs:
            return False
    return len(one) == len(other)


def _subject(name: str) -> str:
    return subjects.aggregate("tool", ids.tool_key(name))


def _evolve(_: Grant | None, recorded: Recorded) -> Grant | None:
    event = recorded.event
    if not isinstance(event, ToolGranted):
        return None
    return _granted(recorded, event)


def _granted(recorded: Recorded, event: ToolGranted) -> Grant:
    return Grant(
        event.name, event.subjects, recorded.time.isoformat(), event.requested_by,
        event.password_hash,
    )  # fmt: skip


def _bcrypt(password: str) -> str:
    import bcrypt

    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(_BCRYPT_ROUNDS)).decode()
