"""Workers in the browser: seen to die, acted on, and their logs."""

from __future__ import annotations

import asyncio
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime

import msgspec
from playwright.sync_api import Page, expect

from tests.ui.conftest import WAIT_MS, Ui
from vllm_batch import fleet
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events import WorkerEngineKilled, WorkerStarted, WorkerStopped
from vllm_batch.events.admin import AdminActionTaken
from vllm_batch.fleet import WorkerView
from vllm_batch.heartbeats import GpuMetrics, Heartbeat
from vllm_batch.ids import WorkerId
from vllm_batch.log_stream import Level, LogLine
from vllm_batch.messaging import subjects

LINES = 100_000
FROZEN_SECONDS = 10.0
SEEN_SECONDS = 20.0
"""How long after it is recorded a page may take to show something, on a busy machine."""
_LONGEST_FRAME = """
    window.longest = 0;
    let last = performance.now();
    requestAnimationFrame(function draw() {
        const now = performance.now();
        window.longest = Math.max(window.longest, now - last);
        last = now;
        requestAnimationFrame(draw);
    });
"""
STORED_SECONDS = 120.0


def test_a_killed_worker_is_seen_within_seconds(ui: Ui, viewer: Page) -> None:
    viewer.goto("/workers")
    card = viewer.get_by_label("worker worker-2", exact=True)
    before = ui.stack.service("worker-2").pid
    assert before is not None
    expect(card.get_by_text(f"process {before}")).to_be_visible()
    ui.stack.service("worker-2").kill(signal.SIGKILL)
    expect(card.get_by_text(f"process {before}")).to_have_count(0)
    seen_at = datetime.now(UTC)
    successor = ui.in_store(fleet.load).names["worker-2"].newest
    assert successor.pid != before
    assert (seen_at - successor.started_at).total_seconds() < SEEN_SECONDS
    expect(card.locator(".state")).to_have_text("ready", timeout=WAIT_MS)


def test_an_operator_kills_an_engine_and_the_log_names_him(ui: Ui, operator: Page) -> None:
    operator.goto("/workers")
    card = operator.get_by_label("worker worker-1", exact=True)
    card.get_by_role("button", name="Kill engine").click()
    operator.get_by_role("dialog").get_by_role("button", name="Kill engine").click()
    expect(operator.locator(".q-notification")).to_contain_text("worker-1:", timeout=WAIT_MS)

    async def killers(store: JetStreamEventStore) -> list[str]:
        return [
            recorded.event.requested_by
            async for batch in store.read(subjects.every(WorkerEngineKilled))
            for recorded in batch
            if isinstance(recorded.event, WorkerEngineKilled)
        ]

    assert "otto" in ui.in_store(killers)


def test_every_action_asks_first_and_is_recorded(ui: Ui, operator: Page) -> None:
    operator.goto("/workers")
    card = operator.get_by_label("worker worker-1", exact=True)
    for button, action in (
        ("Clear GPU", "clear the GPU of worker-1"),
        ("Drain and restart", "drain worker-1"),
        ("Restart now", "restart worker-1"),
    ):
        before = ui.in_store(_newest).worker_id
        card.get_by_role("button", name=button).click()
        dialog = operator.get_by_role("dialog")
        dialog.get_by_role("button", name="Cancel").click()
        expect(dialog).to_have_count(0)
        assert action not in _taken(ui)
        card.get_by_role("button", name=button).click()
        dialog.get_by_role("button", name=button).click()
        expect(operator.get_by_text("worker-1: ").first).to_be_visible(timeout=WAIT_MS)
        _wait(lambda action=action: action in _taken(ui), f"{action} to be recorded")  # type: ignore[misc]
        if button != "Clear GPU":
            _wait_restarted(ui, before)


async def _newest(store: JetStreamEventStore) -> WorkerView:
    return (await fleet.load(store)).names["worker-1"].newest


def _wait_restarted(ui: Ui, before: WorkerId) -> None:
    def is_back() -> bool:
        found = ui.in_store(_newest)
        return found.worker_id != before and found.state == "ready"

    _wait(is_back, "worker-1 to come back")


