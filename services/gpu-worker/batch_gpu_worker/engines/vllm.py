"""vLLM's own server as a child process, in an environment of its own.

Owns the server's life: its socket, its record under ``<home>/run`` and its restarts. Requests reach
it over a unix socket that only this user can open. Its output becomes log lines of the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from batch_gpu_worker.engines import guardian, vllm_adapters
from batch_gpu_worker.engines.base import (
    ENDPOINTS,
    EngineLoad,
    EngineResponse,
    EngineStream,
    ignore_death,
    ignore_lost_adapter,
    unsupported,
)
from batch_gpu_worker.engines.choice import Choice, Chosen
from batch_gpu_worker.engines.death import Death, ended_within, judge, memory_kills
from batch_gpu_worker.engines.http import HttpCaller, explained
from batch_gpu_worker.engines.output import LAST_WORDS_LINES, forward, open_pipe
from batch_gpu_worker.engines.priority import ONLINE_PRIORITY, with_priority
from batch_gpu_worker.engines.vllm_command import engine_command, engine_environment
from batch_gpu_worker.engines.vllm_probes import load_of, make_one_token, tokens_of
from vllm_batch import ids
from vllm_batch.errors import EngineCrashed, EngineDown, EngineFailed, EngineUnavailable
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)

HEALTH_PAUSE_SECONDS = 0.25
STOP_GRACE_SECONDS = 8.0
START_ATTEMPTS_MAX = 3
BURIAL_SECONDS = 6.0
RESTART_PAUSE_SECONDS = 1.0
RESTART_PAUSE_SECONDS_MAX = 30.0
VERDICT_PAUSE_SECONDS = 0.05
VERDICT_SECONDS = 10.0
OUTPUT_SECONDS = 1.0
"""How long a server's output is waited for after its end: who escaped may hold the pipe open."""
SOCKET_PATH_BYTES_MAX = 107  # sun_path of Linux is 108 bytes with the final zero
MARK_VARIABLE = "VLLM_BATCH_ENGINE_MARK"
"""In the environment of all that an engine starts: whose they are, wherever they hide."""
_GENTLE = frozenset({"memory_limit", "requested", "swapped"})
_SESSION = 3  # of guardian.process_fields


