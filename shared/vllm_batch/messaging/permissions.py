"""What each service may say and hear on NATS: least privilege as data, a user for each role.

The servers hold it, not the services: a stolen password of a worker cannot complete a batch, make
an API key or read one's hash. `nats_users` writes it as configuration.

Whoever may read the whole log does so with consumers of any filter and direct gets, which NATS
cannot restrict to subjects. A role with ``reads`` names what it reads in the subject of each
request instead: one filter per consumer, which the server compares with the request itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from vllm_batch.messaging import subjects
from vllm_batch.messaging.topology import EVENTS, TELEMETRY, WORK

LEADERS = "KV_LEADERS"
ANSWER_SECONDS = 600
"""A request may be answered once within this time; the longest are orders to workers."""

_API = "$JS.API"


class Role(StrEnum):
    """Who connects. The values are the names of the users."""

    OPERATOR = "operator"
    """The command line and the supervisor of the embedded stack: everything."""
    API = "api"
    ORCHESTRATOR = "orchestrator"
    WATCHDOG = "watchdog"
    WORKER = "worker"
    TRAINER = "trainer"
    BRIDGE = "labelstudio-bridge"
    ADMIN_UI = "admin-ui"


@dataclass(frozen=True)
class Permissions:
    """Subjects of one user; see NATS's own ``permissions``. None: everything is allowed."""

    publish: tuple[str, ...] | None = None
    subscribe: tuple[str, ...] | None = None
    answers: bool = False

    def as_config(self) -> dict[str, Any] | None:
        """Return what the configuration of nats-server says; None for everything."""
        if self.publish is None or self.subscribe is None:
            return None
        said: dict[str, Any] = {
            "publish": {"allow": list(self.publish)} if self.publish else {"deny": [">"]},
            "subscribe": {"allow": list(self.subscribe)},
        }
        if self.answers:
            said["allow_responses"] = {"max": 1, "expires": f"{ANSWER_SECONDS}s"}
        return said


@dataclass(frozen=True)
class _Duty:
    """What a role does. ``reads``: subjects of events, None for the whole log."""

    appends: tuple[str, ...]
    says: tuple[str, ...] = ()
    hears: tuple[str, ...] = ()
    reads: tuple[str, ...] | None = None
    answers: bool = False
    makes_streams: bool = False
    leads: bool = False
    queues_work: bool = False
    takes_work: bool = False
    has_durables: bool = False


_ALL_CONTROLS = subjects.control("*")
_DUTIES: dict[Role, _Duty] = {
    Role.API: _Duty(
        appends=(
            "job.submitted.>", "job.cancel_requested.>", subjects.ALL_FILES, subjects.ALL_UPLOADS,
            subjects.ALL_WEBHOOKS, subjects.ALL_API_KEYS, subjects.ALL_PROJECTS,
            subjects.ALL_MODELS, subjects.ALL_LABELING, subjects.ALL_TRAINING, subjects.ALL_USAGE,
            "worker.restart_requested.>", "worker.cleared.>", "admin.action_taken.>",
            "admin.action_failed.>",
        ),
        says=(
            _ALL_CONTROLS, subjects.LABELING_CONTROL, subjects.ALL_INFERENCE,
            subjects.ALL_ONLINE_WORKERS, subjects.RATES_USED,
        ),
        hears=(
            subjects.ALL_HEARTBEATS, subjects.ALL_ONLINE_GATEWAYS, subjects.ALL_ONLINE_REPLIES,
            subjects.RATES_USED,
        ),
        answers=True,
        makes_streams=True,
    ),
    Role.ORCHESTRATOR: _Duty(
        appends=(
            subjects.ALL_JOBS, subjects.ALL_CHUNKS, subjects.ALL_FILES, subjects.ALL_WEBHOOKS,
            subjects.ALL_PROJECTS, subjects.ALL_UPLOADS, "worker.lost.>", "apikey.revoked.>",
        ),
        says=(_ALL_CONTROLS,),
        hears=(subjects.ALL_HEARTBEATS,),
        makes_streams=True,
        leads=True,
        queues_work=True,
    ),
    Role.WATCHDOG: _Duty(
        appends=(
            "job.stuck.>", "chunk.released.>", "chunk.closed.>", "worker.crash_looping.>",
            "worker.restart_requested.>",
        ),
        says=(_ALL_CONTROLS,),
        hears=(subjects.ALL_HEARTBEATS,),
        leads=True,
    ),
    Role.WORKER: _Duty(
        appends=(
            "chunk.leased.>", "chunk.progressed.>", "chunk.completed.>", "chunk.released.>",
            "model.loading.>", "model.ready.>", "model.failed.>", "model.unloaded.>",
            "worker.started.>", "worker.ready.>", "worker.stopped.>", "worker.engine_killed.>",
            "worker.engine_restarted.>", "worker.gpu_cleared.>", "worker.restart_requested.>",
        ),
        says=(subjects.ALL_HEARTBEATS, subjects.ALL_LOGS, subjects.ALL_ONLINE_GATEWAYS),
        hears=(
            _ALL_CONTROLS, subjects.ALL_INFERENCE, subjects.ALL_ONLINE_WORKERS,
            subjects.CANCEL_REQUESTS, subjects.CLOSED_WINDOWS, subjects.RELEASED_CHUNKS,
            subjects.CLOSED_CHUNKS,
        ),
        reads=(subjects.ALL_CHUNKS, subjects.ALL_MODELS, subjects.ALL_WORKERS),
        answers=True,
        takes_work=True,
    ),
    Role.TRAINER: _Duty(
        appends=(
            "training.started.>", "training.progressed.>", "training.completed.>",
            "training.failed.>",
        ),
        reads=(subjects.ALL_JOBS, subjects.ALL_TRAINING),
    ),
    Role.BRIDGE: _Duty(
        appends=(
            subjects.ALL_ANNOTATIONS, subjects.ALL_LABELING, subjects.ALL_TRAINING,
            "model.registered.>", "model.aliased.>", "model.load_requested.>",
            "model.unload_requested.>",
        ),
        hears=(subjects.LABELING_CONTROL,),
        answers=True,
        leads=True,
        has_durables=True,
    ),
    Role.ADMIN_UI: _Duty(
        appends=(
            subjects.ALL_ADMIN, subjects.ALL_API_KEYS, subjects.ALL_PROJECTS, subjects.ALL_MODELS,
            subjects.ALL_TRAINING, "job.cancel_requested.>", "worker.restart_requested.>",
            "worker.cleared.>",
        ),
        says=(_ALL_CONTROLS, subjects.LABELING_CONTROL),
        hears=(subjects.ALL_HEARTBEATS,),
    ),
}  # fmt: skip


