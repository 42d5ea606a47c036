"""Which job is served next. Pure.

Higher priority goes first, always. Among equals, tenants share what the workers can take, then each
tenant's jobs share its part: whoever has the least work under way is next, so a small job never
waits behind a large one. Where two have the same, the earlier deadline goes first, then the one
that was submitted first.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

from vllm_batch.events import JobSubmitted
from vllm_batch.ids import JobId, ProjectId

_Turn = tuple[int, int, int, JobId]
"""Chunks under way, deadline, sequence of the submission, job: the smallest is next."""


@dataclass(slots=True)
class _Job:
    tenant: tuple[int, ProjectId]
    deadline: int
    seq: int
    waiting: int = 0
    under_way: int = 0
    queued: set[int] = field(default_factory=set)
    """Values of ``under_way`` that the tenant's heap has a turn for."""


@dataclass(slots=True)
class _Tenant:
    jobs: int = 0
    under_way: int = 0
    turns: list[_Turn] = field(default_factory=list)


class Backlog:
    """The running jobs of one model: how many chunks wait to be released, and how many are under
    way (released or leased). A change costs the logarithm of the number of jobs."""

    def __init__(self) -> None:
        self._jobs: dict[JobId, _Job] = {}
        self._tenants: dict[tuple[int, ProjectId], _Tenant] = {}

    def update(self, submitted: JobSubmitted, seq: int, *, waiting: int, under_way: int) -> None:
        """Take over a job's present numbers; ``seq`` is its submission's."""
        job_id = submitted.job_id
        job = self._jobs.get(job_id)
        if job is None:
            tenant_key = (-submitted.priority, submitted.project)
            job = self._jobs[job_id] = _Job(tenant_key, submitted.expires_at, seq)
            self._tenants.setdefault(tenant_key, _Tenant()).jobs += 1
        tenant = self._tenants[job.tenant]
        tenant.under_way += under_way - job.under_way
        job.waiting, job.under_way = waiting, under_way
        self._queue(job_id, job, tenant)

    def remove(self, job_id: JobId) -> None:
        """Forget a job."""
        job = self._jobs.pop(job_id, None)
        if job is None:
            return
        tenant = self._tenants[job.tenant]
        tenant.under_way -= job.under_way
        tenant.jobs -= 1
        if tenant.jobs == 0:
            del self._tenants[job.tenant]

    def take(self) -> JobId | None:
        """Return the job whose chunk is released next, and count it as under way."""
        chosen = self._next()
        if chosen is None:
            return None
        tenant, job_id = chosen
        job = self._jobs[job_id]
        job.waiting -= 1
        job.under_way += 1
        tenant.under_way += 1
        self._queue(job_id, job, tenant)
        return job_id

    def waits_behind(self, released: Iterable[JobId]) -> bool:
        """Tell whether the next job has nothing under way, while one of ``released`` has more than
        one chunk, or less priority: then their hints should not be before its own."""
        chosen = self._next()
        if chosen is None:
            return False
        job = self._jobs[chosen[1]]
        others = [self._jobs[job_id] for job_id in set(released) if job_id in self._jobs]
        if any(other.tenant[0] > job.tenant[0] for other in others):
            return True
        return job.under_way == 0 and any(other.under_way > 1 for other in others)

    def _next(self) -> tuple[_Tenant, JobId] | None:
        best: tuple[int, int, _Turn] | None = None
        for (priority, _), tenant in self._tenants.items():
            turn = self._next_turn(tenant)
            if turn is not None:
                rank = (priority, tenant.under_way, turn)
                if best is None or _key(rank) < _key(best):
                    best, chosen = rank, tenant
        return None if best is None else (chosen, best[2][3])

    def _queue(self, job_id: JobId, job: _Job, tenant: _Tenant) -> None:
        if job.waiting > 0 and job.under_way not in job.queued:
            job.queued.add(job.under_way)
            heapq.heappush(tenant.turns, (job.under_way, job.deadline, job.seq, job_id))

    def _next_turn(self, tenant: _Tenant) -> _Turn | None:
        """Return the tenant's next turn; drop those that are out of date."""
        while tenant.turns:
            turn = tenant.turns[0]
            job = self._jobs.get(turn[3])
            if job is not None and job.waiting > 0 and job.under_way == turn[0]:
                return turn
            heapq.heappop(tenant.turns)
            if job is not None:
                job.queued.discard(turn[0])
        return None


def _key(rank: tuple[int, int, _Turn]) -> tuple[int, int, int, int, int]:
    priority, under_way, turn = rank
    return priority, under_way, turn[0], turn[1], turn[2]
