"""What webhooks did not bring is found by the walk, above all where no webhook can come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs
from tests.bridge_bench import configured
from tests.facts import append
from tests.unit.labelstudio.bench import bridge_of
from tests.unit.labelstudio.configs import CHOICES

from batch_labelstudio.reconciler import Reconciler
from vllm_batch.errors import LabelStudioError
from vllm_batch.event_store.memory import MemoryEventStore

AT = "2026-01-01T00:00:00Z"
ANNOTATION = {"id": 5, "task": 3, "updated_at": AT, "created_at": AT, "result": []}
REFUSED = httpx.Response(400, json={"url": ["Enter a valid URL."]})


def one_task(request: httpx.Request) -> httpx.Response:
    """Answer as a Label Studio with one annotated task, which takes no webhook."""
    found: Any
    match request.method, request.url.path:
        case "GET", "/api/projects/1/":
            found = {"id": 1, "title": "films", "label_config": CHOICES, "created_at": AT}
        case "GET", "/api/tasks/":
            found = {"total": 1, "tasks": [{"id": 3, "annotations": [ANNOTATION]}]}
        case "GET", "/api/webhooks/":
            found = []
        case "POST", "/api/webhooks/":
            return REFUSED
        case other:
            raise AssertionError(other)
    return httpx.Response(200, json=found)


async def test_a_webhook_that_is_refused_does_not_keep_the_walk_from_healing(
    tmp_path: Path,
) -> None:
    store = MemoryEventStore()
    await append(store, configured("1"))
    wanted = {"label_studio_webhook_secret": SecretStr("s")}
    async with bridge_of(store, tmp_path, one_task, **wanted) as bridge:
        with capture_logs() as lines:
            await Reconciler(bridge, bridge.label_studio).reconcile_all()  # type: ignore[arg-type]
        (view,) = bridge.feed.projects.all()
    assert set(view.annotations) == {"5"}
    assert (view.project.title, view.project.connected) == ("films", None)
    (warning,) = [line for line in lines if line["log_level"] == "warning"]
    assert "Enter a valid URL" in warning["why"]


async def test_an_address_that_label_studio_refuses_is_said_to_be_the_reason(
    tmp_path: Path,
) -> None:
    store = MemoryEventStore()
    await append(store, configured("1"))
    wanted = {"label_studio_webhook_secret": SecretStr("s"), "bridge_url": "http://bridge:4082"}
    async with bridge_of(store, tmp_path, one_task, **wanted) as bridge:
        assert bridge.label_studio is not None
        with pytest.raises(LabelStudioError, match=r"no host like 'bridge'.*VLLM_BATCH_BRIDGE_URL"):
            await Reconciler(bridge, bridge.label_studio).connect("1")
