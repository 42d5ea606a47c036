"""What is the same for every request: keys, envelopes, headers, methods, odd paths and bodies."""

from __future__ import annotations

import asyncio
import json

import httpx2
import openai
import pytest
from tests.facts import append
from tests.gateway_bench import Gateway

from vllm_batch import api_keys
from vllm_batch.events import WorkerReady, WorkerStarted
from vllm_batch.ids import WorkerId

ENVELOPE = {"message", "type", "param", "code"}
ROUTES = [
    ("GET", "/files"),
    ("POST", "/files"),
    ("GET", "/files/file-x"),
    ("DELETE", "/files/file-x"),
    ("GET", "/files/file-x/content"),
    ("POST", "/uploads"),
    ("POST", "/uploads/upload_x/parts"),
    ("POST", "/uploads/upload_x/complete"),
    ("POST", "/uploads/upload_x/cancel"),
    ("GET", "/batches"),
    ("POST", "/batches"),
    ("GET", "/batches/batch_x"),
    ("POST", "/batches/batch_x/cancel"),
    ("GET", "/batches/batch_x/results"),
    ("GET", "/batches/batch_x/events"),
    ("GET", "/models"),
    ("GET", "/models/m"),
    ("GET", "/unknown"),
    ("GET", ""),
]


def error_of(answer: httpx2.Response) -> dict[str, str | None]:
    error: dict[str, str | None] = answer.json()["error"]
    assert set(error) == ENVELOPE
    assert error["message"]
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["openai-processing-ms"].isdigit()
    return error


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer sk-wrong", "Basic eDp5", "Bearer \xe9", "sk-vb-x"]
)
async def test_every_route_asks_for_the_key_first(api: Gateway, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization.encode("latin-1")}
    async with api.http(None) as http:
        for method, path in ROUTES:
            answer = await http.request(method, path, headers=headers, content=b"{not json")
            assert answer.status_code == 401, (method, path)
            error = error_of(answer)
            assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
            assert "sk-wrong" not in answer.text


async def test_a_key_counts_at_once_and_a_revoked_one_no_longer(api: Gateway) -> None:
    async with api.store() as store:
        event, secret = await api_keys.create(store, project="p")
        async with asyncio.timeout(120):
            await api.wait_until_known(secret)
        await api_keys.revoke(store, event.key_id)
        async with asyncio.timeout(120), api.http(secret) as http:
            while (await http.get("/files/file-x")).status_code != 401:
                await asyncio.sleep(0.005)


async def test_the_scheme_may_be_written_in_any_case(api: Gateway, key: str) -> None:
    async with api.http(None) as http:
        answer = await http.get("/models", headers={"authorization": f"bearer  {key}"})
    assert answer.status_code == 200


async def test_request_ids_differ_and_reach_the_client(client: openai.AsyncOpenAI) -> None:
    ids = {(await client.batches.list())._request_id for _ in range(3)}
    assert len(ids) == 3
    with pytest.raises(openai.NotFoundError) as missing:
        await client.batches.retrieve("batch_unknown")
    assert (missing.value.request_id or "").startswith("req_")
    assert missing.value.type == "invalid_request_error"
    assert missing.value.body == json.loads(missing.value.response.content)["error"]


@pytest.mark.parametrize(
    "path",
    ["/nonsense", "/files/", "/batches/", "//files", "/files/a/b", "/Files", "/batches/x/y/z"],
)
async def test_unknown_routes_are_404_in_the_envelope(http: httpx2.AsyncClient, path: str) -> None:
    answer = await http.get(path)
    assert answer.status_code == 404
    error_of(answer)


ALLOWED = {
    "/files": "GET, POST",
    "/files/file-x": "DELETE, GET",
    "/batches": "GET, POST",
    "/batches/batch_x/cancel": "POST",
    "/uploads": "POST",
    "/models": "GET",
}


@pytest.mark.parametrize("path", ALLOWED)
async def test_wrong_methods_are_405(http: httpx2.AsyncClient, path: str) -> None:
    for method in ("PUT", "PATCH", "OPTIONS", "HEAD", "TRACE"):
        answer = await http.request(method, path)
        assert answer.status_code == 405, method
        assert answer.headers["allow"] == ALLOWED[path]
        if method == "HEAD":
            assert answer.content == b""
        else:
            error_of(answer)


