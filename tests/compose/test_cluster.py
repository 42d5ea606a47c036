"""docker-compose.cluster.yml for real: any one of three NATS servers may go, and either worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.compose.deployment import Deployment
from tests.faults.oracle import Oracle
from tests.faults.workload import Client, make
from vllm_batch.messaging import connection

pytestmark = pytest.mark.timeout(3600)  # may be the first and build everything


@pytest.fixture
def client(cluster: Deployment) -> Iterator[Client]:
    made = Client(cluster)
    yield made
    made.close()


async def test_a_batch_outlives_members_of_the_cluster(cluster: Deployment, client: Client) -> None:
    work = client.submit(make("cluster", 2500, model="simulated-model"))
    for results, name in ((200, "nats-2"), (600, "cpu-worker-2"), (1000, "nats"), (1500, "nats-3")):
        client.wait_progress(work, results)
        cluster.service(name).kill()
        cluster.service(name).wait_ready()
    assert client.wait_ended(work).status == "completed"
    async with connection.connect(cluster.settings, "test") as connected:
        info = await connected.client.jetstream().stream_info("EVENTS")
    assert info.config.num_replicas == 3
    assert await Oracle(cluster, client, [work]).findings() == []
