"""Time travel: a batch as of any of its events.

Reads the batch's events once, shows what it has while it reads on, and folds them forwards; going
back begins anew (0.6 us an event).
"""

from __future__ import annotations

import asyncio
import bisect
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
from nicegui import ui

from batch_admin.shell import section
from batch_admin.view import View
from vllm_batch.aggregates import job as job_rules
from vllm_batch.event_store import EventStore
from vllm_batch.events import Recorded
from vllm_batch.ids import JobId
from vllm_batch.messaging import subjects

EVENTS_MAX = 100_000
_DRAW_SECONDS = 0.25
_STEPS = (("First", -EVENTS_MAX), ("Earlier", -1), ("Later", 1), ("Last", EVENTS_MAX))


@dataclass(slots=True)
class State:
    """A batch after some of its events: the job, each chunk's last event, what each has done."""

    job: job_rules.Job | None = None
    chunks: dict[int, str] = field(default_factory=dict)
    done: dict[int, int] = field(default_factory=dict)

    def apply(self, recorded: Recorded) -> None:
        """Fold the next event in."""
        event = recorded.event
        noun, _, verb = event.TYPE.partition(".")
        if noun == "job":
            self.job = job_rules.evolve(self.job, recorded)
            return
        number: int = getattr(event, "chunk", -1)
        self.chunks[number] = verb
        if hasattr(event, "completed"):
            self.done[number] = event.completed + getattr(event, "failed", 0)

    def shown(self, job_id: JobId) -> dict[str, Any]:
        """Return what people read of it."""
        counts: dict[str, int] = {}
        for last in self.chunks.values():
            counts[last] = counts.get(last, 0) + 1
        job = self.job
        return {
            "batch": job_id,
            "status": job.status.value if job else "not submitted",
            "requests": job.started.total if job and job.started else None,
            "requests_done": sum(self.done.values()),
            "chunks_by_last_event": counts,
        }


class Travel:
    """A batch's events in order, and its state after any number of them."""

    def __init__(self, events: Iterable[Recorded] = ()) -> None:
        self.events = list(events)
        self._state, self._count = State(), 0

    def after(self, count: int) -> State:
        """Return the state after the first ``count`` events."""
        if count < self._count:
            self._state, self._count = State(), 0
        for recorded in self.events[self._count : count]:
            self._state.apply(recorded)
        self._count = count
        return self._state


async def build(view: View, job_id: JobId) -> None:
    """Let the user move through a batch's events and see its state as of each."""
    said = ui.label("Reading the log …").props("role=status")
    box = ui.column().classes("w-full gap-3")

    async def read() -> None:
        await ui.context.client.connected()
        travel, controls = Travel(), None
        async for events in in_order(view.services.store, job_id):
            travel.events += events[: EVENTS_MAX - len(travel.events)]
            if controls is None:
                with box:
                    controls = _Controls(job_id, travel)
            elif controls.is_due():
                said.set_text(f"Reading the log: {len(travel.events):,} events so far …")
                controls.grow()
            if len(travel.events) == EVENTS_MAX:
                break
            await asyncio.sleep(0)  # a large batch must not hold up the other pages
        if controls is None:
            said.set_text("The log has no such batch.")
            return
        controls.grow()
        found = f"{len(travel.events):,} events in order"
        if len(travel.events) == EVENTS_MAX:
            found = f"The first {found}"
        said.set_text(f"{found}. Move to see the batch as of any of them.")

    view.keep(read())


class _Controls:
    """A slider over the events; the event it is at, and the batch after it."""

    def __init__(self, job_id: JobId, travel: Travel) -> None:
        self._job_id = job_id
        self._travel = travel
        self._last = len(travel.events)
        self._slider = ui.slider(
            min=1, max=self._last, value=self._last, on_change=self._show
        ).props('label aria-label="How many events to fold"')
        with ui.row().classes("gap-1"):
            for label, step in _STEPS:
                ui.button(label, on_click=partial(self._move, step)).props("flat dense no-caps")
        with ui.element("div").classes("two"):
            with ui.element("div").classes("panel"):
                section("The event")
                self._event = ui.label().classes("json").props("tabindex=0")
            with ui.element("div").classes("panel"):
                section("The batch after it")
                self._state = ui.label().classes("json").props("tabindex=0")
        self._show()
        self._drawn = time.monotonic()

    def is_due(self) -> bool:
        """Tell whether what was read meanwhile should be shown."""
        return time.monotonic() - self._drawn >= _DRAW_SECONDS

    def grow(self) -> None:
        """Let the slider reach all events; it stays at the end where nobody has moved it."""
        followed, self._last = self._slider.value == self._last, len(self._travel.events)
        self._slider.props["max"] = self._last
        if followed:
            self._slider.value = self._last
        self._drawn = time.monotonic()

    def _move(self, step: int) -> None:
        self._slider.value = min(self._last, max(1, int(self._slider.value) + step))

    def _show(self) -> None:
        count = int(self._slider.value)
        self._event.set_text(as_json(self._travel.events[count - 1]))
        self._state.set_text(_as_text(self._travel.after(count).shown(self._job_id)))


async def in_order(store: EventStore, job_id: JobId) -> AsyncIterator[list[Recorded]]:
    """Yield the batch's events so far in the log's order, as they are read."""
    end = await store.last_sequence()
    jobs = [one async for batch in store.read(subjects.job(job_id)) for one in batch]
    jobs = jobs[: bisect.bisect(jobs, end, key=_seq)]
    async for chunks in store.read(subjects.chunks_of(job_id)):
        split = bisect.bisect(jobs, chunks[-1].seq, key=_seq)
        events = sorted(jobs[:split] + chunks, key=_seq)
        del jobs[:split]
        if events := events[: bisect.bisect(events, end, key=_seq)]:
            yield events
        if chunks[-1].seq >= end:
            break
    if jobs:
        yield jobs


def _seq(recorded: Recorded) -> int:
    return recorded.seq


def as_json(recorded: Recorded) -> str:
    """Return an event as JSON, without what nobody should read there."""
    return _as_text(
        {
            "seq": recorded.seq, "id": recorded.id, "type": recorded.event.TYPE,
            "time": recorded.time, "source": recorded.source, "data": recorded.event.shown(),
        }
    )  # fmt: skip


def _as_text(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
