"""Takes training runs that are prepared, one at a time, and makes an adapter of each.

Reads ``training.>`` and, where it has to wait for batches to end, ``job.>``; appends
``training.started|progressed|completed|failed`` of the runs it took; writes the adapter under
``adapters/<run>/`` in the blob store, and says ``completed`` only when all of it is there. Who
holds a run is in the log and nowhere else: a trainer that was given up is refused its next word.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import structlog

from batch_gpu_worker.model_folders import ModelFolders
from batch_gpu_worker.trainer.backlog import Backlog
from batch_gpu_worker.trainer.fine_tune import Job
from batch_gpu_worker.trainer.training_process import Step, TrainingProcess, running
from vllm_batch import tasks, training_runs
from vllm_batch.aggregates.training import Run, RunStatus
from vllm_batch.blobs import BlobStore
from vllm_batch.clock import Clock
from vllm_batch.errors import BatchError, BlobError, BlobMissing, LeaseLost, Rejected
from vllm_batch.event_store import EventStore, folds
from vllm_batch.events import (
    TrainingCompleted,
    TrainingFailed,
    TrainingPrepared,
    TrainingProgressed,
    TrainingStarted,
)
from vllm_batch.ids import WorkerId
from vllm_batch.messaging import subjects
from vllm_batch.settings import Settings
from vllm_batch.training_runs import TrainingRuns

log = structlog.get_logger(__name__)

RETRY_SECONDS = 1.0
ADAPTERS = "adapters"


class Trainer:
    """One trainer. ``python``: the engine environment's, with peft and trl."""

    def __init__(
        self,
        settings: Settings,
        store: EventStore,
        blobs: BlobStore,
        *,
        python: Path,
        trainer_id: WorkerId,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._store = store
        self._blobs = blobs
        self._python = python
        self._id = trainer_id
        self._clock = clock
        self._runs = TrainingRuns()
        self._folders = ModelFolders(blobs, settings.home)
        self._backlog = Backlog(settings.training_idle_seconds, clock)
        self._saying_seconds = settings.training_silent_seconds / 4
        self._folder = settings.home.absolute() / "training"
        self._record = self._folder / f"{settings.worker_name}.json"

    async def run(self) -> None:
        """Train what is asked for, for ever."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        watching = asyncio.create_task(self._backlog.keep_up(self._store))
        try:
            while True:
                try:
                    await self._take_what_waits()
                    wanted = [subjects.ALL_TRAINING]
                    async for _ in self._store.follow(wanted, after=self._runs.position):
                        await self._take_what_waits()
                except BatchError as error:
                    log.warning("later again", error=str(error))
                except Exception:  # the outermost loop of this duty
                    log.exception("training failed; going on")
                await asyncio.sleep(RETRY_SECONDS)
        finally:
            await tasks.end(watching)

    async def _take_what_waits(self) -> None:
        """Look at the runs as the log has them now, not as some batch of a long log has.

        Raises the last BlobError of a run that could not be begun: it is tried again.
        """
        await folds.take_in(self._store, subjects.ALL_TRAINING, self._runs)
        later: BlobError | None = None
        for run in self._runs.open():
            if self._is_left_behind(run):
                reason = "its trainer was started again, or lost the log meanwhile"
                await self._fail(run, reason, retryable=True)
            elif run.status is RunStatus.PREPARED and run.prepared is not None:
                try:
                    await self._take(run, run.prepared)
                except BlobMissing as error:
                    await self._fail(run, f"its base cannot be had: {error}", retryable=False)
                except BlobError as error:
                    later = error
        if later is not None:
            raise later

    def _is_left_behind(self, run: Run) -> bool:
        """Tell whether this trainer, or an earlier process of it, had it: it is not at work now."""
        return (
            run.status is RunStatus.RUNNING
            and run.started is not None
            and run.started.trainer_name == self._settings.worker_name
        )

    async def _take(self, run: Run, prepared: TrainingPrepared) -> None:
        """Raises BlobError where the base cannot be had; the run is as it was then."""
        run_id = run.run_id
        job = await self._job(prepared, self._folder / run_id)
        started = TrainingStarted(
            run_id=run_id,
            trainer=self._id,
            trainer_name=self._settings.worker_name,
            parameters={
                name: value
                for name, value in asdict(job).items()
                if name not in {"train", "validation", "output", "base"}
            },
        )
        try:
            run = await training_runs.record(self._store, started, trainer=self._id)
        except Rejected:
            return  # another trainer has it
        log.info("training", run=run_id, base=prepared.base_model)
        try:
            await self._wait_for_batches(run_id)
            await self._train(run, prepared, job)
        except LeaseLost as error:
            log.warning("the run is no longer ours", run=run_id, error=str(error))
        except TimeoutError:
            limit = self._settings.training_seconds_max
            await self._fail(run, f"it took more than {limit:g} s", retryable=False)
        except BlobError as error:
            await self._fail(run, f"the blob store failed: {error}", retryable=True)
        except Exception as error:  # nothing else would say why: the run would only fall silent
            log.exception("a training failed", run=run_id)
            await self._fail(run, f"the trainer failed: {error!r}", retryable=True)
        finally:
            await asyncio.to_thread(shutil.rmtree, self._folder / run_id, ignore_errors=True)

    async def _job(self, prepared: TrainingPrepared, folder: Path) -> Job:
        settings = self._settings
        return Job(
            base=await self._folders.locate(prepared.base_source),
            train=str(folder / "train.jsonl"),
            validation=str(folder / "validation.jsonl"),
            output=str(folder / "adapter"),
            rank=settings.training_rank,
            epochs=settings.training_epochs,
            batch_examples=settings.training_batch_examples,
            learning_rate=settings.training_learning_rate,
            tokens_max=settings.training_tokens_max,
            seed=settings.training_seed,
            memory_bytes_max=settings.training_memory_bytes_max,
        )

    async def _wait_for_batches(self, run_id: str) -> None:
        """Return when batches are through; say meanwhile that somebody has the run."""
        idle = asyncio.ensure_future(self._backlog.idle())
        alive = TrainingProgressed(run_id=run_id, step=0, steps=0)
        try:
            while not (await asyncio.wait({idle}, timeout=self._saying_seconds))[0]:
                await training_runs.record(self._store, alive, trainer=self._id)
            await idle
        finally:
            await tasks.end(idle)

    async def _train(self, run: Run, prepared: TrainingPrepared, job: Job) -> None:
        began = self._clock.monotonic()
        parts = {
            job.train: await self._blobs.get(prepared.train_blob),
            job.validation: await self._blobs.get(prepared.validation_blob),
        }
        await asyncio.to_thread(_lay_out, job, parts)
        async with (
            asyncio.timeout(self._settings.training_seconds_max),
            running(self._python, job, self._record) as process,
        ):
            loss = await self._report(run.run_id, process)
            reason = await process.ended()
        if reason is not None:
            await self._fail(run, reason, retryable=process.was_killed)
            return
        prefix = await self._upload(run.run_id, Path(job.output))
        seconds = self._clock.monotonic() - began
        await training_runs.record(
            self._store,
            TrainingCompleted(run_id=run.run_id, adapter_blob=prefix, loss=loss, seconds=seconds),
            trainer=self._id,
        )
        log.info("trained", run=run.run_id, seconds=round(seconds, 1), loss=loss)

    async def _report(self, run_id: str, process: TrainingProcess) -> float | None:
        """Record steps as they come, and the last one again where none does; return the loss."""
        latest = TrainingProgressed(run_id=run_id, step=0, steps=0)
        loss: float | None = None
        steps = process.steps()
        coming = asyncio.ensure_future(anext(steps, None))
        try:
            while True:
                done, _ = await asyncio.wait({coming}, timeout=self._saying_seconds)
                if done:
                    step = coming.result()
                    if step is None:
                        return loss
                    loss = loss if step.loss is None else step.loss
                    latest = _progressed(run_id, step)
                    coming = asyncio.ensure_future(anext(steps, None))
                await training_runs.record(self._store, latest, trainer=self._id)
        finally:
            await tasks.end(coming)

    async def _upload(self, run_id: str, folder: Path) -> str:
        """Store the adapter; a worker that loads it finds it whole, as nobody was told before."""
        prefix = f"{ADAPTERS}/{run_id}"
        for name, content in (await asyncio.to_thread(_files, folder)).items():
            await self._blobs.put(f"{prefix}/{name}", content)
        return prefix

    async def _fail(self, run: Run, reason: str, *, retryable: bool) -> None:
        log.warning("a run failed", run=run.run_id, reason=reason, retryable=retryable)
        said = TrainingFailed(run_id=run.run_id, reason=reason, retryable=retryable)
        # In the name of who has it: what has gone on, or is another's by now, does not fail.
        holder = run.started.trainer if run.started else None
        try:
            await training_runs.record(self._store, said, trainer=holder)
        except Rejected as error:
            log.info("nothing to fail", run=run.run_id, why=str(error))


def _progressed(run_id: str, step: Step) -> TrainingProgressed:
    return TrainingProgressed(
        run_id=run_id,
        step=step.step,
        steps=step.steps,
        epoch=step.epoch,
        loss=step.loss,
        validation_loss=step.validation_loss,
    )


def _lay_out(job: Job, parts: Mapping[str, bytes]) -> None:
    Path(job.output).mkdir(parents=True)
    for path, content in parts.items():
        Path(path).write_bytes(content)


def _files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}
