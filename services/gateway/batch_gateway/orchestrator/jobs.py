"""Leads every open job from step to step: one task per job that has something to do.

What to do follows from the board alone (see `steps`), so whatever a crash interrupted is taken up
by the next look. An error costs the job a pause and nobody else anything.
"""

from __future__ import annotations

import asyncio
import random
import re

import structlog

from batch_gateway.orchestrator import steps
from batch_gateway.orchestrator.board import Board, JobView, Watch
from batch_gateway.orchestrator.finalizer import Finalizer
from batch_gateway.orchestrator.planner import Planner
from batch_gateway.orchestrator.steps import Step
from vllm_batch import tracing
from vllm_batch.aggregates import chunk as chunk_rules
from vllm_batch.aggregates import job as job_rules
from vllm_batch.aggregates.job import JobStatus
from vllm_batch.clock import Clock
from vllm_batch.errors import BatchError, Conflict, Rejected
from vllm_batch.event_store import EventStore, append_decided
from vllm_batch.ids import JobId
from vllm_batch.messaging import subjects
from vllm_batch.metrics.orchestrator import OrchestratorMetrics
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)

_GIVEN_UP = frozenset({JobStatus.CANCELLING, JobStatus.EXPIRING})
_BETWEEN_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])")
_BEHIND_SECONDS = 0.05
_PAUSE_SECONDS = 0.5
_PAUSE_SECONDS_MAX = 15.0


class Jobs:
    """Takes every open job's next step as soon as there is one."""

    def __init__(
        self,
        board: Board,
        store: EventStore,
        planner: Planner,
        finalizer: Finalizer,
        settings: Settings,
        *,
        clock: Clock,
        rng: random.Random,
        metrics: OrchestratorMetrics,
    ) -> None:
        self._board = board
        self._store = store
        self._planner = planner
        self._finalizer = finalizer
        self._grace_seconds = settings.cancel_grace_seconds
        self._clock = clock
        self._monotonic = clock.monotonic
        self._rng = rng
        self._metrics = metrics
        self._watch = Watch()
        self._tasks: dict[JobId, asyncio.Task[None]] = {}
        self._planning: set[JobId] = set()
        self._timers: dict[JobId, asyncio.TimerHandle] = {}
        self._paused: set[JobId] = set()
        self._failures: dict[JobId, int] = {}

    async def run(self) -> None:
        """Take steps for ever."""
        self._watch = self._board.watch()
        try:
            while True:
                for job_id in {job_id for job_id, _ in await self._watch.wait()}:
                    self._look(job_id)
        finally:
            self._board.unwatch(self._watch)
            for timer in self._timers.values():
                timer.cancel()
            self._timers.clear()
            self._paused.clear()
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._tasks.clear()

    def _look(self, job_id: JobId) -> None:
        view = self._board.jobs.get(job_id)
        if view is None:
            self._failures.pop(job_id, None)
        if (task := self._tasks.get(job_id)) is not None:
            if job_id in self._planning and (view is None or view.job.status in _GIVEN_UP):
                task.cancel()  # the plan is not needed any more
            return  # it looks again when it is done
        if view is None or job_id in self._paused:
            return
        if (timer := self._timers.pop(job_id, None)) is not None:
            timer.cancel()
        step = self._next(view)
        if isinstance(step, steps.Wait):
            if step.until is not None:
                self._look_again(job_id, step.until - self._monotonic())
            return
        task = asyncio.create_task(self._take(view, step), name=f"job {job_id}")
        self._tasks[job_id] = task
        task.add_done_callback(lambda _: self._done(job_id))

    def _next(self, view: JobView) -> Step:
        return steps.next_step(view, self._monotonic(), self._grace_seconds)

    def _done(self, job_id: JobId) -> None:
        self._tasks.pop(job_id, None)
        self._planning.discard(job_id)
        self._watch.note(job_id)

    def _look_again(self, job_id: JobId, seconds: float) -> None:
        def look() -> None:
            self._timers.pop(job_id, None)
            self._paused.discard(job_id)
            self._watch.note(job_id)

        self._timers[job_id] = asyncio.get_running_loop().call_later(max(seconds, 0.001), look)

    async def _take(self, view: JobView, step: Step) -> None:
        job_id, name, began = view.job.job_id, _name(step), self._monotonic()
        try:
            with tracing.continued(view.traceparent), tracing.span(name) as span:
                span.set_attribute("vllm_batch.batch.id", job_id)
                seq = await self._perform(view, step)
        except (Rejected, Conflict) as error:
            # The board is behind, or another leader was faster: both show on the board soon.
            log.debug("step not taken", job=job_id, step=type(step).__name__, why=str(error))
            self._paused.add(job_id)
            self._look_again(job_id, _BEHIND_SECONDS)
        except BatchError as error:
            self._pause(job_id)
            self._metrics.step_failures.labels(name).inc()
            log.warning("step failed", job=job_id, step=type(step).__name__, error=str(error))
        except Exception:  # one job's trouble must not become everybody's
            self._pause(job_id)
            self._metrics.step_failures.labels(name).inc()
            log.exception("step crashed", job=job_id, step=type(step).__name__)
        else:
            self._failures.pop(job_id, None)
            self._metrics.step_duration.labels(name).observe(self._monotonic() - began)
            if isinstance(step, steps.WriteFiles):
                self._note_end(view)
            await self._board.reached(seq)

    def _note_end(self, view: JobView) -> None:
        took = self._clock.now() - view.job.times[JobStatus.VALIDATING]
        outcome = view.job.outcome or "completed"
        self._metrics.batch_duration.labels(outcome).observe(took.total_seconds())

    def _pause(self, job_id: JobId) -> None:
        failures = self._failures[job_id] = self._failures.get(job_id, 0) + 1
        pause = min(_PAUSE_SECONDS * 2 ** min(failures - 1, 10), _PAUSE_SECONDS_MAX)
        self._paused.add(job_id)
        self._look_again(job_id, pause * self._rng.uniform(0.7, 1.3))

    async def _perform(self, view: JobView, step: Step) -> int:
        """Take ``step``; return the sequence of the last event it recorded."""
        match step:
            case steps.Plan():
                self._planning.add(view.job.job_id)
                return await self._planner.plan(view.job, view.seq)
            case steps.CloseChunks():
                return await self._close(view, step)
            case steps.Finalize():
                recorded, _ = await append_decided(
                    self._store,
                    subjects.job(view.job.job_id),
                    job_rules.evolve,
                    lambda job: job_rules.decide(job, job_rules.Finalize()),
                    known=(view.job, view.seq),
                )
                return recorded.seq
            case steps.WriteFiles():
                chunks = [view.chunks[number].chunk for number in sorted(view.chunks)]
                return await self._finalizer.finish(view.job, view.seq, chunks)
            case steps.Wait():
                return 0

    async def _close(self, view: JobView, step: steps.CloseChunks) -> int:
        async def close(number: int) -> int:
            chunk = view.chunks[number]
            try:
                event = chunk_rules.decide(chunk.chunk, chunk_rules.Close(step.reason))
                return (await self._store.append(event, expected=chunk.seq)).seq
            except (Rejected, Conflict) as error:
                log.debug("chunk not closed", job=view.job.job_id, chunk=number, why=str(error))
                return 0

        seq = max(await asyncio.gather(*(close(number) for number in step.numbers)))
        if seq == 0:
            raise Conflict("every chunk has moved on")
        return seq


def _name(step: Step) -> str:
    """Return what metrics call a step: plan, close_chunks, finalize, write_files."""
    return _BETWEEN_WORDS.sub("_", type(step).__name__).lower()
