"""Feeds the board from the log: what is there once, then what comes, for ever.

Reads ``job.>``, the chunks of open jobs, the registry of models and the workers' lifecycle.
Everything after the starting position is delivered again by following; the board skips what it has.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from batch_gateway.orchestrator.board import Board
from vllm_batch.event_store import EventStore
from vllm_batch.messaging import subjects

log = structlog.get_logger(__name__)


async def load(store: EventStore, monotonic: Callable[[], float]) -> Board:
    """Return the board as the log has it now.

    Raises:
        EventStoreUnavailable: the log does not answer.
        UnknownEvent: it was written by a newer release.
    """
    board = Board(monotonic)
    position = await store.last_sequence()
    await _read(store, board, subjects.ALL_JOBS)
    for job_id in tuple(board.jobs):
        await _read(store, board, subjects.chunks_of(job_id))
    await _read(store, board, subjects.ALL_MODELS)
    await _read(store, board, subjects.ALL_WORKERS)  # last: who holds a lease is remembered
    await board.move_to(position)
    log.info("board loaded", jobs=len(board.jobs), workers=len(board.workers), position=position)
    return board


async def follow(store: EventStore, board: Board) -> None:
    """Keep the board up to date for ever."""
    following = [
        subjects.ALL_JOBS, subjects.ALL_CHUNKS, subjects.ALL_WORKERS, subjects.ALL_MODELS,
    ]  # fmt: skip
    async for batch in store.follow(following, after=board.position):
        for recorded in batch:
            board.apply(recorded)
        await board.move_to(batch[-1].seq)


async def _read(store: EventStore, board: Board, subject: str) -> None:
    async for batch in store.read(subject):
        for recorded in batch:
            board.apply(recorded)
