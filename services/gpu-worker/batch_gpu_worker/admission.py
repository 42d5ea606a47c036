"""Keeps the engine full: so many requests in flight across all held chunks, and never more results
at risk than the promise allows.

A crash may cost what is in flight and one flush. So a request begins only while the requests in
flight and the results not yet durable together are fewer than in_flight_max + flush_results.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from batch_gpu_worker.checkpoint import Checkpointer
from batch_gpu_worker.holdings import HeldChunk, Holdings, Request
from batch_gpu_worker.lease import ReleaseReason
from batch_gpu_worker.request_run import RequestRunner
from vllm_batch.settings import Settings


def in_flight_max(settings: Settings, max_num_seqs: int | None = None) -> int:
    """Return how many requests an engine is given that runs ``max_num_seqs`` at once."""
    running = settings.engine_max_num_seqs if max_num_seqs is None else max_num_seqs
    return max(1, int(running * settings.in_flight_factor))


class Admission:
    """Begins requests and takes their results; sets ``hungry`` when fewer than ``hungry_below``
    wait."""

    def __init__(
        self,
        holdings: Holdings,
        runner: RequestRunner,
        checkpointer: Checkpointer,
        settings: Settings,
    ) -> None:
        self.hungry = asyncio.Event()
        self.in_flight = 0
        self.answered = 0
        self.output_tokens = 0
        self.hungry_below = 1
        self._holdings = holdings
        self._runner = runner
        self._checkpointer = checkpointer
        self._settings = settings
        self.in_flight_max = in_flight_max(settings)
        self._at_risk_max = self.in_flight_max + settings.flush_results
        self._closing: ReleaseReason | None = None
        self._pauses = 0

    def resize(self, max_num_seqs: int) -> None:
        """Give the engine fewer from now on: it runs only ``max_num_seqs`` at once."""
        self.in_flight_max = in_flight_max(self._settings, max_num_seqs)
        self._at_risk_max = self.in_flight_max + self._settings.flush_results

    @property
    def in_engine(self) -> int:
        """How many requests the engine holds just now; others wait for it, or between tries."""
        return self._runner.in_engine

    @property
    def engine_answers(self) -> int:
        """How often the engine has answered, whatever it said."""
        return self._runner.engine_answers

    @property
    def free(self) -> int:
        """How many more requests the engine could be given now."""
        return self.in_flight_max - self.in_flight

    def pump(self) -> None:
        """Begin as many requests as may."""
        loop = asyncio.get_running_loop()
        while (
            self.in_flight < self.in_flight_max
            and self.in_flight + self._checkpointer.undurable < self._at_risk_max
            and self._closing is None
            and not self._pauses
            and (request := self._holdings.take()) is not None
        ):
            self.in_flight += 1
            task = loop.create_task(self._run(request), context=request.chunk.trace.context)
            request.chunk.running.add(task)
        if self._holdings.waiting < self.hungry_below:
            self.hungry.set()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Begin nothing while the context lasts."""
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
            self.pump()

    def end(self, chunk: HeldChunk, reason: ReleaseReason) -> None:
        """Abort what runs of the chunk, hand in what is done, and give it back."""
        if chunk.over:
            return
        chunk.ending = reason
        self.abort(chunk)
        self._checkpointer.hand_in(chunk)

    def complete(self, chunk: HeldChunk) -> None:
        """End a chunk whose last owner recorded every result but not the end."""
        self._checkpointer.hand_in(chunk)

    def abort(self, chunk: HeldChunk) -> None:
        """Stop working on the chunk."""
        self._holdings.drop_waiting(chunk)
        for task in chunk.running:
            task.cancel()

    def close(self, reason: ReleaseReason) -> None:
        """Begin nothing more; give chunks back as soon as nothing of them runs."""
        self._closing = reason
        for chunk in self._holdings:
            if not chunk.running and chunk.unanswered:
                self.end(chunk, reason)

    def reopen(self) -> None:
        """Begin requests again after `close`."""
        self._closing = None
        self.pump()

    async def _run(self, request: Request) -> None:
        chunk = request.chunk
        task = cast("asyncio.Task[None]", asyncio.current_task())
        try:
            result, usage = await self._runner.run(request, task)
            if not chunk.over:
                self._checkpointer.add(chunk, result, usage)
                self.answered += 1
                self.output_tokens += usage.output_tokens
        finally:
            self._runner.left(request)
            self.in_flight -= 1
            chunk.running.discard(task)
            if self._closing is None:
                self.pump()
            elif not chunk.running and chunk.unanswered:
                self.end(chunk, self._closing)
