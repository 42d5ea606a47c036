"""Asking for a model to be loaded and watching until a worker serves it or says why it cannot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing

from vllm_batch import fleet, model_listing, model_orders
from vllm_batch.errors import AlreadyDone, NotFound
from vllm_batch.event_store import EventStore
from vllm_batch.events import Event
from vllm_batch.events.model import ModelFailed, ModelLoading, ModelReady
from vllm_batch.messaging import subjects
from vllm_batch.model_listing import ModelStatus

Progress = Callable[[str], None]


async def load(
    store: EventStore,
    name: str,
    *,
    worker: str | None,
    requested_by: str,
    on_progress: Progress,
    wait_seconds: float | None,
) -> ModelStatus:
    """Ask for a model, by a worker or by any, and return how it stands then.

    ``wait_seconds``: how long to wait for a worker to be ready or to fail; None: not at all. Where
    that passes, the request stands.

    Raises:
        NotFound: no such registered model or worker.
        EventStoreUnavailable: the log does not answer.
    """
    try:
        model = await model_orders.load(store, name, worker=worker, requested_by=requested_by)
        on_progress(f"{model.name}: asked for")
    except AlreadyDone as error:
        model = await model_orders.find(store, name)  # what comes after this is watched for
        on_progress(str(error))
    on = await _name_of(store, worker) if worker is not None else None
    status = await model_listing.model(store, model.name)
    if _is_ready(status, on):
        on_progress(f"{model.name}: ready")
        return status
    if wait_seconds is None:
        return status
    subject = subjects.aggregate("model", model.key)
    try:
        async with asyncio.timeout(wait_seconds):
            await _watch(store, subject, model.seq, on, on_progress)
    except TimeoutError:
        on_progress(f"{model.name}: not loaded after {wait_seconds:g} s; the request stands")
    return await model_listing.model(store, model.name)


async def _name_of(store: EventStore, worker: str) -> str:
    found = (await fleet.load(store)).find(worker)
    if found is None:
        raise NotFound(f"there is no worker {worker!r}; `vllm-batch worker status` lists them")
    return found.name


def _is_ready(status: ModelStatus, on: str | None) -> bool:
    return any(one.status == "ready" and on in {None, one.worker} for one in status.workers)


async def _watch(
    store: EventStore, subject: str, after: int, on: str | None, on_progress: Progress
) -> None:
    """Follow a model's events until a worker, or ``on``, is ready with it or has failed."""
    async with aclosing(store.follow([subject], after=after)) as batches:  # type: ignore[type-var]
        async for batch in batches:
            for recorded in batch:
                if _tell(recorded.event, on, on_progress):
                    return


def _tell(event: Event, on: str | None, on_progress: Progress) -> bool:
    """Say what a worker reports; return whether it is the last word."""
    if not isinstance(event, ModelLoading | ModelReady | ModelFailed):
        return False
    if on not in {None, event.worker_name}:
        return False
    match event:
        case ModelLoading():
            on_progress(f"{event.worker_name}: loading")
            return False
        case ModelReady(load_seconds=seconds):
            on_progress(f"{event.worker_name}: ready after {seconds:.1f} s")
        case ModelFailed(reason=reason):
            on_progress(f"{event.worker_name}: failed: {reason}")
    return True
