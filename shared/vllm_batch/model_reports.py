"""What workers report of the models they load and serve. Appends ``model.*``; reads the model's own
events."""

from __future__ import annotations

from vllm_batch.aggregates import model as rules
from vllm_batch.aggregates.model import Model, Report
from vllm_batch.errors import Rejected
from vllm_batch.event_store import EventStore, append_decided
from vllm_batch.events import Event, Recorded
from vllm_batch.messaging import subjects
from vllm_batch.worker_control import ModelSpec


async def report(
    store: EventStore, said: Report, *, made_of: ModelSpec | None = None
) -> Recorded | None:
    """Record what a worker says of a model; several workers may speak at once.

    ``made_of``: what the worker was told to load; None where nobody told it. Returns None where
    there is nothing to record: the log has it so already, the model was registered anew meanwhile
    and is made of something else, or nobody registered it (a worker's own configuration names it,
    and `worker.ready` says enough).

    Raises:
        Conflict: others were faster every time.
        EventStoreUnavailable: no answer in time.
    """

    def decide(state: Model | None) -> Event:
        if state is not None and made_of is not None:
            now = ModelSpec(
                name=made_of.name, source=state.source, base=state.base,
                engine_args=tuple(state.engine_args),
            )  # fmt: skip
            if now != made_of:
                raise Rejected(
                    f"{said.TYPE} of what {state.name} was before it was registered anew"
                )
        return rules.decide_report(state, said)

    subject = subjects.aggregate("model", said.model_key)
    try:
        recorded, _ = await append_decided(store, subject, rules.evolve, decide)
    except Rejected:
        return None
    return recorded
