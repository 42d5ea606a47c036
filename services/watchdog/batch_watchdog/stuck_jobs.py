"""Says which batches are stuck and why, and frees what hangs.

Reads the open jobs and the fleet; records ``job.stuck``, and then, for leases without progress,
``chunk.released`` so that somebody else tries, or, after stuck_rounds_max such rounds,
``chunk.closed`` so that the remaining requests end as error lines. What is to be done follows from
the recorded ``job.stuck``: a watchdog that stops in between is continued by the next look.
"""

from __future__ import annotations

import structlog

from batch_watchdog.diagnosis import diagnose
from batch_watchdog.open_jobs import ChunkWatch, JobWatch, OpenJobs
from vllm_batch.aggregates import chunk as chunk_rules
from vllm_batch.aggregates import job as job_rules
from vllm_batch.aggregates.chunk import ChunkStatus
from vllm_batch.aggregates.job import JobStatus
from vllm_batch.clock import Clock
from vllm_batch.errors import Conflict, Rejected
from vllm_batch.event_store import EventStore
from vllm_batch.fleet import Fleet
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)


class StuckJobs:
    """Looks at every open job."""

    def __init__(
        self,
        jobs: OpenJobs,
        fleet: Fleet,
        store: EventStore,
        settings: Settings,
        clock: Clock,
    ) -> None:
        self._jobs = jobs
        self._fleet = fleet
        self._store = store
        self._stuck_seconds = settings.stuck_job_seconds
        self._rounds_max = settings.stuck_rounds_max
        self._clock = clock

    async def check(self) -> None:
        """Note and act.

        Raises:
            EventStoreUnavailable: the log does not answer.
        """
        for watch in list(self._jobs.jobs.values()):
            await self._note(watch)
            if watch.job.status is JobStatus.RUNNING:
                for chunk in watch.chunks.values():
                    await self._act(chunk)

    async def _note(self, watch: JobWatch) -> None:
        now = self._clock.now()
        note = diagnose(watch, self._jobs, self._fleet, now, self._stuck_seconds)
        if note is None:
            return
        try:
            event = job_rules.decide(watch.job, note)
            recorded = await self._store.append(event, expected=watch.seq)
        except (Conflict, Rejected) as error:
            log.debug("not noted", job=watch.job.job_id, why=str(error))
            return
        self._jobs.apply(recorded)
        log.warning(
            "job stuck", job=watch.job.job_id, reason=note.reason, detail=note.detail,
            idle_seconds=note.idle_seconds,
        )  # fmt: skip

    async def _act(self, chunk: ChunkWatch) -> None:
        """Do what the last note of this chunk calls for, unless it moved since."""
        command: chunk_rules.Command
        if chunk.rounds == 0 or chunk.chunk.terminal:
            return
        if chunk.rounds >= self._rounds_max:
            command = chunk_rules.Close("stuck")
        elif chunk.chunk.status is ChunkStatus.LEASED and chunk.leased_seq < chunk.named_seq:
            command = chunk_rules.Release(chunk.chunk.epoch, "error")
        else:
            return
        planned = chunk.chunk.planned
        try:
            event = chunk_rules.decide(chunk.chunk, command)
            recorded = await self._store.append(event, expected=chunk.seq)
        except (Conflict, Rejected) as error:
            log.debug("chunk moved on", job=planned.job_id, chunk=planned.chunk, why=str(error))
            return
        self._jobs.apply(recorded)
        log.warning(
            "stuck chunk freed", job=planned.job_id, chunk=planned.chunk, deed=event.TYPE,
            round=chunk.rounds, remaining=chunk.chunk.remaining,
        )  # fmt: skip
