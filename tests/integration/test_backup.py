"""A backup of a running stack, put into another home: the same log, the same files, and work that
was interrupted goes on."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import openai
import pytest
from tests.e2e.conftest import Round, jsonl
from tests.integration.test_api_cli import Answer

from vllm_batch import backup as backups
from vllm_batch.blobs import open_blobs
from vllm_batch.cli.output import ExitCode
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.local.stack import LocalStack

Backup = tuple[Path, str, str, str, str]
OVERRIDES = {"flush_seconds": 0.05, "chunk_requests_max": 5, "engine_max_num_seqs": 4}


@pytest.fixture(scope="module")
def backup(tmp_path_factory: pytest.TempPathFactory) -> Backup:
    """Back up a stack with one batch done and one under way, and destroy the stack.

    Returns the backup's folder, the API key, both batches and the whole log.
    """
    root = tmp_path_factory.mktemp("backup")
    folder = root / "a backup"
    with (
        LocalStack(root / "first", settings_overrides=OVERRIDES) as stack,
        openai.OpenAI(base_url=stack.api_url, api_key=stack.api_key) as client,
    ):
        work = Round(stack, client)
        done = work.run([work.line(f"r{n}") for n in range(12)])
        # The last two outlast the backup, however slow the machine is.
        lines = [work.line(f"r{n}", "[[sim:sleep=20]]" if n > 37 else "Hi") for n in range(40)]
        running = work.submit(jsonl(lines))
        while not (running.request_counts and running.request_counts.completed):
            running = client.batches.retrieve(running.id)
        made = Answer(stack, "backup", "create", folder, "--json")
        assert made.code is ExitCode.DONE
        log = "\n".join(events(stack)[: int(str(made.data["events"]))])
        assert Answer(stack, "backup", "create", folder).code is ExitCode.FAILED  # not empty
        key = stack.api_key
        stack.hurry()
    ended = [json.loads(line) for line in log.splitlines() if '"job.completed"' in line]
    assert [running.id in str(event) for event in ended] == [False]
    shutil.rmtree(root / "first")
    return folder, key, done.id, running.id, log


def events(stack: LocalStack) -> list[str]:
    said = Answer(stack, "events", "tail", "--from", "beginning", "--no-follow", "--json")
    return said.out.splitlines()


def test_a_backup_comes_back_whole_and_work_goes_on(backup: Backup, tmp_path: Path) -> None:
    folder, key, done, running, log = backup
    home = tmp_path / "second home"
    restored = Answer(None, "backup", "restore", folder, "--home", home)
    assert restored.code is ExitCode.DONE, restored.errors
    with (
        LocalStack(home, settings_overrides=OVERRIDES) as stack,
        openai.OpenAI(base_url=stack.api_url, api_key=key) as client,
    ):
        assert "\n".join(events(stack)[: len(log.splitlines())]) == log
        work = Round(stack, client)
        before = client.batches.retrieve(done)
        assert before.status == "completed"
        assert len(work.rows(before.output_file_id)) == 12
        after = work.wait(client.batches.retrieve(running))
        assert after.status == "completed"
        assert [row["custom_id"] for row in work.rows(after.output_file_id)] == [
            f"r{n}" for n in range(40)
        ]
        assert Answer(stack, "projections", "verify").code is ExitCode.DONE
    again = Answer(None, "backup", "restore", folder, "--home", home)
    assert again.code is ExitCode.FAILED
    assert "not empty" in again.errors  # it has gone on since


def test_a_home_with_another_log_is_left_alone(backup: Backup, tmp_path: Path) -> None:
    home = tmp_path / "other"
    with LocalStack(home, only={"nats", "api"}) as stack:
        before = events(stack)
    refused = Answer(None, "backup", "restore", backup[0], "--home", home)
    assert refused.code is ExitCode.FAILED
    assert "not empty" in refused.errors
    with LocalStack(home, only={"nats"}) as stack:
        assert events(stack) == before


async def test_a_restore_that_was_cut_off_goes_on(
    backup: Backup, event_store: JetStreamEventStore, tmp_path: Path
) -> None:
    folder = backup[0]
    lines = gzip.decompress((folder / "events.jsonl.gz").read_bytes()).splitlines()
    for line in lines[:7]:
        event = json.loads(line)["event"]
        subject = f"{event['type']}.{event['subject'].replace('/', '.')}"
        await event_store.js.publish(subject, line.partition(b'"event":')[2][:-1])
    blobs = open_blobs((tmp_path / "blobs").as_uri())
    manifest = await backups.restore(event_store, blobs, folder, progress=lambda _: None)
    assert await event_store.last_sequence() == manifest.last_seq == len(lines)
    assert {blob.key for blob in manifest.blobs} == {key async for key in blobs.list("")}
    again = await backups.create(event_store, blobs, tmp_path / "again", progress=lambda _: None)
    assert again.events_sha256 == manifest.events_sha256
    assert again.blobs == manifest.blobs


def copied(backup: Backup, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(backup[0], folder)
    assert Answer(None, "backup", "verify", folder).code is ExitCode.DONE
    return folder


def test_damage_is_found_and_nothing_is_restored(backup: Backup, tmp_path: Path) -> None:
    folder = copied(backup, tmp_path)
    lines = gzip.decompress((folder / "events.jsonl.gz").read_bytes()).splitlines(keepends=True)
    blob = next(path for path in (folder / "blobs" / "files").iterdir() if path.is_file())
    whole = blob.read_bytes()

    def refused(what: str) -> None:
        for command in (("verify",), ("restore", "--home", str(tmp_path / "no"))):
            said = Answer(None, "backup", command[0], folder, *command[1:])
            assert said.code is ExitCode.FAILED
            assert what in said.errors

    blob.write_bytes(whole[:-1] + b"X")
    refused("is not what was written")
    blob.unlink()
    refused("cannot be read")
    blob.write_bytes(whole)
    (folder / "events.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[:3] + lines[4:])))
    refused("event 4 is missing")
    (folder / "events.jsonl.gz").write_bytes(gzip.compress(b"".join(lines))[:-20])
    refused("cannot be read")
    (folder / "events.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[:-1])))
    refused("is not what was written")
    manifest = json.loads((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    refused("upgrade")
    (folder / "manifest.json").unlink()
    refused("no finished backup")
