"""How much was done when: requests and tokens in steps of time, folded from checkpoints.

Chunk events carry totals; what is new is the difference to what the chunk had before. Of a chunk
whose earlier totals nobody saw, the tokens are taken by the share of requests in the segment.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import datetime

from vllm_batch.events import ChunkCompleted, ChunkProgressed, Recorded
from vllm_batch.ids import JobId

STEP_SECONDS = 10
WINDOW_SECONDS = 3600
_CHUNKS_MAX = 20_000


class Rates:
    """Sums per STEP_SECONDS over the last WINDOW_SECONDS. Starts of steps are in Unix seconds."""

    def __init__(self) -> None:
        self._steps: OrderedDict[int, list[int]] = OrderedDict()
        self._tokens: OrderedDict[tuple[JobId, int], int] = OrderedDict()

    def apply(self, recorded: Recorded) -> None:
        """Add what a checkpoint brought."""
        event = recorded.event
        if not isinstance(event, ChunkProgressed | ChunkCompleted):
            return
        segment = event.segment
        requests = 0 if segment is None else segment.completed + segment.failed
        tokens = self._new_tokens(event, requests)
        if requests or tokens:
            step = self._step(recorded.time)
            step[0] += requests
            step[1] += tokens

    def series(self, now: datetime) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
        """Return (time, requests/s) and (time, output tokens/s) for every step of the window."""
        end = int(now.timestamp()) // STEP_SECONDS * STEP_SECONDS
        times = range(end - WINDOW_SECONDS, end, STEP_SECONDS)
        empty = [0, 0]
        found = [(time, self._steps.get(time, empty)) for time in times]
        return (
            [(time, step[0] / STEP_SECONDS) for time, step in found],
            [(time, step[1] / STEP_SECONDS) for time, step in found],
        )

    def _new_tokens(self, event: ChunkProgressed | ChunkCompleted, requests: int) -> int:
        key = (event.job_id, event.chunk)
        total = event.usage.output_tokens
        known = self._tokens.pop(key, None)
        if isinstance(event, ChunkProgressed):
            self._tokens[key] = total
            if len(self._tokens) > _CHUNKS_MAX:
                self._tokens.popitem(last=False)
        if known is not None:
            return max(0, total - known)
        done = event.completed + event.failed
        return round(total * requests / done) if done else 0

    def _step(self, time: datetime) -> list[int]:
        start = int(time.timestamp()) // STEP_SECONDS * STEP_SECONDS
        if start not in self._steps:
            self._steps[start] = [0, 0]
            while next(iter(self._steps)) < start - WINDOW_SECONDS:
                self._steps.popitem(last=False)
        return self._steps[start]
