"""Why a batch is stuck: what the log says, put into a reason and a sentence. Pure.

A lease without progress can be acted on. Everything else is waiting for somebody: it is announced,
once per reason, and never failed before the batch's own window closes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from batch_watchdog.open_jobs import JobWatch, OpenJobs
from vllm_batch.aggregates.chunk import ChunkStatus
from vllm_batch.aggregates.job import JobStatus, NoteStuck
from vllm_batch.events.job import StuckReason
from vllm_batch.fleet import Fleet

NAMED_MAX = 5


@dataclass(frozen=True, slots=True)
class _Finding:
    reason: StuckReason
    detail: str


def diagnose(
    job: JobWatch, jobs: OpenJobs, fleet: Fleet, now: datetime, stuck_seconds: float
) -> NoteStuck | None:
    """Return what is to be noted about ``job``; None where there is nothing, or nothing new."""
    held = [
        number
        for number, watch in sorted(job.chunks.items())
        if watch.chunk.status is ChunkStatus.LEASED
        and watch.named_seq < watch.leased_seq  # else what was decided is still to be done
        and (now - watch.moved_at).total_seconds() > stuck_seconds
    ]
    if held and job.job.status is JobStatus.RUNNING:
        idle = max((now - job.chunks[number].moved_at).total_seconds() for number in held)
        return NoteStuck(
            reason="no_progress", detail=_held_detail(job, held, fleet), idle_seconds=int(idle),
            chunks=held,
        )  # fmt: skip
    idle = (now - job.moved_at).total_seconds()
    if idle <= stuck_seconds:
        return None
    found = _why_idle(job, jobs, fleet, now, stuck_seconds)
    if found is None or (job.told is not None and job.told.reason == found.reason):
        return None
    return NoteStuck(reason=found.reason, detail=found.detail, idle_seconds=int(idle), chunks=[])


def _held_detail(job: JobWatch, held: list[int], fleet: Fleet) -> str:
    owners = {job.chunks[number].chunk.worker_id for number in held}
    names = sorted(
        fleet.workers[owner].name if owner in fleet.workers else str(owner)
        for owner in owners
        if owner is not None
    )
    return (
        f"{_count(len(held), 'chunk')} leased by {_listed(names)}: no result in all that time; "
        "the leases are taken away"
    )


def _why_idle(
    job: JobWatch, jobs: OpenJobs, fleet: Fleet, now: datetime, stuck_seconds: float
) -> _Finding | None:
    status = job.job.status
    if status is JobStatus.VALIDATING:
        return _Finding("not_planned", "the file has not been read: does an orchestrator run?")
    if status is not JobStatus.RUNNING or not job.open():
        return _Finding(
            "not_finalized",
            "everything is done and the files are not written: does an orchestrator run, and does "
            "the blob store take them?",
        )
    return _why_not_run(job, jobs, fleet, now, stuck_seconds)


def _why_not_run(
    job: JobWatch, jobs: OpenJobs, fleet: Fleet, now: datetime, stuck_seconds: float
) -> _Finding | None:
    models = job.models()
    for model in models:
        if finding := _why_not_served(model, fleet):
            return finding
    if _has_its_turn_to_come(job, jobs, now, stuck_seconds):
        return None
    live = {view.worker_id for model in models for view in fleet.serving(model)}
    return _Finding(
        "not_leased",
        f"{_count(len(live), 'worker')} of {_listed([repr(model) for model in models])} and nobody "
        f"takes the {_count(len(job.open()), 'chunk')} left: does an orchestrator run?",
    )


def _why_not_served(model: str, fleet: Fleet) -> _Finding | None:
    names = fleet.that_served(model)
    looping = [name.name for name in names if name.crash_looping]
    live = fleet.serving(model)
    if looping and len(looping) >= len({view.name for view in live}):
        return _Finding(
            "workers_crash_looping",
            f"{_listed(looping)} served {model!r} and died again and again; look at their logs, "
            "then clear them",
        )
    if live:
        return None
    lost = [name.name for name in names if name.newest.state == "lost"]
    if lost:
        return _Finding("workers_lost", f"every worker of {model!r} is lost: {_listed(lost)}")
    return _Finding("no_worker", f"no worker serves {model!r} now; start one")


def _has_its_turn_to_come(
    job: JobWatch, jobs: OpenJobs, now: datetime, stuck_seconds: float
) -> bool:
    """Tell whether the workers are busy with other jobs, or something was done about this one a
    short while ago: leased, or taken away and offered again."""
    if job.leased():
        return True  # that lease is looked at when its time is up
    changed = [watch.changed_at for watch in job.open()]
    changed += [
        moved for model in job.models() if (moved := jobs.model_moved_at.get(model)) is not None
    ]
    return (now - max(changed)).total_seconds() <= stuck_seconds


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:NAMED_MAX])
    return f"{shown} and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else shown
