"""vLLM's own server as a child process, in an environment of its own.

Owns the server's life: its socket, its record under ``<home>/run`` and its restarts. Requests reach
it over a unix socket that only this user can open. Its output becomes log lines of the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

import msgspec
import structlog

from batch_gpu_worker.engines import guardian
from batch_gpu_worker.engines.base import ENDPOINTS, EngineResponse, unsupported
from batch_gpu_worker.engines.http import HttpCaller, explained
from vllm_batch.errors import EngineCrashed, EngineDown, EngineFailed, EngineUnavailable
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)

HEALTH_PAUSE_SECONDS = 0.25
STOP_GRACE_SECONDS = 8.0
START_ATTEMPTS_MAX = 3
RESTART_PAUSE_SECONDS = 1.0
RESTART_PAUSE_SECONDS_MAX = 30.0
VERDICT_PAUSE_SECONDS = 0.05
VERDICT_SECONDS = 10.0
LAST_WORDS_LINES = 30
LINE_BYTES_MAX = 64 * 1024
_CPU_KV_CACHE_GIB = "2"


class _Record(msgspec.Struct):
    server: int


class VllmEngine:
    """See `Engine`."""

    def __init__(self, settings: Settings) -> None:
        self.ready = asyncio.Event()
        self._settings = settings
        self.record = settings.home.absolute() / "run" / f"engine-{settings.worker_name}.json"
        self._socket_dir = Path()
        self._caller: HttpCaller | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._verdict: asyncio.Task[bool] | None = None
        self._generation = 0
        self._last_words: deque[str] = deque(maxlen=LAST_WORDS_LINES)

    @property
    def pid(self) -> int | None:
        """Process id of vLLM's API server."""
        if self._process is None or self._process.returncode is not None:
            return None
        try:
            return msgspec.json.decode(self.record.read_bytes(), type=_Record).server
        except (OSError, msgspec.DecodeError):
            return None

    async def start(self) -> None:
        """Kill what an earlier worker of this name left, and start the server."""
        self.record.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if left := await asyncio.to_thread(guardian.kill_recorded, self.record):
            log.warning("killed what an earlier engine left behind", pids=left)
        self._socket_dir = Path(tempfile.mkdtemp(prefix="vllm-batch-engine-"))
        socket = str(self._socket_dir / "engine.sock")
        self._caller = HttpCaller("http://engine/v1", uds=socket)
        self._supervisor = asyncio.create_task(self._supervise(socket))

    async def wait_failed(self) -> None:
        """Wait until the server is given up; see `Engine.wait_failed`."""
        if self._supervisor is None:
            raise EngineFailed("vLLM was never started")
        await asyncio.shield(self._supervisor)

    async def models(self) -> list[str]:
        """Return what the server lists: the model and its adapters."""
        return await self._http().models()

    async def complete(self, endpoint: str, body: bytes) -> EngineResponse:
        """Answer; see `Engine.complete`."""
        if endpoint not in ENDPOINTS:
            return unsupported(endpoint, "vLLM")
        generation = self._generation
        if not self.ready.is_set():
            raise EngineDown("vLLM is starting")
        try:
            answer = await self._http().post(endpoint, body)
        except EngineUnavailable:
            if await self._died(generation):
                raise EngineCrashed("vLLM died") from None
            raise
        if answer.status >= 500 and await self._died(generation):
            raise EngineCrashed("vLLM died")
        return explained(answer, endpoint, "vLLM with this model")

    async def stop(self) -> None:
        """Ask the server to end, kill it after a grace, and wait until all of it is gone."""
        self.ready.clear()
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        if self._caller is not None:
            await self._caller.close()
        await asyncio.to_thread(shutil.rmtree, self._socket_dir, ignore_errors=True)

    def _http(self) -> HttpCaller:
        if self._caller is None:
            raise EngineDown("vLLM is not started")
        return self._caller

    async def _supervise(self, socket: str) -> None:
        """Keep the server running. Raises EngineFailed when it does not come up."""
        attempts = 0
        while True:
            self._process = await self._launch(socket)
            reader = asyncio.create_task(self._forward_output(self._process.stdout))
            try:
                came_up = await self._wait_healthy(self._process)
                if came_up:
                    attempts = 0
                    self.ready.set()
                    await self._process.wait()
            finally:
                self.ready.clear()
                self._generation += 1
                await self._end(self._process)
                await reader
            if not came_up:
                attempts += 1
                if attempts == START_ATTEMPTS_MAX:
                    words = "\n".join(self._last_words)
                    raise EngineFailed(f"vLLM did not start; its last words:\n{words}")
            pause = min(RESTART_PAUSE_SECONDS * 2**attempts, RESTART_PAUSE_SECONDS_MAX)
            log.error("vLLM ended", status=self._process.returncode, restart_in_seconds=pause)
            await asyncio.sleep(pause)

    async def _launch(self, socket: str) -> asyncio.subprocess.Process:
        await asyncio.to_thread(Path(socket).unlink, missing_ok=True)
        command = engine_command(self._settings, socket)
        log.info("starting vLLM", command=command)
        return await asyncio.create_subprocess_exec(
            sys.executable, "-I", guardian.__file__, str(self.record), str(STOP_GRACE_SECONDS),
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=LINE_BYTES_MAX,
            start_new_session=True,
            env=engine_environment(self._settings, dict(os.environ)),
        )  # fmt: skip

    async def _wait_healthy(self, process: asyncio.subprocess.Process) -> bool:
        """Return whether the server answers before it ends or engine_ready_seconds are over."""
        deadline = time.monotonic() + self._settings.engine_ready_seconds
        while process.returncode is None:
            if time.monotonic() > deadline:
                log.error("vLLM is not ready in time", seconds=self._settings.engine_ready_seconds)
                return False
            if await self._healthy():
                return True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), HEALTH_PAUSE_SECONDS)
        return False

    async def ask(self, path: str) -> EngineResponse:
        """Return what the server says at ``path``, such as ``/health`` or ``/metrics``.

        Raises:
            EngineDown: it does not answer.
        """
        return await self._http().get(f"http://engine{path}")

    async def _healthy(self) -> bool:
        try:
            answer = await self.ask("/health")
        except EngineUnavailable:
            return False
        return answer.status == 200

    async def _died(self, generation: int) -> bool:
        """Tell whether the server that held a request is gone or going."""
        if self._generation != generation:
            return True
        if self._verdict is None or self._verdict.done():
            self._verdict = asyncio.create_task(self._judge(generation))
        return await asyncio.shield(self._verdict)

    async def _judge(self, generation: int) -> bool:
        """Wait until the server has either ended or answers that it is well."""
        deadline = time.monotonic() + VERDICT_SECONDS
        while self._generation == generation:
            if await self._healthy():
                return False
            if time.monotonic() > deadline:
                log.error("vLLM is neither well nor gone: killing it")
                await self._kill()
                return True
            await asyncio.sleep(VERDICT_PAUSE_SECONDS)
        return True

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """Have the guardian end the server, or do its work if it is gone itself."""
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_GRACE_SECONDS + 2)
            except TimeoutError:
                await self._kill()
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        await self._kill()

    async def _kill(self) -> None:
        """Kill the guardian and everything it runs."""
        await asyncio.to_thread(guardian.kill_recorded, self.record)

    async def _forward_output(self, output: asyncio.StreamReader | None) -> None:
        while output is not None:
            try:
                line = await output.readline()
            except ValueError:  # longer than the limit: the stream has dropped it
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            self._last_words.append(text)
            log.info("engine", line=text)


