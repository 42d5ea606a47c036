"""How soon a page of the admin UI is usable, and how much memory its process takes.

    python -m tests.benchmarks.admin_ui        1,000 batches, 1 million requests, 50 workers
    python -m tests.benchmarks.admin_ui --batches 100 --requests 200000 --workers 8 --rounds 3
    python -m tests.benchmarks.admin_ui --only overview,workers --profile profile.svg

A stack of its own: a real event log, real Postgres, projector, gateway and admin UI; the history is
simulated (see admin_ui_history). While real Chromium opens the pages, workers' hearts
beat and a batch of 10,000 chunks goes on, so that everything on the pages is live. "Usable": the
first useful content is drawn and the page is connected to the server, counted from the start of the
navigation, by the browser's own clock. Browser and stack share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import uvloop
from playwright.async_api import BrowserContext, Page, async_playwright
from rich.console import Console
from rich.table import Table

from tests.benchmarks.admin_ui_history import (
    LARGE_CHUNKS,
    History,
    beat,
    go_on,
    write,
    write_log_lines,
    write_segments,
)
from tests.benchmarks.processes import MIB, sample
from tests.ui import labeling_work
from vllm_batch import admin_users, tasks
from vllm_batch.blobs import open_blobs
from vllm_batch.event_store import jetstream
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.local.stack import LocalStack
from vllm_batch.projections.runner import Projector

TARGET_SECONDS = 1.0
TARGET_MIB = 300
LOG_LINES = 100_000
SEGMENTS = 50
START_SECONDS = 180.0
PASSWORD = "correct horse battery"
WAIT_MS = 60_000
PAGES_KEPT_OPEN = ("/", "/batches", "/workers", "/events")
# Notes when the page is usable by the browser's own clock, which starts with the navigation.
_NOTE = """
window.usable = new Promise(resolve => {
  const look = () => {
    const [selector, count] = WANTED;
    const there = document.querySelectorAll(selector).length >= count;
    if (there && window.did_handshake) resolve(performance.now());
    else requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
});
"""
_LONGEST_FRAME = """
window.longest = 0;
let last = performance.now();
const tick = now => {
  window.longest = Math.max(window.longest, now - last);
  last = now;
  requestAnimationFrame(tick);
};
requestAnimationFrame(tick);
"""
console = Console()


@dataclass
class Opened:
    """A page: where it is, what has to be there (a selector, how many), and what was measured."""

    name: str
    path: str
    wanted: str
    count: int = 1
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)


def pages(history: History) -> list[Opened]:
    """Return every page and what makes it useful."""
    workers, rows = min(9, len(history.workers)), min(25, history.batches)  # a screenful
    return [
        Opened("overview", "/", ".tile .value", 6),
        Opened("batches", "/batches", "tbody tr td a", rows),
        Opened(f"batch ({LARGE_CHUNKS:,} chunks)", f"/batches/{history.large}", ".chunk-legend"),
        Opened("workers", "/workers", 'section[aria-label^="worker "] .state', workers),
        Opened("worker logs", "/admin/worker-logs", ".log-row", 10),
        Opened("models", "/models", 'section[aria-label^="model "] .state', 3),
        Opened("playground", "/playground", 'section[aria-label^="Chat"]'),
        Opened("labeling", "/labeling", 'section[aria-label^="project "]'),
        Opened("labeling project", f"/labeling/{labeling_work.PROJECT}", ".tile .value", 6),
        Opened("events", "/events", "tbody tr", 25),
        Opened("time travel", f"/events?batch={history.large}", ".json", 2),
        Opened("usage", "/usage", ".tile .value", 4),
        Opened("settings", "/settings", "tbody tr"),
    ]


async def open_page(context: BrowserContext, base: str, opened: Opened) -> Page:
    """Open a page and note the seconds until it was usable."""
    page = await context.new_page()
    page.set_default_timeout(WAIT_MS)
    tools = await context.new_cdp_session(page)
    await tools.send("Performance.enable", {"timeDomain": "threadTicks"})
    await page.add_init_script(_NOTE.replace("WANTED", repr([opened.wanted, opened.count])))
    await page.goto(base + opened.path, wait_until="commit")
    opened.seconds.append(await page.evaluate("window.usable") / 1000)
    found = (await tools.send("Performance.getMetrics"))["metrics"]
    opened.cpu_seconds.append(next(m["value"] for m in found if m["name"] == "TaskDuration"))
    return page


async def sign_in(context: BrowserContext, base: str) -> None:
    """Sign in; the browser has nothing in its cache before."""
    page = await context.new_page()
    await page.goto(f"{base}/login")
    await page.get_by_label("Name").fill("ada")
    await page.get_by_label("Password").fill(PASSWORD)
    await page.get_by_role("button", name="Sign in").click()
    await page.wait_for_function("window.did_handshake")
    await page.close()


@contextlib.asynccontextmanager
async def browser_context() -> AsyncIterator[BrowserContext]:
    """Yield real Chromium with an empty cache."""
    executable = shutil.which("chromium")
    if executable is None:
        raise SystemExit("there is no chromium: install Debian's package")
    arguments = ["--no-sandbox", "--disable-background-networking", "--disable-sync"]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=arguments)
        yield await browser.new_context(viewport={"width": 1280, "height": 800})
        await browser.close()


async def measure(base: str, opened: list[Opened], rounds: int, log_lines: int) -> None:
    """Open each page ``rounds`` times while others stay open."""
    async with browser_context() as context:
        await sign_in(context, base)
        for path in PAGES_KEPT_OPEN:
            page = await context.new_page()
            await page.goto(base + path)
        for number in range(rounds + 1):
            for one in opened:
                page = await open_page(context, base, one)
                await page.close()
                if number == 0:  # the caches of browser and server are warm from here on
                    one.seconds.clear()
                    one.cpu_seconds.clear()
        await measure_log(context, base, log_lines)


async def measure_log(context: BrowserContext, base: str, lines: int) -> None:
    """Let the viewer take all lines in and search them; print how long it did not answer."""
    page = await context.new_page()
    page.set_default_timeout(WAIT_MS)
    await page.add_init_script(_LONGEST_FRAME)
    await page.goto(base + "/admin/worker-logs")
    started = time.monotonic()
    await page.wait_for_function(
        "wanted => document.querySelector('.log-box').scrollHeight >= 19 * wanted", arg=lines
    )
    took, frozen = time.monotonic() - started, await page.evaluate("window.longest / 1000")
    await page.evaluate("window.longest = 0")
    await page.get_by_label("Search the lines").fill(f"line {lines // 2}:")
    await page.wait_for_function("document.querySelectorAll('.log-row').length === 1")
    searching = await page.evaluate("window.longest / 1000")
    console.print(
        f"log viewer: {lines:,} lines there after {took:.1f} s, longest time without a frame "
        f"{frozen:.2f} s; searching them {searching:.2f} s"
    )
    await page.close()


async def fill(
    store: JetStreamEventStore, stack: LocalStack, history: History, log_lines: int
) -> None:
    """Write the history and bring the read models up to date."""
    started = time.monotonic()
    await admin_users.create(store, "ada", PASSWORD, "admin")
    await labeling_work.record(store)
    events = await write(store, history, datetime.now(UTC))
    await write_segments(open_blobs(stack.settings.blob_url), history, SEGMENTS)
    await write_log_lines(store, history, log_lines)
    await Projector(store, stack.settings).catch_up(await store.last_sequence())
    took = time.monotonic() - started
    console.print(f"{events:,} events and {log_lines:,} log lines written in {took:.0f} s")


async def run(stack: LocalStack, options: argparse.Namespace) -> tuple[list[Opened], int]:
    """Fill, restart the admin UI so that it has loaded all of it, measure; return peak bytes."""
    history = History(options.batches, options.requests, options.workers)
    opened = [one for one in pages(history) if not options.only or one.name in options.only]
    async with jetstream.connect(stack.settings, source="benchmark") as store:
        await fill(store, stack, history, options.log_lines)
        service = stack.service("admin-ui")
        await asyncio.to_thread(lambda: service.wait_restarted(service.kill(), START_SECONDS))
        pid = service.pid
        assert pid is not None
        console.print(f"loaded: {sample(pid).peak_rss_bytes / MIB:,.0f} MiB")
        alongside = [
            asyncio.create_task(one)
            for one in (
                Projector(store, stack.settings).run(), beat(store, history), go_on(store, history)
            )
        ]  # fmt: skip
        with profiled(pid, options.profile):
            await measure(stack.admin_url, opened, options.rounds, options.log_lines)
        for task in alongside:
            await tasks.end(task)
        return opened, sample(pid).peak_rss_bytes


@contextlib.contextmanager
def profiled(pid: int, target: str | None):  # type: ignore[no-untyped-def]
    """Let py-spy look at the admin UI meanwhile, where it is asked to and installed."""
    if target is None:
        yield
        return
    arguments = ["py-spy", "record", "--pid", str(pid), "--output", target, "--nonblocking"]
    with subprocess.Popen(arguments) as spy:
        yield
        spy.send_signal(2)


def report(opened: list[Opened], peak_bytes: int) -> bool:
    """Print what was measured; True if every figure is within its target."""
    table = Table("page", "median s", "max s", f"median of {TARGET_SECONDS:g} s", "CPU s")
    for one in opened:
        median, worst = statistics.median(one.seconds), max(one.seconds)
        cpu = statistics.median(one.cpu_seconds)
        figures = (median, worst, median / TARGET_SECONDS, cpu)
        table.add_row(one.name, *(f"{figure:.2f}" for figure in figures))
    console.print(table)
    console.print(
        f"CPU s: of the page's main thread. Load of the machine: {os.getloadavg()[0]:.1f} "
        f"on {os.cpu_count()} cores"
    )
    mib = peak_bytes / MIB
    console.print(f"admin UI: peak RSS {mib:,.0f} MiB, {mib / TARGET_MIB:.2f} of {TARGET_MIB}")
    return mib < TARGET_MIB and all(
        statistics.median(one.seconds) < TARGET_SECONDS for one in opened
    )


def main() -> None:
    """Start a stack, fill it, look at every page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=50)
    parser.add_argument("--log-lines", type=int, default=LOG_LINES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", type=lambda text: set(text.split(",")), default=set())
    parser.add_argument("--profile", help="where py-spy writes the admin UI's profile")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="vllm-batch-admin-") as home,
        LocalStack(home, only={"nats", "postgres", "api", "admin-ui"}) as stack,
    ):
        within = report(*uvloop.run(run(stack, options)))
    sys.exit(0 if within else 1)


if __name__ == "__main__":
    main()
