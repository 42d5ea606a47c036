"""Fixtures that every kind of test may use: real servers on free ports with temporary stores."""

from __future__ import annotations

import gc
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import hypothesis
import pytest
import structlog

from tests import real_label_studio
from tests.real_label_studio import LabelStudio
from vllm_batch.event_store import jetstream
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.local import ports
from vllm_batch.local.stack import LocalStack
from vllm_batch.settings import Settings

# How long an example takes says how busy the machine is, not whether the code is right.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


def pytest_configure() -> None:
    """Let the programs that tests start hear Ctrl-C (a shell's background jobs ignore it, and so
    would theirs), and keep runs beside each other apart."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _take_ports_of_our_own()


def _take_ports_of_our_own() -> None:
    """Give each process that runs tests side by side a part of the ports: between the choice of a
    free one and the server's start, another stack could take it."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    lowest, end = ports._LOWEST, ports._ephemeral_start()
    share = (end - lowest) // count
    ports._LOWEST = lowest + number * share
    ports._ephemeral_start = lambda: ports._LOWEST + share


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Collect no garbage while a failure is rendered.

    A finalizer that logs a traceback parses source, and CPython 3.11 ends a parse with a
    SystemError that another one interrupted (``AST constructor recursion depth mismatch``,
    gh-106905): a failed test then ended the whole run. May go with Python 3.12 as the oldest.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


class NatsServer:
    """A real nats-server on a free port. `kill` and `start` again keep the store.

    ``more``: text for its configuration, such as users.
    """

    def __init__(self, directory: Path, more: str = "") -> None:
        self._directory = directory
        self._more = more
        self.port = ports.pick(None)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        binary = Path(sys.executable).with_name("nats-server")
        config = self._directory / "nats.conf"
        config.write_text(
            f'listen: "127.0.0.1:{self.port}"\n'
            f'jetstream {{ store_dir: "{self._directory / "store"}", sync_interval: always }}\n'
            f"{self._more}\n"
        )
        with (self._directory / "nats.log").open("ab") as log:
            self._process = subprocess.Popen([str(binary), "-c", str(config)], stderr=log)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise TimeoutError("nats-server did not start")

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        while number == signal.SIGSTOP and not self._stands_still():
            time.sleep(0.001)

    def _stands_still(self) -> bool:
        """Tell whether each of its threads is stopped: until then it may still answer."""
        assert self._process is not None
        threads = Path(f"/proc/{self._process.pid}/task").iterdir()
        fields = [(thread / "stat").read_text().rpartition(")")[2].split() for thread in threads]
        return all(one[0] == "T" for one in fields)

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            self._process.wait(10)


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    directory = tmp_path / "nats"
    directory.mkdir()
    server = NatsServer(directory)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """One real Postgres for the whole run, on a unix socket of its own."""
    with LocalStack(tmp_path_factory.mktemp("postgres"), only={"postgres"}) as stack:
        yield stack


@pytest.fixture
async def postgres_dsn(postgres_server: LocalStack) -> AsyncIterator[str]:
    """A database of the test's own."""
    name = f"test_{secrets.token_hex(6)}"
    server = postgres_server.settings.postgres_dsn.get_secret_value()
    connection = await asyncpg.connect(server)
    await connection.execute(f"CREATE DATABASE {name}")
    yield server.replace("/postgres?", f"/{name}?")
    await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await connection.close()


@pytest.fixture(scope="session")
def label_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelStudio]:
    """One real Label Studio for the whole run; tests make projects of their own."""
    folder = tmp_path_factory.mktemp("label_studio")
    with real_label_studio.copy_of(real_label_studio.ensure_template(), folder) as server:
        yield server


@pytest.fixture
def settings(tmp_path: Path, nats_server: NatsServer) -> Settings:
    return Settings(home=tmp_path / "home", nats_url=nats_server.url)


@pytest.fixture
async def event_store(settings: Settings) -> AsyncIterator[JetStreamEventStore]:
    async with jetstream.connect(settings, source="test") as store:
        yield store


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("VLLM_BATCH_", "OPENAI_")) and name != "VLLM_BATCH_CACHE":
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _logs_stay_unconfigured() -> Iterator[None]:
    """Configured loggers keep a stream that is closed with the test; the next line would fail."""
    yield
    cached = structlog.get_config()["cache_logger_on_first_use"]
    assert not cached, "run what configures logs in a process of its own"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory that holds 4 MiB and no more: a tmpfs of its own."""
    directory = tmp_path / "small"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(directory)]
    if os.geteuid() != 0 or subprocess.run(command, check=False).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


@dataclass(frozen=True)
class S3Bucket:
    """A bucket of a real S3 server on loopback, and the environment that opens it."""

    url: str
    environment: dict[str, str]


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer  # a second to import: only where it is used

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> S3Bucket:
    import boto3

    environment = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ALLOW_HTTP": "true",
    }
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, environment[name])
    name = f"b{os.urandom(6).hex()}"
    boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1").create_bucket(Bucket=name)
    return S3Bucket(f"s3://{name}/prefix", environment)
