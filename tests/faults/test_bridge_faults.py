"""What Label Studio's people did is in the log, whatever was down meanwhile or got lost."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from tests.bridge_bench import (
    a_completed_batch,
    bridge_stack,
    configured,
    deliver,
    end_of,
    events_of,
    eventually,
    is_connected,
    log_of,
    until,
)
from tests.facts import append
from tests.real_label_studio import LabelStudio, copy_of, ensure_template
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events import LabelingPushRequested, LabelingTasksPushed
from vllm_batch.labeling.webhook_endpoint import PATH, SECRET_HEADER
from vllm_batch.local.ports import pick
from vllm_batch.local.programs import bridge_spec, environment_of
from vllm_batch.local.stack import LocalStack
from vllm_batch.messaging import subjects
from vllm_batch.messaging.permissions import Role

BRIDGE = "labelstudio-bridge"
DUPLICATES = 10
ANNOTATIONS = 20
IMPORTED = 1200
PUSHED = 80


async def connected_project(store: JetStreamEventStore, server: LabelStudio) -> str:
    """Return a project whose events are delivered."""
    project = server.make_project("faults")
    await append(store, configured(project))
    await until(store, project, is_connected)
    return project


async def assert_recorded_once(store: JetStreamEventStore, project: str) -> None:
    """No annotation was created or deleted twice, and none went back to an older version."""
    said = await events_of(store, subjects.aggregate("annotation", project, "*"))
    counts = Counter((one.event.TYPE, one.event.aggregate_id()) for one in said)
    assert {n for (kind, _), n in counts.items() if kind != "annotation.updated"} == {1}
    tasks = await events_of(store, subjects.aggregate("labeling", project))
    created = [t for one in tasks for t in getattr(one.event, "tasks", [])
               if one.event.TYPE == "labeling.tasks_created"]  # fmt: skip
    assert len(created) == len(set(created))


async def test_what_happens_while_the_bridge_is_down_is_made_up_for(
    label_studio: LabelStudio, tmp_path: Path
) -> None:
    with bridge_stack(tmp_path / "home", label_studio) as stack:
        async with log_of(stack) as store:
            project = await connected_project(store, label_studio)
            kept, gone, emptied = label_studio.make_tasks(project, [{"text": t} for t in "abc"])
            before = label_studio.choose(gone, "Positive")
            removed = label_studio.choose(emptied, "Positive")
            await until(store, project, lambda v: len(list(v.present())) == 2)
            stack.service(BRIDGE).hold()
            during = label_studio.choose(kept, "Negative")
            label_studio.call("DELETE", f"/api/annotations/{removed}/")
            label_studio.call("DELETE", f"/api/tasks/{gone}/")
            stack.service(BRIDGE).release()
            view = await until(
                store, project, lambda v: {i for i, _ in v.present()} == {str(during)}
            )
            assert view.annotations[str(before)].deleted
            assert view.project.tasks == {str(kept), str(emptied)}
            label_studio.call("DELETE", f"/api/projects/{project}/")
            await append(store, configured(label_studio.make_project("wakes the reconciler")))
            await until(store, project, lambda v: v.project.deleted and not list(v.present()))
            await assert_recorded_once(store, project)


async def test_label_studio_is_down_and_back(label_studio: LabelStudio, tmp_path: Path) -> None:
    with bridge_stack(tmp_path / "home", label_studio, label_studio_reconcile_seconds=1) as stack:
        async with log_of(stack) as store:
            project = label_studio.make_project("waits")
            label_studio.stop()
            try:
                await append(store, configured(project))
                bridge = stack.service(BRIDGE)
                await eventually(lambda: "does not answer" in bridge.log_text())
            finally:
                label_studio.start()
            await until(store, project, is_connected)
            (task,) = label_studio.make_tasks(project, [{"text": "t"}])
            annotation = str(label_studio.choose(task, "Positive"))
            await until(store, project, lambda v: annotation in v.annotations)


async def test_nats_is_down_503_at_once_and_healed(
    label_studio: LabelStudio, tmp_path: Path
) -> None:
    # The default of label_studio_webhook_seconds: Label Studio waits for a second.
    with bridge_stack(tmp_path / "home", label_studio, label_studio_webhook_seconds=0.6) as stack:
        async with log_of(stack) as store:
            project = await connected_project(store, label_studio)
            (task,) = label_studio.make_tasks(project, [{"text": "t"}])
            await until(store, project, lambda v: len(v.project.tasks) == 1)
            body = {"action": "PROJECT_UPDATED", "project": {"id": 1}}
            stack.service("nats").hold()
            await eventually(lambda: deliver(stack, body).status_code == 503)
            started = time.monotonic()
            assert deliver(stack, body).status_code == 503
            assert time.monotonic() - started < 3.0  # 0.6, and what a busy machine adds
            annotation = str(label_studio.choose(task, "Negative"))
            stack.service("nats").release()
            await until(store, project, lambda v: annotation in v.annotations)
            await assert_recorded_once(store, project)


async def test_a_push_that_breaks_off_is_done_again_without_duplicates(
    label_studio: LabelStudio, tmp_path: Path
) -> None:
    with bridge_stack(tmp_path / "home", label_studio, label_studio_import_tasks=2) as stack:
        async with log_of(stack) as store:
            project = await connected_project(store, label_studio)
            job = await a_completed_batch(store, stack, ["Positive"] * PUSHED)
            asked = LabelingPushRequested(
                project=project, push_id="push_1", source=job, requested_by="test"
            )
            await append(store, asked)
            await until(store, project, lambda v: len(v.project.tasks) >= 4)
            stack.service(BRIDGE).kill()
            end = await end_of(store, asked)
            assert isinstance(end, LabelingTasksPushed), end
            assert end.created + end.known == PUSHED
            assert end.known >= 4  # it was killed in the middle
            found = label_studio.call(
                "GET", f"/api/tasks/?project={project}&page_size=1000&fields=all"
            )["tasks"]
            external_ids = [task["data"]["external_id"] for task in found]
            assert sorted(external_ids) == sorted(f"{job}/r{n}" for n in range(PUSHED))
            assert {len(task["predictions"]) for task in found} == {1}


async def test_two_bridges_and_two_pushes_of_a_batch_make_each_task_once(
    label_studio: LabelStudio, tmp_path: Path
) -> None:
    with bridge_stack(tmp_path / "home", label_studio, label_studio_import_tasks=2) as stack:
        another_bridge(stack)
        async with log_of(stack) as store:
            project = await connected_project(store, label_studio)
            job = await a_completed_batch(store, stack, ["Positive"] * PUSHED)
            asked = [
                LabelingPushRequested(
                    project=project, push_id=f"push_{n}", source=job, requested_by="test"
                )
                for n in (1, 2)
            ]
            await append(store, *asked)
            await until(store, project, lambda v: len(v.project.tasks) >= 4)
            stack.service(BRIDGE).kill()  # it leads: it was there first
            ends = [await end_of(store, one) for one in asked]
            assert all(isinstance(end, LabelingTasksPushed) for end in ends), ends
            found = label_studio.call(
                "GET", f"/api/tasks/?project={project}&page_size=1000&fields=all"
            )["tasks"]
            external_ids = [task["data"]["external_id"] for task in found]
            assert sorted(external_ids) == sorted(f"{job}/r{n}" for n in range(PUSHED))


def another_bridge(stack: LocalStack) -> None:
    port = pick(None)
    settings = stack.settings.model_copy(update={"bridge_port": port})
    environment = {**stack._environments.of(Role.BRIDGE), **environment_of({"bridge_port": port})}
    stack.add_service(replace(bridge_spec(settings, environment), name="another-bridge"))


async def test_in_label_studios_own_second_nothing_is_lost_and_nothing_comes_twice(
    tmp_path: Path,
) -> None:
    own = {"label_studio_webhook_seconds": 0.6, "label_studio_reconcile_seconds": 5}
    with (
        copy_of(ensure_template(), tmp_path, webhook_seconds=1) as server,
        bridge_stack(tmp_path / "home", server, **own) as stack,
    ):
        async with log_of(stack) as store:
            project = await connected_project(store, server)
            data = [{"text": f"t{n}" * 30} for n in range(IMPORTED)]
            tasks = {str(task) for task in server.make_tasks(project, data)}
            some = sorted(tasks, key=int)[:ANNOTATIONS]
            made = {str(server.choose(int(task), "Positive")) for task in some}
            view = await until(
                store, project, lambda v: v.project.tasks == tasks and made <= set(v.annotations)
            )
            assert {i for i, _ in view.present()} == made
            await assert_recorded_once(store, project)
            # A machine that stands still may lose one to the second; the walk has that then.
            origins = Counter(a.written.origin for _, a in view.present() if a.written)
            assert origins["webhook"], origins


async def test_a_third_of_the_webhooks_is_lost(label_studio: LabelStudio, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    with dropping_proxy(random.Random(seed), 0.3) as proxy:
        overrides = {"bridge_url": proxy.url, "bridge_port": proxy.target_port}
        with bridge_stack(
            tmp_path / "home", label_studio, label_studio_reconcile_seconds=2, **overrides
        ) as stack:
            async with log_of(stack) as store:
                project = await connected_project(store, label_studio)
                tasks = label_studio.make_tasks(
                    project, [{"text": str(n)} for n in range(ANNOTATIONS)]
                )
                made = {str(label_studio.choose(task, "Positive")) for task in tasks}
                dropped = sorted(made)[:5]
                for annotation in dropped:
                    label_studio.call("DELETE", f"/api/annotations/{annotation}/")
                await until(
                    store,
                    project,
                    lambda v: {i for i, _ in v.present()} == made - set(dropped),
                )
                assert proxy.dropped > 0, seed
                await assert_recorded_once(store, project)


async def test_ten_times_the_same_in_any_order_has_one_effect(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    deliveries = [
        {
            "action": f"ANNOTATION_{'CREATED' if version == 1 else 'UPDATED'}",
            "annotation": {
                "id": n, "task": n, "updated_at": f"2026-01-01T00:00:0{version}Z", "result": [],
                "ground_truth": version == 3,
            },
            "project": {"id": 7},
        }
        for n in range(1, 11)
        for version in (1, 2, 3)
    ]  # fmt: skip
    deliveries += [{"action": "TASKS_CREATED", "tasks": [{"id": n}], "project": {"id": 7}}
                   for n in range(1, 11)]  # fmt: skip
    gone = [{"id": 1}, {"id": 2}]
    deliveries.append({"action": "ANNOTATIONS_DELETED", "annotations": gone, "project": {"id": 7}})
    patient = {"label_studio_webhook_seconds": 30}
    every = deliveries * DUPLICATES
    rng.shuffle(every)
    with LocalStack(
        tmp_path / "home", only={"nats", "bridge"}, settings_overrides=patient
    ) as stack:
        headers = {SECRET_HEADER: stack.settings.label_studio_webhook_secret.get_secret_value()}
        async with (
            log_of(stack) as store,
            httpx.AsyncClient(
                base_url=stack.settings.bridge_url, headers=headers, timeout=60
            ) as client,
        ):
            answers = Counter(
                [(await client.post(PATH, json=one)).json()["status"] for one in every]
            )
            assert answers == {
                "recorded": len(deliveries), "known": len(deliveries) * (DUPLICATES - 1),
            }  # fmt: skip
            view = await until(
                store, "7", lambda v: len(v.ground_truth()) == 8 and len(v.project.tasks) == 10
                and v.annotations["1"].deleted and v.annotations["2"].deleted,
            )  # fmt: skip
            assert {i for i, _ in view.present()} == {str(n) for n in range(3, 11)}, seed
            await assert_recorded_once(store, "7")


class DroppingProxy(ThreadingHTTPServer):
    """Passes deliveries on, and says of some that it has, though it has not."""

    daemon_threads = True

    def __init__(self, rng: random.Random, share: float, target_port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Drop)
        self.rng, self.share, self.target_port, self.dropped = rng, share, target_port, 0
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{target_port}", timeout=10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Drop(BaseHTTPRequestHandler):
    server: DroppingProxy

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        status = 200
        if self.server.rng.random() < self.server.share:
            self.server.dropped += 1
        else:
            headers = {SECRET_HEADER: self.headers[SECRET_HEADER]}
            client = self.server.client
            status = client.post(self.path, content=body, headers=headers).status_code
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def dropping_proxy(rng: random.Random, share: float) -> Iterator[DroppingProxy]:
    server = DroppingProxy(rng, share, pick(None))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        server.client.close()
