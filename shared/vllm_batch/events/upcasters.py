"""From an old version of an event's data to the next one, applied in steps when reading.

``UPCASTERS[type, version]`` takes the data as it was written under ``version`` (a plain mapping)
and returns it as ``version + 1`` has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from vllm_batch.errors import UnknownEvent
from vllm_batch.events.base import Event

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]


def _chunk_planned_1(data: dict[str, Any]) -> dict[str, Any]:
    """Version 2 may say an alias and a prefix; chunks planned before had neither."""
    return data


def _chunk_recorded_1(data: dict[str, Any]) -> dict[str, Any]:
    """Version 2 may say what the work took; nobody measured it before."""
    return data


def _apikey_created_1(data: dict[str, Any]) -> dict[str, Any]:
    """Before version 2 every key opened its project, and ``scopes`` was what it opened besides."""
    return {**data, "scopes": sorted({"batch", "inference", "read", *data.get("scopes", ())})}


def _nobody_asked_1(data: dict[str, Any]) -> dict[str, Any]:
    """Version 2 says who asked for it; that was not written down before."""
    return data


UPCASTERS: dict[tuple[str, int], Upcaster] = {
    ("apikey.created", 1): _apikey_created_1,
    ("apikey.revoked", 1): _nobody_asked_1,
    ("chunk.completed", 1): _chunk_recorded_1,
    ("chunk.planned", 1): _chunk_planned_1,
    ("chunk.progressed", 1): _chunk_recorded_1,
    ("chunk.released", 1): _chunk_recorded_1,
    ("webhook.endpoint_created", 1): _nobody_asked_1,
    ("webhook.endpoint_deleted", 1): _nobody_asked_1,
    ("webhook.endpoint_disabled", 1): _nobody_asked_1,
    ("webhook.endpoint_enabled", 1): _nobody_asked_1,
    ("webhook.endpoint_updated", 1): _nobody_asked_1,
    ("webhook.secret_rotated", 1): _nobody_asked_1,
}


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
