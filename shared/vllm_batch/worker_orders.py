"""What people may ask of a worker, the same from the command line and from the admin API.

Sends commands over NATS to the worker itself; only ``clear`` is recorded here, as the worker it is
about is dead.
"""

from __future__ import annotations

from nats.aio.client import Client

from vllm_batch import fleet, worker_control
from vllm_batch.errors import AlreadyDone, Conflict, NotFound
from vllm_batch.event_store import EventStore
from vllm_batch.events import WorkerCleared
from vllm_batch.fleet import WorkerView
from vllm_batch.worker_control import Command, Reply

REPLY_SECONDS = 30.0
_CLEAR_ATTEMPTS_MAX = 5


async def find(store: EventStore, worker: str) -> WorkerView:
    """Return a worker by name or id.

    Raises:
        NotFound: the log knows none.
    """
    found = (await fleet.load(store)).find(worker)
    if found is None:
        raise NotFound(f"there is no worker {worker!r}; `vllm-batch worker status` lists them")
    return found


async def order(store: EventStore, client: Client, worker: str, command: Command) -> Reply:
    """Have a worker carry out a command; return its answer.

    Raises:
        NotFound: the log knows no such worker.
        WorkerUnreachable: it does not answer.
    """
    found = await find(store, worker)
    return await worker_control.send(client, found.worker_id, command, REPLY_SECONDS)


async def clear(store: EventStore, worker: str, *, requested_by: str) -> WorkerView:
    """Record that a crash loop is mended, so that the watchdog starts the worker again.

    Raises:
        NotFound: the log knows no such worker.
        AlreadyDone: it is in no crash loop.
    """
    for attempt in range(_CLEAR_ATTEMPTS_MAX):
        known = await fleet.load(store)
        found = known.find(worker)
        if found is None:
            raise NotFound(f"there is no worker {worker!r}; `vllm-batch worker status` lists them")
        newest = known.names[found.name].newest
        if not known.names[found.name].crash_looping:
            raise AlreadyDone(f"worker {found.name} is in no crash loop")
        event = WorkerCleared(worker_id=newest.worker_id, requested_by=requested_by)
        try:
            await store.append(event, expected=newest.seq)
        except Conflict:
            if attempt == _CLEAR_ATTEMPTS_MAX - 1:
                raise
            continue
        return newest
    raise AssertionError("unreachable")
