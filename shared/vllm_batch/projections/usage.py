"""Read model ``online_usage``: what online requests used. With the chunks it makes the bill."""

from __future__ import annotations

from vllm_batch.errors import ProjectionError
from vllm_batch.events import Event, Recorded
from vllm_batch.events.usage import UsageRecorded
from vllm_batch.projections.rows import OnlineUsageRow
from vllm_batch.projections.table import Key, Table


def evolve(recorded: Recorded) -> OnlineUsageRow:
    """Return the row of a report.

    Raises:
        ProjectionError: the event is none.
    """
    event = recorded.event
    if not isinstance(event, UsageRecorded):
        raise ProjectionError(f"event {recorded.seq} ({event.TYPE}) is no report of usage")
    return OnlineUsageRow(
        meter_id=event.meter_id,
        number=event.number,
        project=event.project,
        key_id=event.key_id,
        model=event.model,
        used_at=int(recorded.time.timestamp()),
        requests=event.requests,
        failed=event.failed,
        input_tokens=event.usage.input_tokens,
        cached_tokens=event.usage.cached_tokens,
        output_tokens=event.usage.output_tokens,
        reasoning_tokens=event.usage.reasoning_tokens,
    )


def _keys(event: Event) -> list[Key]:
    return [(event.meter_id, event.number)]  # type: ignore[attr-defined]


TABLE = Table(
    name="online_usage",
    row=OnlineUsageRow,
    key=("meter_id", "number"),
    events=(UsageRecorded,),
    first=UsageRecorded,
    keys=_keys,
    evolve=lambda _row, recorded, _key: evolve(recorded),
)
