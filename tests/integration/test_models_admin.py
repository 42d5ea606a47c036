"""Managing models over the real gateway and on the command line; what a worker would report is
appended."""

from __future__ import annotations

import getpass
import json
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.gateway_bench import Gateway

from vllm_batch import api_keys, fleet, ids, model_reports
from vllm_batch.aggregates.model import Report
from vllm_batch.event_store import EventStore
from vllm_batch.events.model import ModelFailed, ModelLoading, ModelReady, ModelRegistered
from vllm_batch.local.stack import LocalStack
from vllm_batch.messaging import subjects

COMMAND = (sys.executable, "-m", "vllm_batch.cli", "model")
ROUTES = [
    ("GET", "/admin/models"),
    ("POST", "/admin/models"),
    ("POST", "/admin/models/estimate"),
    ("GET", "/admin/models/{model}"),
    ("DELETE", "/admin/models/{model}"),
    ("POST", "/admin/models/{model}/load"),
    ("POST", "/admin/models/{model}/unload"),
    ("POST", "/admin/models/{model}/aliases"),
    ("POST", "/admin/models/{model}/price"),
]
SHAPE = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "vocab_size": 1000, "tie_word_embeddings": True,
    "max_position_embeddings": 256, "dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    only = {"nats", "postgres", "api", "worker"}
    home = tmp_path_factory.mktemp("models") / "home"
    with LocalStack(home, only=only, settings_overrides={"heartbeat_seconds": 0.2}) as stack:
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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of 64 hidden units; its one tensor says 12 bytes."""
    found = tmp_path / "tiny-model"
    found.mkdir()
    (found / "config.json").write_text(json.dumps(SHAPE))
    header = json.dumps({"t": {"dtype": "F16", "shape": [6], "data_offsets": [0, 12]}}).encode()
    tensors = struct.pack("<Q", len(header)) + header + bytes(12)
    (found / "model.safetensors").write_bytes(tensors)
    return found


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    found = tmp_path / "tiny-lora"
    found.mkdir()
    content = {"r": 8, "peft_type": "LORA", "base_model_name_or_path": "tiny-model"}
    (found / "adapter_config.json").write_text(json.dumps(content))
    return found


def run(api: Gateway, *arguments: str, expect: int = 0) -> str:
    done = subprocess.run(
        [*COMMAND, *arguments, "--home", str(api.stack.home.root)], capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def show(api: Gateway, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(api, "show", name, "--json"))
    return found


async def say(store: EventStore, cls: type[Report], name: str, **more: Any) -> None:
    worker = (await fleet.load(store)).find("worker-1")
    assert worker is not None
    report = cls(
        model_key=ids.model_key(name), worker_id=worker.worker_id, worker_name=worker.name, **more
    )
    assert await model_reports.report(store, report) is not None


async def test_a_model_over_http(api: Gateway, http: httpx2.AsyncClient, folder: Path) -> None:
    body = {"name": "org/over-http", "source": str(folder), "aliases": ["http-alias"],
            "input_price_per_million": 0.1, "training_run": "run_1"}  # fmt: skip
    answer = await http.post("/admin/models", json=body)
    assert answer.status_code == 201, answer.text
    model, found = answer.json()["model"], answer.json()["examination"]
    assert (model["name"], model["status"], model["source"]) == (
        "org/over-http", "idle", str(folder),
    )  # fmt: skip
    assert (model["training_run"], model["input_price_per_million"]) == ("run_1", 0.1)
    assert "KV cache for 128 x 256 tokens" in found["needs"]
    (place,) = found["places"]
    assert place["worker"] == "worker-1"
    assert place["verdict"].endswith("fits")

    path = "/admin/models/org/over-http"
    listed = {one["id"]: one for one in (await http.get("/v1/models")).json()["data"]}
    assert listed["http-alias"]["root"] == "org/over-http"
    assert listed["org/over-http"]["root"] == "org/over-http"
    assert api.stack.model_name in listed
    assert (await http.get("/v1/models/http-alias")).json()["root"] == "org/over-http"

    changed = await http.post(f"{path}/aliases", json={"add": ["b"], "remove": ["http-alias"]})
    assert changed.json()["aliases"] == ["b"]
    priced = await http.post(f"{path}/price", json={"output_price_per_million": 2})
    assert (priced.json()["input_price_per_million"], priced.json()["status"]) == (0.1, "idle")
    assert priced.json()["output_price_per_million"] == 2.0
    for _ in range(2):
        assert (await http.post(f"{path}/load")).json()["status"] == "waiting"
    assert (await http.post(f"{path}/unload")).json()["load_requested"] is False
    assert (await http.post(f"{path}/unload")).status_code == 409
    on_one = await http.post("/admin/models/b/load", json={"worker": "worker-1"})
    assert on_one.json()["load_requested_on"] == ["worker-1"]

    everybody = {one["name"]: one for one in (await http.get("/admin/models")).json()["models"]}
    assert everybody["org/over-http"]["registered"] is True
    assert everybody[api.stack.model_name]["registered"] is False
    assert everybody[api.stack.model_name]["status"] == "ready"

    assert (await http.delete(path)).json()["status"] == "retired"
    assert (await http.get("/admin/models/b")).status_code == 404
    assert (await http.get("/v1/models/b")).status_code == 404
    assert (await http.delete(path)).status_code == 404


async def test_what_is_refused_over_http(http: httpx2.AsyncClient, folder: Path) -> None:
    there = {"name": "there", "source": str(folder), "aliases": ["taken"]}
    assert (await http.post("/admin/models", json=there)).status_code == 201
    asked: list[tuple[dict[str, Any], int, str | None]] = [
        ({}, 400, None),
        ({"name": "x"}, 400, None),
        ({"name": "x", "source": 7}, 400, None),
        ({"name": "x", "source": str(folder), "colour": "red"}, 400, None),
        ({"name": "x\n", "source": str(folder)}, 400, "name"),
        ({"name": "x", "source": str(folder / "nowhere")}, 400, "source"),
        ({"name": "x", "source": str(folder), "engine_args": ["--port", "1"]}, 400, "engine_args"),
        ({"name": "x", "source": str(folder), "input_price_per_million": -1}, 400,
         "input_price_per_million"),
        ({"name": "x", "source": str(folder), "base": "nobody", "check": False}, 404, None),
        ({"name": "taken", "source": str(folder)}, 409, None),
        ({"name": "x", "source": str(folder), "aliases": ["taken"]}, 409, None),
        ({"name": "x", "source": str(folder), "aliases": ["there"], "force": True}, 409, None),
        ({"name": "x", "source": str(folder), "aliases": ["simulated-model"]}, 409, None),
    ]  # fmt: skip
    for body, status, param in asked:
        answer = await http.post("/admin/models", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), body
    for method, route in ROUTES[3:]:
        path = route.format(model="org/nobody")
        body = {"add": ["a"]} if path.endswith("aliases") else {}
        answer = await http.request(method, path, json=body)
        assert answer.status_code == 404, path
        assert "org/nobody" in answer.json()["error"]["message"]
    unknown = await http.post("/admin/models/there/load", json={"worker": "nobody"})
    assert unknown.status_code == 404
    assert (await http.get("/v1/models/x")).status_code == 404


async def test_the_document_has_it(http: httpx2.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    for method, path in ROUTES:
        assert document["paths"][path][method.lower()]["security"] == [{"key": []}], path


async def test_a_model_that_fits_nowhere_is_refused(http: httpx2.AsyncClient, folder: Path) -> None:
    huge = SHAPE | {"hidden_size": 65536, "num_hidden_layers": 200, "intermediate_size": 262144}
    (folder / "config.json").write_text(json.dumps(huge))
    (folder / "model.safetensors").unlink()
    body = {"name": "huge", "source": str(folder)}
    refused = await http.post("/admin/models", json=body)
    assert refused.status_code == 400
    assert "does not fit" in refused.json()["error"]["message"]
    estimated = await http.post("/admin/models/estimate", json={"source": str(folder)})
    assert estimated.json()["places"][0]["sequences_at_once"] == 0
    assert (await http.post("/admin/models", json=body | {"check": False})).status_code == 201
    assert (await http.delete("/admin/models/huge")).status_code == 200


async def test_a_model_on_the_command_line(api: Gateway, folder: Path, adapter: Path) -> None:
    said = run(api, "estimate", str(folder))
    assert "needs about" in said
    assert "the host of worker-1 has" in said
    said = run(api, "add", str(folder), "--alias", "small", "--input", "0.1",
               "--engine-args", "--max-model-len 128")  # fmt: skip
    assert "registered tiny-model" in said
    run(api, "add", str(adapter), "--base", "small")
    assert show(api, "tiny-model")["adapters"] == ["tiny-lora"]
    lora = show(api, "tiny-lora")
    assert (lora["base"], lora["source"]) == ("tiny-model", str(adapter))
    text = run(api, "show", "small")
    assert "--max-model-len 128" in text
    assert "0.1 / -" in text

    assert "force" in run(api, "alias", "tiny-lora", "small", expect=1)
    run(api, "alias", "tiny-lora", "small", "--force")
    assert show(api, "tiny-model")["aliases"] == []
    assert show(api, "small")["name"] == "tiny-lora"
    run(api, "price", "tiny-model", "--output", "0.5")
    run(api, "price", "tiny-model", expect=2)
    assert show(api, "tiny-model")["output_price_per_million"] == 0.5
    listed = run(api, "list")
    assert "tiny-model\tidle\t-\t-\t-\t0.1 / 0.5" in listed
    assert f"{api.stack.model_name}\tready\tworker-1" in listed

    assert "tiny-lora" in run(api, "remove", "tiny-model", "--yes", expect=1)
    run(api, "remove", "tiny-lora", "--yes")
    run(api, "remove", "tiny-model", "--yes")
    assert "model list" in run(api, "load", "tiny-model", expect=4)
    assert show(api, "tiny-model")["status"] == "retired"
    async with api.store() as store:
        (event,) = [
            one.event async for batch in store.read(subjects.of_aggregate(_named("tiny-lora")))
            for one in batch if isinstance(one.event, ModelRegistered)
        ]  # fmt: skip
    assert event.requested_by == f"cli:{getpass.getuser()}"


def _named(name: str) -> ModelRegistered:
    key = ids.model_key(name)
    return ModelRegistered(model_key=key, name=name, source="-", requested_by="-")


async def test_load_waits_until_a_worker_is_ready_or_says_why_not(
    api: Gateway, folder: Path
) -> None:
    run(api, "add", str(folder), "--name", "loaded")
    assert json.loads(run(api, "load", "loaded", "--no-wait", "--json"))["status"] == "waiting"
    said = run(api, "load", "loaded", "--timeout", "1")
    assert "the request stands" in said
    async with api.store() as store:
        with _loading(api, "loaded") as command:
            await say(store, ModelLoading, "loaded")
            _read_until(command, "worker-1: loading")
            await say(store, ModelFailed, "loaded", reason="CUDA out of memory")
            out, _ = command.communicate(timeout=30)
        assert "worker-1: failed: CUDA out of memory" in out
        assert command.returncode == 1
        assert show(api, "loaded")["workers"][0]["reason"] == "CUDA out of memory"
        with _loading(api, "loaded", "--worker", "worker-1") as command:
            await say(store, ModelLoading, "loaded")
            _read_until(command, "worker-1: loading")  # or it may be ready before it is looked at
            await say(store, ModelReady, "loaded", load_seconds=1.5)
            out, _ = command.communicate(timeout=30)
        assert "worker-1: ready after 1.5 s" in out
        assert command.returncode == 0
    assert "ready" in run(api, "load", "loaded")
    run(api, "unload", "loaded")
    assert "nobody asked" in run(api, "unload", "loaded")
    run(api, "remove", "loaded", "--yes")


def _loading(api: Gateway, *arguments: str) -> subprocess.Popen[str]:
    """Start `model load`; it says that it asked before anything is reported."""
    command = subprocess.Popen(
        [*COMMAND, "load", *arguments, "--home", str(api.stack.home.root)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    _read_until(command, "loaded")
    return command


def _read_until(command: subprocess.Popen[str], text: str, seconds: float = 30.0) -> None:
    assert command.stdout is not None
    deadline = time.monotonic() + seconds
    while text not in (line := command.stdout.readline()):
        assert line, "it ended without saying so"
        assert time.monotonic() < deadline


def test_names_are_completed(api: Gateway, folder: Path) -> None:
    run(api, "add", str(folder), "--name", "completed", "--alias", "complete-alias")
    done = subprocess.run(
        [sys.executable, "-m", "vllm_batch.cli"], capture_output=True, text=True, check=True,
        timeout=60,
        env={"_VLLM_BATCH_COMPLETE": "complete_bash", "COMP_CWORD": "3", "PATH": "",
             "COMP_WORDS": "vllm-batch model show compl",
             "VLLM_BATCH_HOME": str(api.stack.home.root)},
    )  # fmt: skip
    assert {"completed", "complete-alias"} <= set(done.stdout.split())
    run(api, "remove", "completed", "--yes")
