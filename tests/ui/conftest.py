"""A whole stack with the admin UI, filled with work, and real Chromium looking at it."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import openai
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.ui import labeling_work
from vllm_batch import admin_users
from vllm_batch.event_store import jetstream
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events.admin import Role
from vllm_batch.local.stack import CORE_ROLES, LocalStack

T = TypeVar("T")

PASSWORD = "correct horse battery"
ENDPOINT = "/v1/chat/completions"
WAIT_MS = 45_000
"""How long a busy machine may take for what is there within a second otherwise."""
expect.set_options(timeout=WAIT_MS)
SCREENSHOTS = Path(__file__).with_name("screenshots")


@dataclass
class Ui:
    """The stack, its admin UI, and a browser."""

    stack: LocalStack
    browser: Browser
    client: openai.OpenAI

    def sign_in(self, name: str, **options: Any) -> tuple[BrowserContext, Page]:
        context = self.browser.new_context(
            base_url=self.stack.admin_url, viewport={"width": 1280, "height": 800}, **options
        )
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.goto("/login")
        page.get_by_label("Name").fill(name)
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("heading", name="Overview")).to_be_visible(timeout=WAIT_MS)
        return context, page

    def in_store(self, deed: Callable[[JetStreamEventStore], Awaitable[T]]) -> T:
        async def main() -> T:
            async with jetstream.connect(self.stack.settings, source="test") as store:
                return await deed(store)

        # Playwright has a loop in this thread already.
        with ThreadPoolExecutor(1) as other_thread:
            return other_thread.submit(lambda: asyncio.run(main())).result()

    def lines(self, count: int, **body: Any) -> bytes:
        """Return requests for a batch; the engine fails every twentieth, as it is told to."""
        return b"".join(
            json.dumps(
                {
                    "custom_id": f"request-{number}", "method": "POST", "url": ENDPOINT,
                    "body": {
                        "model": self.stack.model_name, "max_tokens": 16,
                        "messages": [{"role": "user", "content": _said(number)}], **body,
                    },
                }
            ).encode() + b"\n"
            for number in range(count)
        )  # fmt: skip

    def submit(self, content: bytes, **metadata: str) -> str:
        return _submit(self.client, content, metadata)

    def submit_as(self, secret: str, content: bytes) -> str:
        """Submit with another key, as soon as the gateway has heard of it."""
        end = time.monotonic() + WAIT_MS / 1000
        with openai.OpenAI(base_url=self.stack.api_url, api_key=secret) as client:
            while True:
                try:
                    return _submit(client, content, {})
                except openai.AuthenticationError:
                    assert time.monotonic() < end
                    time.sleep(0.05)

    def wait_ended(self, batch_id: str) -> None:
        end = time.monotonic() + 180
        while self.client.batches.retrieve(batch_id).status not in {"completed", "failed"}:
            assert time.monotonic() < end, f"{batch_id} does not end"
            time.sleep(0.1)


def _submit(client: openai.OpenAI, content: bytes, metadata: dict[str, str]) -> str:
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h", metadata=metadata
    )
    return batch.id


def _said(number: int) -> str:
    return f"Say {number}" if (number + 1) % 20 else f"Say {number} [[sim:503]]"


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("there is no chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable,
            args=["--no-sandbox", "--disable-background-networking", "--disable-sync"],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def ui(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    stack = LocalStack(
        tmp_path_factory.mktemp("ui") / "home",
        engine="simulated",
        workers=2,
        only=CORE_ROLES | {"admin-ui"},
        settings_overrides={
            "simulated_latency_seconds": 0.2,
            "request_attempts_max": 1,
            "chunk_requests_max": 16,
            "engine_max_num_seqs": 16,
            "heartbeat_seconds": 0.5,
            "lease_seconds": 3,
            "admin_sign_in_attempts_max": 3,
            "webhook_networks_allowed": ["127.0.0.0/8"],
        },
    )
    with stack, openai.OpenAI(base_url=stack.api_url, api_key=stack.api_key) as client:
        found = Ui(stack, browser, client)
        roles: tuple[tuple[str, Role], ...] = (
            ("vera", "viewer"), ("otto", "operator"), ("ada", "admin"),
        )  # fmt: skip
        for name, role in roles:
            found.in_store(lambda store, name=name, role=role: admin_users.create(  # type: ignore[misc]
                store, name, PASSWORD, role))  # fmt: skip
        _fill(found)
        yield found


def _fill(ui: Ui) -> None:
    """Give the pages something to show: batches that end well, partly, and not at all."""
    ui.submit(b"not json\n" + ui.lines(3), purpose="nightly")
    for number in range(4):
        ui.submit(ui.lines(60 + 40 * number), team="search", run=str(number))
    ui.in_store(labeling_work.record)


@pytest.fixture(scope="package")
def contexts(ui: Ui) -> Iterator[Callable[[str], BrowserContext]]:
    """Sign each user in once: what the browser has in its cache serves the next test."""
    known: dict[str, BrowserContext] = {}

    def context_of(name: str) -> BrowserContext:
        if name not in known:
            known[name], page = ui.sign_in(name)
            page.close()
        return known[name]

    yield context_of
    for context in known.values():
        context.close()


def _page(context: BrowserContext) -> Iterator[Page]:
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    yield page
    page.close()


@pytest.fixture
def admin(contexts: Callable[[str], BrowserContext]) -> Iterator[Page]:
    yield from _page(contexts("ada"))


@pytest.fixture
def operator(contexts: Callable[[str], BrowserContext]) -> Iterator[Page]:
    yield from _page(contexts("otto"))


@pytest.fixture
def viewer(contexts: Callable[[str], BrowserContext]) -> Iterator[Page]:
    yield from _page(contexts("vera"))
