"""Which events a key may see: those of its project's batches and files; with the scope admin, all.

Remembers whose a batch or a file is, bounded; reads the log for those it does not know.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import aclosing

from batch_gateway.api.authentication import Caller
from batch_gateway.api.errors import HttpRefusal, shown
from vllm_batch import api_keys
from vllm_batch.errors import InvalidInput
from vllm_batch.event_store import EventStore
from vllm_batch.events import EVENT_TYPES, Recorded
from vllm_batch.ids import ProjectId
from vllm_batch.messaging import subjects

OWN_NOUNS = frozenset({"job", "chunk", "file", "upload"})
OWNERS_MAX = 10_000
_OWNED_BY = {"chunk": "job"}


def wanted_subjects(caller: Caller, types: str) -> list[str]:
    """Return the subjects of a comma-separated list such as ``job.*,file.created``; all that the
    key may see where the list is empty.

    Raises:
        InvalidInput: no event has such a type.
        HttpRefusal: 403, the key may not see it.
    """
    allowed = sorted({name.partition(".")[0] for name in EVENT_TYPES})
    if not caller.may(api_keys.ADMIN):
        allowed = sorted(OWN_NOUNS)
    names = [name.strip() for name in types.split(",") if name.strip()]
    found: dict[str, None] = {}
    for name in names or [f"{noun}.*" for noun in allowed]:
        noun, _, verb = name.partition(".")
        matches = [
            t for t in EVENT_TYPES if t == name or (verb == "*" and t.startswith(f"{noun}."))
        ]
        if not matches:
            raise InvalidInput(
                f"There is no event type '{shown(name)}'; GET /v1/events/asyncapi lists them.",
                param="types",
                code="invalid_value",
            )
        if noun not in allowed:
            raise HttpRefusal(
                403,
                f"This key may not see {noun} events; make one with "
                "`vllm-batch keys create --scope admin`.",
                code="insufficient_permissions",
            )
        found.update(dict.fromkeys(subjects.every(EVENT_TYPES[match]) for match in matches))
    return list(found)


class Owners:
    """Whose an event is."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._known: OrderedDict[str, ProjectId] = OrderedDict()

    async def visible(self, caller: Caller, batch: Sequence[Recorded]) -> list[Recorded]:
        """Return the events of ``batch`` that ``caller`` may see, in their order."""
        if caller.may(api_keys.ADMIN):
            return list(batch)
        return [event for event in batch if await self._owner(event) == caller.project]

    async def _owner(self, recorded: Recorded) -> ProjectId | None:
        event = recorded.event
        owner = event.aggregate_id()[0]
        project = getattr(event, "project", None)
        if project is None:
            if owner in self._known:
                self._known.move_to_end(owner)
                return self._known[owner]
            noun = event.TYPE.partition(".")[0]
            project = await self._read(_OWNED_BY.get(noun, noun), owner)
        if project is not None:
            self._remember(owner, project)
        return project

    async def _read(self, noun: str, owner: str) -> ProjectId | None:
        async with aclosing(self._store.read(subjects.aggregate(noun, owner))) as batches:  # type: ignore[type-var]
            async for batch in batches:
                return _first_project(batch)
        return None

    def _remember(self, owner: str, project: ProjectId) -> None:
        self._known[owner] = project
        if len(self._known) > OWNERS_MAX:
            self._known.popitem(last=False)


def _first_project(batch: Iterable[Recorded]) -> ProjectId | None:
    return next((getattr(recorded.event, "project", None) for recorded in batch), None)
