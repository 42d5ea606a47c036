"""Events of metering: what online requests used. Batches say it themselves, in their chunks."""

from __future__ import annotations

from typing import ClassVar

from vllm_batch.events.base import Event, Usage
from vllm_batch.ids import KeyId, ProjectId


class UsageRecorded(Event, frozen=True, kw_only=True):
    """The online requests that a gateway answered for a key and a model since its last report.

    ``meter_id``: one per process; ``number`` counts its reports from 1. ``seconds``: the time that
    models spent on the answers, all requests together.
    """

    TYPE: ClassVar[str] = "usage.recorded"
    AGGREGATE: ClassVar[tuple[str, ...]] = ("meter_id", "number")

    meter_id: str
    number: int
    project: ProjectId
    key_id: KeyId
    model: str
    requests: int
    failed: int
    usage: Usage
    seconds: float = 0.0


UsageEvent = UsageRecorded
