"""Room for so many requests at once: who waits goes by priority, then by age. Pure bookkeeping."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count


class Slots:
    """``size`` tells how many there are now; it may change at any time."""

    def __init__(self, size: Callable[[], int]) -> None:
        self._size = size
        self._taken = 0
        self._ages = count()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    @property
    def in_use(self) -> int:
        """How many are taken."""
        return self._taken

    @property
    def waiting(self) -> int:
        """How many wait for one."""
        return len(self._waiting)

    @asynccontextmanager
    async def taken(self, priority: int) -> AsyncIterator[None]:
        """Hold one while the context lasts; the lowest priority gets the next that is free.

        Raises what `lose` was given while it waits.
        """
        await self._take(priority)
        try:
            yield
        finally:
            self._taken -= 1
            self._hand_out()

    def lose(self, error: Callable[[], Exception]) -> None:
        """Send away with an error all who wait."""
        waiting, self._waiting = self._waiting, []
        for *_, turn in waiting:
            if not turn.done():
                turn.set_exception(error())

    async def _take(self, priority: int) -> None:
        if self._taken < self._size() and not self._waiting:
            self._taken += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (priority, next(self._ages), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._taken -= 1  # it was our turn just when we were told to go
                self._hand_out()
            raise

    def _hand_out(self) -> None:
        while self._waiting and self._taken < self._size():
            *_, turn = heapq.heappop(self._waiting)
            if not turn.done():
                self._taken += 1
                turn.set_result(None)
