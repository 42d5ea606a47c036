"""Work and those who do it: workers, models, batches; and who is to hear of it or pays for it."""

from __future__ import annotations

from datetime import datetime

from vllm_batch import fleet_report, project_limits
from vllm_batch.aggregates import job as job_rules
from vllm_batch.aggregates import webhook as webhook_rules
from vllm_batch.aggregates.job import Job
from vllm_batch.aggregates.webhook import Endpoint
from vllm_batch.event_store import EventStore
from vllm_batch.events import ChunkCompleted, ChunkProgressed, JobRetired, JobStuck
from vllm_batch.events.job import JobEvent
from vllm_batch.fleet_report import WorkerReport
from vllm_batch.health.report import Check, Problem, check_of, counted, critical, warning
from vllm_batch.health.sources import Sources
from vllm_batch.ids import JobId
from vllm_batch.messaging import subjects
from vllm_batch.project_limits import month_of

NAMED_MAX = 5
ALMOST_SPENT = 0.8


async def workers(sources: Sources) -> Check:
    """Look who is there, who should be, and whose engine stands still.

    Raises:
        EventStoreUnavailable: log or telemetry do not answer.
    """
    found = await _workers(sources)
    ready = [worker for worker in found if _serves(worker, sources)]
    problems = [problem for worker in found if (problem := _about(worker, sources)) is not None]
    if not ready:
        problems.append(
            warning(
                "No worker is ready: nothing is computed.",
                "Start one, or see why those that are there are not: `vllm-batch worker status`.",
            )
        )
    return check_of("workers", f"{len(ready)} of {len(found)} ready", problems)


async def models(sources: Sources) -> Check:
    """Look for models that have work and no worker.

    Raises:
        EventStoreUnavailable: log or telemetry do not answer.
    """
    queues = await fleet_report.queues(sources.store)
    served = {
        model
        for worker in await _workers(sources)
        if _serves(worker, sources)
        for model in worker.models
    }
    problems = [
        critical(
            f"{counted(queue.requests, 'request')} in {counted(queue.batches, 'batch', 'batches')} "
            f"wait for {queue.model!r}, which no worker serves.",
            f"Start a worker that serves it, or `vllm-batch model load {queue.model}`; the "
            "batches wait until their completion window closes.",
        )
        for queue in queues
        if queue.model not in served
    ]
    waiting = sum(queue.requests for queue in queues)
    summary = f"{counted(waiting, 'request')} queued for {counted(len(queues), 'model')}"
    return check_of("models", summary if queues else "nothing is queued", problems)


async def batches(sources: Sources) -> Check:
    """Look for batches that were said to be stuck and have not moved since.

    Raises:
        EventStoreUnavailable: the log does not answer.
    """
    jobs, stuck = await _open_jobs(sources.store)
    still = {
        job_id: note
        for job_id, (note, since) in stuck.items()
        if job_id in jobs and not await _moved(sources.store, job_id, since)
    }
    problems = [
        warning(
            f"{job_id} does not move: {note.detail.rstrip('.')}.",
            f"`vllm-batch batch show {job_id}` says how far it is; what hangs is freed by the "
            "watchdog, what waits for somebody is not.",
        )
        for job_id, note in list(still.items())[:NAMED_MAX]
    ]
    if len(still) > NAMED_MAX:
        more = counted(len(still) - NAMED_MAX, "more batch", "more batches")
        problems.append(warning(f"{more} do not move.", "`vllm-batch batch list` has all of them."))
    return check_of("batches", f"{len(jobs)} open", problems)


async def webhooks(sources: Sources) -> Check:
    """Look for endpoints that were disabled.

    Raises:
        EventStoreUnavailable: the log does not answer.
    """
    endpoints: dict[str, Endpoint] = {}
    async for batch in sources.store.read(subjects.aggregate("webhook", "*")):
        for recorded in batch:
            key = recorded.event.aggregate_id()[0]
            endpoints[key] = webhook_rules.evolve_endpoint(endpoints.get(key), recorded)
    living = [endpoint for endpoint in endpoints.values() if not endpoint.deleted]
    problems = [
        warning(
            f"The webhook endpoint {one.name or one.endpoint_id} of project {one.project} was "
            f"disabled: {one.disabled}.",
            f"Mend the receiver, then `vllm-batch webhook enable {one.endpoint_id}` and "
            "`vllm-batch webhook replay`.",
        )
        for one in living
        if one.disabled is not None
    ]
    return check_of("webhooks", counted(len(living), "endpoint"), problems)


