"""The models that this worker serves: told what they should be, it brings that about.

    told ──► same base model ──► load and unload adapters, while it serves
        └──► another one ──► run empty ──► engine starts with it ──► serve ──► load adapters
                                   └── it cannot: back to the one before, and say so

What is registered anew under the name that is served, and cannot be loaded, is reported as failed
and stays so, while what was served before goes on answering to that name.

Writes ``model.loading|ready|failed|unloaded``. What failed is not tried again before it is told
again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from batch_gpu_worker.engine_monitor import EngineMonitor
from batch_gpu_worker.engines.base import Engine
from batch_gpu_worker.engines.choice import Chosen
from batch_gpu_worker.model_folders import ModelFolders
from batch_gpu_worker.serving import Serving
from vllm_batch import ids, model_registry, model_reports
from vllm_batch.aggregates.model import Report
from vllm_batch.errors import BlobError, EngineFailed, EngineUnavailable, EventStoreError
from vllm_batch.event_store import EventStore
from vllm_batch.events.model import (
    ModelFailed,
    ModelLoading,
    ModelReady,
    ModelUnloaded,
    UnloadReason,
)
from vllm_batch.ids import WorkerId
from vllm_batch.worker_control import ModelSpec, Reply, Serve

log = structlog.get_logger(__name__)

PAUSE_SECONDS = 0.5
REASON_CHARACTERS_MAX = 2000


class ModelSet:
    """One change at a time; the newest order counts."""

    def __init__(
        self,
        engine: Engine,
        monitor: EngineMonitor,
        serving: Serving,
        folders: ModelFolders,
        store: EventStore,
        *,
        worker_id: WorkerId,
        worker_name: str,
        monotonic: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._monitor = monitor
        self._serving = serving
        self._folders = folders
        self._store = store
        self._worker_id = worker_id
        self._worker_name = worker_name
        self._monotonic = monotonic
        engine.on_adapter_lost = self._lose
        self._configured = engine.chosen.base if engine.chosen else None
        self._base = self._configured
        self._outdated: str | None = None  # what this name means by now cannot be loaded here
        self._adapters: dict[str, ModelSpec] = {}
        self._names: list[str] = []
        self._wanted: Serve | None = None
        self._lost: dict[str, str] = {}  # adapters that the engine lost, and why
        self._told = asyncio.Event()

    def want(self, order: Serve) -> Reply:
        """Take an order; it is carried out after the one that is being carried out."""
        if self._engine.chosen is None:
            return Reply(ok=False, message="this engine serves what its own server serves")
        self._wanted = order
        self._told.set()
        return Reply(ok=True, message=f"going to serve {order.base.name}")

    async def prepare(self) -> None:
        """Have an engine that is not started yet ready for adapters, where there are some."""
        chosen = self._engine.chosen
        if chosen is None or chosen.lora:
            return
        try:
            registry = await model_registry.load(self._store)
        except EventStoreError as error:
            log.warning("whether there are adapters is unknown", error=str(error))
            return
        if any(model.base == chosen.base.name for model in registry.all()):
            self._engine.choose(msgspec.structs.replace(chosen, lora=True))

    async def begin(self) -> None:
        """Serve what the engine has loaded by its configuration."""
        try:
            await self._engine.settled()
        except EngineFailed as error:
            log.warning("the engine does not start with room for adapters", error=str(error))
        await self._engine.ready.wait()
        self._names = await self._listed()
        for name in tuple(self._names):
            await self._report_ready(name)
        await self._serving.open(self._names)

    async def run(self) -> None:
        """Carry out orders for ever."""
        while True:
            await self._told.wait()
            self._told.clear()
            await self._tell_lost()
            wanted, self._wanted = self._wanted, None
            if wanted is not None:
                await self._follow(wanted)

    async def end(self, reason: UnloadReason) -> None:
        """Say that nothing is served any more."""
        for name in tuple(self._names):
            await self._report_unloaded(name, reason)

    async def _follow(self, order: Serve) -> None:
        base, adapters = order.base, {adapter.name: adapter for adapter in order.adapters}
        if base.source is None and self._configured and base.name == self._configured.name:
            base = self._configured
        running = self._engine.chosen
        too_plain = bool(adapters) and running is not None and not running.lora
        if base != self._base or too_plain:
            await self._swap(base, lora=order.lora or bool(adapters))
        if base != self._base:
            return  # it failed
        self._outdated = None
        for name in [name for name, spec in self._adapters.items() if adapters.get(name) != spec]:
            await self._drop(name)
        for name, spec in adapters.items():
            if name not in self._adapters and not self._told.is_set():
                await self._add(spec)
        await self._report_all_ready()  # whoever orders it anew has missed it

    async def _swap(self, base: ModelSpec, *, lora: bool) -> None:
        await self._report(ModelLoading, base.name)
        try:
            local = await self._local(base)
        except (BlobError, EngineFailed) as error:
            await self._swap_failed(base, error)
            return
        await self._serving.close()
        for name in tuple(self._names):
            if name != base.name:
                await self._report_unloaded(name, "swapped")
        began = self._monotonic()
        try:
            await self._monitor.swap(Chosen(local, lora))
        except EngineFailed as error:
            await self._swap_failed(base, error)
        else:
            self._base, self._adapters, self._names = base, {}, [base.name]
            self._outdated = None
        await self._engine.ready.wait()
        await self._report_all_ready(self._monotonic() - began)
        await self._serving.open(self._names)

    async def _swap_failed(self, base: ModelSpec, error: Exception) -> None:
        if base.name in self._names:
            self._outdated = base.name
        await self._report_failed(base.name, str(error), base)

    async def _add(self, spec: ModelSpec) -> None:
        await self._report(ModelLoading, spec.name)
        began = self._monotonic()
        try:
            await self._load(await self._local(spec))
        except (BlobError, EngineFailed) as error:
            await self._report_failed(spec.name, str(error), spec)
            return
        self._adapters[spec.name] = spec
        self._names.append(spec.name)
        await self._report_ready(spec.name, self._monotonic() - began)
        await self._serving.open(self._names)

    async def _drop(self, name: str) -> None:
        if self._adapters.pop(name, None) is None:
            return  # the engine lost it meanwhile
        self._names.remove(name)
        await self._serving.narrow(self._names)
        try:
            await self._engine.unload_adapter(name)
        except EngineUnavailable as error:
            log.info("an engine that starts again has forgotten it", model=name, error=str(error))
        await self._report_unloaded(name, "requested")

    def _lose(self, name: str, reason: str) -> None:
        """The engine started again without an adapter; it will be ready in a moment."""
        if self._adapters.pop(name, None) is None:
            return
        self._names.remove(name)
        self._serving.withdraw(name)
        self._lost[name] = reason
        self._told.set()

    async def _tell_lost(self) -> None:
        lost, self._lost = self._lost, {}
        if lost:
            await self._serving.narrow(self._names)
        for name, reason in lost.items():
            await self._report_failed(name, reason)

    async def _load(self, adapter: ModelSpec) -> None:
        while True:
            await self._engine.ready.wait()
            try:
                return await self._engine.load_adapter(adapter.name, adapter.source or "")
            except EngineUnavailable as error:
                log.warning("adapter not loaded yet", model=adapter.name, error=str(error))
            await asyncio.sleep(PAUSE_SECONDS)

    async def _local(self, spec: ModelSpec) -> ModelSpec:
        """Return the model with the place of its files on this machine."""
        if spec.source is None:
            raise EngineFailed(f"this worker is not configured for {spec.name}")
        return msgspec.structs.replace(spec, source=await self._folders.locate(spec.source))

    async def _listed(self) -> list[str]:
        while True:
            try:
                return await self._engine.models()
            except EngineUnavailable as error:
                log.warning("the engine names no models yet", error=str(error))
            await asyncio.sleep(PAUSE_SECONDS)

    async def _report_all_ready(self, load_seconds: float = 0.0) -> None:
        for name in tuple(self._names):
            if name != self._outdated:
                await self._report_ready(name, load_seconds)

    async def _report_ready(self, name: str, load_seconds: float = 0.0) -> None:
        seconds = round(load_seconds, 3)
        await self._report(ModelReady, name, self._told_of(name), load_seconds=seconds)

    async def _report_failed(self, name: str, reason: str, spec: ModelSpec | None = None) -> None:
        log.error("a model cannot be loaded", model=name, reason=reason)
        await self._report(ModelFailed, name, spec, reason=reason[-REASON_CHARACTERS_MAX:])

    async def _report_unloaded(self, name: str, reason: UnloadReason) -> None:
        await self._report(ModelUnloaded, name, reason=reason)

    def _told_of(self, name: str) -> ModelSpec | None:
        """Return what is served under ``name``, if somebody told this worker what that is."""
        if self._base is not None and name == self._base.name:
            return self._base if self._base != self._configured else None
        return self._adapters.get(name)

    async def _report(
        self, kind: type[Report], name: str, made_of: ModelSpec | None = None, **fields: Any
    ) -> None:
        """Record it if the model is registered, as it is made; try until the log answers."""
        said = kind(
            model_key=ids.model_key(name),
            worker_id=self._worker_id,
            worker_name=self._worker_name,
            **fields,
        )
        while True:
            try:
                await model_reports.report(self._store, said, made_of=made_of)
            except EventStoreError as error:
                log.warning("not reported yet", type=kind.TYPE, model=name, error=str(error))
            else:
                return
            await asyncio.sleep(PAUSE_SECONDS)
