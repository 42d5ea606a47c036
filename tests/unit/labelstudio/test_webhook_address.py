"""Which addresses of the bridge Label Studio takes, as its Django has it, and who says so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
import yaml
from tests.bridge_bench import configured
from tests.facts import append

from vllm_batch.blobs import open_blobs
from vllm_batch.clock import ManualClock
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.events import LabelingProjectConnected, LabelingProjectDeleted
from vllm_batch.health import labeling
from vllm_batch.health.report import Check
from vllm_batch.health.sources import Sources
from vllm_batch.labeling.webhook_address import refusal
from vllm_batch.settings import Settings

ROOT = Path(__file__).parents[3]
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:4082",
        "http://127.0.0.1:4082/v1",
        "http://[::1]:4082",
        "http://bridge.internal:4082",
        "https://a.b-c.example.com.",
        "http://bridge.xn--p1ai",
    ],
)
def test_a_host_with_a_dot_an_ip_address_or_localhost_is_taken(url: str) -> None:
    assert refusal(url) is None


@pytest.mark.parametrize(
    "url",
    [
        "http://labelstudio-bridge:4082",
        "http://my_bridge.internal:4082",
        "http://bridge.svc1:4082",
        "http://[::1:4082",
        "http://",
        "bridge",
    ],
)
def test_any_other_host_is_refused_and_what_to_set_is_said(url: str) -> None:
    assert "VLLM_BATCH_BRIDGE_URL" in (refusal(url) or "")


def networks_of(service: dict[str, Any]) -> dict[str, Any]:
    """Return a service's networks with its names there."""
    found = service["networks"]
    return found if isinstance(found, dict) else {name: {} for name in found}


def test_the_deployment_gives_the_bridge_a_name_that_label_studio_takes_and_reaches() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    bridge, label_studio = services["labelstudio-bridge"], services["label-studio"]
    url = bridge["environment"]["VLLM_BATCH_BRIDGE_URL"]
    assert refusal(url) is None
    shared = networks_of(bridge).keys() & networks_of(label_studio).keys()
    names = {one for name in shared for one in (networks_of(bridge)[name] or {}).get("aliases", [])}
    assert urlsplit(url).hostname in names


async def look(store: MemoryEventStore, folder: Path, url: str) -> Check:
    async def checkpoint() -> int | None:
        return None

    sources = Sources(
        store=cast("JetStreamEventStore", store),
        blobs=open_blobs(f"file://{folder}"),
        settings=Settings(home=folder, bridge_url=url),
        now=NOW + timedelta(minutes=5),
        checkpoint=checkpoint,
    )
    return await labeling.webhooks_in(sources)


async def test_health_says_which_projects_have_no_webhook_and_why(tmp_path: Path) -> None:
    store = MemoryEventStore(clock=ManualClock(NOW))
    await append(store, configured("1"), configured("2"), configured("3"))
    await append(store, LabelingProjectDeleted(project="3"))
    await append(store, LabelingProjectConnected(project="2", webhook="1", url="u"))
    check = await look(store, tmp_path, "http://bridge:4082")
    (problem,) = check.problems
    assert check.summary == "1 project connected"
    assert "1 project (1)" in problem.what
    assert "VLLM_BATCH_BRIDGE_URL" in problem.action
    (other,) = (await look(store, tmp_path, "http://bridge.internal")).problems
    assert "logs labelstudio-bridge" in other.action
    await append(store, LabelingProjectConnected(project="1", webhook="2", url="u"))
    assert not (await look(store, tmp_path, "http://bridge:4082")).problems
