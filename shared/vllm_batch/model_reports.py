"""What workers report of the models they load and serve. Appends ``model.*``; reads the model's own
events."""

from __future__ import annotations

from vllm_batch.aggregates import model as rules
from vllm_batch.aggregates.model import Report
from vllm_batch.errors import Rejected
from vllm_batch.event_store import EventStore, append_decided
from vllm_batch.events import Recorded
from vllm_batch.messaging import subjects


async def report(store: EventStore, said: Report) -> Recorded | None:
    """Record what a worker says of a model; several workers may speak at once.

    Returns None where there is nothing to record: the log has it so already, or nobody registered
    the model (a worker's own configuration names it, and `worker.ready` says enough).

    Raises:
        Conflict: others were faster every time.
        EventStoreUnavailable: no answer in time.
    """
    try:
        recorded, _ = await append_decided(
            store,
            subjects.aggregate("model", said.model_key),
            rules.evolve,
            lambda state: rules.decide_report(state, said),
        )
    except Rejected:
        return None
    return recorded
