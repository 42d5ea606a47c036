"""Which request kills the engine? Finds out by halving, and blames none that did not do it alone.

One crash is an accident. Those in flight at two of them are suspects, and go into quarantine: half
of them run while nothing else does, then the other half, and a half that crashes the engine is
halved again, until one request crashes it alone: that one is convicted. A suspect that is answered
is cleared. Pure bookkeeping, no I/O.

One poisoned request costs 2 + log2(in flight) crashes, rounded up: 10 with 256 in flight.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from vllm_batch.ids import JobId

RequestKey = tuple[JobId, int, int]
"""Job, chunk and index in the chunk."""


class _Group:
    """Suspects that run together. ``sure``: one of them did it, unless it was an accident."""

    def __init__(self, members: Iterable[RequestKey], *, sure: bool) -> None:
        self.members = dict.fromkeys(members)
        self.sure = sure


class Quarantine:
    """Who may run, given which crashes there were. A request leaves with an answer or convicted."""

    def __init__(self) -> None:
        self._accident: dict[RequestKey, None] = {}
        self._groups: list[_Group] = []

    @property
    def active(self) -> bool:
        """Whether only some requests may run."""
        return bool(self._groups)

    @property
    def watching(self) -> bool:
        """Whether it matters that a request finishes."""
        return bool(self._groups or self._accident)

    @property
    def suspects(self) -> int:
        """How many requests are under suspicion."""
        return sum(len(group.members) for group in self._groups)

    def may_run(self, key: RequestKey) -> bool:
        """Tell whether the request may be given to the engine now."""
        return not self._groups or key in self._groups[-1].members

    def left(self, key: RequestKey) -> None:
        """A request was answered or is no longer wanted: it is no suspect any more."""
        self._accident.pop(key, None)
        for group in self._groups:
            group.members.pop(key, None)
        self._settle()

    def crashed(self, in_flight: Collection[RequestKey]) -> RequestKey | None:
        """The engine crashed while it held ``in_flight``; return the request that is convicted."""
        if not in_flight:
            return None
        if not self._groups:
            self._suspect(in_flight)
            return None
        group = self._groups[-1]
        blamed = [key for key in group.members if key in in_flight]
        if not blamed:
            return None
        # What the crash explains, the other half need not have done.
        for other in self._groups[:-1]:
            other.sure = False
        if len(blamed) == 1 and len(in_flight) == 1:
            self.left(blamed[0])
            return blamed[0]
        for key in blamed:
            del group.members[key]
        group.sure = False  # they were not in the engine: no more is known of them
        self._push_halves(blamed)
        self._settle()
        return None

    def _suspect(self, in_flight: Collection[RequestKey]) -> None:
        """Compare with the crash before, if the engine has answered none of those since."""
        both = [key for key in self._accident if key in in_flight]
        if not both:
            self._accident = dict.fromkeys(in_flight)
            return
        self._accident = {}
        self._push_halves(both)

    def _push_halves(self, members: list[RequestKey]) -> None:
        half = (len(members) + 1) // 2
        if members[half:]:
            self._groups.append(_Group(members[half:], sure=True))
        self._groups.append(_Group(members[:half], sure=False))

    def _settle(self) -> None:
        """Drop groups that are through; do not run together what is sure to hold a guilty one."""
        while self._groups:
            group = self._groups[-1]
            if not group.members:
                self._groups.pop()
            elif group.sure and len(group.members) > 1:
                self._groups.pop()
                self._push_halves(list(group.members))
            else:
                return
