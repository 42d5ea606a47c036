"""The gateway's API for tests: the real process over a real NATS server and a real Postgres.

A projector runs beside it in place of the orchestrator, so that tests can put a batch into any
state by appending events, and nobody acts on them.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai

from vllm_batch import api_keys, ids, tasks
from vllm_batch.event_store import jetstream
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.local.stack import LocalStack
from vllm_batch.messaging import subjects
from vllm_batch.projections.runner import Projector
from vllm_batch.settings import Settings

REQUEST_SECONDS = 20.0


class Gateway:
    """A running API, and keys to it."""

    def __init__(self, stack: LocalStack) -> None:
        self.stack = stack

    @property
    def settings(self) -> Settings:
        return self.stack.settings

    @property
    def url(self) -> str:
        """Base URL, ending in /v1."""
        return self.stack.api_url

    @asynccontextmanager
    async def store(self) -> AsyncIterator[JetStreamEventStore]:
        async with jetstream.connect(self.settings, source="test") as store:
            yield store

    async def new_key(self, project: str | None = None) -> str:
        """Make a key, of a project of its own unless told otherwise."""
        async with self.store() as store:
            _, secret = await api_keys.create(store, project=project or ids.new("project_"))
        await self.wait_until_known(secret)
        return secret

    async def revoke(self, secret: str) -> None:
        """Revoke a key; returns when it opens nothing any more."""
        async with self.store() as store:
            wanted, found = api_keys.digest(secret), None
            async for batch in store.read(subjects.ALL_API_KEYS):
                for recorded in batch:
                    if getattr(recorded.event, "sha256", None) == wanted:
                        found = recorded.event.aggregate_id()[0]
            assert found is not None
            await api_keys.revoke(store, ids.KeyId(found))
        async with asyncio.timeout(60), self.http(secret) as http:
            while (await http.get("/files/file-x")).status_code != 401:
                await asyncio.sleep(0.005)

    async def wait_until_known(self, secret: str) -> None:
        async with asyncio.timeout(60), self.http(secret) as http:
            while (await http.get("/files/file-x")).status_code == 401:
                await asyncio.sleep(0.005)  # the condition is at another process

    def wait_until(self, status: str, timeout_seconds: float = 60.0) -> None:
        """Wait until /readyz says ``status``."""
        deadline = time.monotonic() + timeout_seconds
        url = self.url.removesuffix("/v1") + "/readyz"
        while (now := httpx2.get(url, timeout=REQUEST_SECONDS).json())["status"] != status:
            if time.monotonic() > deadline:
                raise TimeoutError(f"/readyz says {now}")
            time.sleep(0.02)

    def client(self, key: str, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=self.url,
            api_key=key,
            **{"max_retries": 0, "timeout": REQUEST_SECONDS} | options,
        )

    def async_client(self, key: str, **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=self.url,
            api_key=key,
            **{"max_retries": 0, "timeout": REQUEST_SECONDS} | options,
        )

    def http(self, key: str | None) -> httpx2.AsyncClient:
        """A bare client, for what the official one does not send."""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx2.AsyncClient(base_url=self.url, headers=headers, timeout=REQUEST_SECONDS)


@contextmanager
def projecting(settings: Settings) -> Iterator[None]:
    """Run a projector on a thread with a loop of its own."""
    started, loop, stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    async def project() -> None:
        async with jetstream.connect(settings, source="projector") as store:
            projecting = asyncio.create_task(Projector(store, settings).run())
            started.set()
            await stop.wait()
            await tasks.end(projecting)

    def run() -> None:
        loop.run_until_complete(project())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    thread = threading.Thread(target=run, name="projector")
    thread.start()
    assert started.wait(60)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        assert not thread.is_alive()


@contextmanager
def gateway(
    home: Path, *, with_postgres: bool = True, **settings_overrides: Any
) -> Iterator[Gateway]:
    """Start it all; without Postgres it takes a second less, and lists are unavailable."""
    only = {"nats", "api"} | ({"postgres"} if with_postgres else set())
    with LocalStack(home, only=only, settings_overrides=settings_overrides) as stack:
        if not with_postgres:
            yield Gateway(stack)
            return
        with projecting(stack.settings):
            running = Gateway(stack)
            running.wait_until("ready")
            yield running
