"""The second line against frozen engines: the agent kills its own; if it does not, we ask it to.

Reads heartbeats; sends ``Kill`` over NATS. The agent records what it did and who asked.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog
from nats.aio.client import Client

from batch_watchdog.pulse import Pulse
from vllm_batch import worker_control
from vllm_batch.errors import WorkerUnreachable
from vllm_batch.heartbeats import Heartbeat
from vllm_batch.ids import WorkerId
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)

REQUESTED_BY = "watchdog"
PATIENCE = 2.0
"""Times engine_frozen_seconds: the agent acts after one, and needs some time for it."""
REPLY_SECONDS = 15.0


class FrozenEngines:
    """Asks for each frozen engine once in PATIENCE times engine_frozen_seconds."""

    def __init__(
        self, pulse: Pulse, client: Client, settings: Settings, monotonic: Callable[[], float]
    ) -> None:
        self._pulse = pulse
        self._client = client
        self._limit_seconds = PATIENCE * settings.engine_frozen_seconds
        self._silence_seconds = settings.lease_seconds
        self._monotonic = monotonic
        self._asked: dict[WorkerId, float] = {}

    def found(self) -> list[Heartbeat]:
        """Return the workers whose engine has been frozen for too long and is still to be
        killed."""
        now = self._monotonic()
        for worker_id, asked in list(self._asked.items()):
            if now - asked > self._limit_seconds:
                del self._asked[worker_id]
        return [
            beat
            for beat in self._pulse.beating(self._silence_seconds)
            if beat.engine_progress_age_seconds > self._limit_seconds
            and beat.worker_id not in self._asked
        ]

    def note_asked(self, beat: Heartbeat) -> None:
        """Do not ask for this one again for a while."""
        self._asked[beat.worker_id] = self._monotonic()

    async def check(self) -> None:
        """Have every frozen engine killed."""
        for beat in self.found():
            self.note_asked(beat)
            log.warning(
                "frozen engine", worker=beat.name, in_flight=beat.in_flight,
                seconds=round(beat.engine_progress_age_seconds),
            )  # fmt: skip
            command = worker_control.Kill(requested_by=REQUESTED_BY)
            try:
                reply = await worker_control.send(
                    self._client, beat.worker_id, command, REPLY_SECONDS
                )
            except WorkerUnreachable as error:
                log.warning("frozen engine not killed", worker=beat.name, error=str(error))
            else:
                log.info("asked to kill", worker=beat.name, ok=reply.ok, answer=reply.message)