def _wait(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + WAIT_MS / 1000
    while not condition():
        assert time.monotonic() < end, f"waited for {what}"
        time.sleep(0.2)


def _taken(ui: Ui) -> set[str]:
    async def read(store: JetStreamEventStore) -> set[str]:
        return {
            recorded.event.action
            async for batch in store.read(subjects.ALL_ADMIN)
            for recorded in batch
            if isinstance(recorded.event, AdminActionTaken) and recorded.event.name == "otto"
        }

    return ui.in_store(read)


def test_gpus_are_drawn_and_a_silent_worker_is_told_of(ui: Ui, viewer: Page) -> None:
    viewer.goto("/workers")
    card = viewer.get_by_label("worker gpu-7", exact=True)
    with _beating(ui, "worker_of_the_test", "gpu-7"):
        expect(card).to_contain_text("NVIDIA H100, 64.0 GiB of 80.0 GiB, 93 % busy")
        expect(card.get_by_role("img")).to_have_attribute(
            "aria-label", re.compile("tokens/s 1,234, GPU memory 80 %, GPU busy 93 %")
        )
    # Nobody beats any more, and nothing else happens: the page says so by itself.
    expect(card.locator(".state")).to_have_text(re.compile("silent|lost"), timeout=WAIT_MS)
    viewer.goto("/")
    expect(viewer.get_by_role("alert")).to_contain_text("Worker gpu-7 is")

    async def leave(store: JetStreamEventStore) -> None:
        worker = (await fleet.load(store)).names["gpu-7"].newest
        await store.append(
            WorkerStopped(worker_id=worker.worker_id, reason="drained"), expected=worker.seq
        )

    ui.in_store(leave)


@contextmanager
def _beating(ui: Ui, worker_id: str, name: str) -> Iterator[None]:
    """Have a worker send heartbeats meanwhile."""
    gpu = GpuMetrics(
        index=0, name="NVIDIA H100", memory_used_bytes=64 * 1024**3,
        memory_total_bytes=80 * 1024**3, utilization_percent=93,
    )  # fmt: skip
    beat = Heartbeat(
        worker_id=WorkerId(worker_id), name=name, host="node-7", pid=1, time=datetime.now(UTC),
        state="ready", engine="vllm", models=["acme/large"], output_tokens_per_second=1234.4,
        gpus=[gpu],
    )  # fmt: skip

    async def publish(store: JetStreamEventStore) -> None:
        started = WorkerStarted(
            worker_id=beat.worker_id, name=name, host="node-7", pid=1, engine="vllm", version="1"
        )
        await store.append(started, expected=0)
        client = store.connection.client
        while not ended.is_set():
            now = msgspec.structs.replace(beat, time=datetime.now(UTC))
            await client.publish(subjects.heartbeat(beat.worker_id), msgspec.json.encode(now))
            await client.flush()
            await asyncio.sleep(0.5)

    ended = threading.Event()
    with ThreadPoolExecutor(1) as beside:
        beats = beside.submit(ui.in_store, publish)
        try:
            yield
        finally:
            ended.set()
            beats.result()


def _say(ui: Ui, messages: list[str], level: Level = "info") -> None:
    async def publish(store: JetStreamEventStore) -> None:
        worker = (await fleet.load(store)).names["worker-1"].newest.worker_id
        client = store.connection.client
        for number, message in enumerate(messages, 1):
            line = LogLine(time=datetime.now(UTC), level=level, source="engine", message=message)
            payload = msgspec.json.encode(line)
            # NATS may drop what it cannot store; on a slow disk each line takes milliseconds.
            if number % 1000 == 0 or number == len(messages):
                await store.js.publish(subjects.log(worker), payload, timeout=STORED_SECONDS)
            else:
                await client.publish(subjects.log(worker), payload)

    ui.in_store(publish)


_COUNTED = """level => {
    const said = [...document.querySelectorAll('.log-count')].map(one => one.textContent);
    return Number(said.find(one => one.endsWith(` ${level}s`)).replace(/\\D/g, ""));
}"""


def _counted(page: Page, level: Level) -> int:
    return int(page.evaluate(_COUNTED, level))


def test_logs_are_followed_searched_and_never_html(ui: Ui, viewer: Page) -> None:
    viewer.goto("/admin/worker-logs")
    expect(viewer.locator(".log-row").first).to_be_visible()
    _say(ui, ["<script>document.title = 'owned'</script><img src=x onerror=alert(1)>"], "error")
    row = viewer.locator(".log-row.error").last
    expect(row).to_contain_text("<script>document.title = 'owned'</script>", timeout=WAIT_MS)
    assert viewer.title() == "Worker logs · vllm-batch"
    assert viewer.locator(".log-box script, .log-box img").count() == 0
    viewer.get_by_label("Search the lines").fill("onerror=alert")
    expect(viewer.locator(".log-row")).to_have_count(1)
    viewer.get_by_label("Search the lines").fill("")
    for level in ("error", "warning"):
        before = _counted(viewer, level)
        _say(ui, [f"a {level}", f"another {level}"], level)
        viewer.wait_for_function(f"({_COUNTED})('{level}') >= {before + 2}", timeout=WAIT_MS)
    viewer.get_by_label("Lowest level").select_option("error")
    expect(viewer.locator(".log-row.info")).to_have_count(0)


def test_logs_are_followed_over_a_restart_and_keep_what_was_before(ui: Ui, viewer: Page) -> None:
    viewer.goto("/admin/worker-logs?worker=worker-1")
    before = ui.in_store(_newest)
    _say(ui, ["the last words of a worker"])
    last_words = viewer.locator(".log-row").filter(has_text="the last words of a worker")
    expect(last_words).to_have_count(1)
    ui.stack.service("worker-1").kill(signal.SIGKILL)
    _wait_restarted(ui, before.worker_id)
    _say(ui, ["the first words of its successor"])
    first_words = viewer.locator(".log-row").filter(has_text="the first words of its successor")
    expect(first_words).to_have_count(1)
    viewer.reload()
    expect(first_words).to_have_count(1)
    viewer.get_by_label("Search the lines").fill("words of")
    expect(last_words).to_have_count(1)


def test_a_hundred_thousand_lines_do_not_freeze_the_page(ui: Ui, viewer: Page) -> None:
    _say(ui, [f"line {number} of many" for number in range(LINES)])
    viewer.add_init_script(_LONGEST_FRAME)
    viewer.goto("/admin/worker-logs?worker=worker-1")
    newest = viewer.locator(".log-row").filter(has_text=f"line {LINES - 1} of")
    expect(newest).to_have_count(1, timeout=120_000)
    assert viewer.locator(".log-box").evaluate("box => box.scrollHeight") > 19 * LINES
    assert viewer.locator(".log-row").count() < 200
    viewer.get_by_label("Search the lines").fill(f"line {LINES - 4321} of")
    expect(viewer.locator(".log-row")).to_have_count(1)
    longest = viewer.evaluate("window.longest")  # while it loaded, followed and searched them all
    assert 0 < longest < 1000 * FROZEN_SECONDS
