"""Keeps one service running: start, wait until ready, restart with backoff, stop with its group.

Runs on the supervisor's event loop. Owns the child process, its notification socket and its log.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from vllm_batch.errors import StackError
from vllm_batch.local.exec_child import as_child
from vllm_batch.local.leftovers import MARK_VARIABLE, end_marked, started_at
from vllm_batch.local.log_file import LogFile
from vllm_batch.local.spec import Backoff, ServiceSpec, ServiceState, ServiceStatus

_PROBE_SECONDS = 0.05
_PROBE_SECONDS_MAX = 0.5
_STUCK_CHECK_SECONDS = 2.0
_KILL_SECONDS = 5.0
_FIRST_START_DEATHS_MAX = 3


class SupervisedService:
    """A program that is restarted for as long as it is wanted."""

    def __init__(
        self,
        spec: ServiceSpec,
        *,
        mark: str,
        log_path: Path,
        socket_dir: Path,
        backoff: Backoff,
        rng: random.Random,
        changed: Callable[[], None],
    ) -> None:
        self.spec = spec
        self.log = LogFile(log_path)
        self._mark = f"{mark}:{spec.name}"
        self._socket_path = socket_dir / f"{spec.name}.notify"
        self._backoff = backoff
        self._rng = rng
        self._changed = changed
        self._process: subprocess.Popen[bytes] | None = None
        self._exited = asyncio.Event()
        self._ready = asyncio.Event()
        self._wanted = asyncio.Event()
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._first_failure: str | None = None
        self._task: asyncio.Task[None] | None = None
        self._notifications: socket.socket | None = None
        self._deaths = 0
        self._ever_ready = False
        self._restarts = 0
        self._state = ServiceState.WAITING
        self._since = time.time()
        self._status = ""
        self._started: float | None = None

    @property
    def status(self) -> ServiceStatus:
        """The service as it is now."""
        pid = self._process.pid if self._process and not self._exited.is_set() else None
        return ServiceStatus(
            name=self.spec.name,
            state=self._state,
            pid=pid,
            port=self.spec.port,
            metrics_port=self.spec.metrics_port,
            restarts=self._restarts,
            since=self._since,
            status=self._status,
            started=self._started if pid else None,
        )

    async def start(self) -> None:
        """Start it and wait until it is ready. Raises StackError with the log's last lines."""
        self._listen()
        self._wanted.set()
        self._task = asyncio.create_task(self._keep_running(), name=f"keep {self.spec.name}")
        ready = asyncio.create_task(self._ready.wait())
        done, _ = await asyncio.wait(
            {ready, self._task},
            timeout=self.spec.ready_seconds,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if ready in done:
            return
        ready.cancel()
        why = self._first_failure or f"was not ready within {self.spec.ready_seconds:g} s"
        raise StackError(f"{self.spec.name} {why}; its log ends with:\n{self.last_words()}")

    async def stop(self) -> None:
        """End it: the polite signal, then its group by force. Returns when nothing is left."""
        self._stopping.set()
        self._wanted.set()
        if self._process and not self._exited.is_set():
            self._set(ServiceState.STOPPING)
            self._signal(self.spec.stop_signal)
            await self._exit_or_hurry()
            if not self._exited.is_set():
                self.log.note("did not stop in time; killing it")
                self._kill_group()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_KILL_SECONDS):
                        await self._exited.wait()
        if self._task:
            await asyncio.wait({self._task}, timeout=_KILL_SECONDS)
        self._unlisten()
        self._set(ServiceState.STOPPED, "")
        self.log.close()

    def hurry(self) -> None:
        """Stop waiting for it to end politely."""
        self._hurry.set()

    def hold(self, number: signal.Signals) -> None:
        """Send ``number`` and do not start it again before ``release``."""
        self._wanted.clear()
        self._ready.clear()
        self._signal(number)

    def release(self) -> None:
        """Let a held service run again."""
        self._deaths = 0
        self._wanted.set()

    async def wait_ready(self) -> None:
        """Wait until it is ready (now or after a restart)."""
        await self._ready.wait()

    def last_words(self) -> str:
        """Return the last lines of its log."""
        return "\n".join(f"  {line}" for line in self.log.tail) or "  (it printed nothing)"

    async def _keep_running(self) -> None:
        while not self._stopping.is_set():
            await self._wanted.wait()
            if self._stopping.is_set():
                return
            ready_seconds = await self._run_once()
            if self._stopping.is_set():
                return
            if not self._wanted.is_set():
                self._set(ServiceState.HELD)
                continue
            self._deaths = 1 if ready_seconds > self._backoff.stable else self._deaths + 1
            if not self._ever_ready and self._deaths >= _FIRST_START_DEATHS_MAX:
                self._first_failure = (
                    f"{self._status} while starting, {self._deaths} times in a row"
                )
                self._set(ServiceState.STOPPED)
                return
            await self._pause()

    async def _run_once(self) -> float:
        """Run the program until it ends; returns how many seconds it had been ready."""
        try:
            process = self._spawn()
        except (OSError, StackError) as error:  # no memory, no file handles, a full disk …
            self._status = f"cannot be started: {error}"
            self.log.note(self._status)
            return 0.0
        readiness = asyncio.create_task(self._await_ready())
        ready_seconds = await self._until_exit()
        readiness.cancel()
        self._after_exit(process)
        return ready_seconds

    async def _pause(self) -> None:
        looping = self._deaths >= self._backoff.crash_loop_after
        self._set(ServiceState.CRASH_LOOPING if looping else ServiceState.BACKOFF)
        delay = self._backoff.delay(self._deaths, self._rng.random())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._stopping.wait()
        if self._ever_ready:
            self._restarts += 1

    async def _exit_or_hurry(self) -> None:
        """Wait until it has ended, its time is up, or somebody is in a hurry."""
        waits = [asyncio.create_task(event.wait()) for event in (self._exited, self._hurry)]
        await asyncio.wait(
            waits, timeout=self.spec.stop_seconds, return_when=asyncio.FIRST_COMPLETED
        )
        for wait in waits:
            wait.cancel()

    async def _until_exit(self) -> float:
        """Wait for the process to end; returns how many seconds it had been ready."""
        await self._exited.wait()
        if self._state is not ServiceState.READY:
            return 0.0
        return time.time() - self._since

    def _spawn(self) -> subprocess.Popen[bytes]:
        if self.spec.prepare:
            self.spec.prepare()
        environment = {
            **os.environ,
            **self.spec.env,
            MARK_VARIABLE: self._mark,
            "NOTIFY_SOCKET": str(self._socket_path),
        }
        command = as_child(
            *self.spec.argv,
            uid=self.spec.uid,
            gid=self.spec.gid,
            death_signal=self.spec.death_signal,
        )
        read_end, write_end = os.pipe()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                env=environment,
                cwd=self.spec.cwd,
                start_new_session=True,
            )
        except OSError:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        self._exited = asyncio.Event()
        self._started = started_at(self._process.pid)
        self.log.note(f"started, pid {self._process.pid}")
        self.log.follow(read_end)
        self._set(ServiceState.STARTING, "")
        threading.Thread(
            target=_reap,
            args=(self._process, asyncio.get_running_loop(), self._exited),
            name=f"reap {self.spec.name}",
            daemon=True,
        ).start()
        return self._process

    async def _await_ready(self) -> None:
        if self.spec.probe is None:
            return  # it notifies
        pause = _PROBE_SECONDS
        while not await self.spec.probe():
            await asyncio.sleep(pause)
            pause = min(_PROBE_SECONDS_MAX, pause * 1.2)
        self._become_ready()
        await self._restart_when_stuck()

    async def _restart_when_stuck(self) -> None:
        """End it politely when it says of itself that it is stuck; it is then started again."""
        while self.spec.stuck:
            await asyncio.sleep(_STUCK_CHECK_SECONDS)
            if self._wanted.is_set() and not self._stopping.is_set() and await self.spec.stuck():
                self.log.note("works again only after a restart; ending it")
                self._signal(self.spec.stop_signal)
                return

    def _become_ready(self) -> None:
        if self._state is ServiceState.STARTING:
            self._ever_ready = True
            self._set(ServiceState.READY)
            self._ready.set()

    def _after_exit(self, process: subprocess.Popen[bytes]) -> None:
        self._ready.clear()
        self._status = _why(process.returncode)
        self.log.unfollow()
        self.log.note(f"pid {process.pid} {self._status}")
        self._kill_group()
        end_marked(self._mark)

    def _signal(self, number: signal.Signals) -> None:
        if self._process and not self._exited.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def _kill_group(self) -> None:
        if self._process:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _set(self, state: ServiceState, status: str | None = None) -> None:
        if state is not self._state:
            self._state = state
            self._since = time.time()
        if status is not None:
            self._status = status
        self._changed()

    def _listen(self) -> None:
        self._socket_path.unlink(missing_ok=True)
        receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        receiver.setblocking(False)
        receiver.bind(str(self._socket_path))
        self._notifications = receiver
        asyncio.get_running_loop().add_reader(receiver, self._notified, receiver)

    def _unlisten(self) -> None:
        if self._notifications:
            asyncio.get_running_loop().remove_reader(self._notifications)
            self._notifications.close()
            self._notifications = None
            self._socket_path.unlink(missing_ok=True)

    def _notified(self, receiver: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            message = receiver.recv(65_536).decode(errors="replace")
            fields = dict(line.split("=", 1) for line in message.splitlines() if "=" in line)
            if "STATUS" in fields:
                self._set(self._state, fields["STATUS"])
            if fields.get("READY") == "1" and self.spec.probe is None:
                self._become_ready()


def _reap(
    process: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop, exited: asyncio.Event
) -> None:
    process.wait()
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(exited.set)


def _why(code: int | None) -> str:
    if code is None:
        return "vanished"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"exited with code {code}"
