"""What keys open, and their management over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import openai
import pytest
from tests.gateway_bench import Gateway

from vllm_batch import api_keys, ids


@pytest.fixture
async def admin(api: Gateway) -> AsyncIterator[httpx2.AsyncClient]:
    async with api.store() as store:
        _, secret = await api_keys.create(store, scopes=[api_keys.ADMIN])
    await api.wait_until_known(secret)
    url = api.url.removesuffix("/v1")
    headers = {"authorization": f"Bearer {secret}"}
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=20) as http:
        yield http


async def make(api: Gateway, admin: httpx2.AsyncClient, **wanted: object) -> dict[str, str]:
    made: dict[str, str] = (await admin.post("/admin/keys", json=wanted)).json()
    await api.wait_until_known(made["secret"])
    return made


async def test_a_key_that_only_reads(api: Gateway, admin: httpx2.AsyncClient) -> None:
    made = await make(api, admin, scopes=["read"], name="auditor")
    async with api.async_client(made["secret"]) as client:
        await client.batches.list()
        with pytest.raises(openai.PermissionDeniedError, match="--scope batch"):
            await client.files.create(file=("x.jsonl", b"{}"), purpose="batch")
        with pytest.raises(openai.PermissionDeniedError, match="inference"):
            await client.chat.completions.create(model="m", messages=[])


async def test_a_key_is_made_listed_rotated_and_revoked(
    api: Gateway, admin: httpx2.AsyncClient
) -> None:
    project = ids.new("p")
    made = await make(api, admin, project=project, name="etl", expires_in_seconds=3600)
    assert made["secret"].startswith(made["prefix"])
    rotated = (
        await admin.post(f"/admin/keys/{made['id']}/rotate", json={"keep_old_seconds": 60})
    ).json()
    await api.wait_until_known(rotated["secret"])
    async with api.async_client(made["secret"]) as client:
        await client.batches.list()  # the old secret still counts
    [listed] = [
        key for key in (await admin.get("/admin/keys")).json()["data"] if key["id"] == made["id"]
    ]
    assert listed["project"] == project
    assert listed["scopes"] == ["batch", "inference", "read"]
    assert listed["prefix"] == rotated["prefix"]
    assert listed["expires_at"] - listed["created_at"] == 3600
    assert "secret" not in listed
    assert "sha256" not in listed
    assert (await admin.delete(f"/admin/keys/{made['id']}")).status_code == 200
    async with api.http(rotated["secret"]) as http:
        while (await http.get("/batches")).status_code != 401:
            pass
    assert (await admin.post(f"/admin/keys/{made['id']}/rotate", json={})).status_code == 409
    assert (await admin.delete("/admin/keys/key_none")).status_code == 404


@pytest.mark.parametrize(
    ("wanted", "param"),
    [
        ({"scopes": ["everything"]}, "scopes"),
        ({"scopes": "read"}, "scopes"),
        ({"project": "a b"}, "project"),
        ({"name": 7}, "name"),
        ({"expires_in_seconds": 0}, "expires_in_seconds"),
    ],
)
async def test_a_wrong_key_is_refused(
    admin: httpx2.AsyncClient, wanted: dict[str, object], param: str
) -> None:
    answer = await admin.post("/admin/keys", json=wanted)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
