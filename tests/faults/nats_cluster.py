"""Three real nats-servers on loopback that form one JetStream cluster, to kill one at a time."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from pathlib import Path

from vllm_batch.local.nats import server_program

SERVERS = 3
# What an election may take is the server's own affair; a machine with two busy cores needs slack.
READY_SECONDS = 90.0


class Member:
    """One server of the cluster; ``kill`` and ``start`` again keep its store."""

    def __init__(self, name: str, directory: Path, ports: tuple[int, int, int]) -> None:
        self.name = name
        self.port, self.route_port, self.monitor_port = ports
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def configure(self, routes: list[str]) -> None:
        """Write the configuration; ``routes`` name all members."""
        self._directory.mkdir()
        config = {
            "server_name": self.name,
            "listen": f"127.0.0.1:{self.port}",
            "http": f"127.0.0.1:{self.monitor_port}",
            "jetstream": {"store_dir": str(self._directory / "store"), "sync_interval": "always"},
            "cluster": {
                "name": "test",
                "listen": f"127.0.0.1:{self.route_port}",
                "routes": routes,
            },
        }
        (self._directory / "nats.conf").write_text(json.dumps(config))

    def start(self) -> None:
        """Start the process; see `NatsCluster.wait_ready`."""
        with (self._directory / "nats.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(server_program()), "-c", str(self._directory / "nats.conf")], stderr=log
            )

    def end(self, number: signal.Signals) -> None:
        """Send a signal that ends it, and wait until it has ended."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(20)

    def healthy(self) -> bool:
        """Tell whether it says that JetStream is up and its streams are current (/healthz)."""
        try:
            with socket.create_connection(("127.0.0.1", self.monitor_port), 1) as connection:
                connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
                return b" 200 " in connection.recv(64)
        except OSError:
            return False


class NatsCluster:
    """Three members."""

    def __init__(self, directory: Path) -> None:
        ports = free_ports(3 * SERVERS)
        self.members = [
            Member(f"n{i}", directory / f"n{i}", (ports[3 * i], ports[3 * i + 1], ports[3 * i + 2]))
            for i in range(SERVERS)
        ]
        for member in self.members:
            member.configure([f"nats://127.0.0.1:{m.route_port}" for m in self.members])

    @property
    def url(self) -> str:
        """All members, comma-separated, as the settings take it."""
        return ",".join(f"nats://127.0.0.1:{member.port}" for member in self.members)

    def member(self, name: str) -> Member:
        """Return the member of that name."""
        return next(member for member in self.members if member.name == name)

    def start(self) -> None:
        """Start all members; returns when the cluster is ready."""
        for member in self.members:
            member.start()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until every member is healthy. Raises TimeoutError."""
        deadline = time.monotonic() + READY_SECONDS
        while not all(member.healthy() for member in self.members):
            if time.monotonic() > deadline:
                raise TimeoutError("the NATS cluster is not ready")
            time.sleep(0.05)

    def stop(self) -> None:
        """End all members."""
        for member in self.members:
            member.end(signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    """Return different free ports: all are held until the last one is known."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
