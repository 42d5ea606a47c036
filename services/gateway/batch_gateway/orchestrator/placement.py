"""Tells workers which models to serve; `placement_policy` says which.

Reads the board, sends `Serve` to workers, writes nothing: what a worker makes of it stands in
``model.*`` and ``worker.ready``. An order that got lost is given again. As long as nobody has
ever registered a model, workers serve what they are configured for and are told nothing.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace

import structlog
from nats.aio.client import Client

from batch_gateway.orchestrator.board import Board, JobView, WorkerView
from batch_gateway.orchestrator.placement_policy import (
    Assignment,
    Demand,
    Rules,
    Worker,
    decide,
)
from batch_gateway.orchestrator.roster import Roster
from vllm_batch import worker_control
from vllm_batch.aggregates.job import JobStatus
from vllm_batch.clock import Clock
from vllm_batch.errors import WorkerUnreachable
from vllm_batch.fleet import FIXED_ENGINES
from vllm_batch.ids import WorkerId
from vllm_batch.model_registry import ModelView
from vllm_batch.settings import Settings
from vllm_batch.worker_control import ModelSpec, Serve

log = structlog.get_logger(__name__)

REQUESTED_BY = "placement"
ANSWER_SECONDS = 5.0
ORDER_AGAIN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class _Order:
    """What a worker was told, and its last event at that time."""

    base: str
    seq: int
    at: float


class Placement:
    """Looks every reconcile_seconds, and whenever a worker's state changes."""

    def __init__(
        self, board: Board, roster: Roster, client: Client, settings: Settings, clock: Clock
    ) -> None:
        self._board = board
        self._roster = roster
        self._client = client
        self._settings = settings
        self._clock = clock
        self._rules = Rules(settings.model_residency_seconds_min, settings.model_spread_chunks)
        self._orders: dict[WorkerId, _Order] = {}
        self._failed_at: dict[tuple[WorkerId, str], float] = {}

    async def run(self) -> None:
        """Place models for ever."""
        watch = self._board.watch_workers()
        try:
            while True:
                await self.place()
                await watch.wait(self._settings.reconcile_seconds)
        finally:
            self._board.unwatch(watch)

    async def place(self) -> None:
        """Decide once, and give the orders that follow."""
        if not self._board.registry.position:
            return
        work = self._work()
        registered = self._known(work)
        self._note_failures(registered)
        workers = [
            self._worker(view, registered)
            for view in self._board.workers.values()
            if self._can_be_told(view)
        ]
        bases = {name: model.base for name, model in registered.items()}
        changes = decide(workers, bases, _demands(registered, work), self._rules)
        await asyncio.gather(*(self._tell(change, registered) for change in changes))

    def _can_be_told(self, view: WorkerView) -> bool:
        """Whether it is there, has had a model, and can load others."""
        ready = view.configured is not None and view.ended_seq is None
        return ready and view.engine not in FIXED_ENGINES and self._roster.is_alive(view)

    def _worker(self, view: WorkerView, registered: dict[str, ModelView]) -> Worker:
        worker_id, now = view.worker_id, self._clock.monotonic()
        here = {name: registered[name] for name in view.models if name in registered}
        since = view.base_since or self._clock.now()
        resident_seconds = (self._clock.now() - since).total_seconds()
        online_ago = self._roster.online_seconds_ago(worker_id)
        retry_seconds = self._settings.model_retry_seconds
        worker = Worker(
            worker_id,
            view.name,
            view.base,
            adapters=frozenset(view.models - {view.base}),
            configured=view.configured,
            resident_seconds=resident_seconds,
            online=online_ago < min(resident_seconds, self._rules.residency_seconds),
            stale=any(worker_id not in model.ready_on for model in here.values()),
            failed=frozenset(
                name
                for (failed_on, name), at in self._failed_at.items()
                # Each try would take away what goes on serving under its name: only when asked.
                if failed_on == worker_id and (now - at < retry_seconds or name == view.base)
            ),
        )
        order = self._orders.get(worker_id)
        if order and order.seq == view.seq and now - order.at < ORDER_AGAIN_SECONDS:
            return replace(worker, base=order.base, busy=True)
        if loading := self._loading_on(worker_id, registered):
            return replace(worker, base=loading, busy=True)
        return replace(worker, busy=view.base is None)

    @staticmethod
    def _loading_on(worker_id: WorkerId, registered: dict[str, ModelView]) -> str | None:
        for model in registered.values():
            if worker_id in model.loading_on:
                return model.base or model.name
        return None

    def _note_failures(self, registered: dict[str, ModelView]) -> None:
        now = self._clock.monotonic()
        failed = {(worker, model.name) for model in registered.values() for worker in model.failed}
        self._failed_at = {key: self._failed_at.get(key, now) for key in failed}

    def _known(self, work: Collection[str]) -> dict[str, ModelView]:
        """Return the models that may be served: those that are registered, and removed ones that
        running batches still need, with their bases."""
        registry = self._board.registry
        known = {model.name: model for model in registry.all()}
        for name in work:
            model = known.get(name) or registry.find(name)
            base = registry.find(model.base) if model is not None and model.base else None
            known |= {one.name: one for one in (model, base) if one is not None}
        return known

    def _work(self) -> dict[str, Demand]:
        """Return what running jobs ask of each model."""
        demands: defaultdict[str, Demand] = defaultdict(Demand)
        for view in self._board.jobs.values():
            if view.runnable:
                for name, demand in self._demands_of(view).items():
                    demands[name] += demand
        return {name: demand for name, demand in demands.items() if demand.work}

    def _demands_of(self, view: JobView) -> dict[str, Demand]:
        """Return what a running job asks of each of its models."""
        submitted = view.job.submitted
        now, deadline = self._clock.now().timestamp(), submitted.expires_at
        window = deadline - view.job.times[JobStatus.VALIDATING].timestamp()
        margin = min(self._settings.model_deadline_margin_seconds, window / 2)
        one = Demand(
            priority=submitted.priority, deadline=deadline, urgent=deadline - now <= margin
        )
        demands: defaultdict[str, Demand] = defaultdict(lambda: one)
        for number in view.ready:
            name = view.model_of(number)
            demands[name] = replace(demands[name], ready=demands[name].ready + 1)
        for number in view.leased:
            name = view.model_of(number)
            demands[name] = replace(demands[name], leased=demands[name].leased + 1)
        return demands

    async def _tell(self, change: Assignment, registered: dict[str, ModelView]) -> None:
        worker_id = change.worker_id
        view = self._board.workers[worker_id]
        order = Serve(
            requested_by=REQUESTED_BY,
            base=_spec(change.base, registered),
            adapters=tuple(_spec(name, registered) for name in sorted(change.adapters)),
            lora=any(model.base == change.base for model in registered.values()),
        )
        self._orders[worker_id] = _Order(change.base, view.seq, self._clock.monotonic())
        try:
            reply = await worker_control.send(self._client, worker_id, order, ANSWER_SECONDS)
        except WorkerUnreachable as error:
            log.warning("a worker is not told what to serve", worker=worker_id, error=str(error))
            return
        log.info(
            "told a worker what to serve", worker=worker_id, base=change.base,
            adapters=sorted(change.adapters), answer=reply.message,
        )  # fmt: skip


def _demands(registered: dict[str, ModelView], work: dict[str, Demand]) -> dict[str, Demand]:
    """Return what is asked of each model: by batches, and by people."""
    nothing = Demand()
    wanted = {
        model.name: Demand(wanted=model.wanted_anywhere, wanted_on=model.wanted_on)
        for model in registered.values()
    }
    return {
        name: wanted.get(name, nothing) + work.get(name, nothing) for name in wanted.keys() | work
    }


def _spec(name: str, registered: dict[str, ModelView]) -> ModelSpec:
    """Return what a model is made of; one that nobody registered is as the worker has it."""
    model = registered.get(name)
    if model is None:
        return ModelSpec(name=name)
    return ModelSpec(
        name=name, source=model.source, base=model.base, engine_args=tuple(model.engine_args)
    )
