"""The event log and the read models on NATS and Postgres as their images have them.

The images are the pinned ones of the deployment: another version is tried by naming it here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.compose.deployment import wait_until
from tests.docker_engine import DockerEngine
from tests.facts import append
from vllm_batch.errors import Conflict
from vllm_batch.event_store import jetstream
from vllm_batch.events import ApiKeyCreated
from vllm_batch.ids import KeyId, ProjectId
from vllm_batch.projections import rebuild
from vllm_batch.settings import Settings

pytestmark = pytest.mark.timeout(3600)  # may be the first and build the images

CONFIGURATION = "jetstream { store_dir: /tmp/store, sync_interval: always }\n"


@pytest.fixture
def servers(
    engine: DockerEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Settings]:
    for name, value in (
        ("DOCKER_HOST", engine.environment["DOCKER_HOST"]),
        ("TESTCONTAINERS_RYUK_DISABLED", "true"),  # its image cannot be had everywhere
        ("TESTCONTAINERS_HOST_OVERRIDE", "127.0.0.1"),
        ("TESTCONTAINERS_CONNECTION_MODE", "docker_host"),
    ):
        monkeypatch.setenv(name, value)
    from testcontainers.core.container import DockerContainer  # reads them when it is imported

    tmp_path.chmod(0o755)
    (tmp_path / "nats.conf").write_text(CONFIGURATION)
    (tmp_path / "password").write_text("of-a-test")
    nats = (
        DockerContainer("nats:2.15.1-alpine")
        .with_volume_mapping(str(tmp_path), "/etc/given")
        .with_command("nats-server --config /etc/given/nats.conf")
        .with_exposed_ports(4222)
    )
    postgres = (
        DockerContainer("postgres:18.1-bookworm", user="postgres")
        .with_volume_mapping(str(tmp_path), "/etc/given")
        .with_envs(
            POSTGRES_USER="test", POSTGRES_DB="test", POSTGRES_PASSWORD_FILE="/etc/given/password"
        )
        .with_exposed_ports(5432)
    )
    with nats, postgres:
        wait_until(lambda: b"Server is ready" in b"".join(nats.get_logs()))
        answers = ["pg_isready", "-h", "127.0.0.1"]  # at first it listens on a local socket only
        wait_until(lambda: postgres.exec(answers).exit_code == 0)
        yield Settings(
            home=tmp_path,
            nats_url=f"nats://127.0.0.1:{nats.get_exposed_port(4222)}",
            postgres_dsn=SecretStr(
                f"postgresql://test:of-a-test@127.0.0.1:{postgres.get_exposed_port(5432)}/test"
            ),
        )


async def test_log_and_read_models(servers: Settings) -> None:
    key = ApiKeyCreated(
        key_id=KeyId("key_1"), project=ProjectId("p"), name="n", prefix="sk-vb-1", sha256="0" * 64
    )
    async with jetstream.connect(servers, source="test") as store:
        await append(store, key)
        with pytest.raises(Conflict):
            await store.append(key, expected=0)
        assert await rebuild.rebuild(store, servers, progress=lambda *_: None) == 1
        found = await rebuild.verify(store, servers, progress=lambda *_: None)
    assert found.identical
    assert {table.table: table.live.rows for table in found.tables}["api_key"] == 1