async def budgets(sources: Sources) -> Check:
    """Look for projects that have spent their month's budget, or almost.

    Raises:
        EventStoreUnavailable: the log does not answer.
    """
    limits = await project_limits.load(sources.store, sources.settings)
    month, problems, with_budget = month_of(sources.now), [], 0
    for configured in limits.configured:
        project = configured.project
        if limits.of(project).budget_per_month is None or limits.is_closed(project):
            continue
        with_budget += 1
        share = limits.reached_share(project, month)
        action = f"Raise it: `vllm-batch project limit {project} --budget-per-month AMOUNT`."
        if limits.out_of_budget(project, sources.now):
            what = f"Project {project} has spent its budget of {month}: its calls are refused."
            problems.append(warning(what, action))
        elif share >= ALMOST_SPENT:
            what = f"Project {project} has spent {share:.0%} of its budget of {month}."
            problems.append(warning(what, action))
    return check_of("budgets", counted(with_budget, "project with a budget",
                                       "projects with a budget"), problems)  # fmt: skip


async def _workers(sources: Sources) -> list[WorkerReport]:
    client = sources.store.connection.client
    return await fleet_report.workers(sources.store, client, sources.now)


def _is_heard(worker: WorkerReport, sources: Sources) -> bool:
    age = worker.heartbeat_age_seconds
    return age is not None and age <= sources.settings.lease_seconds


def _serves(worker: WorkerReport, sources: Sources) -> bool:
    return worker.state == "ready" and worker.ended_at is None and _is_heard(worker, sources)


def _about(worker: WorkerReport, sources: Sources) -> Problem | None:
    name, logs = worker.name, f"`vllm-batch worker logs --worker {worker.name}`"
    if worker.crash_looping:
        return critical(
            f"Worker {name} dies again and again ({counted(worker.deaths, 'time')}) and is left "
            "alone.",
            f"{logs} has its last words; mend that, then `vllm-batch worker clear {name}`.",
        )
    if worker.ended_at is not None:
        return warning(
            f"Worker {name} on {worker.host} is gone ({worker.reason or worker.state}); what it "
            "had was given to others.",
            "Start it again, or see in the watchdog's log why it could not.",
        )
    if worker.state == "failed":
        return warning(f"The engine of worker {name} has failed.", f"{logs} says why.")
    if worker.heartbeat_age_seconds is not None and not _is_heard(worker, sources):
        return warning(
            f"Worker {name} on {worker.host} has not been heard of for "
            f"{worker.heartbeat_age_seconds:.0f} s.",
            "Look at its machine and the network; its leases are taken away by themselves.",
        )
    age = worker.engine_progress_age_seconds or 0.0
    if age > sources.settings.engine_frozen_seconds:
        return warning(
            f"The engine of worker {name} has made no token for {age:.0f} s.",
            f"It is replaced by itself; if it stays so, `vllm-batch worker clear-gpu {name}`.",
        )
    return None


async def _open_jobs(
    store: EventStore,
) -> tuple[dict[JobId, Job], dict[JobId, tuple[JobStuck, datetime]]]:
    """Return the open jobs, and of each that is said to be stuck what was said last and when."""
    jobs: dict[JobId, Job] = {}
    stuck: dict[JobId, tuple[JobStuck, datetime]] = {}
    async for batch in store.read(subjects.ALL_JOBS):
        for recorded in batch:
            event = recorded.event
            if not isinstance(event, JobEvent) or isinstance(event, JobRetired):
                continue
            jobs[event.job_id] = job_rules.evolve(jobs.get(event.job_id), recorded)
            if isinstance(event, JobStuck):
                stuck[event.job_id] = (event, recorded.time)
            else:
                stuck.pop(event.job_id, None)
            if jobs[event.job_id].terminal:
                del jobs[event.job_id]
    return jobs, stuck


async def _moved(store: EventStore, job_id: JobId, since: datetime) -> bool:
    async for batch in store.read(subjects.chunks_of(job_id)):
        for recorded in batch:
            done = isinstance(recorded.event, ChunkProgressed | ChunkCompleted)
            if done and recorded.time > since:
                return True
    return False
