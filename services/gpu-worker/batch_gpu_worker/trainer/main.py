"""``python -m batch_gpu_worker trainer``: the trainer as a process."""

from __future__ import annotations

import structlog

from batch_gpu_worker.trainer.trainer import Trainer
from vllm_batch import ids, process
from vllm_batch.blobs import open_blobs
from vllm_batch.clock import SystemClock
from vllm_batch.errors import EngineFailed
from vllm_batch.event_store import jetstream
from vllm_batch.event_store.jetstream import Access
from vllm_batch.ids import WorkerId
from vllm_batch.metrics.event_log import EventLogMetrics
from vllm_batch.metrics.exposition import exposed
from vllm_batch.notify import notify
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)


async def serve(settings: Settings) -> None:
    """Run one trainer until SIGTERM or SIGINT.

    Raises:
        EngineFailed: there is no environment that could train.
        EventStoreUnavailable: no NATS server answers.
    """
    python = settings.engine_python
    if python is None or not python.exists():
        raise EngineFailed(
            "VLLM_BATCH_ENGINE_PYTHON names no Python with peft, trl and datasets: install them "
            "into the engine's environment and set it"
        )
    trainer_id = WorkerId(ids.new("trainer_"))
    async with (
        exposed(settings, service="trainer") as exposition,
        jetstream.connect(
            settings,
            source=trainer_id,
            access=Access.FILTERED,
            metrics=EventLogMetrics(exposition.registry),
        ) as store,
    ):
        trainer = Trainer(
            settings,
            store,
            open_blobs(settings.blob_url),
            python=python,
            trainer_id=trainer_id,
            clock=SystemClock(),
        )
        log.info("waiting for training runs", trainer=trainer_id)
        notify(READY=1, STATUS="waiting for training runs")
        await process.until_told(trainer.run())
