"""Webhooks of a real stack: delivered once a batch ends, tried again, given up, replayed, on after
a leader's death."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import web
from tests.e2e.conftest import Round
from tests.integration.test_api_cli import Answer

from vllm_batch.cli.output import ExitCode
from vllm_batch.local.loop_thread import LoopThread
from vllm_batch.local.stack import LocalStack

WAIT_SECONDS = 120.0


class Receiver:
    """A customer's server. ``answers``: statuses to give, in turn; then 204."""

    def __init__(self) -> None:
        self.received: list[tuple[dict[str, str], str]] = []
        self.answers: list[int] = []
        self.port = 0
        self._lock = threading.Lock()
        self._loop = LoopThread("receiver")
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_post("/hook", self._take)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.text()
        with self._lock:
            self.received.append(({k.lower(): v for k, v in request.headers.items()}, body))
            status = self.answers.pop(0) if self.answers else 204
        return web.Response(status=status)

    def start(self) -> None:
        self._loop.call(self._start())

    def stop(self) -> None:
        async def cleanup() -> None:
            assert self._runner is not None
            await self._runner.cleanup()

        self._loop.call(cleanup())

    def close(self) -> None:
        self._loop.stop()

    def of(self, batch: str) -> list[dict[str, str]]:
        """Return the headers of what came for ``batch``."""
        with self._lock:
            return [h for h, body in self.received if json.loads(body)["data"]["id"] == batch]


def wait_until(condition: Callable[[], Any], seconds: float = WAIT_SECONDS) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    overrides = {
        "webhook_networks_allowed": ["127.0.0.0/8"],
        "webhook_retry_seconds": 0.3,  # then 3.6, then 18: given up before that
        "webhook_retry_seconds_max": 10.0,
        "webhook_timeout_seconds": 20.0,
        "leader_lease_seconds": 3.0,
    }
    home = tmp_path_factory.mktemp("webhooks") / "stack"
    with LocalStack(home, settings_overrides=overrides, orchestrators=2) as running:
        yield running


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    opened = Receiver()
    opened.start()
    try:
        yield opened
    finally:
        opened.stop()
        opened.close()


@pytest.fixture
def client(stack: LocalStack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=stack.api_url, api_key=stack.api_key, max_retries=3) as opened:
        yield opened
        for endpoint in list(opened.webhooks.list()):
            opened.webhooks.delete(endpoint.id)


def run_batch(stack: LocalStack, client: openai.OpenAI) -> str:
    work = Round(stack, client)
    return work.run([work.line("a")]).id


def deliveries(client: openai.OpenAI, endpoint: str) -> list[dict[str, Any]]:
    path = f"/webhook_endpoints/{endpoint}/deliveries"
    found: list[dict[str, Any]] = client.get(path, cast_to=dict[str, Any])["data"]
    return found


def test_the_official_client_verifies_what_is_delivered_once(
    stack: LocalStack, client: openai.OpenAI, receiver: Receiver
) -> None:
    made = client.webhooks.create(name="n", url=receiver.url, event_types=["batch.completed"])
    batch = run_batch(stack, client)
    wait_until(lambda: receiver.of(batch))
    headers, body = receiver.received[0]
    event = client.webhooks.unwrap(body, headers, secret=made.signing_secret)
    assert event.type == "batch.completed"
    assert event.data.id == batch
    [delivery] = wait_until(
        lambda: [d for d in deliveries(client, made.id) if d["status"] == "delivered"]
    )
    assert (delivery["attempts"], delivery["last_status"]) == (1, 204)
    assert delivery["id"] == headers["webhook-id"] == event.id
    cloud = {name: headers[f"ce-{name}"] for name in ("specversion", "id", "type", "subject")}
    assert cloud == {"specversion": "1.0", "id": event.id, "type": event.type, "subject": batch}
    assert datetime.fromisoformat(headers["ce-time"]).timestamp() == pytest.approx(
        event.created_at, abs=1
    )

    result = client.webhooks.test(made.id, event_type="batch.expired")
    assert result.status_code == 204
    headers, body = receiver.received[-1]
    sample = client.webhooks.unwrap(body, headers, secret=made.signing_secret)
    assert sample.type == "batch.expired"
    assert len(receiver.of(batch)) == 1


def test_a_failed_delivery_is_tried_again_under_the_same_id(
    stack: LocalStack, client: openai.OpenAI, receiver: Receiver
) -> None:
    receiver.answers = [500, 302]
    made = client.webhooks.create(name="n", url=receiver.url, event_types=["batch.completed"])
    batch = run_batch(stack, client)
    tries = wait_until(lambda: (t := receiver.of(batch)) and len(t) == 3 and t)
    assert len({headers["webhook-id"] for headers in tries}) == 1
    wait_until(lambda: deliveries(client, made.id)[0]["status"] == "delivered")


