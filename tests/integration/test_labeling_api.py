"""Labeling over the real gateway: what the log says, and what is said where no bridge runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest
from tests.facts import append
from tests.gateway_bench import Gateway

from vllm_batch import api_keys, ids
from vllm_batch.events import (
    AnnotationCreated,
    AnnotationFlagged,
    AnnotationValidated,
    LabelingAccuracyMeasured,
    LabelingProjectConfigured,
    LabelingTasksCreated,
)
from vllm_batch.local.stack import LocalStack

ROOT = "/admin/labeling/projects"
VERSION = datetime(2026, 1, 1, tzinfo=UTC)
ROUTES = [
    ("GET", ""),
    ("GET", "/7"),
    ("GET", "/7/annotations"),
    ("GET", "/7/flagged"),
    ("GET", "/7/ground-truth"),
    ("POST", "/7/ground-truth/1"),
    ("DELETE", "/7/ground-truth/1"),
    ("GET", "/7/accuracy"),
    ("POST", "/7/accuracy"),
    ("GET", "/7/agreement"),
]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("labeling") / "home"
    with LocalStack(home, only={"nats", "postgres", "api"}) as stack:
        yield Gateway(stack)


@pytest.fixture
async def http(api: Gateway) -> AsyncIterator[httpx2.AsyncClient]:
    async with api.store() as store:
        _, secret = await api_keys.create(store, scopes=[api_keys.ADMIN], name=ids.new("admin_"))
    await api.wait_until_known(secret)
    headers = {"authorization": f"Bearer {secret}"}
    url = api.url.removesuffix("/v1")
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=40.0) as client:
        yield client


@pytest.fixture(scope="module")
def known() -> set[str]:
    """The projects that the log has already."""
    return set()


@pytest.fixture
async def project(api: Gateway, known: set[str]) -> str:
    """A project of three annotations, one flagged, one validated and ground truth, one open."""
    if "7" in known:
        return "7"
    known.add("7")

    def written(number: int, **fields: Any) -> AnnotationCreated:
        return AnnotationCreated(
            project="7", annotation=str(number), task=str(number), version=VERSION, **fields
        )

    async with api.store() as store:
        await append(
            store,
            LabelingProjectConfigured(
                project="7", title="mood", template="classification", model="m", requested_by="me"
            ),
            LabelingTasksCreated(project="7", tasks=["9", "10", "11"]),
            written(9),
            written(10, ground_truth=True),
            written(11),
            AnnotationFlagged(
                project="7", annotation="9", version=VERSION, reasons=["schema"], details=["No."]
            ),
            AnnotationValidated(project="7", annotation="10", version=VERSION, agreement=1.0),
            LabelingAccuracyMeasured(
                project="7", model_version="m", tasks=4, accuracy=0.75, interval_low=0.3,
                interval_high=0.95, macro_f1=0.7, requested_by="me",
            ),
        )  # fmt: skip
    return "7"


async def test_a_project_and_how_far_it_is(http: httpx2.AsyncClient, project: str):
    found = (await http.get(f"{ROOT}/{project}")).json()
    assert found == {
        "id": "7", "title": "mood", "template": "classification", "model": "m",
        "connected": False, "tasks": 3, "annotations": 3, "validated": 1, "flagged": 1,
        "ground_truth": 1, "accuracy": 0.75,
    }  # fmt: skip
    assert (await http.get(ROOT)).json()["data"] == [found]


async def test_annotations_come_in_pages(http: httpx2.AsyncClient, project: str):
    first = (await http.get(f"{ROOT}/{project}/annotations?limit=2")).json()
    assert [one["id"] for one in first["data"]] == ["9", "10"]
    assert first["has_more"]
    rest = (await http.get(f"{ROOT}/{project}/annotations?after={first['last_id']}")).json()
    assert [one["id"] for one in rest["data"]] == ["11"]
    assert not rest["has_more"]
    assert (await http.get(f"{ROOT}/{project}/annotations?after=99")).status_code == 404


async def test_flagged_annotations_say_why(http: httpx2.AsyncClient, project: str):
    [found] = (await http.get(f"{ROOT}/{project}/flagged")).json()["data"]
    assert (found["id"], found["verdict"]) == ("9", "flagged")
    assert (found["reasons"], found["details"]) == (["schema"], ["No."])


async def test_ground_truth_is_listed(http: httpx2.AsyncClient, project: str):
    [found] = (await http.get(f"{ROOT}/{project}/ground-truth")).json()["data"]
    assert (found["id"], found["verdict"], found["agreement"]) == ("10", "validated", 1.0)


async def test_accuracy_has_a_history_by_model(http: httpx2.AsyncClient, project: str):
    found = (await http.get(f"{ROOT}/{project}/accuracy?model=m")).json()
    assert [one["accuracy"] for one in found["measured"]] == [0.75]
    assert datetime.fromisoformat(found["measured"][0]["measured_at"]) < datetime.now(UTC)
    assert (await http.get(f"{ROOT}/{project}/accuracy?model=n")).json()["measured"] == []


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_every_route_is_for_admins(api: Gateway, method: str, path: str):
    secret = await api.new_key()
    async with httpx2.AsyncClient(base_url=api.url.removesuffix("/v1"), timeout=40) as client:
        assert (await client.request(method, ROOT + path)).status_code == 401
        headers = {"authorization": f"Bearer {secret}"}
        answer = await client.request(method, ROOT + path, headers=headers)
    assert answer.status_code == 403
    assert answer.json()["error"]["type"] == "permission_error"


@pytest.mark.parametrize(
    ("method", "path"), [one for one in ROUTES if one[0] != "GET" or "agreement" in one[1]]
)
async def test_what_needs_the_bridge_says_that_none_runs(
    http: httpx2.AsyncClient, project: str, method: str, path: str
):
    answer = await http.request(method, ROOT + path)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "bridge_unreachable"


async def test_what_is_not_there_is_404(http: httpx2.AsyncClient):
    for path in ("/8", "/8/annotations", "/8/accuracy"):
        assert (await http.get(ROOT + path)).status_code == 404
    assert (await http.post(f"{ROOT}/7/ground-truth/x")).status_code == 404
