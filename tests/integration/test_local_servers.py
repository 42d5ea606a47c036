"""NATS and Postgres of the embedded stack: real servers from wheels, killed and started again."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
from pathlib import Path

import asyncpg
import nats
import psutil
import pytest

from vllm_batch.errors import StackError
from vllm_batch.local import leftovers, postgres
from vllm_batch.local.stack import LocalStack

SERVERS = frozenset({"nats", "postgres"})


def servers(home: Path) -> LocalStack:
    return LocalStack(home, only=SERVERS)


async def remember(stack: LocalStack, word: str) -> None:
    """Put ``word`` into a stream and a table."""
    client = await nats.connect(stack.settings.nats_url)
    js = client.jetstream()
    await js.add_stream(name="WORDS", subjects=["words"])
    await js.publish("words", word.encode())
    await client.close()
    connection = await asyncpg.connect(stack.settings.postgres_dsn.get_secret_value())
    await connection.execute("CREATE TABLE IF NOT EXISTS words (word text)")
    await connection.execute("INSERT INTO words VALUES ($1)", word)
    # Committed asynchronously: make sure of this one, as a clean stop would.
    await connection.execute("SET synchronous_commit = on; INSERT INTO words VALUES ('.')")
    await connection.close()


async def recall(stack: LocalStack) -> tuple[int, list[str]]:
    """Return the number of messages in the stream and the words in the table."""
    client = await nats.connect(stack.settings.nats_url)
    info = await client.jetstream().stream_info("WORDS")
    await client.close()
    connection = await asyncpg.connect(stack.settings.postgres_dsn.get_secret_value())
    rows = await connection.fetch("SELECT word FROM words WHERE word <> '.'")
    await connection.close()
    return info.state.messages, [row["word"] for row in rows]


def test_a_home_that_was_deleted_starts_with_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with servers(home) as stack:
        asyncio.run(remember(stack, "before"))
    shutil.rmtree(home)
    with servers(home) as stack:
        asyncio.run(remember(stack, "after"))
        assert asyncio.run(recall(stack)) == (1, ["after"])


def test_both_servers_come_back_from_a_kill_with_their_data(tmp_path: Path) -> None:
    with servers(tmp_path / "a home with spaces") as stack:
        asyncio.run(remember(stack, "before"))
        for name in ("nats", "postgres"):
            service = stack.service(name)
            service.wait_restarted(service.kill())
        assert asyncio.run(recall(stack)) == (1, ["before"])


def test_data_is_kept_between_runs(tmp_path: Path) -> None:
    with servers(tmp_path) as stack:
        asyncio.run(remember(stack, "first"))
    with servers(tmp_path) as stack:
        asyncio.run(remember(stack, "second"))
        assert asyncio.run(recall(stack)) == (2, ["first", "second"])


def test_a_stop_leaves_no_process(tmp_path: Path) -> None:
    with servers(tmp_path) as stack:
        ours = [psutil.Process(status.pid) for status in stack.services() if status.pid]
        ours += [child for process in ours for child in process.children(recursive=True)]
        assert len(ours) > 4
    for process in ours:
        assert leftovers.started_at(process.pid) is None


def test_a_second_start_on_the_same_home_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    with servers(tmp_path) as stack:
        pids = [status.pid for status in stack.services()]
        with pytest.raises(StackError, match=f"in use by process {os.getpid()}"):
            servers(tmp_path).start()
        asyncio.run(remember(stack, "still here"))
        assert [status.pid for status in stack.services()] == pids


def test_two_homes_do_not_see_each_other(tmp_path: Path) -> None:
    with servers(tmp_path / "one") as one, servers(tmp_path / "two") as two:
        asyncio.run(remember(one, "one"))
        asyncio.run(remember(two, "two"))
        assert asyncio.run(recall(one)) == (1, ["one"])
        assert asyncio.run(recall(two)) == (1, ["two"])


def test_a_very_long_home_works(tmp_path: Path) -> None:
    with servers(tmp_path / ("a long name " * 10).strip() / "home") as stack:
        asyncio.run(remember(stack, "long"))
        assert asyncio.run(recall(stack)) == (1, ["long"])


def test_a_stale_pid_file_of_another_program_does_not_stop_postgres(tmp_path: Path) -> None:
    with servers(tmp_path) as stack:
        data = next(psutil.Process(stack.service("postgres").pid).cwd() for _ in "1")
    pid_file = Path(data) / "postmaster.pid"
    # As after a power cut: the number now belongs to somebody else, a process of the same user.
    pid_file.write_text(f"{os.getpid()}\n{data}\n0\n5432\n/nowhere\n\n  1 1\nready\n")
    if os.geteuid() == 0:
        owner = pwd.getpwnam("pgserver")
        os.chown(pid_file, owner.pw_uid, owner.pw_gid)
    with servers(tmp_path) as stack:
        assert stack.service("postgres").status.restarts == 0


def test_a_frozen_postgres_still_stops(tmp_path: Path) -> None:
    stack = servers(tmp_path).start()
    pid = stack.service("postgres").pid
    stack.service("postgres").kill(signal.SIGSTOP)
    stack.on_loop(lambda supervisor: supervisor.service("postgres").hurry())
    stack.stop()
    assert leftovers.started_at(pid) is None


def test_an_interrupted_initialisation_is_repaired(tmp_path: Path) -> None:
    with servers(tmp_path) as stack:
        data = Path(psutil.Process(stack.service("postgres").pid).cwd())
    (data / "PG_VERSION").unlink()  # initdb writes it before most of the rest
    with servers(tmp_path) as stack:
        asyncio.run(remember(stack, "again"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root keeps databases apart from their homes")
def test_databases_of_homes_that_are_gone_are_removed(tmp_path: Path) -> None:
    base = tmp_path / "base"
    for name, home in (("kept", tmp_path), ("abandoned", tmp_path / "gone")):
        (base / name / "postgres").mkdir(parents=True)
        (base / name / "home").write_text(str(home))
    (base / "programs-1").mkdir()
    assert postgres.remove_abandoned(base) == [base / "abandoned"]
    assert sorted(path.name for path in base.iterdir()) == ["kept", "programs-1"]
