"""Tools outside read events over NATS with a user of their own, and do nothing else."""

from __future__ import annotations

import asyncio
import json
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nats.errors
import pytest
from nats.aio.client import Client

from vllm_batch import ids
from vllm_batch.event_store import jetstream
from vllm_batch.events import JobCompleted, JobSubmitted, Usage
from vllm_batch.ids import JobId
from vllm_batch.local.stack import LocalStack

SERVERS = frozenset({"nats", "watchdog"})  # the watchdog is a service that has to stay connected


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[LocalStack]:
    with LocalStack(tmp_path / "home", only=SERVERS) as running:
        yield running


def cli(stack: LocalStack, *words: str, ok: bool = True) -> str:
    done = subprocess.run(
        (sys.executable, "-m", "vllm_batch.cli", "events", *words, "--home", stack.home.root),
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout if ok else done.stderr


def grant(stack: LocalStack, name: str, *words: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(cli(stack, "grant", name, *words, "--json"))
    return said


async def end_a_job(stack: LocalStack) -> JobId:
    """Record a job's beginning and its end, as the services do."""
    job_id = ids.new_job_id()
    submitted = JobSubmitted(
        job_id=job_id, project=ids.ProjectId("default"), input_file_id=ids.new_file_id(),
        endpoint="/v1/chat/completions", completion_window="24h", expires_at=2**31,
    )  # fmt: skip
    async with jetstream.connect(stack.settings, source="test") as store:
        before = await store.append(submitted, expected=0)
        ended = JobCompleted(job_id=job_id, completed=1, failed=0, total=1, usage=Usage())
        await store.append(ended, expected=before.seq)
    return job_id


class Outside:
    """A tool's connection, with what the server refused it."""

    def __init__(self, said: dict[str, Any]) -> None:
        self.said = said
        self.refused: list[str] = []
        self.client = Client()

    async def __aenter__(self) -> Outside:
        async def note(error: Exception) -> None:
            self.refused.append(str(error).lower())

        try:
            await self.client.connect(
                self.said["nats_url"], inbox_prefix=self.said["nats_inbox_prefix"], error_cb=note,
                allow_reconnect=False,
            )  # fmt: skip
        except nats.errors.Error:
            await self.client.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    async def is_refused(self, subject: str) -> bool:
        """Tell whether the server refuses to publish."""
        await self.client.publish(subject, b"{}", reply=self.client.new_inbox())
        await self.client.publish("nobody.may.say.this")
        async with asyncio.timeout(60):
            while not any("nobody.may.say.this" in one for one in self.refused):
                await asyncio.sleep(0.005)
        said, self.refused = " ".join(self.refused), []
        return f'"{subject.lower()}"' in said

    async def waiting(self, count: int) -> list[str]:
        """Take what waits for the tool; return the subjects of the jobs."""
        pulled = await self.client.jetstream().pull_subscribe_bind(
            self.said["nats_consumer"], self.said["nats_stream"]
        )
        found = []
        for message in await pulled.fetch(count, timeout=10):
            found.append(json.loads(message.data)["subject"])
            await message.ack()
        await self.client.flush()
        return found


async def test_a_tool_hears_what_it_was_granted_and_nothing_else(stack: LocalStack) -> None:
    said = grant(stack, "grafana", "--subjects", "job.completed.*")
    async with Outside(said) as tool:
        heard = await tool.client.subscribe("job.completed.*")
        await tool.client.flush()
        job_id = await end_a_job(stack)
        message = await heard.next_msg(timeout=10)
        assert json.loads(message.data)["subject"] == job_id
        assert await tool.waiting(1) == [job_id]
        job_id = await end_a_job(stack)
        assert await tool.waiting(1) == [job_id], "its place in the log is kept"
        await heard.next_msg(timeout=10)
        for subject in (
            "job.completed.batch_1", "job.submitted.batch_1", "apikey.revoked.key_1", "work.x",
            "control.worker.x", "worker.log.x", "$JS.API.STREAM.DELETE.EVENTS",
            "$JS.API.STREAM.PURGE.EVENTS", "$JS.API.STREAM.CREATE.MINE",
            "$JS.API.CONSUMER.CREATE.EVENTS", "$JS.API.CONSUMER.CREATE.EVENTS.mine.job.completed.*",
            "$JS.API.CONSUMER.DURABLE.CREATE.EVENTS.mine", "$JS.API.DIRECT.GET.EVENTS",
            "$JS.API.STREAM.MSG.GET.EVENTS", "$JS.API.CONSUMER.MSG.NEXT.EVENTS.tool-other",
            "$JS.API.CONSUMER.DELETE.EVENTS.tool-grafana", "$JS.API.STREAM.INFO.EVENTS",
        ):  # fmt: skip
            assert await tool.is_refused(subject), subject
        for subject in ("apikey.>", "job.submitted.*", ">", "_INBOX.>", "worker.heartbeat.*"):
            await tool.client.subscribe(subject)
            await tool.is_refused("job.x")
        with pytest.raises(nats.errors.TimeoutError):
            await heard.next_msg(timeout=0.2)


async def test_a_revoked_tool_is_cut_off_and_services_are_not(stack: LocalStack) -> None:
    watchdog = stack.service("watchdog").pid
    said = grant(stack, "grafana", "--subjects", "job.>")
    other = grant(stack, "siem", "-s", "job.completed.*,job.failed.*", "--from", "beginning")
    async with Outside(said) as tool, Outside(other) as kept:
        cut_off = stack.service("watchdog").log_text().count("nats disconnected")
        cli(stack, "revoke", "grafana")
        with pytest.raises(nats.errors.Error):  # from then on, not a moment later
            async with Outside(said):
                raise AssertionError("connected")
        async with asyncio.timeout(60):
            while not tool.client.is_closed:
                await asyncio.sleep(0.02)
        assert kept.client.is_connected
        job_id = await end_a_job(stack)
        assert await kept.waiting(1) == [job_id]
    assert [one["name"] for one in json.loads(cli(stack, "grants", "--json"))] == ["siem"]
    assert stack.service("watchdog").pid == watchdog
    assert stack.service("watchdog").log_text().count("nats disconnected") == cut_off
    assert "no grant" in cli(stack, "revoke", "grafana", ok=False)


async def test_grants_outlive_the_stack_and_are_taken_from_the_log(tmp_path: Path) -> None:
    with LocalStack(tmp_path / "home", only=SERVERS) as stack:
        said = grant(stack, "grafana", "--subjects", "job.completed.*")
        port = stack.service("nats").status.port
    # The file is a copy of what the log has: lost, or of a restored backup, it is made anew.
    (stack.home.nats / "tools.json").unlink()
    with LocalStack(tmp_path / "home", only=SERVERS) as stack:
        assert stack.service("nats").status.port == port
        async with Outside(said) as tool:
            assert tool.client.is_connected


async def test_passwords_are_nowhere_but_in_files_of_the_owner(stack: LocalStack) -> None:
    out = stack.home.root / "grafana.env"
    cli(stack, "grant", "grafana", "--subjects", "job.>", "--out", str(out))
    password = next(
        line.partition("=")[2]
        for line in out.read_text("utf-8").splitlines()
        if line.startswith("NATS_PASSWORD=")
    )
    ours = json.loads((stack.home.nats / "passwords.json").read_text("utf-8"))
    open_to_others = stat.S_IRWXG | stat.S_IRWXO
    for path in (
        out,
        *(stack.home.nats / n for n in ("passwords.json", "users.conf", "tools.json")),
    ):
        assert not path.stat().st_mode & open_to_others, path
    shown = cli(stack, "tail", "--no-follow", "--from", "beginning", "--json")
    shown += cli(stack, "grants", "--json") + cli(stack, "grants", "--config")
    shown += "".join(path.read_text("utf-8") for path in stack.home.logs.iterdir())
    assert '"tool.granted"' in shown
    for secret in (password, *ours.values()):
        assert secret not in shown
    stored = b"".join(
        path.read_bytes() for path in (stack.home.nats / "store").rglob("*") if path.is_file()
    )
    assert b"tool.granted" in stored
    assert password.encode() not in stored
    assert not any(secret.encode() in stored for secret in ours.values())


@pytest.mark.parametrize(
    ("subjects", "said"),
    [
        (">", "is no subject of events"),
        ("*.created.*", "is no subject of events"),
        ("apikey.created.*", "hashes"),
        ("admin.>", "hashes"),
        ("tool.>", "hashes"),
        ("worker.>", "name the type of worker events"),
        ("worker.*.*", "name the type of worker events"),
        ("worker.heartbeat.*", "name the type of worker events"),
        ("job.compleet.*", "no event job.compleet"),
        ("job", "is no subject of events"),
        ("job..x", "is no subject of events"),
        ("work.>", "is no subject of events"),
        ("$JS.API.>", "is no subject of events"),
        ("_INBOX.>", "is no subject of events"),
        ("job.*.batch_1,job.completed.*", "overlap"),
    ],
)
def test_what_cannot_be_granted_is_said(subjects: str, said: str) -> None:
    from vllm_batch.errors import InvalidInput
    from vllm_batch.event_tools import checked_subjects

    with pytest.raises(InvalidInput, match=said):
        checked_subjects(subjects.split(","))


@pytest.mark.parametrize("name", ["", "operator", "worker", "Grafana", "a b", "a.b", "x" * 40, "*"])
def test_what_is_no_name_of_a_tool(name: str) -> None:
    from vllm_batch.errors import InvalidInput
    from vllm_batch.event_tools import check_name

    with pytest.raises(InvalidInput):
        check_name(name)


def test_a_subject_that_another_covers_is_granted_once() -> None:
    from vllm_batch.event_tools import checked_subjects

    wanted = ["job.completed.*", "job.>", "chunk.*.batch_1.>", "job.completed.*"]
    assert checked_subjects(wanted) == ["job.>", "chunk.*.batch_1.>"]
