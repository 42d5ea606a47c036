"""Each service is a user of its own on a real nats-server, and may do no more than its work."""

from __future__ import annotations

import ast
import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats.errors
import pytest
from nats.aio.client import Client
from tests.conftest import NatsServer

from vllm_batch import api_keys, ids, model_orders, model_registry
from vllm_batch.errors import Conflict, EventStoreError
from vllm_batch.event_store import jetstream
from vllm_batch.event_store.jetstream import Access, JetStreamEventStore
from vllm_batch.events import (
    EVENT_TYPES,
    ChunkLeased,
    ChunkPlanned,
    JobCancelRequested,
    JobCompleted,
    Usage,
)
from vllm_batch.ids import WorkerId
from vllm_batch.messaging import permissions, subjects
from vllm_batch.messaging.nats_users import authorization, template
from vllm_batch.messaging.permissions import Role
from vllm_batch.model_orders import Registration
from vllm_batch.settings import Settings
from vllm_batch.tasks import end

PASSWORDS = {role: f"password-of-{role}" for role in Role}
ROOT = Path(__file__).parents[2]
FOLDERS = {
    Role.API: "services/gateway/batch_gateway/api",
    Role.ORCHESTRATOR: "services/gateway/batch_gateway/orchestrator",
    Role.WATCHDOG: "services/watchdog",
    Role.WORKER: "services/gpu-worker/batch_gpu_worker",
    Role.TRAINER: "services/gpu-worker/batch_gpu_worker/trainer",
    Role.BRIDGE: "services/labelstudio-bridge",
    Role.ADMIN_UI: "services/admin-ui",
}


class User:
    """A connection as one role, and what the server refused it."""

    def __init__(self) -> None:
        self.refused: list[str] = []
        self._marks = 0
        self.client = Client()

    async def refuses_to_publish(self, subject: str) -> bool:
        """Publish, and tell whether the server said no."""
        await self.client.publish(subject, b"{}", reply=self.client.new_inbox())
        return f'publish to "{subject.lower()}"' in await self._refusals()

    async def refuses_to_subscribe(self, subject: str) -> bool:
        """Subscribe, and tell whether the server said no."""
        await self.client.subscribe(subject)
        return f'subscription to "{subject.lower()}"' in await self._refusals()

    async def _refusals(self) -> str:
        """Return what was refused so far: refusals come in order, and this one comes for sure."""
        self._marks += 1
        mark = f"nobody.may.say.{self._marks}"
        await self.client.publish(mark)
        async with asyncio.timeout(120):
            while not any(mark in one for one in self.refused):
                await asyncio.sleep(0.005)
        said, self.refused = " ".join(self.refused), []
        return said


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[NatsServer]:
    directory = tmp_path / "nats"
    directory.mkdir()
    server = NatsServer(directory, authorization(PASSWORDS))
    server.start()
    yield server
    server.stop()


def settings_of(server: NatsServer, tmp_path: Path, role: Role) -> Settings:
    url = f"nats://{role}:{PASSWORDS[role]}@127.0.0.1:{server.port}"
    return Settings(home=tmp_path / "home", nats_url=url)


@asynccontextmanager
async def connected(server: NatsServer, role: Role) -> AsyncIterator[User]:
    user = User()

    async def note(error: Exception) -> None:
        user.refused.append(str(error).lower())

    await user.client.connect(
        server.url, user=str(role), password=PASSWORDS[role], error_cb=note,
        inbox_prefix=permissions.inbox_prefix(role),
    )  # fmt: skip
    try:
        yield user
    finally:
        await user.client.close()


@pytest.fixture
async def log(guarded: NatsServer, tmp_path: Path) -> AsyncIterator[JetStreamEventStore]:
    """The log as the operator has it: its streams exist."""
    settings = settings_of(guarded, tmp_path, Role.OPERATOR)
    async with jetstream.connect(settings, source="cli") as store:
        yield store


async def test_nobody_connects_without_a_password(
    guarded: NatsServer, log: JetStreamEventStore
) -> None:
    for url in (guarded.url, f"nats://worker:wrong@127.0.0.1:{guarded.port}"):
        client = Client()
        with pytest.raises(nats.errors.Error):
            await client.connect(url, allow_reconnect=False, connect_timeout=2)
        await client.close()


