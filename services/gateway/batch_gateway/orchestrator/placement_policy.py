"""Which worker serves which model. Pure.

A worker has one base model and any number of adapters of it; changing the base is a swap and costs
a load, changing adapters costs next to nothing. So models count with their adapters, and a worker
changes its base only for one that nobody serves, or of which much waits:

- A base that has work keeps its worker for the residency, and beyond it until that work is done,
  unless other work has a higher priority or an earlier deadline: so no swap is made that waiting
  would save, and nobody waits for ever, as deadlines of what keeps coming lie later and later.
- One that had online requests within the residency counts as one that has work: it has to finish.
- One that has no work gives way at once; one of which all that is left runs already, when that is
  done.
- A base that somebody asked for keeps its last worker. Only urgent work takes that: a batch whose
  window is about to close. It comes back afterwards.
- Urgent work takes its worker from work that is not urgent, residency or not, and never gives way
  to such work, whatever its priority.
- A worker that could not load what was registered anew under its base's name keeps what it has.
- Workers beyond the first go where the most waits per worker, if that still holds after the move.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from vllm_batch.ids import WorkerId


@dataclass(frozen=True, slots=True)
class Worker:
    """A live worker that can swap. ``busy``: it is on its way to ``base``, None: nobody knows where
    to. ``online``: it had online requests for its base or an adapter lately.
    ``stale``: what it serves was registered anew. ``failed``: what it could not load lately."""

    worker_id: WorkerId
    name: str
    base: str | None
    adapters: frozenset[str] = frozenset()
    configured: str | None = None
    resident_seconds: float = 0.0
    busy: bool = False
    online: bool = False
    stale: bool = False
    failed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked of one model: chunks that wait and that run, and by whom it is wanted loaded.

    ``deadline``: when the first window closes, in Unix seconds; ``urgent``: that is soon.
    """

    ready: int = 0
    leased: int = 0
    priority: int = 0
    deadline: float = float("inf")
    urgent: bool = False
    wanted: bool = False
    wanted_on: frozenset[str] = frozenset()

    @property
    def work(self) -> int:
        """How many chunks there are."""
        return self.ready + self.leased

    @property
    def any(self) -> bool:
        """Whether it has to be served at all."""
        return self.work > 0 or self.wanted or bool(self.wanted_on)

    def __add__(self, other: Demand) -> Demand:
        return Demand(
            self.ready + other.ready,
            self.leased + other.leased,
            max(self.priority, other.priority),
            min(self.deadline, other.deadline),
            self.urgent or other.urgent,
            self.wanted or other.wanted,
            self.wanted_on | other.wanted_on,
        )


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a worker is to serve from now on."""

    worker_id: WorkerId
    base: str
    adapters: frozenset[str]


@dataclass(frozen=True, slots=True)
class Rules:
    """See the settings of the same names."""

    residency_seconds: float
    spread_chunks: int


_NOTHING = Demand()


def decide(
    workers: Sequence[Worker],
    registered: Mapping[str, str | None],
    demands: Mapping[str, Demand],
    rules: Rules,
) -> list[Assignment]:
    """Return what has to change now. ``registered``: each model's base, None for a base model."""
    plan = _Plan(workers, registered, demands, rules)
    moved = -1
    while len(plan.moved) > moved:  # one who helps makes another one free for who is named
        moved = len(plan.moved)
        plan.serve_everything()
        plan.spread()
    changed = []
    for worker in workers:
        base = plan.base_of[worker.worker_id]
        if worker.busy or base is None or (base == worker.base and base in worker.failed):
            continue
        wanted = Assignment(worker.worker_id, base, plan.adapters_for(worker, base))
        if (base, wanted.adapters) != (worker.base, worker.adapters) or worker.stale:
            changed.append(wanted)
    return changed


