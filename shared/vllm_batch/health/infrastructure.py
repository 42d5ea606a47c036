"""The parts that everything stands on: the event log, Postgres, leaders, disks, backups."""

from __future__ import annotations

import asyncio
from datetime import datetime

import nats.errors
from nats.js.errors import Error as JetStreamError

from vllm_batch import backup_records
from vllm_batch.health.report import Check, Problem, check_of, counted, critical, warning
from vllm_batch.health.sources import Sources
from vllm_batch.messaging import leadership, topology

LAG_EVENTS_MAX = 1000
FREE_SHARE_MIN = 0.1
STORAGE_SHARE_MAX = 0.9
BACKUP_DAYS_MAX = 7
ACCOUNT_SECONDS = 1.0
GIB = 1024**3


async def event_log(sources: Sources) -> Check:
    """Look whether the log takes events, and whether all of its copies are there.

    Raises:
        nats.errors.Error: it does not answer.
    """
    js = sources.store.js
    info = await js.stream_info(topology.EVENTS)
    problems: list[Problem] = []
    for peer in (info.cluster.replicas if info.cluster else None) or []:
        if peer.offline or not peer.current:
            state = "away" if peer.offline else "behind"
            problems.append(
                warning(
                    f"The copy of the event log on {peer.name} is {state}.",
                    "Start that NATS server; it catches up by itself. Until then the loss of "
                    "another one stops everything.",
                )
            )
    if (full := await _almost_full(sources)) is not None:
        problems.append(full)
    return check_of("event log", f"{counted(info.state.messages, 'event')}, answers", problems)


async def _almost_full(sources: Sources) -> Problem | None:
    """Return what there is to say of JetStream's storage; nothing where we may not ask."""
    try:
        async with asyncio.timeout(ACCOUNT_SECONDS):
            account = await sources.store.js.account_info()
    except (nats.errors.Error, JetStreamError, TimeoutError):
        return None
    limit = account.limits.max_storage
    if not limit or limit < 0 or account.storage <= STORAGE_SHARE_MAX * limit:
        return None
    return critical(
        f"JetStream has used {account.storage / GIB:.1f} of {limit / GIB:.1f} GiB: it refuses "
        "events when that is full.",
        "Raise max_file_store of the NATS servers, or the account's limit.",
    )


async def read_models(sources: Sources) -> Check:
    """Look whether Postgres answers, and how far its read models are behind.

    Raises:
        EventStoreUnavailable: the log does not say where it ends.
    """
    name, seq = "read models", await sources.checkpoint()
    if seq is None:
        problem = warning(
            "Postgres does not answer, or has never been filled: lists answer 503, everything "
            "else works.",
            "Start Postgres, and look at VLLM_BATCH_POSTGRES_DSN; the leading orchestrator fills "
            "it.",
        )
        return check_of(name, "not there", [problem])
    lag = await sources.store.last_sequence() - seq
    if lag < 0:
        problem = critical(
            "The read models are ahead of the event log: they belong to another one, or it lost "
            "events.",
            "Run `vllm-batch projections rebuild`, or correct the address of one of the two.",
        )
        return check_of(name, "of another event log", [problem])
    if lag > LAG_EVENTS_MAX:
        problem = warning(
            f"Lists are {lag} events behind.",
            "Wait if there is much work just now; else the leading orchestrator's log says why "
            "projections stand still.",
        )
        return check_of(name, f"{counted(lag, 'event')} behind", [problem])
    return check_of(name, "up to date" if lag == 0 else f"{counted(lag, 'event')} behind")


async def leaders(sources: Sources) -> Check:
    """Look whether an orchestrator and a watchdog lead."""
    present = {
        role: await leadership.leader_of(sources.store.js, role)
        for role in ("orchestrator", "watchdog")
    }
    problems = []
    if present["orchestrator"] is None:
        problems.append(
            critical(
                "No orchestrator leads: batches are taken in, and neither planned, offered to "
                "workers nor finished.",
                "Start one (python -m batch_gateway orchestrator); if one runs, its log says why "
                "it cannot lead.",
            )
        )
    if present["watchdog"] is None:
        problems.append(
            warning(
                "No watchdog runs: lost workers are not started again, and stuck batches are "
                "not told of.",
                "Start one (python -m batch_watchdog).",
            )
        )
    leading = [role for role, owner in present.items() if owner is not None]
    return check_of("leaders", " and ".join(leading) or "none", problems)


async def storage(sources: Sources) -> Check:
    """Look how much room there is for files and results, where that is a local disk."""
    usage = sources.blobs.disk_usage()
    if usage is None:
        return check_of("storage", "a bucket: its room is not looked at")
    share = usage.free / usage.total if usage.total else 0.0
    summary = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free"
    if usage.free < sources.settings.blob_free_bytes_min:
        what, make = f"The disk with files and results is full: {summary}.", critical
    elif share < FREE_SHARE_MIN:
        what, make = f"The disk with files and results is almost full: {summary}.", warning
    else:
        return check_of("storage", summary)
    action = (
        "Make room, delete files that nobody needs, or let them expire sooner "
        "(VLLM_BATCH_BATCH_FILE_EXPIRY_SECONDS, expires_after of uploads)."
    )
    return check_of("storage", summary, [make(what, action)])


async def backups(sources: Sources) -> Check:
    """Look when the last backup was made, as far as it is on record.

    Raises:
        EventStoreUnavailable: the log does not answer.
    """
    last = await backup_records.last(sources.store)
    if last is None:
        return check_of("backup", "none is on record; `vllm-batch backup create FOLDER` makes one")
    days = (sources.now - last).total_seconds() / 86_400
    problems = []
    if days > BACKUP_DAYS_MAX:
        problems.append(
            warning(
                f"The last backup is {days:.0f} days old.",
                "Run `vllm-batch backup create FOLDER`, best every day by cron.",
            )
        )
    return check_of("backup", f"last one {_when(last)}", problems)


def _when(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC")
