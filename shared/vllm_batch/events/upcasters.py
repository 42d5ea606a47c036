"""From an old version of an event's data to the next one, applied in steps when reading.

``UPCASTERS[type, version]`` takes the data as it was written under ``version`` (a plain mapping)
and returns it as ``version + 1`` has it. None is needed yet: every event is at version 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from vllm_batch.errors import UnknownEvent
from vllm_batch.events.base import Event

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]

UPCASTERS: dict[tuple[str, int], Upcaster] = {}


def upcast(
    cls: type[Event],
    version: int,
    data: bytes | msgspec.Raw,
    upcasters: Mapping[tuple[str, int], Upcaster] = UPCASTERS,
) -> Event:
    """Decode ``data`` written under an older ``version`` of ``cls``.

    Raises:
        UnknownEvent: the version is newer than this release, or a step is missing.
    """
    if version > cls.VERSION:
        raise UnknownEvent(
            f"{cls.TYPE} version {version} was written by a newer release "
            f"(this one reads up to {cls.VERSION}): upgrade this process"
        )
    fields: dict[str, Any] = msgspec.json.decode(data)
    for step in range(version, cls.VERSION):
        upcaster = upcasters.get((cls.TYPE, step))
        if upcaster is None:
            raise UnknownEvent(f"no upcaster for {cls.TYPE} from version {step}")
        fields = upcaster(fields)
    return msgspec.convert(fields, cls)
