"""Online requests for tests: a stack without workers, workers beside it, and who has what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import nats
import openai

from tests.worker_bench import until, worker_process
from vllm_batch.event_store import jetstream
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.local import ports
from vllm_batch.local.handle import ServiceHandle
from vllm_batch.local.programs import api_spec, environment_of
from vllm_batch.local.stack import LocalStack
from vllm_batch.messaging import telemetry
from vllm_batch.settings import Settings
from vllm_batch.tasks import end

MODEL = "simulated-model"
SECOND_HOLDS = 12


def gateway_alone(home: Path) -> LocalStack:
    """Return a stack of NATS and a gateway that soon notices who is gone; not started yet."""
    overrides = {
        "inference_check_seconds": 0.2,
        "inference_silence_seconds": 4.0,
        "inference_accept_seconds": 3.0,
        "inference_window_bytes": 16 * 1024,
        "lease_seconds": 5,
    }
    return LocalStack(home, only={"nats", "api"}, settings_overrides=overrides)


def second_gateway(stack: LocalStack) -> ServiceHandle:
    """Start another gateway of the same stack, which has room for SECOND_HOLDS requests."""
    own = {
        "api_port": ports.pick(None),
        "inference_in_flight_max": SECOND_HOLDS,
    }  # fmt: skip
    settings = Settings(**stack.settings.model_dump(exclude_defaults=True) | own)
    environment = environment_of(settings.model_dump(exclude_defaults=True, exclude_none=True))
    return stack.add_service(replace(api_spec(settings, environment), name="api-2"))


def body(prompt: str, **fields: Any) -> dict[str, Any]:
    """Return a chat request."""
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}], **fields}


class Bench:
    """Speaks to the gateway, starts workers, and asks them what they hold."""

    def __init__(self, stack: LocalStack) -> None:
        self.stack = stack
        self.http = self.client(stack.settings.api_port)

    def client(self, port: int | None) -> httpx2.AsyncClient:
        headers = {"authorization": f"Bearer {self.stack.api_key}"}
        url = f"http://127.0.0.1:{port}/v1"
        return httpx2.AsyncClient(base_url=url, headers=headers, timeout=60)

    def settings(self, name: str, **changes: Any) -> Settings:
        base = self.stack.settings.model_dump(exclude_defaults=True)
        simulated = {"engine": "simulated", "worker_name": name, "heartbeat_seconds": 0.1}
        return Settings(**base | simulated | changes)

    @asynccontextmanager
    async def workers(
        self, count: int, **changes: Any
    ) -> AsyncIterator[list[asyncio.subprocess.Process]]:
        """So many workers, once each has said what it serves and every gateway has heard of it."""
        async with AsyncExitStack() as stack:
            started = [
                await stack.enter_async_context(worker_process(self.settings(f"w{n}", **changes)))
                for n in range(count)
            ]
            pids = {process.pid for process in started}

            async def all_ready() -> bool:
                beats = [beat for beat in await self.beats() if beat.pid in pids and beat.models]
                ready = {beat.pid for beat in beats if beat.state == "ready"} == pids
                return ready and await self._known({beat.models[0] for beat in beats})

            await until(all_ready)
            yield started

    async def _known(self, models: set[str]) -> bool:
        gateways = [s.port for s in self.stack.services() if s.name.startswith("api")]
        for port in gateways:
            async with self.client(port) as http:
                for model in models:  # the engine refuses it at once
                    request = body("[[sim:400]]", model=model)
                    answer = await http.post("/chat/completions", json=request)
                    if answer.status_code != 400:
                        return False
        return True

    async def beats(self) -> list[Any]:
        client = await nats.connect(self.stack.settings.nats_url)
        try:
            return [beat for beat, _ in (await telemetry.last_heartbeats(client)).values()]
        finally:
            await client.close()

    async def online_in_flight(self, *pids: int) -> int:
        return sum(beat.online_in_flight for beat in await self.beats() if beat.pid in pids)

    async def wait_held(
        self, workers: list[asyncio.subprocess.Process], count: int, seconds: float = 120
    ) -> None:
        """Wait until these workers have so many online requests, together."""
        pids = [worker.pid for worker in workers]

        async def have() -> bool:
            return await self.online_in_flight(*pids) == count

        await until(have, seconds)

    def official(self, port: int | None = None) -> openai.AsyncOpenAI:
        """Return the official client; it tries nothing twice."""
        url = f"http://127.0.0.1:{port or self.stack.settings.api_port}/v1"
        return openai.AsyncOpenAI(
            base_url=url, api_key=self.stack.api_key, max_retries=0, timeout=30
        )

    @asynccontextmanager
    async def store(self) -> AsyncIterator[JetStreamEventStore]:
        """The event log."""
        async with jetstream.connect(self.stack.settings, source="test") as store:
            yield store

    async def chat(self, prompt: str, **fields: Any) -> httpx2.Response:
        return await self.http.post("/chat/completions", json=body(prompt, **fields))


class Reading:
    """A streamed answer that is being read; ``content`` is what has come of it."""

    def __init__(self, http: httpx2.AsyncClient, request: dict[str, Any], **headers: str) -> None:
        self.content = bytearray()
        self._headers = headers
        self.task = asyncio.create_task(self._read(http, request))

    async def _read(self, http: httpx2.AsyncClient, request: dict[str, Any]) -> bytes:
        async with http.stream(
            "POST", "/chat/completions", json=request, headers=self._headers
        ) as answer:
            async for piece in answer.aiter_raw():
                self.content.extend(piece)
        return bytes(self.content)

    @property
    def begun(self) -> bool:
        """Whether anything came yet."""
        return bool(self.content)

    async def leave(self) -> None:
        """Hang up."""
        await end(self.task)