def of_role(role: Role) -> Permissions:
    """Return what the user of a role may do."""
    if role is Role.OPERATOR:
        return Permissions()
    duty = _DUTIES[role]
    return Permissions(
        publish=(*duty.appends, *duty.says, *_requests(duty)),
        subscribe=(*duty.hears, inbox(role)),
        answers=duty.answers,
    )


def appends_of(role: Role) -> tuple[str, ...]:
    """Return the subjects of events that a role may append."""
    return (">",) if role is Role.OPERATOR else _DUTIES[role].appends


def of_tool(name: str, wanted: tuple[str, ...]) -> Permissions:
    """Return what a tool outside may do: hear events as they happen, and take those that wait for
    it from its own durable consumer. It appends nothing and makes no consumers: NATS would deliver
    one's messages to any subject that is asked for.
    """
    consumer = f"{EVENTS}.{tool_consumer(name)}"
    return Permissions(
        publish=(
            f"{_API}.CONSUMER.INFO.{consumer}",
            f"{_API}.CONSUMER.MSG.NEXT.{consumer}",
            f"$JS.ACK.{consumer}.>",
        ),
        subscribe=(*wanted, inbox(name)),
    )


def tool_consumer(name: str) -> str:
    """Return the name of the durable consumer that keeps a tool's place in the log."""
    return f"tool-{name}"


def inbox(user: str) -> str:
    """Return where a user hears answers: nobody else does."""
    return f"{inbox_prefix(user)}.>"


def inbox_prefix(user: str) -> str:
    """Return what the names of a user's inboxes begin with."""
    return f"_INBOX.{user}"


def _requests(duty: _Duty) -> list[str]:
    """Return the requests to JetStream that a duty needs."""
    allowed = [f"{_API}.STREAM.INFO.{EVENTS}", f"$JS.FC.{EVENTS}.>"]
    if duty.reads is None:
        allowed += [
            f"{_API}.STREAM.INFO.*", f"{_API}.CONSUMER.INFO.*.*", f"{_API}.CONSUMER.LIST.*",
            f"{_API}.DIRECT.GET.{EVENTS}", f"{_API}.STREAM.MSG.GET.{EVENTS}",
            f"{_API}.CONSUMER.CREATE.{EVENTS}", f"{_API}.CONSUMER.CREATE.{EVENTS}.>",
            f"{_API}.DIRECT.GET.{TELEMETRY}", f"{_API}.INFO", f"{_API}.DIRECT.GET.{LEADERS}.>",
            f"{_API}.STREAM.MSG.GET.{LEADERS}",
        ]  # fmt: skip
    else:
        allowed += [f"{_API}.CONSUMER.CREATE.{EVENTS}.*.{subject}" for subject in duty.reads]
    if duty.makes_streams:
        for stream in (EVENTS, WORK, TELEMETRY):
            allowed.append(f"{_API}.STREAM.CREATE.{stream}")  # the operator changes them
    if duty.leads:
        allowed += [
            f"{_API}.STREAM.CREATE.{LEADERS}",
            "$KV.LEADERS.*",
        ]
    if duty.queues_work:
        allowed += [
            subjects.ALL_WORK, f"{_API}.STREAM.MSG.GET.{WORK}", f"{_API}.STREAM.MSG.DELETE.{WORK}",
        ]  # fmt: skip
    if duty.takes_work:
        allowed += [
            f"{_API}.CONSUMER.DURABLE.CREATE.{WORK}.*", f"{_API}.CONSUMER.MSG.NEXT.{WORK}.*",
            f"$JS.ACK.{WORK}.>",
        ]  # fmt: skip
    if duty.has_durables:
        allowed += [
            f"{_API}.CONSUMER.DURABLE.CREATE.{EVENTS}.*", f"{_API}.CONSUMER.MSG.NEXT.{EVENTS}.*",
            f"$JS.ACK.{EVENTS}.>",
        ]  # fmt: skip
    return allowed
