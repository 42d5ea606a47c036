"""Which workers are alive, and have online requests, by heartbeats and our own monotonic clock.

Silence only counts while we could have heard: after a start, a reconnect or a pause of our own,
every worker gets a full ``lease_seconds`` again.
"""

from __future__ import annotations

from collections.abc import Callable

from batch_gateway.orchestrator.board import Board, WorkerView
from vllm_batch.ids import WorkerId


class Roster:
    """Liveness of the board's workers, and when each had online requests last."""

    def __init__(
        self, board: Board, *, lease_seconds: float, monotonic: Callable[[], float]
    ) -> None:
        self._board = board
        self._lease_seconds = lease_seconds
        self._monotonic = monotonic
        self._heard: dict[WorkerId, float] = {}
        self._ended: dict[WorkerId, int] = {}
        self._online: dict[WorkerId, float] = {}

    def hear(self, worker_id: WorkerId, *, online_in_flight: int = 0) -> None:
        """A heartbeat came."""
        if worker_id in self._board.workers:
            self._heard[worker_id] = self._monotonic()
            if online_in_flight:
                self._online[worker_id] = self._monotonic()

    def online_seconds_ago(self, worker_id: WorkerId) -> float:
        """Return how long ago a heartbeat said that it has online requests; infinite: never."""
        return self._monotonic() - self._online.get(worker_id, float("-inf"))

    def start_anew(self) -> None:
        """Give everybody a full lease from now: we could not hear them."""
        now = self._monotonic()
        self._heard = {
            worker_id: now
            for worker_id, view in self._board.workers.items()
            if view.ended_seq is None
        }

    def sync(self) -> None:
        """Take over who came and who ended since the last time."""
        now = self._monotonic()
        workers = self._board.workers
        for worker_id in self._heard.keys() - workers.keys():
            del self._heard[worker_id]
        for worker_id in self._online.keys() - workers.keys():
            del self._online[worker_id]
        for worker_id in self._ended.keys() - workers.keys():
            del self._ended[worker_id]
        for worker_id, view in workers.items():
            if view.ended_seq is None:
                self._ended.pop(worker_id, None)
                self._heard.setdefault(worker_id, now)
            elif self._ended.get(worker_id) != view.ended_seq:
                # What was heard before the end does not count; what comes after it does.
                self._ended[worker_id] = view.ended_seq
                self._heard.pop(worker_id, None)

    def is_alive(self, view: WorkerView) -> bool:
        """Tell whether the worker was heard of within a lease and is not known to be gone."""
        heard = self._heard.get(view.worker_id)
        if view.gone or heard is None:
            return False
        return self._monotonic() - heard <= self._lease_seconds

    def alive_by_model(self) -> dict[str, int]:
        """Return how many live workers serve each model."""
        counts: dict[str, int] = {}
        for view in self._board.workers.values():
            if view.models and self.is_alive(view):
                for model in view.models:
                    counts[model] = counts.get(model, 0) + 1
        return counts
