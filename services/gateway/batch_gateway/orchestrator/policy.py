"""Which job is served next. Pure.

Higher priority goes first, always. Among equals, tenants share what the workers can take, then each
tenant's jobs share its part: whoever has the least work under way is next, so a small job never
waits behind a large one. Where two have the same, the earlier deadline goes first, then the one
that was submitted first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vllm_batch.ids import JobId, ProjectId


@dataclass(slots=True)
class Candidate:
    """A running job: chunks that wait to be released, and chunks under way (released or leased)."""

    job_id: JobId
    project: ProjectId
    priority: int
    deadline: int
    submitted_seq: int
    waiting: int
    under_way: int


def share_out(candidates: Iterable[Candidate], slots: int) -> list[JobId]:
    """Return the jobs that get the next ``slots`` releases, in order; a job may occur often.

    Candidates without waiting chunks get none, but count for their tenant's share.
    """
    by_project: dict[tuple[int, ProjectId], int] = {}
    open_ones: list[Candidate] = []
    for candidate in candidates:
        share = candidate.priority, candidate.project
        by_project[share] = by_project.get(share, 0) + candidate.under_way
        if candidate.waiting > 0:
            open_ones.append(candidate)
    waiting = {candidate.job_id: candidate.waiting for candidate in open_ones}
    under_way = {candidate.job_id: candidate.under_way for candidate in open_ones}
    turns: list[JobId] = []

    def turn(candidate: Candidate) -> tuple[int, int, int, int, int]:
        return (
            -candidate.priority,
            by_project[candidate.priority, candidate.project],
            under_way[candidate.job_id],
            candidate.deadline,
            candidate.submitted_seq,
        )

    while len(turns) < slots and open_ones:
        chosen = min(open_ones, key=turn)
        turns.append(chosen.job_id)
        by_project[chosen.priority, chosen.project] += 1
        under_way[chosen.job_id] += 1
        waiting[chosen.job_id] -= 1
        if waiting[chosen.job_id] == 0:
            open_ones.remove(chosen)
    return turns
