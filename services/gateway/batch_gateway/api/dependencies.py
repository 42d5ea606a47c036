"""What the endpoints work with, handed in once and given to each by the framework."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated
from weakref import WeakValueDictionary

from fastapi import Depends, Request
from nats.aio.client import Client
from prometheus_client import CollectorRegistry

from batch_gateway.api.authentication import Caller, KeyRing
from batch_gateway.api.event_access import Owners
from batch_gateway.api.gate import caller_of
from batch_gateway.api.inference_calls import OnlineWork
from batch_gateway.api.labeling_projects import LabelingProjects
from batch_gateway.api.meter import Meter
from batch_gateway.api.open_uploads import OpenUploads
from batch_gateway.api.rates import Rates
from batch_gateway.api.reads import Reads
from vllm_batch import ids
from vllm_batch.blobs import BlobStore
from vllm_batch.clock import Clock, SystemClock
from vllm_batch.event_store import EventStore
from vllm_batch.metrics.api import ApiMetrics
from vllm_batch.project_limits import ProjectLimits
from vllm_batch.settings import Settings


class Locks:
    """Locks by name, so that rivals in this process wait instead of running into conflicts."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, name: str) -> asyncio.Lock:
        """Return the lock of ``name``; it lives as long as somebody holds it."""
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        return lock


@dataclass(frozen=True, kw_only=True)
class Dependencies:
    """Everything an endpoint may use. ``new_id`` makes an id from its prefix."""

    settings: Settings
    store: EventStore
    blobs: BlobStore
    reads: Reads
    keys: KeyRing
    limits: ProjectLimits
    client: Client | None = None
    """The connection over which workers take orders."""
    online: OnlineWork | None = None
    """Where online requests go; it needs the connection."""
    clock: Clock = SystemClock()  # noqa: RUF009 - it has no state
    new_id: Callable[[str], str] = ids.new
    locks: Locks = field(default_factory=Locks)
    metrics: ApiMetrics = field(default_factory=lambda: ApiMetrics(CollectorRegistry()))
    owners: Owners = field(init=False)
    labeling: LabelingProjects = field(init=False)
    rates: Rates = field(init=False)
    meter: Meter = field(init=False)
    open_uploads: OpenUploads = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "owners", Owners(self.store))
        object.__setattr__(self, "labeling", LabelingProjects(self.store))
        object.__setattr__(self, "rates", Rates(lambda: self.clock.now().timestamp()))
        meter = Meter(self.store, self.settings.usage_flush_seconds)
        object.__setattr__(self, "meter", meter)
        object.__setattr__(self, "open_uploads", OpenUploads(self.clock))


async def _dependencies(request: Request) -> Dependencies:
    dependencies: Dependencies = request.app.state.dependencies
    return dependencies


async def _caller(request: Request) -> Caller:
    return caller_of(request.scope)


Api = Annotated[Dependencies, Depends(_dependencies)]
CalledBy = Annotated[Caller, Depends(_caller)]
