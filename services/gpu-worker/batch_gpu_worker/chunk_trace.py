"""A leased chunk as spans: from its lease until it is handed in, and within, the engine's part.

Requests of batches get no spans of their own from us: the engine is told the chunk's context with
each, and makes its own.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from contextvars import Context, copy_context

from vllm_batch import tracing
from vllm_batch.events import ChunkPlanned
from vllm_batch.tracing import SpanKind


class ChunkTrace:
    """Begins both spans in the present context. ``context`` is what requests run in."""

    def __init__(self, planned: ChunkPlanned) -> None:
        self._chunk = tracing.begin(
            "chunk",
            attributes={
                "vllm_batch.batch.id": planned.job_id,
                "vllm_batch.chunk": planned.chunk,
                "vllm_batch.requests": planned.count,
                "gen_ai.request.model": planned.model,
            },
        )
        with tracing.current(self._chunk):
            self._engine = tracing.begin(
                "engine", SpanKind.CLIENT, {"gen_ai.request.model": planned.model}
            )
        with tracing.current(self._engine):
            self.context: Context = copy_context()

    def current(self) -> AbstractContextManager[None]:
        """Return a context in which what is recorded belongs to the chunk."""
        return tracing.current(self._chunk)

    def answered(self) -> None:
        """The engine has answered all of it."""
        self._engine.end()

    def end(self, how: str) -> None:
        """The worker does not hold the chunk any more."""
        if self._engine.is_recording():
            self._engine.end()
        self._chunk.set_attribute("vllm_batch.ending", how)
        self._chunk.end()