ODD_IDS = [
    "unknown",
    "%00",
    "file-%00",
    "..%2F..%2Fetc%2Fpasswd",
    "%2e%2e",
    "a%2Fb",
    "*",
    "%3E",
    "a.b",
    "file-*",
    "%F0%9F%8E%89",
    "%FF%FE",
    "x" * 4000,
    "%20",
    "file-x%0d%0aset-cookie:%20a=b",
]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/files/{}"),
        ("DELETE", "/files/{}"),
        ("GET", "/files/{}/content"),
        ("GET", "/batches/{}"),
        ("POST", "/batches/{}/cancel"),
        ("GET", "/batches/{}/results"),
        ("GET", "/batches/{}/events"),
        ("POST", "/uploads/{}/cancel"),
        ("GET", "/models/{}"),
    ],
)
async def test_odd_ids_are_404(http: httpx2.AsyncClient, method: str, path: str) -> None:
    for id_ in ODD_IDS:
        answer = await http.request(method, path.format(id_))
        assert answer.status_code in {404, 405}, id_
        assert len(answer.content) < 1000
        assert "set-cookie" not in answer.headers
        error_of(answer)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"endpoint": "\\ud800"}',
        b'{"endpoint": "\\udc00x"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"metadata":' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
@pytest.mark.parametrize("path", ["/batches", "/uploads"])
async def test_bodies_that_are_no_object_are_400(
    http: httpx2.AsyncClient, path: str, body: bytes
) -> None:
    answer = await http.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    error_of(answer)


async def test_bodies_are_bounded(http: httpx2.AsyncClient) -> None:
    body = b'{"x": "' + b"y" * 1024 * 1024 + b'"}'
    answer = await http.post("/batches", content=body)
    assert answer.status_code == 413
    error_of(answer)

    async def without_length() -> object:
        for _ in range(40):
            yield b"y" * 64 * 1024

    answer = await http.post("/batches", content=without_length())
    assert answer.status_code == 413


async def test_models_are_listed_and_found_by_names_with_slashes(
    api: Gateway, client: openai.AsyncOpenAI
) -> None:
    name = "org/model-é"
    async with api.store() as store:
        await append(
            store,
            WorkerStarted(
                worker_id=WorkerId("w1"), name="w", host="h", pid=1, engine="e", version="1"
            ),
            WorkerReady(worker_id=WorkerId("w1"), models=[name, "plain"], in_flight_max=4),
        )
    async with asyncio.timeout(60):  # other tests of this gateway may have made others known
        while {name, "plain"} - {model.id async for model in client.models.list()}:
            await asyncio.sleep(0.01)
    found = await client.models.retrieve(name)
    assert (found.id, found.object, found.owned_by) == (name, "model", "vllm-batch")
    assert found.created > 1_500_000_000
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.models.retrieve("org/other")
    assert unknown.value.code == "model_not_found"


async def test_health_needs_no_key(api: Gateway) -> None:
    base = api.url.removesuffix("/v1")
    async with api.http(None) as http:
        for path, status in (("/healthz", "ok"), ("/readyz", "ready")):
            answer = await http.get(base + path)
            assert (answer.status_code, answer.json()) == (200, {"status": status, "problems": []})
            head = await http.head(base + path)
            assert (head.status_code, head.content) == (200, b"")


async def test_the_openapi_document_describes_every_route(api: Gateway) -> None:
    async with api.http(None) as http:
        document = (await http.get(api.url.removesuffix("/v1") + "/openapi.json")).json()
    text = json.dumps(document)
    schemas = document["components"]["schemas"]
    for reference in {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}:
        assert reference in schemas
    described = {path.replace("/v1", "", 1) for path in document["paths"]}
    assert {"/files", "/files/{file_id}/content", "/batches", "/uploads/{upload_id}/parts"} <= (
        described
    )
    create = document["paths"]["/v1/batches"]["post"]
    assert create["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    assert set(schemas["Batch"]["required"]) >= {"id", "status", "request_counts"}
    assert create["security"] == [{"key": []}]