class VllmEngine:
    """See `Engine`."""

    def __init__(self, settings: Settings) -> None:
        self.ready = asyncio.Event()
        self.on_death: Callable[[Death], None] = ignore_death
        self.on_adapter_lost: Callable[[str, str], None] = ignore_lost_adapter
        self.max_num_seqs = settings.engine_max_num_seqs
        self._settings = settings
        self._choice = Choice(settings)
        self.record = settings.home.absolute() / "run" / f"engine-{settings.worker_name}.json"
        self._short_dir: Path | None = None
        self._caller: HttpCaller | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._verdict: asyncio.Task[bool] | None = None
        self._generation = 0
        self._last_words: deque[str] = deque(maxlen=LAST_WORDS_LINES)
        self._halted: Death | None = None
        self._resumed = asyncio.Event()
        self._resumed.set()
        self._down = asyncio.Event()
        self._down.set()
        self._sessions: dict[int, int] = {}
        self._mark = ids.worker_key(str(self.record))

    @property
    def chosen(self) -> Chosen:
        """See `Engine.chosen`."""
        return self._choice.now

    @property
    def pid(self) -> int | None:
        """Process id of vLLM's API server."""
        if self._process is None or self._process.returncode is not None:
            return None
        return guardian.recorded_server(self.record)

    async def start(self) -> None:
        """Kill what an earlier worker of this name left, and start the server."""
        self.record.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if left := await asyncio.to_thread(guardian.kill_recorded, self.record):
            log.warning("killed what an earlier engine left behind", pids=left)
        socket = str(self.record.with_suffix(".sock"))
        if len(os.fsencode(socket)) > SOCKET_PATH_BYTES_MAX:
            self._short_dir = Path(tempfile.mkdtemp(prefix="vllm-batch-", dir="/tmp"))
            socket = str(self._short_dir / "engine.sock")
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

    @asynccontextmanager
    async def stream(self, endpoint: str, body: bytes) -> AsyncIterator[EngineStream]:
        """Answer, before whatever `complete` was given; see `Engine.stream`."""
        generation = self._generation
        if not self.ready.is_set():
            raise EngineDown("vLLM is starting")
        asked = with_priority(body, ONLINE_PRIORITY)
        try:
            async with self._http().stream(endpoint, asked, by="vLLM with this model") as answer:
                if answer.status >= 500 and await self._died(generation):
                    raise EngineCrashed("vLLM died")
                yield answer
        except EngineUnavailable:
            if await self._died(generation):
                raise EngineCrashed("vLLM died") from None
            raise

    async def load(self) -> EngineLoad | None:
        """Return what its metrics say; see `Engine.load`."""
        return load_of((await self.ask("/metrics")).body) if self.ready.is_set() else None

    async def progress(self) -> int | None:
        """Return how many tokens the server has read and made; see `Engine.progress`."""
        return tokens_of((await self.ask("/metrics")).body)

    async def canary(self) -> None:
        """Have one token made, or one embedding; see `Engine.canary`."""
        await make_one_token(self._http(), self._choice.now.base.name)

    async def halt(self, death: Death) -> None:
        """End the server: at once, or politely where nothing is wrong; see `Engine.halt`."""
        self._resumed.clear()
        self._halted = death
        self.ready.clear()
        process = self._process
        if process is not None and not self._down.is_set():
            if death.reason in _GENTLE:
                _send(process.terminate)
            else:
                await self._kill_server(process)
        await self._down.wait()

    def resume(self) -> None:
        """Start the server again; see `Engine.resume`."""
        self._halted = None
        self._resumed.set()

    def choose(self, chosen: Chosen) -> None:
        """Load another model at the next start; see `Engine.choose`."""
        self._choice.choose(chosen)

    async def settled(self) -> None:
        """Wait until the chosen model runs; see `Engine.settled`."""
        await self._choice.settled()

    async def load_adapter(self, name: str, folder: str) -> None:
        """Load a LoRA adapter into the running server; see `Engine.load_adapter`."""
        await vllm_adapters.load(self._http(), name, folder)
        self._choice.adapters[name] = folder

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter; see `Engine.unload_adapter`."""
        self._choice.adapters.pop(name, None)
        await vllm_adapters.unload(self._http(), name)

    def owns(self, pid: int) -> bool:
        """Tell by its session or its mark whether a process is of this engine."""
        fields = guardian.process_fields(pid)
        if fields is None or fields[0] in {"Z", "X"}:
            return False
        started = self._sessions.get(int(fields[_SESSION]))
        if started is not None and (guardian.start_time(pid) or 0) >= started:
            return True
        return guardian.has_variable(pid, f"{MARK_VARIABLE}={self._mark}")

    async def stop(self) -> None:
        """Ask the server to end, kill it after a grace, and wait until all of it is gone."""
        self.ready.clear()
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        if self._caller is not None:
            await self._caller.close()
        if self._short_dir is not None:
            await asyncio.to_thread(shutil.rmtree, self._short_dir, ignore_errors=True)

    def _http(self) -> HttpCaller:
        if self._caller is None:
            raise EngineDown("vLLM is not started")
        return self._caller

    async def _supervise(self, socket: str) -> None:
        """Keep the server running. Raises EngineFailed when it does not come up."""
        attempts = 0
        while True:
            await self._resumed.wait()
            came_up, death = await self._run_once(socket)
            asked = death is self._halted
            attempts = 0 if came_up or asked else attempts + 1
            words = "\n".join(self._last_words)
            if not came_up and not asked and self._choice.failed(words):
                self.on_death(Death("swapped", "back to the model before"))
                attempts = 0
                continue
            if attempts == START_ATTEMPTS_MAX:
                raise EngineFailed(f"vLLM did not start; its last words:\n{words}")
            self.on_death(death)
            if not asked:
                pause = min(RESTART_PAUSE_SECONDS * 2**attempts, RESTART_PAUSE_SECONDS_MAX)
                log.info("vLLM will be started again", in_seconds=pause)
                await asyncio.sleep(pause)

    async def _run_once(self, socket: str) -> tuple[bool, Death]:
        """Run the server to its end; return whether it had been ready, and why it ended."""
        self._down.clear()
        self._last_words.clear()
        kills = await asyncio.to_thread(memory_kills)
        try:
            output, writer = await open_pipe()
            try:
                process = self._process = await self._launch(socket, writer)
            finally:
                os.close(writer)
            reader = asyncio.create_task(forward(output, self._last_words))
            try:
                came_up = await self._wait_healthy(process)
                if came_up:
                    await self._load_adapters_again(process)
                    self._choice.came_up()
                    self.ready.set()
                    await process.wait()
            finally:
                self.ready.clear()
                self._generation += 1
                await self._end(process)
                await asyncio.wait({reader}, timeout=OUTPUT_SECONDS)
                reader.cancel()
            kills = await asyncio.to_thread(memory_kills) - kills
            if self._halted is not None:
                return came_up, self._halted
            return came_up, judge(process.returncode, self._last_words, memory_kills=kills)
        finally:
            self._down.set()  # whoever waits for it runs after our caller has dealt with the end

    async def _launch(self, socket: str, output: int) -> asyncio.subprocess.Process:
        await asyncio.to_thread(Path(socket).unlink, missing_ok=True)
        command = engine_command(self._settings, self._choice.now, socket, self.max_num_seqs)
        log.info("starting vLLM", command=command)
        environment = engine_environment(self._settings, self._choice.now, dict(os.environ))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", guardian.__file__, str(self.record), str(STOP_GRACE_SECONDS),
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**environment, MARK_VARIABLE: self._mark},
        )  # fmt: skip
        self._sessions[process.pid] = guardian.start_time(process.pid) or 0
        return process

    async def _wait_healthy(self, process: asyncio.subprocess.Process) -> bool:
        """Return whether the server answers before it ends or engine_ready_seconds are over."""
        deadline = time.monotonic() + self._settings.engine_ready_seconds
        while process.returncode is None and self._halted is None:
            if time.monotonic() > deadline:
                log.error("vLLM is not ready in time", seconds=self._settings.engine_ready_seconds)
                return False
            if await self._healthy():
                return True
            await ended_within(process, HEALTH_PAUSE_SECONDS)
        return False

    async def _load_adapters_again(self, process: asyncio.subprocess.Process) -> None:
        """Load what was loaded before; an adapter that the server refuses is lost."""
        left = deque(self._choice.adapters.items())
        while left and process.returncode is None and self._halted is None:
            name, folder = left[0]
            try:
                await self.load_adapter(name, folder)
            except EngineUnavailable as error:
                log.warning("adapter not loaded yet", model=name, error=str(error))
                await ended_within(process, HEALTH_PAUSE_SECONDS)
                continue
            except EngineFailed as error:
                del self._choice.adapters[name]
                self.on_adapter_lost(name, str(error))
            left.popleft()

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
                self.ready.clear()
                if self._process is not None:
                    await self._kill_server(self._process)
                return True
            await asyncio.sleep(VERDICT_PAUSE_SECONDS)
        return True

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """Have the guardian end the server, or do its work if it is gone itself."""
        if process.returncode is None:
            process.terminate()
            if not await ended_within(process, STOP_GRACE_SECONDS + 2):
                await self._kill()
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        await self._kill()

    async def _kill_server(self, process: asyncio.subprocess.Process) -> None:
        """Kill the server, so that the guardian buries all it has left, wherever it went."""
        if (server := self.pid) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(server, signal.SIGKILL)
            await ended_within(process, BURIAL_SECONDS)
        await self._kill()
        _send(process.kill)

    async def _kill(self) -> None:
        """Kill the guardian and everything it runs."""
        await asyncio.to_thread(guardian.kill_recorded, self.record)


def _send(end: Callable[[], None]) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        end()
