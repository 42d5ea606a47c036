"""Logs of earlier releases, restored and replayed by this one: the same rows, and rules that would
have allowed all of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import SecretStr
from tests.faults.log_rules import History
from tests.recorded_logs import read_models
from tests.recorded_logs.record import FOLDER

from batch_gateway.api.authentication import KeyRing
from batch_gateway.orchestrator import board_feed
from batch_gateway.webhooks import ledger
from vllm_batch import backup, fleet, model_registry, project_limits
from vllm_batch.aggregates.job import JobStatus
from vllm_batch.blobs import open_blobs
from vllm_batch.clock import SystemClock
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events import EVENT_TYPES, Recorded
from vllm_batch.settings import Settings

RELEASES = sorted(path.parent for path in FOLDER.glob("*/manifest.json"))


@pytest.fixture(params=RELEASES, ids=lambda folder: folder.name)
def release(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.param
    return folder


async def restored(store: JetStreamEventStore, folder: Path, tmp_path: Path) -> list[Recorded]:
    """Put a release's log into this release's NATS; return it as this release reads it."""
    blobs = open_blobs((tmp_path / "blobs").as_uri())
    manifest = await backup.restore(store, blobs, folder, progress=lambda _: None)
    log = [recorded async for batch in store.read(">") for recorded in batch]
    assert len(log) == manifest.last_seq
    return log


async def test_the_read_models_are_those_of_the_release(
    release: Path,
    event_store: JetStreamEventStore,
    settings: Settings,
    postgres_dsn: str,
    tmp_path: Path,
) -> None:
    await restored(event_store, release, tmp_path)
    here = settings.model_copy(update={"postgres_dsn": SecretStr(postgres_dsn)})
    then = json.loads((release / read_models.NAME).read_text())
    now = read_models.as_then(then, await read_models.replay(event_store, here))
    assert set(now) == set(then)
    for table, rows in then.items():
        assert now[table] == rows, table
    assert then["job"]
    assert then["usage_line"]


async def test_every_event_is_read_and_the_rules_allow_it(
    release: Path, event_store: JetStreamEventStore, tmp_path: Path
) -> None:
    log = await restored(event_store, release, tmp_path)
    history = History()
    history.replay(recorded for recorded in log if recorded.source != "recorder")
    assert history.violations == []
    then = json.loads((release / read_models.NAME).read_text())
    assert {job_id: job.status for job_id, job in history.jobs.items()} == {
        row["job_id"]: JobStatus(row["status"]) for row in then["job"]
    }
    assert {JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.EXPIRED} == {
        job.status for job in history.jobs.values()
    }
    types = {recorded.event.TYPE for recorded in log}
    assert len(types) > 0.75 * len(EVENT_TYPES)  # nearly everything there is happens in it
    assert max(chunk.epoch for chunk in history.chunks.values()) > 1  # one was taken over


async def test_what_services_keep_in_memory_is_folded_from_it(
    release: Path, event_store: JetStreamEventStore, settings: Settings, tmp_path: Path
) -> None:
    log = await restored(event_store, release, tmp_path)
    keys = KeyRing(event_store)
    await keys.load()
    assert keys.position > 0
    limits = await project_limits.load(event_store, settings)
    assert [limits.is_closed(c.project) for c in limits.configured] == [False]
    assert any(event.event.TYPE == "project.purged" for event in log)
    webhooks = await ledger.load(event_store)
    assert webhooks.deliveries
    registry = await model_registry.load(event_store)
    assert registry.find("m") is not None
    workers = await fleet.load(event_store)
    assert workers.workers
    board = await board_feed.load(event_store, SystemClock().monotonic)
    assert board.jobs == {}  # all of them have ended