def has_nvidia_gpu() -> bool:
    """Tell whether the NVIDIA driver offers a device on this machine."""
    return Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()


def engine_command(settings: Settings, socket: str) -> list[str]:
    """Return the server's command line. Raises EngineFailed where a setting is missing."""
    if settings.engine_python is None or not settings.model:
        raise EngineFailed("engine vllm needs the settings engine_python and model")
    arguments = [
        str(settings.engine_python), "-m", "vllm.entrypoints.openai.api_server",
        "--model", settings.model,
        "--served-model-name", settings.model_name,
        "--uds", socket,
        "--max-num-seqs", str(settings.engine_max_num_seqs),
        "--disable-uvicorn-access-log",
    ]  # fmt: skip
    if not has_nvidia_gpu() and "--enforce-eager" not in settings.engine_args:
        arguments.append("--enforce-eager")  # compiling takes longer than it saves on a CPU
    return [*arguments, *settings.engine_args]


def engine_environment(settings: Settings, inherited: dict[str, str]) -> dict[str, str]:
    """Return the server's environment: none of our settings, for they hold secrets."""
    kept = {
        name: value
        for name, value in inherited.items()
        if (not name.startswith("VLLM_BATCH_") or name == "VLLM_BATCH_STACK_MARK")
        and name not in {"NOTIFY_SOCKET", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    }
    kept["PYTHONUNBUFFERED"] = "1"
    kept.setdefault("VLLM_NO_USAGE_STATS", "1")
    if Path(settings.model).is_dir():
        kept.setdefault("HF_HUB_OFFLINE", "1")
    if not has_nvidia_gpu():
        kept.setdefault("VLLM_CPU_KVCACHE_SPACE", _CPU_KV_CACHE_GIB)
    return kept
