"""Carries out what people ask of this worker over NATS, and records that they did.

One command at a time. What takes longer than an answer may (a restart) is answered when it begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

import msgspec
import nats.errors
import psutil
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from batch_gpu_worker.engine_monitor import EngineMonitor
from batch_gpu_worker.engines.base import Engine
from batch_gpu_worker.engines.death import Death
from batch_gpu_worker.gpu import GpuMeter
from batch_gpu_worker.heartbeat import HeartbeatSender
from batch_gpu_worker.model_set import ModelSet
from vllm_batch.errors import BatchError
from vllm_batch.events import (
    Event,
    WorkerEngineKilled,
    WorkerGpuCleared,
    WorkerRestartRequested,
)
from vllm_batch.ids import WorkerId
from vllm_batch.worker_control import (
    ClearGpu,
    Command,
    Kill,
    Reply,
    Restart,
    Serve,
    Status,
    subjects_of,
)

log = structlog.get_logger(__name__)


class AskRestart(Protocol):
    """Has the worker start anew."""

    def __call__(self, *, now: bool) -> None: ...


class Control:
    """Listens while `listening` lasts."""

    def __init__(
        self,
        engine: Engine,
        monitor: EngineMonitor,
        gpus: GpuMeter,
        heartbeats: HeartbeatSender,
        models: ModelSet,
        *,
        worker_id: WorkerId,
        name: str,
        record: Callable[[Event], Awaitable[None]],
    ) -> None:
        self._engine = engine
        self._monitor = monitor
        self._gpus = gpus
        self._heartbeats = heartbeats
        self._models = models
        self._worker_id = worker_id
        self._name = name
        self._record = record
        self._busy = asyncio.Lock()

    @asynccontextmanager
    async def listening(self, client: Client, ask_restart: AskRestart) -> AsyncIterator[None]:
        """Take commands while the context lasts."""
        running: set[asyncio.Task[None]] = set()

        async def heard(message: Msg) -> None:
            task = asyncio.create_task(self._answer(client, message, ask_restart))
            running.add(task)
            task.add_done_callback(running.discard)

        subscriptions = [
            await client.subscribe(subject, cb=heard)
            for subject in subjects_of(self._worker_id, self._name)
        ]
        try:
            yield
        finally:
            for subscription in subscriptions:
                if not client.is_closed:
                    await subscription.unsubscribe()
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _answer(self, client: Client, message: Msg, ask_restart: AskRestart) -> None:
        try:
            command = msgspec.json.decode(message.data, type=Command)
        except msgspec.DecodeError as error:
            reply = Reply(ok=False, message=f"this is no command: {error}")
        else:
            try:
                reply = await self._carry_out(command, ask_restart)
            except BatchError as error:
                reply = Reply(ok=False, message=str(error))
        if message.reply:
            with contextlib.suppress(nats.errors.Error):
                await client.publish(message.reply, msgspec.json.encode(reply))

    async def _carry_out(self, command: Command, ask_restart: AskRestart) -> Reply:
        if isinstance(command, Status):
            heartbeat = await self._heartbeats.now()
            return Reply(ok=True, message=heartbeat.state, data=msgspec.to_builtins(heartbeat))
        if isinstance(command, Serve):
            return self._models.want(command)
        if self._busy.locked():
            return Reply(ok=False, message="another command is being carried out")
        async with self._busy:
            log.warning(
                "asked by a person", command=type(command).__name__, by=command.requested_by
            )
            match command:
                case Restart(requested_by=who, now=now):
                    await self._record(
                        WorkerRestartRequested(worker_id=self._worker_id, requested_by=who, now=now)
                    )
                    ask_restart(now=now)
                    how = "restarting now" if now else "restarting when what runs is finished"
                    return Reply(ok=True, message=how)
                case Kill(requested_by=who):
                    return await self._kill(who)
                case ClearGpu(requested_by=who):
                    return await self._clear_gpu(who)

    async def _kill(self, who: str) -> Reply:
        if (pid := self._engine.pid) is None and not self._engine.ready.is_set():
            return Reply(ok=False, message="no engine runs here just now")
        await self._monitor.replace(Death("killed", f"asked by {who}"))
        await self._record(WorkerEngineKilled(worker_id=self._worker_id, requested_by=who))
        return Reply(ok=True, message="the engine is killed and starts again", data={"pid": pid})

    async def _clear_gpu(self, who: str) -> Reply:
        killed: list[int] = []

        async def kill_leftovers() -> None:
            killed.extend(await asyncio.to_thread(self._kill_leftovers))

        before = await asyncio.to_thread(self._gpus.memory_used_bytes)
        after: int | None = None

        async def clear() -> None:
            nonlocal after
            await kill_leftovers()
            after = await asyncio.to_thread(self._gpus.memory_used_bytes)

        await self._monitor.replace(Death("requested", f"GPU cleared, asked by {who}"), clear)
        event = WorkerGpuCleared(
            worker_id=self._worker_id,
            requested_by=who,
            memory_used_bytes_before=before,
            memory_used_bytes_after=after,
            killed_pids=tuple(killed),
        )
        await self._record(event)
        data = {name: getattr(event, name) for name in event.__struct_fields__[2:]}
        message = f"killed {len(killed)} left-over processes; the engine starts again"
        return Reply(ok=True, message=message, data=data)

    def _kill_leftovers(self) -> list[int]:
        """SIGKILL what is still there of an engine that has ended; return the pids.

        NVML is not asked whether they hold a GPU: in a container it may not know their pids, and
        after the engine's end nothing of it has any business left.
        """
        killed = []
        for process in psutil.process_iter():
            if process.pid != os.getpid() and self._engine.owns(process.pid):
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGKILL)
                    killed.append(process.pid)
        return killed