async def test_a_worker_records_its_chunks_and_nothing_of_others(
    guarded: NatsServer, tmp_path: Path, log: JetStreamEventStore
) -> None:
    job_id = ids.new_job_id()
    planned = ChunkPlanned(
        job_id=job_id, chunk=0, blob="files/x", offset=0, length=1, first_line=1, count=1,
        endpoint="/v1/chat/completions", model="m",
    )  # fmt: skip
    leased = ChunkLeased(job_id=job_id, chunk=0, epoch=1, worker_id=WorkerId("worker_1"))
    before = await log.append(planned, expected=0)
    settings = settings_of(guarded, tmp_path, Role.WORKER)
    async with jetstream.connect(settings, source="worker", access=Access.FILTERED) as store:
        own = await store.append(leased, expected=before.seq)
        found = [one async for batch in store.read(subjects.chunk(job_id, 0)) for one in batch]
        assert [one.event for one in found] == [planned, leased]
        # A lost acknowledgement: the same event again is found; another one is a conflict.
        again = await store.append(leased, expected=before.seq, event_id=own.id)
        assert again.seq == own.seq
        with pytest.raises(Conflict):
            await store.append(leased, expected=before.seq)
        empty = [one async for batch in store.read(subjects.chunk(job_id, 1)) for one in batch]
        assert empty == []
    for event in (
        JobCompleted(job_id=job_id, completed=1, failed=0, total=1, usage=Usage()),
        planned,
    ):
        async with connected(guarded, Role.WORKER) as user:
            assert await user.refuses_to_publish(subjects.of_event(event))
    assert await log.last_sequence() == own.seq


@pytest.mark.parametrize("role", [Role.WORKER, Role.TRAINER])
async def test_workers_cannot_read_keys_in_any_way(
    guarded: NatsServer, tmp_path: Path, log: JetStreamEventStore, role: Role
) -> None:
    created, _ = await api_keys.create(log, project="default", name="k")
    subject = subjects.of_event(created)
    settings = settings_of(guarded, tmp_path, role)
    async with jetstream.connect(settings, source=role, access=Access.FILTERED) as store:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(aiter(store.read(subjects.ALL_API_KEYS))), 3)
    api = "$JS.API"
    async with connected(guarded, role) as user:
        for request in (
            f"{api}.DIRECT.GET.EVENTS",
            f"{api}.DIRECT.GET.EVENTS.{subject}",
            f"{api}.STREAM.MSG.GET.EVENTS",
            f"{api}.CONSUMER.CREATE.EVENTS",
            f"{api}.CONSUMER.CREATE.EVENTS.mine",
            f"{api}.CONSUMER.CREATE.EVENTS.mine.apikey.>",
            f"{api}.CONSUMER.CREATE.EVENTS.mine.>",
            f"{api}.CONSUMER.DURABLE.CREATE.EVENTS.mine",
            f"{api}.CONSUMER.MSG.NEXT.EVENTS.other",
            f"{api}.STREAM.CREATE.COPY",
            f"{api}.STREAM.UPDATE.EVENTS",
            f"{api}.STREAM.SNAPSHOT.EVENTS",
        ):
            assert await user.refuses_to_publish(request), request
        for heard in (subject, "apikey.>", ">", "_INBOX.>", "_INBOX.operator.>", "$JS.>"):
            assert await user.refuses_to_subscribe(heard), heard
        # A filter in the subject that is allowed does not smuggle in another one.
        config = {"name": "mine", "filter_subject": "apikey.>", "ack_policy": "none"}
        asked = json.dumps({"stream_name": "EVENTS", "config": config}).encode()
        noun = "chunk" if role is Role.WORKER else "job"
        answer = await user.client.request(f"{api}.CONSUMER.CREATE.EVENTS.mine.{noun}.>", asked)
        assert b'"err_code":10131' in answer.data


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.OPERATOR])
async def test_no_service_deletes_what_was_recorded(
    guarded: NatsServer, log: JetStreamEventStore, role: Role
) -> None:
    async with connected(guarded, role) as user:
        for request in (
            "$JS.API.STREAM.DELETE.EVENTS",
            "$JS.API.STREAM.PURGE.EVENTS",
            "$JS.API.STREAM.MSG.DELETE.EVENTS",
            "$JS.API.STREAM.DELETE.WORK",
            "$JS.API.STREAM.RESTORE.EVENTS",
            "$JS.API.STREAM.UPDATE.EVENTS",
            "$JS.API.CONSUMER.DELETE.EVENTS.tool-other",
        ):
            assert await user.refuses_to_publish(request), request
        assert await user.refuses_to_subscribe("_INBOX.>")
        assert not await user.refuses_to_subscribe(f"{permissions.inbox_prefix(role)}.x")


async def test_only_the_api_and_the_operator_make_keys(
    guarded: NatsServer, log: JetStreamEventStore
) -> None:
    may = {Role.OPERATOR}
    for role in FOLDERS:
        async with connected(guarded, role) as user:
            if not await user.refuses_to_publish("apikey.created.key_1"):
                may.add(role)
    assert may == {Role.OPERATOR, Role.API, Role.ADMIN_UI}


