"""The oracle itself: on a good history it is silent, on each kind of broken one it speaks."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tests.facts import append, ended, planned, progressed, submitted
from tests.faults.log_rules import History
from tests.faults.oracle import judge_answer, judge_files, judge_indexes
from tests.faults.workload import Workload, make
from vllm_batch.aggregates.chunk import Chunk, ChunkStatus
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.events import (
    ChunkClosed,
    ChunkCompleted,
    ChunkLeased,
    ChunkReleased,
    Event,
    JobCompleted,
    JobFinalizing,
    JobStarted,
    Recorded,
    Segment,
    Usage,
    WorkerLost,
)
from vllm_batch.ids import EventId, JobId, WorkerId
from vllm_batch.segments import Result

JOB = "batch_1"


def leased(chunk: int, epoch: int, worker: str) -> Event:
    return ChunkLeased(job_id=JobId(JOB), chunk=chunk, epoch=epoch, worker_id=WorkerId(worker))


def completed(chunk: int, epoch: int, worker: str, done: int, last: int) -> Event:
    return ChunkCompleted(
        job_id=JobId(JOB), chunk=chunk, epoch=epoch, worker_id=WorkerId(worker), completed=done,
        failed=0, usage=Usage(done * 5, 1, done * 2, 0), segment=Segment("s", 1, last, 0),
    )  # fmt: skip


def released(epoch: int) -> Event:
    return ChunkReleased(job_id=JobId(JOB), chunk=0, epoch=epoch, reason="worker_lost")


def started() -> Event:
    return JobStarted(job_id=JobId(JOB), total=10, chunks=1, model="m")


def finished(done: int = 10) -> Event:
    return JobCompleted(
        job_id=JobId(JOB), total=10, completed=done, failed=0, usage=Usage(50, 1, 20, 0)
    )


GOOD: list[Event] = [
    submitted(JOB),
    msgspec.structs.replace(planned(JOB, 0), count=10),
    started(),
    leased(0, 1, "w1"),
    progressed(JOB, 0, 4),
    released(1),
    leased(0, 2, "w2"),
    completed(0, 2, "w2", 10, 6),
    JobFinalizing(job_id=JobId(JOB), outcome="completed"),
    finished(),
]


async def judged(events: list[Event]) -> list[str]:
    store = MemoryEventStore()
    log: list[Recorded] = await append(store, *events)
    history = History()
    history.replay(log)
    return history.violations


async def test_a_history_by_the_rules_has_no_violations() -> None:
    assert await judged(GOOD) == []


@pytest.mark.parametrize(
    ("position", "intruder", "said"),
    [
        (7, progressed(JOB, 0, 8), "event 8 chunk.progressed .* lease_lost: epoch 1"),
        (8, completed(0, 1, "w1", 10, 6), "event 9 chunk.completed .* lease_lost: epoch 1"),
        (5, leased(0, 2, "w2"), "event 6 chunk.leased .* lease_lost"),
        (6, leased(0, 3, "w3"), "event 7 chunk.leased .* the rules would have said"),
        (4, completed(0, 1, "w9", 10, 10), "event 5 chunk.completed .* would have said"),
        (8, released(2), "event 9 chunk.released .* lease_lost"),
        (
            8,
            ChunkClosed(job_id=JobId(JOB), chunk=0, reason="cancelled"),
            "event 9 chunk.closed .* completed",
        ),
        (7, JobFinalizing(job_id=JobId(JOB), outcome="completed"), "chunks .0. had not ended"),
        (2, msgspec.structs.replace(planned(JOB, 1), offset=99), "do not follow each other"),
        (3, planned(JOB, 1), "event 10 job.finalizing .* chunks .1. had not ended"),
        (10, ended(JOB), "event 11 job.completed .* already_done"),
    ],
)
async def test_an_event_that_had_no_right_to_be_written_is_named(
    position: int, intruder: Event, said: str
) -> None:
    found = await judged([*GOOD[:position], intruder, *GOOD[position:]])
    assert any(re.search(said, text) for text in found), found


async def test_counts_that_do_not_add_up_are_named() -> None:
    found = await judged([*GOOD[:-1], finished(9)])
    assert any("add up" in text for text in found)
    assert any("is not total" in text for text in found)


def test_a_worker_heard_of_after_it_was_lost_was_alive() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    history = History()
    history.replay(
        Recorded(seq, EventId(f"evt_{seq}"), at, source, event)
        for seq, (source, event) in enumerate(
            [
                ("orchestrator", WorkerLost(worker_id=WorkerId("w1"), reason="silent")),
                ("orchestrator", WorkerLost(worker_id=WorkerId("w2"), reason="silent")),
                ("w2", submitted("batch_2")),
                ("w2", submitted("batch_3")),
            ],
            start=1,
        )
    )
    assert history.lost_alive == {2}


def rows(work: Workload, numbers: list[int]) -> list[dict[str, Any]]:
    return [
        {
            "custom_id": work.lines[number].custom_id,
            "error": None,
            "response": {
                "status_code": 200,
                "body": {
                    "choices": [
                        {"message": {"content": f"simulated answer {work.lines[number].digest}"}}
                    ],
                    "usage": {"prompt_tokens": 5, "completion_tokens": 2},
                },
            },
        }
        for number in numbers
    ]


def batch(total: int, completed: int, failed: int) -> Any:
    return SimpleNamespace(
        status="completed",
        request_counts=SimpleNamespace(total=total, completed=completed, failed=failed),
        usage=SimpleNamespace(input_tokens=5 * completed, output_tokens=2 * completed),
    )


def test_files_that_keep_the_promises_pass() -> None:
    work = make("w", 5, model="m")
    assert judge_files(work, batch(5, 5, 0), rows(work, [0, 1, 2, 3, 4]), []) == []


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ([0, 1, 2, 3], "has 0 results"),
        ([0, 1, 1, 3, 4], "has 2 results"),
        ([0, 2, 1, 3, 4], "not in the order"),
    ],
)
def test_lost_doubled_and_shuffled_lines_are_named(numbers: list[int], said: str) -> None:
    work = make("w", 5, model="m")
    found = judge_files(work, batch(5, len(numbers), 0), rows(work, numbers), [])
    assert any(said in text for text in found)


def test_wrong_counts_tokens_and_answers_are_named() -> None:
    work = make("w", 5, model="m")
    output = rows(work, [0, 1, 2, 3, 4])
    assert any("it counts" in text for text in judge_files(work, batch(5, 4, 1), output, []))
    wrong = batch(5, 5, 0)
    wrong.usage.output_tokens += 1
    assert any("tokens" in text for text in judge_files(work, wrong, output, []))
    assert judge_answer(work.lines[0], output[0]) is None
    assert "another request" in str(judge_answer(work.lines[0], output[1]))


def test_a_request_recorded_twice_or_never_is_named() -> None:
    chunk = Chunk(
        planned=msgspec.structs.replace(planned(JOB, 0), count=3), status=ChunkStatus.COMPLETED
    )
    assert judge_indexes(chunk, [Result(n, False, b"") for n in (2, 0, 1)]) == []
    assert judge_indexes(chunk, [Result(n, False, b"") for n in (0, 1, 1)]) == [
        "requests [1] are recorded more than once",
        "it is completed with 2 of 3 results",
    ]
