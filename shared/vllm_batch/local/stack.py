"""The embedded stack as one object: start it, look at it, kill parts of it, stop it.

Used by the CLI and by tests alike. Runs its supervisor on an event loop in a thread of its own, so
the methods here are plain functions that may be called from anywhere (from a coroutine: in a
thread).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from vllm_batch.errors import StackError
from vllm_batch.local import leftovers, metrics, ports, state
from vllm_batch.local.api_key import ensure_api_keys
from vllm_batch.local.engine import EngineChoice, prepare_engine
from vllm_batch.local.environments import Environments
from vllm_batch.local.handle import ServiceHandle
from vllm_batch.local.home import Home
from vllm_batch.local.loop_thread import LoopThread
from vllm_batch.local.nats import nats_spec, nats_url
from vllm_batch.local.ports import loopback_url
from vllm_batch.local.postgres import postgres_spec
from vllm_batch.local.programs import (
    admin_ui_spec,
    api_spec,
    bridge_spec,
    environment_of,
    orchestrator_spec,
    trainer_spec,
    watchdog_spec,
    worker_spec,
)
from vllm_batch.local.secret_file import ensure_secret
from vllm_batch.local.spec import Backoff, ServiceSpec, ServiceStatus
from vllm_batch.local.supervisor import Supervisor
from vllm_batch.local.tools import apply_tools
from vllm_batch.local.validated import validated_settings
from vllm_batch.messaging.permissions import Role
from vllm_batch.settings import Settings

DEFAULT_PORT = 4080
EngineName = Literal["vllm", "openai", "simulated"]
CORE_ROLES = frozenset({"nats", "postgres", "api", "orchestrator", "worker", "watchdog"})
ALL_ROLES = CORE_ROLES | {"bridge", "admin-ui", "trainer"}
_PORTS = {"api": DEFAULT_PORT, "nats": None, "nats_monitor": None, "admin": 4081, "bridge": 4082}
_SERVERS = frozenset({"nats", "postgres"})
T = TypeVar("T")


class LocalStack:
    """NATS, Postgres, gateway, orchestrator, watchdog and workers of one home.

    ``port``: the API's; 0 takes any free one, None the usual one if it is free. ``only``: the roles
    to start, for tests of single parts. ``settings_overrides``: fields of Settings for every
    service.
    """

    def __init__(
        self,
        home: Path | str,
        *,
        engine: EngineName = "simulated",
        model: str = "",
        port: int | None = 0,
        workers: int = 1,
        orchestrators: int = 1,
        settings_overrides: Mapping[str, Any] | None = None,
        extra_env: Mapping[str, str] | None = None,
        extra_services: Collection[ServiceSpec] = (),
        only: Collection[str] = CORE_ROLES,
        backoff: Backoff | None = None,
        on_change: Callable[[state.StackState], None] | None = None,
        on_progress: Callable[[str], None] | None = None,
    ) -> None:
        if unknown := set(only) - ALL_ROLES:
            raise StackError(f"unknown roles {sorted(unknown)}; there are {sorted(ALL_ROLES)}")
        self.home = Home.at(home)
        self._engine = EngineChoice(engine, model)
        self._port = port
        self._workers = workers
        self._orchestrators = orchestrators
        self._overrides = dict(settings_overrides or {})
        self._extra_env = dict(extra_env or {})
        self._extra_services = tuple(extra_services)
        self._only = frozenset(only)
        self._on_change = on_change or (lambda _state: None)
        self._on_progress = on_progress or (lambda _text: None)
        self._held = contextlib.ExitStack()
        self._loop: LoopThread | None = None
        self._backoff = backoff
        self._supervisor = self._new_supervisor()
        self._settings: Settings | None = None
        self._ports: dict[str, int] = {}
        self._statuses: list[ServiceStatus] = []
        self._changed = threading.Condition()
        self._state: Literal["starting", "ready", "stopping", "stopped"] = "stopped"

    # What tests and the CLI ask

    @property
    def settings(self) -> Settings:
        """The settings every service runs with. Raises StackError before ``start``."""
        if self._settings is None:
            raise StackError("the stack has not been started")
        return self._settings

    @property
    def api_url(self) -> str:
        """Base URL of the OpenAI-compatible API, ending in /v1."""
        return f"{loopback_url(self.settings.api_port, tls=self.settings.api_tls_cert)}/v1"

    @property
    def admin_url(self) -> str:
        """Root URL of the admin UI."""
        return loopback_url(self.settings.admin_port, tls=self.settings.admin_tls_cert)

    @property
    def api_key(self) -> str:
        """Secret of the default API key."""
        return self.home.api_key_file.read_text(encoding="utf-8").strip()

    @property
    def model_name(self) -> str:
        """The model's name in requests."""
        return self.settings.model_name

    @property
    def is_ready(self) -> bool:
        """Whether ``start`` has come to its end and ``stop`` has not begun."""
        return self._state == "ready"

    def services(self) -> list[ServiceStatus]:
        """Return every service as it is now."""
        with self._changed:
            return list(self._statuses)

    def service(self, name: str) -> ServiceHandle:
        """Return one service: nats, postgres, api, orchestrator, worker-1 …. Raises KeyError."""
        if name not in {status.name for status in self.services()}:
            raise KeyError(name)
        return ServiceHandle(self, name)

    def wait_for(self, condition: Callable[[], T | None], timeout_seconds: float, what: str) -> T:
        """Wait until ``condition`` is true; asked at every change. Raises StackError."""
        found: T | None = None

        def met() -> bool:
            nonlocal found
            found = condition()
            return bool(found)

        with self._changed:
            if not self._changed.wait_for(met, timeout_seconds) or found is None:
                states = ", ".join(f"{s.name} {s.state}" for s in self._statuses)
                raise StackError(f"waited {timeout_seconds:g} s for {what}; now: {states}")
        return found

    # Life

    def start(self) -> Self:
        """Start everything in order; returns when all of it is ready.

        Raises StackError, with the last log lines of what failed, and leaves nothing running.
        """
        self.home.create()
        self._held.enter_context(self.home.lock())
        try:
            self._begin()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop everything, the last started first. May be called twice."""
        if self._loop:
            try:
                self._state = "stopping"
                self._loop.call(self._stop())
            finally:
                self._loop.stop()
                self._loop = None
        self._held.close()

    def hurry(self) -> None:
        """Make a ``stop`` that goes on in another frame or thread end at once."""
        if self._loop:
            self._loop.soon(self._supervisor.hurry)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.stop)

    def add_worker(self, name: str, **settings_overrides: Any) -> ServiceHandle:
        """Start one more worker, with settings of its own; returns when it is ready."""
        environment = {**self._environments.of(Role.WORKER), **environment_of(settings_overrides)}
        return self.add_service(self._measured(worker_spec(name, self.settings, environment)))

    def add_service(self, spec: ServiceSpec) -> ServiceHandle:
        """Start one more service; returns when it is ready. Raises StackError if it fails."""
        self._running().call(self._start_group(spec))
        return self.service(spec.name)

    def on_loop(self, deed: Callable[[Supervisor], T]) -> T:
        """Call ``deed`` with the supervisor on its own loop and return what it returns."""

        async def run() -> T:
            return deed(self._supervisor)

        return self._running().call(run())

    # Inside

    def _begin(self) -> None:
        before = state.read(self.home.state_file)
        leftovers.end_marked(self.home.mark)
        leftovers.end_recorded((s.pid, s.started) for s in before.services if s.pid)
        self._state = "starting"
        self._supervisor = self._new_supervisor()
        chosen_ports = ports.choose(_PORTS, before.ports, api=self._port)
        self._ports = {**metrics.ports_of(before.ports), **chosen_ports}
        base = validated_settings(self.home, **self._overrides)
        chosen = prepare_engine(
            self._engine, base, needed=self._wants("worker") or self._wants("trainer"),
            training=self._wants("trainer"), on_progress=self._on_progress,
        )  # fmt: skip
        servers, dsn = self._servers()
        values = {
            "home": self.home.root,
            "nats_url": nats_url(self.home, self._ports["nats"], Role.OPERATOR),
            "postgres_dsn": dsn,
            "api_port": self._ports["api"],
            "admin_port": self._ports["admin"],
            "bridge_port": self._ports["bridge"],
            "bridge_url": loopback_url(self._ports["bridge"], tls=base.bridge_tls_cert),
            "gateway_url": loopback_url(self._ports["api"], tls=base.api_tls_cert),
            "label_studio_webhook_secret": ensure_secret(self.home.webhook_secret_file),
            "secret_key": ensure_secret(self.home.secret_key_file),
            **chosen.settings,
            **self._overrides,
        }
        self._settings = validated_settings(self.home, **values)
        values["model_name"] = self._settings.model_name
        ours = self._wants("nats") and "nats_url" not in self._overrides
        self._environments = Environments(
            self.home, values, {**chosen.environment, **self._extra_env},
            nats_port=self._ports["nats"] if ours else None,
        )  # fmt: skip
        self._on_progress("")
        self._loop = LoopThread("supervisor")
        self._loop.call(self._start(servers))

    def _servers(self) -> tuple[list[ServiceSpec], str]:
        specs, dsn = [], "postgresql://postgres@127.0.0.1:1/none"
        if self._wants("nats"):
            specs.append(
                nats_spec(
                    self.home, port=self._ports["nats"], monitor_port=self._ports["nats_monitor"]
                )
            )
        if self._wants("postgres"):
            self._on_progress("preparing Postgres")
            spec, place = postgres_spec(self.home)
            specs.append(spec)
            dsn = place.dsn
        return specs, dsn

    def _wants(self, role: str) -> bool:
        return role in self._only

    def _trains(self) -> bool:
        """Tell whether a trainer runs: it needs an environment that can train."""
        return self._wants("trainer") and self.settings.engine_python is not None

    def _new_supervisor(self) -> Supervisor:
        return Supervisor(self.home, backoff=self._backoff, changed=self._service_changed)

    def _running(self) -> LoopThread:
        if self._loop is None:
            raise StackError("the stack is not running")
        return self._loop

    async def _start(self, servers: list[ServiceSpec]) -> None:
        environment = {role: self._environments.of(role) for role in Role}
        gateway = [api_spec(self.settings, environment[Role.API])] if self._wants("api") else []
        if self._wants("orchestrator"):
            names = _numbered("orchestrator", self._orchestrators)
            gateway += [orchestrator_spec(name, environment[Role.ORCHESTRATOR]) for name in names]
        if self._wants("watchdog"):
            gateway.append(watchdog_spec("watchdog", environment[Role.WATCHDOG]))
        workers = [
            worker_spec(f"worker-{number}", self.settings, environment[Role.WORKER])
            for number in range(1, self._workers + 1)
            if self._wants("worker")
        ]
        if self._trains():
            workers.append(trainer_spec(environment[Role.TRAINER]))
        gateway, workers = [*map(self._measured, gateway)], [*map(self._measured, workers)]
        self._supervisor.announce([*servers, *gateway, *workers, *self._extra_services])
        await self._supervisor.start(*(spec.name for spec in servers))
        if self._only - _SERVERS and self._wants("nats"):
            await ensure_api_keys(self.home, self.settings)
            await apply_tools(
                self.home, self.settings, self.service("nats").pid, self._ports["nats_monitor"]
            )
            clients = [*map(self._measured, self._clients_of_the_api())]
            self._supervisor.announce(clients)
            gateway += clients
        await self._supervisor.start(*(spec.name for spec in gateway))
        await self._supervisor.start(*(spec.name for spec in (*workers, *self._extra_services)))
        self._state = "ready"
        self._service_changed()

    def _clients_of_the_api(self) -> list[ServiceSpec]:
        """Return the services that call our own API; the keys they get have to be there."""
        clients = []
        if self._wants("bridge"):
            environment = self._environments.of(Role.BRIDGE, key_file=self.home.api_key_file)
            clients.append(bridge_spec(self.settings, environment))
        if self._wants("admin-ui"):
            environment = self._environments.of(Role.ADMIN_UI, key_file=self.home.service_key_file)
            clients.append(admin_ui_spec(self.settings, environment))
        return clients

    def _measured(self, spec: ServiceSpec) -> ServiceSpec:
        return metrics.with_port(spec, self._ports)

    async def _start_group(self, *specs: ServiceSpec) -> None:
        self._supervisor.announce(specs)
        await self._supervisor.start(*(spec.name for spec in specs))
        self._service_changed()

    async def _stop(self) -> None:
        await self._supervisor.stop()
        leftovers.end_marked(self.home.mark)
        self._state = "stopped"
        self._service_changed()

    def _service_changed(self) -> None:
        with self._changed:
            self._statuses = self._supervisor.statuses()
            self._changed.notify_all()
        snapshot = self._snapshot()
        with contextlib.suppress(OSError):  # a full disk must not end the supervision
            state.write(self.home.state_file, snapshot)
            metrics.write_targets(self.home.metrics_targets_file, snapshot)
        self._on_change(snapshot)

    def _snapshot(self) -> state.StackState:
        settings = self.settings
        return state.StackState(
            pid=os.getpid() if self._state != "stopped" else 0,
            started=leftovers.started_at(os.getpid()),
            state=self._state,
            api_url=self.api_url,
            engine=settings.engine,
            model=settings.model,
            model_name=settings.model_name,
            nats_url=settings.nats_url,
            postgres_dsn=settings.postgres_dsn.get_secret_value(),
            ports=self._ports,
            services=[
                state.ServiceRecord(
                    name=s.name, state=s.state.value, pid=s.pid, started=s.started, port=s.port,
                    metrics_port=s.metrics_port, restarts=s.restarts, since=s.since,
                    status=s.status,
                )
                for s in self._statuses
            ],
        )  # fmt: skip


def _numbered(name: str, count: int) -> list[str]:
    """Return ``name``, ``name-2``, …: the first has no number, as usually it is the only one."""
    return [name if number == 1 else f"{name}-{number}" for number in range(1, count + 1)]
