"""Who of several equal processes does the work: a lease in a NATS key-value bucket.

The entry's revision is the fencing token, and it only grows. Being leader saves work that would be
done twice; safety never depends on it, since every append is fenced by the event log itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import nats.errors
import structlog
from nats.js import JetStreamContext
from nats.js.api import KeyValueConfig, StorageType
from nats.js.errors import BucketNotFoundError, KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.errors import Error as JetStreamError
from nats.js.kv import KeyValue

from vllm_batch import tasks
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)

BUCKET = "LEADERS"


class Leadership:
    """Runs a duty while this process is the leader of ``role``; a standby takes over within a
    lease."""

    def __init__(self, js: JetStreamContext, settings: Settings, *, role: str, owner: str) -> None:
        self._js = js
        self._lease_seconds = settings.leader_lease_seconds
        self._replicas = settings.events_replicas
        self._role = role
        self._owner = owner
        self._revision: int | None = None

    async def run(self, duty: Callable[[], Awaitable[None]]) -> None:
        """Campaign for ever; run ``duty`` while leading and cancel it when the lease is lost."""
        while True:
            if not await self._acquire():
                await asyncio.sleep(self._lease_seconds / 3)
                continue
            log.info("leading", role=self._role, revision=self._revision)
            task = asyncio.ensure_future(duty())
            try:
                await self._hold(task)
            finally:
                try:
                    await tasks.end(task)
                finally:  # whoever stops us cancels again where the duty takes its time to end
                    await self._resign()

    async def _bucket(self) -> KeyValue:
        try:
            return await self._js.key_value(BUCKET)
        except BucketNotFoundError:
            config = KeyValueConfig(
                bucket=BUCKET,
                ttl=self._lease_seconds,
                storage=StorageType.FILE,
                replicas=self._replicas,
            )
            return await self._js.create_key_value(config)

    async def _acquire(self) -> bool:
        try:
            bucket = await self._bucket()
            self._revision = await bucket.create(self._role, self._owner.encode())
        except (KeyWrongLastSequenceError, JetStreamError, nats.errors.Error, TimeoutError):
            return False
        return True

    async def _hold(self, task: asyncio.Future[None]) -> None:
        """Renew until the lease is lost; re-raise what the duty raised."""
        loop = asyncio.get_running_loop()
        valid_until = loop.time() + self._lease_seconds
        while True:
            done, _ = await asyncio.wait({task}, timeout=self._lease_seconds / 3)
            if done:
                return task.result()
            asked_at = loop.time()
            try:
                bucket = await self._bucket()
                self._revision = await bucket.update(
                    self._role, self._owner.encode(), last=self._revision
                )
                valid_until = asked_at + self._lease_seconds
            except KeyWrongLastSequenceError:
                log.warning("leadership lost", role=self._role)
                return None
            except (JetStreamError, nats.errors.Error, TimeoutError) as error:
                log.warning("leadership not renewed", role=self._role, error=repr(error))
            if loop.time() >= valid_until:
                return None

    async def _resign(self) -> None:
        revision, self._revision = self._revision, None
        try:
            async with asyncio.timeout(1):
                bucket = await self._bucket()
            await bucket.delete(self._role, last=revision)
        except (JetStreamError, nats.errors.Error, TimeoutError):
            return  # it lapses by itself


async def leader_of(js: JetStreamContext, role: str) -> str | None:
    """Return who leads ``role`` now, None where nobody does.

    Raises:
        nats.errors.Error: NATS does not answer.
    """
    try:
        bucket = await js.key_value(BUCKET)
        value = (await bucket.get(role)).value
    except (BucketNotFoundError, KeyNotFoundError):
        return None
    return value.decode() if value else None  # nats-py 2.16 returns None of an expired key