def test_an_endpoint_that_keeps_failing_is_disabled_and_comes_back(
    stack: LocalStack, client: openai.OpenAI, receiver: Receiver
) -> None:
    made = client.webhooks.create(name="n", url=receiver.url, event_types=["batch.completed"])
    receiver.stop()
    batch = run_batch(stack, client)

    def status() -> str:
        return str(client.webhooks.retrieve(made.id).to_dict()["status"])

    wait_until(lambda: status().startswith("disabled (failing"))
    [delivery] = deliveries(client, made.id)
    assert delivery["status"] == "given_up"
    assert delivery["last_error"]
    unseen = run_batch(stack, client)
    receiver.start()
    said = Answer(stack, "webhook", "enable", made.id)
    assert said.code is ExitCode.DONE
    assert status() == "active"
    wait_until(lambda: receiver.of(unseen))  # what waited is delivered
    assert not receiver.of(batch)
    assert Answer(stack, "webhook", "replay", made.id, delivery["id"]).code is ExitCode.DONE
    wait_until(lambda: receiver.of(batch))


def test_an_endpoint_that_says_gone_is_disabled_at_once(
    stack: LocalStack, client: openai.OpenAI, receiver: Receiver
) -> None:
    receiver.answers = [410]
    made = client.webhooks.create(name="n", url=receiver.url, event_types=["batch.completed"])
    batch = run_batch(stack, client)
    wait_until(lambda: client.webhooks.retrieve(made.id).to_dict()["status"] != "active")
    assert len(receiver.of(batch)) == 1


def test_each_of_many_rotations_at_once_makes_a_secret_of_its_own(
    client: openai.OpenAI, receiver: Receiver
) -> None:
    made = client.webhooks.create(name="n", url=receiver.url, event_types=["batch.completed"])
    with ThreadPoolExecutor(8) as together:
        rotated = list(together.map(lambda _: client.webhooks.rotate_secret(made.id), range(8)))
    assert len({one.signing_secret for one in rotated}) == 8


def test_the_next_leader_goes_on_where_the_last_one_died(
    stack: LocalStack, client: openai.OpenAI, receiver: Receiver
) -> None:
    client.webhooks.create(name="n", url=receiver.url, event_types=["batch.completed"])
    receiver.answers = [503]
    batch = run_batch(stack, client)
    wait_until(lambda: receiver.of(batch))
    for name in ("orchestrator", "orchestrator-2"):
        stack.service(name).kill()
    wait_until(lambda: len(receiver.of(batch)) >= 2)
    assert len({headers["webhook-id"] for headers in receiver.of(batch)}) == 1


def test_the_commands(stack: LocalStack, client: openai.OpenAI, receiver: Receiver) -> None:
    made = Answer(stack, "webhook", "create", receiver.url, "--on", "batch.completed", "--json")
    endpoint = str(made.data["id"])
    assert endpoint in Answer(stack, "webhook", "list").out
    assert Answer(stack, "webhook", "test", endpoint).out == f"{endpoint} answered 204\n"
    run_batch(stack, client)
    wait_until(lambda: "delivered" in Answer(stack, "webhook", "deliveries", endpoint).out)
    shown = Answer(stack, "webhook", "show", endpoint).out
    assert receiver.url in shown
    assert "batch.completed" in shown
    secret = Answer(stack, "webhook", "rotate", endpoint, "--keep-old").out.strip()
    assert secret.startswith("whsec_")
    assert secret != made.data["signing_secret"]
    receiver.answers = [500]
    assert Answer(stack, "webhook", "test", endpoint).code is ExitCode.FAILED
    assert Answer(stack, "webhook", "delete", endpoint).code is ExitCode.DONE
    assert Answer(stack, "webhook", "show", endpoint).code is ExitCode.NOT_FOUND


def test_secrets_are_in_no_log_and_no_event(
    stack: LocalStack, client: openai.OpenAI, receiver: Receiver
) -> None:
    made = client.webhooks.create(name="n", url=receiver.url, event_types=["batch.completed"])
    batch = run_batch(stack, client)
    wait_until(lambda: receiver.of(batch))
    events = Answer(stack, "events", "tail", "--from", "beginning", "--no-follow", "--json").out
    logs = "".join(path.read_text() for path in Path(stack.home.logs).iterdir())
    secret_key = stack.home.secret_key_file.read_text().strip()
    assert made.id in events
    for secret in (made.signing_secret.removeprefix("whsec_"), secret_key):
        assert secret not in events
        assert secret not in logs
    assert stack.home.secret_key_file.stat().st_mode & 0o077 == 0
