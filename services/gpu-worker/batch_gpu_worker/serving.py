"""What this worker offers just now: said in the log and in heartbeats, taken from the queues."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from batch_gpu_worker.admission import Admission, in_flight_max
from batch_gpu_worker.emptying import LOOK_SECONDS, run_empty
from batch_gpu_worker.heartbeat import HeartbeatSender
from batch_gpu_worker.holdings import HeldChunk, Holdings
from batch_gpu_worker.intake import Intake
from batch_gpu_worker.online import OnlineDesk
from batch_gpu_worker.presence import Presence
from vllm_batch.notify import notify
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)


class Serving:
    """Opens and shuts the doors through which work comes in."""

    def __init__(
        self,
        intake: Intake,
        admission: Admission,
        holdings: Holdings,
        presence: Presence,
        heartbeats: HeartbeatSender,
        *,
        online: OnlineDesk,
        settings: Settings,
    ) -> None:
        self._intake = intake
        self._admission = admission
        self._holdings = holdings
        self._presence = presence
        self._heartbeats = heartbeats
        self._online = online
        self._settings = settings

    async def open(self, models: Sequence[str]) -> None:
        """Offer exactly these models, the base model first."""
        await self._online.serve(models)
        await self._announce(models)
        self._admission.reopen()
        self._intake.serve(models)
        notify(READY=1, STATUS=f"serving {', '.join(models)}")
        log.info("ready", models=list(models), in_flight_max=self._admission.in_flight_max)

    async def close(self) -> None:
        """Offer nothing; let what runs finish within model_drain_seconds, give back the rest."""
        log.info("running empty for another model", in_flight=self._admission.in_flight)
        await self._announce([])
        self._intake.serve([])
        finish = asyncio.get_running_loop().time() + self._settings.model_drain_seconds
        await asyncio.gather(
            self._online.finish(until=finish),
            run_empty(self._intake, self._admission, self._holdings, "drained", finish=finish),
        )

    def withdraw(self, model: str) -> None:
        """Give back at once what is held for one of the models, and take nothing more for it, until
        `narrow` tells everybody."""
        self._intake.withdraw(model)
        for chunk in [chunk for chunk in self._holdings if _model_of(chunk) == model]:
            self._admission.end(chunk, "drained")

    async def narrow(self, models: Sequence[str]) -> None:
        """Offer only these of the models from now on; give back what is held for others."""
        await self.open(models)
        while others := [chunk for chunk in self._holdings if _model_of(chunk) not in models]:
            for chunk in others:
                self._admission.end(chunk, "drained")
            await asyncio.sleep(LOOK_SECONDS)

    async def _announce(self, models: Sequence[str]) -> None:
        self._heartbeats.models = list(models)
        await self._heartbeats.send()  # gateways go by it; the event takes the log's time
        await self._presence.ready(list(models), in_flight_max(self._settings))


def _model_of(chunk: HeldChunk) -> str:
    return chunk.lease.chunk.planned.model
