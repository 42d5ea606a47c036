"""A bridge beside a real Label Studio: NATS and the bridge as processes, and ways to look at both.

Waits are for what the log says, with a deadline.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec

from tests import facts
from tests.facts import append
from tests.real_label_studio import WEBHOOK_SECONDS, LabelStudio
from vllm_batch import ids
from vllm_batch.blobs import open_blobs
from vllm_batch.event_store import jetstream
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events import (
    Event,
    FileCreated,
    JobCompleted,
    JobFinalizing,
    JobStarted,
    LabelingProjectConfigured,
    LabelingPushRequested,
    Recorded,
    Usage,
)
from vllm_batch.ids import FileId, JobId
from vllm_batch.labeling import projects as labeling_projects
from vllm_batch.labeling.projects import Projects, ProjectView
from vllm_batch.labeling.webhook_endpoint import PATH, SECRET_HEADER
from vllm_batch.local.stack import LocalStack
from vllm_batch.messaging import subjects

SECONDS = 120.0


def bridge_stack(home: Path, server: LabelStudio, **overrides: Any) -> LocalStack:
    """Return NATS and a bridge, which reconciles every 300 s unless told otherwise.

    A delivery may take as long as a busy machine does: one that was given up would come with the
    next walk only.
    """
    settings = {
        "label_studio_url": server.url,
        "label_studio_api_key": server.token,
        "label_studio_webhook_seconds": WEBHOOK_SECONDS - 5,
        **overrides,
    }
    return LocalStack(home, only={"nats", "bridge"}, settings_overrides=settings)


@asynccontextmanager
async def log_of(stack: LocalStack) -> AsyncIterator[JetStreamEventStore]:
    """Yield the event log of a stack."""
    async with jetstream.connect(stack.settings, source="test") as store:
        yield store


async def until(
    store: JetStreamEventStore,
    project: str,
    wanted: Callable[[ProjectView], bool],
    *,
    seconds: float = SECONDS,
) -> ProjectView:
    """Return a project once it is as wanted."""
    projects = Projects()
    try:
        async with asyncio.timeout(seconds):
            async for batch in store.follow(labeling_projects.SUBJECTS):
                for recorded in batch:
                    projects.apply(recorded)
                    view = projects.find(project)
                    if view is not None and wanted(view):
                        return view
    except TimeoutError:
        raise AssertionError(f"not in {seconds} s: {projects.find(project)}") from None
    raise AssertionError("unreachable")


async def events_of(store: JetStreamEventStore, subject: str) -> list[Recorded]:
    """Return what the log has under ``subject``."""
    return [recorded async for batch in store.read(subject) for recorded in batch]


def configured(project: str, **fields: Any) -> LabelingProjectConfigured:
    """Return what ``vllm-batch label configure`` says."""
    known = {"template": "classification", "model": "m", "requested_by": "test"}
    return LabelingProjectConfigured(project=project, **{**known, **fields})


def is_connected(view: ProjectView) -> bool:
    return view.project.connected is not None


def deliver(stack: LocalStack, body: Any, *, secret: str | None = None) -> httpx.Response:
    """Deliver to the bridge as Label Studio does; with the right secret unless one is given."""
    right = stack.settings.label_studio_webhook_secret.get_secret_value()
    headers = {SECRET_HEADER: right if secret is None else secret}
    sent: dict[str, Any] = {"content": body} if isinstance(body, bytes) else {"json": body}
    return httpx.post(
        stack.settings.bridge_url + PATH, **sent, headers=headers, timeout=WEBHOOK_SECONDS
    )


async def eventually(condition: Callable[[], Any], *, seconds: float = SECONDS) -> Any:
    """Return what ``condition`` gives once that is true of it."""
    try:
        async with asyncio.timeout(seconds):
            while not (found := await asyncio.to_thread(condition)):
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not in {seconds} s: {condition}") from None
    return found


async def end_of(store: JetStreamEventStore, asked: LabelingPushRequested) -> Event:
    """Return how a push ended."""
    async with asyncio.timeout(SECONDS):
        async for batch in store.follow([subjects.of_aggregate(asked)]):
            for recorded in batch:
                if not isinstance(recorded.event, LabelingPushRequested):
                    return recorded.event
    raise AssertionError("unreachable")


async def a_completed_batch(
    store: JetStreamEventStore,
    stack: LocalStack,
    answers: list[str | None],
    *,
    metadata: dict[str, str] | None = None,
) -> str:
    """Record a batch that asked about films; an answer that is None failed. Returns its id."""
    blobs = open_blobs(stack.settings.blob_url)
    job, requests, results = ids.new("batch_"), ids.new("file-"), ids.new("file-")
    asked, answered = [], []
    for n, answer in enumerate(answers):
        said = [{"role": "user", "content": f"film {n}"}]
        asked.append({"custom_id": f"r{n}", "body": {"model": "small", "messages": said}})
        logprobs = {"content": [{"token": "t", "logprob": math.log(0.9)}]}
        choice = {"message": {"content": answer}, "logprobs": logprobs}
        body = {"model": "small", "choices": [choice]}
        response = None if answer is None else {"status_code": 200, "body": body}
        error = {"code": "x", "message": "y"} if answer is None else None
        answered.append({"custom_id": f"r{n}", "response": response, "error": error})
    for key, lines in ((requests, asked), (results, answered)):
        await blobs.put(f"files/{key}", b"".join(json.dumps(o).encode() + b"\n" for o in lines))
    file = facts.uploaded(requests)
    created = FileCreated(
        file_id=FileId(results), project=facts.PROJECT, job_id=JobId(job), filename="out.jsonl",
        purpose="batch_output", bytes=1, lines=len(answers), blob=f"files/{results}",
    )  # fmt: skip
    submitted = msgspec.structs.replace(
        facts.submitted(job, metadata=metadata), input_file_id=FileId(requests)
    )
    started = JobStarted(job_id=JobId(job), total=len(answers), chunks=1, model="small")
    finalizing = JobFinalizing(job_id=JobId(job), outcome="completed")
    completed = JobCompleted(
        job_id=JobId(job), total=len(answers), completed=len(answers), failed=0, usage=Usage(),
        output_file_id=FileId(results),
    )  # fmt: skip
    await append(store, file, submitted, started, created, finalizing, completed)
    return job