@dataclass(slots=True)
class _Plan:
    """The bases as they are, and as they become move by move. A worker is moved once at most."""

    workers: Sequence[Worker]
    registered: Mapping[str, str | None]
    demands: Mapping[str, Demand]
    rules: Rules
    base_of: dict[WorkerId, str | None] = field(init=False)
    needs: dict[str, Demand] = field(init=False)
    moved: set[WorkerId] = field(init=False)

    def __post_init__(self) -> None:
        self.base_of = {worker.worker_id: worker.base for worker in self.workers}
        self.needs = {}
        self.moved = set()
        for model, demand in self.demands.items():
            if demand.any and any(model not in worker.failed for worker in self.workers):
                base = self.registered.get(model) or model
                self.needs[base] = self.needs.get(base, _NOTHING) + demand

    def serve_everything(self) -> None:
        """Find a worker for each base that nobody serves, the most pressing first."""
        for base in sorted(self.needs, key=self._pressing):
            need = self.needs[base]
            for worker in self.workers:
                if self.base_of[worker.worker_id] != base and _is_named(worker, need.wanted_on):
                    self._move([worker], base)
            if (need.work or need.wanted) and not self._holders(base):
                self._move(self.workers, base)

    def spread(self) -> None:
        """Give workers to the bases with the most work per worker, while that evens it out."""
        while (busiest := max(self.needs, key=self._load, default=None)) is not None:
            need, holders = self.needs[busiest], len(self._holders(busiest))
            if holders == 0 or need.ready < self.rules.spread_chunks * holders:
                return
            givers = [
                worker
                for worker in self.workers
                if self._load_without(worker) < need.work / (holders + 1)
            ]
            if not self._move(givers, busiest, spare_only=True):
                return

    def adapters_for(self, worker: Worker, base: str) -> frozenset[str]:
        """Return which adapters it has to have: those in demand, and those it has already."""
        has = worker.adapters if worker.base == base else frozenset()
        return frozenset(
            model
            for model, of in self.registered.items()
            if of == base
            and model not in worker.failed
            and (model in has or self._asks_for(worker, self.demands.get(model, _NOTHING)))
        )

    @staticmethod
    def _asks_for(worker: Worker, demand: Demand) -> bool:
        return demand.work > 0 or demand.wanted or _is_named(worker, demand.wanted_on)

    def _pressing(self, base: str) -> tuple[bool, bool, int, float, str]:
        need = self.needs[base]
        asked = need.wanted or bool(need.wanted_on)
        return not need.urgent, not asked, -need.priority, need.deadline, base

    def _move(self, givers: Iterable[Worker], base: str, *, spare_only: bool = False) -> bool:
        """Swap the worker that is missed least; return whether there is one."""
        costs = [
            (cost, -worker.resident_seconds, worker.worker_id)
            for worker in givers
            if self._can_load(worker, base)
            and (cost := self._cost(worker, self.needs[base])) is not None
            and not (spare_only and cost > _SPARE)
        ]
        if not costs:
            return False
        _, _, worker_id = min(costs)
        self.base_of[worker_id] = base
        self.moved.add(worker_id)
        return True

    def _can_load(self, worker: Worker, base: str) -> bool:
        known = base in self.registered or base == worker.configured
        free = not worker.busy and worker.worker_id not in self.moved
        return known and free and base not in worker.failed and worker.base != base

    def _cost(self, worker: Worker, need: Demand) -> int | None:
        """Return how much is lost if the worker changes to what needs it; None: it must not."""
        base = self.base_of[worker.worker_id]
        now = self.needs.get(base, _NOTHING) if base is not None else _NOTHING
        last = base is not None and len(self._holders(base)) == 1
        working = now.work > 0 or worker.online
        if need.urgent and not now.urgent:
            pinned = _ASKED_FOR if self._is_pinned(worker, now) else 0
            return _cost_of(now, last=last, working=working) + pinned
        if self._is_pinned(worker, now) or (now.wanted and last):
            return None
        asked = need.wanted or bool(need.wanted_on)
        if now.work == 0 and (asked or not working):
            return _cost_of(now, last=False, working=working)
        others = len(self._holders(base)) - 1 if base is not None else 0
        if now.urgent and not need.urgent and now.ready >= self.rules.spread_chunks * others:
            return None  # it would ask for another worker at once
        rested = worker.resident_seconds >= self.rules.residency_seconds
        if not rested or (last and (now.ready == 0 or not _goes_before(need, now))):
            return None
        return _cost_of(now, last=last, working=working)

    @staticmethod
    def _is_pinned(worker: Worker, now: Demand) -> bool:
        return _is_named(worker, now.wanted_on)

    def _holders(self, base: str) -> list[WorkerId]:
        return [worker_id for worker_id, held in self.base_of.items() if held == base]

    def _load(self, base: str) -> float:
        holders = len(self._holders(base))
        return self.needs[base].work / holders if holders else 0.0

    def _load_without(self, worker: Worker) -> float:
        """Return the work per worker of what it serves, were it gone; infinite if it is the last
        one with work."""
        base = self.base_of[worker.worker_id]
        work = self.needs.get(base, _NOTHING).work if base is not None else 0
        others = len(self._holders(base)) - 1 if base is not None else 0
        if work == 0:
            return 0.0
        return work / others if others else float("inf")


_FREE, _SPARE, _LAST, _ASKED_FOR = 0, 1, 2, 4


def _cost_of(now: Demand, *, last: bool, working: bool) -> int:
    if not working and not (now.wanted and last):
        return _FREE
    return (_LAST if last else _SPARE) + (_ASKED_FOR if now.wanted and last else 0)


def _goes_before(need: Demand, now: Demand) -> bool:
    def rank(one: Demand) -> tuple[bool, int, float]:
        return not one.urgent, -one.priority, one.deadline

    return rank(need) < rank(now)


def _is_named(worker: Worker, names: frozenset[str]) -> bool:
    return worker.name in names or worker.worker_id in names