async def test_who_may_not_make_the_streams_waits_and_says_so(
    guarded: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jetstream, "STREAMS_SECONDS", 0.5)
    settings = settings_of(guarded, tmp_path, Role.WORKER)
    with pytest.raises(EventStoreError, match="start the api or an orchestrator"):
        async with jetstream.connect(settings, source="worker", access=Access.FILTERED):
            raise AssertionError("connected")


async def test_a_wrong_password_is_said_without_the_password(
    guarded: NatsServer, tmp_path: Path
) -> None:
    url = f"nats://worker:not-the-password@127.0.0.1:{guarded.port}"
    with pytest.raises(EventStoreError) as caught:
        async with jetstream.connect(Settings(home=tmp_path, nats_url=url), source="worker"):
            raise AssertionError("connected")
    assert f"nats://127.0.0.1:{guarded.port}" in str(caught.value)
    assert "not-the-password" not in str(caught.value)


async def test_the_watchdog_and_the_bridge_cannot_end_a_job(
    guarded: NatsServer, log: JetStreamEventStore
) -> None:
    job_id = ids.new_job_id()
    for role in (Role.WATCHDOG, Role.BRIDGE, Role.TRAINER, Role.WORKER):
        async with connected(guarded, role) as user:
            for event in (
                JobCancelRequested(job_id=job_id),
                JobCompleted(job_id=job_id, completed=1, failed=0, total=1, usage=Usage()),
            ):
                assert await user.refuses_to_publish(subjects.of_event(event)), role


async def test_the_bridge_takes_a_trained_model_into_service_and_out_of_it(
    guarded: NatsServer, log: JetStreamEventStore, tmp_path: Path
) -> None:
    settings = settings_of(guarded, tmp_path, Role.BRIDGE)
    base = Registration(name="base", source="/base", aliases=["mood"])
    await model_orders.register(log, base, requested_by="test")
    trained = Registration(name="trained", source="blob:adapters/r", base="base")
    async with jetstream.connect(settings, source="labelstudio-bridge") as store:
        await model_orders.register(store, trained, requested_by="training")
        await model_orders.load(store, "trained", requested_by="training")
        await model_orders.alias(
            store, "trained", add=["mood"], requested_by="training", force=True
        )
        await model_orders.alias(store, "base", add=["mood"], requested_by="me", force=True)
        await model_orders.unload(store, "trained", requested_by="training")
    registry = await model_registry.load(log)
    model = registry.find("trained")
    assert model is not None
    assert (registry.resolve("mood"), model.wanted) == ("base", False)


async def test_an_orchestrator_has_a_leader_and_work_for_workers(
    guarded: NatsServer, tmp_path: Path, log: JetStreamEventStore
) -> None:
    from vllm_batch.messaging.consumer import Hint, HintQueue, Outcome
    from vllm_batch.messaging.leadership import Leadership

    key, hint = ids.model_key("m"), Hint(ids.new_job_id(), 0)
    settings = settings_of(guarded, tmp_path, Role.ORCHESTRATOR)
    led = asyncio.Event()

    async def duty() -> None:
        led.set()
        await asyncio.get_running_loop().create_future()

    async with jetstream.connect(settings, source="orchestrator") as store:
        leading = asyncio.create_task(Leadership(store.js, settings, role="r", owner="o").run(duty))
        async with asyncio.timeout(120):
            await led.wait()
        await end(leading)
        queue = HintQueue(store.js, key)
        offered = await queue.offer(hint)
        assert await queue.is_waiting(offered)
        await queue.withdraw(await queue.offer(hint))
        worker = settings_of(guarded, tmp_path, Role.WORKER)
        taken: list[Hint] = []

        async def take(found: Hint) -> Outcome:
            taken.append(found)
            return Outcome.DONE

        async with jetstream.connect(worker, source="w", access=Access.FILTERED) as own:
            taking = HintQueue(own.js, key)
            assert await taking.take(take, wait_seconds=5.0) is Outcome.DONE
            await own.connection.client.flush()
            await taking.close()
        assert taken == [hint]


@pytest.mark.parametrize("role", FOLDERS)
def test_what_a_service_records_is_what_it_may(role: Role) -> None:
    """Its own code names no event that its user may not append."""
    names = {cls.__name__: type_ for type_, cls in EVENT_TYPES.items()}
    found = set()
    for path in (ROOT / FOLDERS[role]).rglob("*.py"):
        if role is Role.WORKER and "trainer" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                found.add(names.get(node.func.id))
    allowed = permissions.appends_of(role)
    for type_ in found - {None}:
        noun = str(type_).partition(".")[0]
        assert f"{type_}.>" in allowed or f"{noun}.>" in allowed, f"{role} records {type_}"


def test_the_deployment_has_the_users_that_the_code_describes() -> None:
    file = (ROOT / "deploy" / "nats" / "users.conf").read_text("utf-8")
    assert file.partition("\n")[2] == template(), "vllm-batch nats users > deploy/nats/users.conf"
