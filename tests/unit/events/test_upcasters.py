"""Reading what an older release wrote, with a made-up event that has changed twice."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
import pytest

from vllm_batch.errors import UnknownEvent
from vllm_batch.events import EVENT_TYPES, Event, decode
from vllm_batch.events.upcasters import UPCASTERS, upcast


class LampLit(Event, frozen=True, kw_only=True):
    """Version 1 had ``watts``; 2 called it ``lumens``; 3 split off ``colour``."""

    TYPE: ClassVar[str] = "lamp.lit"
    VERSION: ClassVar[int] = 3
    AGGREGATE: ClassVar[tuple[str, ...]] = ("lamp_id",)

    lamp_id: str
    lumens: int
    colour: str


def to_2(data: dict[str, Any]) -> dict[str, Any]:
    return {"lamp_id": data["lamp_id"], "lumens": data["watts"] * 15}


def to_3(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "colour": "white"}


STEPS = {("lamp.lit", 1): to_2, ("lamp.lit", 2): to_3}
WRITTEN = {1: b'{"lamp_id":"a","watts":4}', 2: b'{"lamp_id":"a","lumens":60}'}
NOW = LampLit(lamp_id="a", lumens=60, colour="white")


@pytest.mark.parametrize("version", [1, 2])
def test_old_versions_are_brought_up_step_by_step(version: int) -> None:
    assert upcast(LampLit, version, WRITTEN[version], STEPS) == NOW


@pytest.mark.parametrize("version", [1, 2])
def test_decoding_an_envelope_uses_the_steps(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EVENT_TYPES, "lamp.lit", LampLit)
    for step, upcaster in STEPS.items():
        monkeypatch.setitem(UPCASTERS, step, upcaster)
    envelope = {
        "specversion": "1.0", "id": "evt_1", "type": "lamp.lit", "source": "old",
        "subject": "a", "time": "2026-01-02T03:04:05Z", "dataversion": version,
        "data": msgspec.Raw(WRITTEN[version]),
    }  # fmt: skip
    assert decode(msgspec.json.encode(envelope), 1).event == NOW


def test_a_newer_release_s_event_is_not_guessed_at() -> None:
    with pytest.raises(UnknownEvent, match="newer release"):
        upcast(LampLit, 4, b"{}", STEPS)


def test_a_missing_step_is_named() -> None:
    with pytest.raises(UnknownEvent, match="from version 2"):
        upcast(LampLit, 1, WRITTEN[1], {("lamp.lit", 1): to_2})
