"""A worker with a planted bug, for the test of the oracle: its chunk events ignore the fencing.

It appends whatever it thinks it owns, without the expected sequence, as a worker would whose author
trusted acknowledgements, clocks or its own memory. Run with ``python -m``; never shipped.
"""

from __future__ import annotations

import sys
from datetime import datetime

from batch_gpu_worker.__main__ import main
from vllm_batch import ids
from vllm_batch.clock import SystemClock
from vllm_batch.event_store import jetstream
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events import Event, Recorded, encode
from vllm_batch.events.chunk import ChunkCompleted, ChunkProgressed
from vllm_batch.ids import EventId
from vllm_batch.messaging import subjects


class UnfencedEventStore(JetStreamEventStore):
    """Records results without asking whether the chunk has moved on."""

    async def append(
        self,
        event: Event,
        *,
        expected: int,
        event_id: EventId | None = None,
        at: datetime | None = None,
    ) -> Recorded:
        """Append; fenced only where it is not about results."""
        if not isinstance(event, ChunkProgressed | ChunkCompleted):
            return await super().append(event, expected=expected, event_id=event_id, at=at)
        event_id = event_id or ids.new_event_id()
        now = at or SystemClock().now()
        payload = encode(event, event_id=event_id, source="unfenced", time=now)
        ack = await self.js.publish(subjects.of_event(event), payload)
        return Recorded(ack.seq, event_id, now, "unfenced", event)


if __name__ == "__main__":
    jetstream.JetStreamEventStore = UnfencedEventStore  # type: ignore[misc]
    sys.exit(main())
