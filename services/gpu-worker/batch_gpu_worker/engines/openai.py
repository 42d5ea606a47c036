"""Any server that speaks OpenAI's API: SGLang, llama.cpp, Ollama, a vLLM or service elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog

from batch_gpu_worker.engines.base import (
    ENDPOINTS,
    EngineResponse,
    EngineStream,
    ignore_death,
    ignore_lost_adapter,
    unsupported,
)
from batch_gpu_worker.engines.choice import Chosen
from batch_gpu_worker.engines.death import Death
from batch_gpu_worker.engines.http import HttpCaller, explained
from vllm_batch.errors import EngineDown, EngineFailed, EngineUnavailable
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)

PROBE_PAUSE_SECONDS = 1.0
_NO_SUCH_ROUTE = {404, 405, 501}


class OpenAIEngine:
    """See `Engine`. Somebody else keeps the server running; here it is only watched."""

    def __init__(self, settings: Settings) -> None:
        self.ready = asyncio.Event()
        self.on_death: Callable[[Death], None] = ignore_death
        self.on_adapter_lost: Callable[[str, str], None] = ignore_lost_adapter
        self.max_num_seqs = settings.engine_max_num_seqs
        self._url = settings.engine_url
        # Without a name of the user's choice: whatever the server lists.
        self._only_model = "" if settings.model_name == "openai-model" else settings.model_name
        self._caller = HttpCaller(
            settings.engine_url, api_key=settings.engine_api_key.get_secret_value()
        )
        self._probe: asyncio.Task[None] | None = None

    @property
    def chosen(self) -> None:
        """Its server serves what it serves."""
        return None

    @property
    def pid(self) -> int | None:
        """Its process is not ours."""
        return None

    async def start(self) -> None:
        """Look for the server until it answers."""
        if self._url:
            self._begin_probe()

    async def wait_failed(self) -> None:
        """Wait for ever: the server may always come back. Raises EngineFailed without a URL."""
        if not self._url:
            raise EngineFailed("engine openai needs the setting engine_url")
        await asyncio.get_running_loop().create_future()

    async def models(self) -> list[str]:
        """Return the configured model, or what the server lists; see `Engine.models`."""
        return [self._only_model] if self._only_model else await self._caller.models()

    async def complete(self, endpoint: str, body: bytes) -> EngineResponse:
        """Answer; see `Engine.complete`."""
        if endpoint not in ENDPOINTS:
            return unsupported(endpoint, "The engine")
        try:
            answer = await self._caller.post(endpoint, body)
        except EngineDown:
            self._begin_probe()
            raise
        return explained(answer, endpoint, "The engine")

    @asynccontextmanager
    async def stream(self, endpoint: str, body: bytes) -> AsyncIterator[EngineStream]:
        """Answer; see `Engine.stream`. Who goes first is the server's business: not every one takes
        a priority."""
        try:
            async with self._caller.stream(endpoint, body, by="The engine") as answer:
                yield answer
        except EngineDown:
            self._begin_probe()
            raise

    async def load(self) -> None:
        """Whoever runs the server watches it."""
        return

    async def progress(self) -> int | None:
        """Whoever runs the server watches it, too."""
        return None

    async def canary(self) -> None:
        """Ask for the list of models; see `Engine.canary`."""
        await self._caller.models()

    async def halt(self, death: Death) -> None:
        """The server is not ours to end."""
        log.warning("an engine elsewhere is not ended", reason=death.reason, url=self._url)

    def resume(self) -> None:
        """It was never ended."""

    def choose(self, chosen: Chosen) -> None:
        """Its models are not ours to choose."""
        raise EngineFailed(f"engine openai cannot load {chosen.base.name}")

    async def settled(self) -> None:
        """Nothing is ever chosen."""

    async def load_adapter(self, name: str, _folder: str) -> None:
        """Its models are not ours to choose."""
        raise EngineFailed(f"engine openai cannot load {name}")

    async def unload_adapter(self, name: str) -> None:
        """It never had one."""

    def owns(self, _pid: int) -> bool:
        """Its processes are not ours."""
        return False

    async def stop(self) -> None:
        """Drop the connections; the server is not ours to stop."""
        self.ready.clear()
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.gather(self._probe, return_exceptions=True)
        await self._caller.close()

    def _begin_probe(self) -> None:
        self.ready.clear()
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._wait_reachable())

    async def _wait_reachable(self) -> None:
        while not await self._reachable():  # noqa: ASYNC110 - nobody tells us but the server
            await asyncio.sleep(PROBE_PAUSE_SECONDS)
        self.ready.set()

    async def _reachable(self) -> bool:
        try:
            answer = await self._caller.get(self._caller.base_url + "/models")
        except EngineUnavailable as error:
            log.warning("the engine cannot be reached", url=self._url, error=str(error))
            return False
        if answer.status == 200 or (answer.status in _NO_SUCH_ROUTE and self._only_model):
            return True
        log.warning("the engine is not usable", url=self._url, status=answer.status)
        return False
