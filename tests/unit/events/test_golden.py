"""Old logs stay readable: each event type and version has a file of envelopes as they were written.

A line of ``golden/<type>.v<version>.jsonl`` is an envelope, byte for byte. Files are only ever
added: changing one means that logs out there cannot be read any more. The first line has every
field set.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from vllm_batch.errors import UnknownEvent
from vllm_batch.events import EVENT_TYPES, Envelope, Event, decode, encode
from vllm_batch.events.upcasters import UPCASTERS

GOLDEN = Path(__file__).with_name("golden")
NAME = re.compile(r"(?P<type>[a-z]+\.[a-z_]+)\.v(?P<version>\d+)\.jsonl")


def versions() -> dict[tuple[str, int], list[bytes]]:
    found = {}
    for path in sorted(GOLDEN.iterdir()):
        match = NAME.fullmatch(path.name)
        assert match, f"{path.name} is not named after a type and a version"
        found[match["type"], int(match["version"])] = path.read_bytes().splitlines()
    return found


LINES = [
    pytest.param(kind, version, line, id=f"{kind}.v{version}-{number}")
    for (kind, version), lines in versions().items()
    for number, line in enumerate(lines)
]


def test_every_type_has_a_file_for_each_of_its_versions() -> None:
    wanted = {
        (name, version)
        for name, cls in EVENT_TYPES.items()
        for version in range(1, cls.VERSION + 1)
    }
    assert set(versions()) == wanted


@pytest.mark.parametrize(("kind", "version", "line"), LINES)
def test_a_golden_envelope_is_read(kind: str, version: int, line: bytes) -> None:
    recorded = decode(line, 41)
    assert recorded.seq == 41
    assert type(recorded.event) is EVENT_TYPES[kind]
    envelope = msgspec.json.decode(line, type=Envelope)
    assert (envelope.type, envelope.dataversion) == (kind, version)
    assert envelope.subject == "/".join(recorded.event.aggregate_id())
    assert (recorded.id, recorded.source, recorded.time) == (
        envelope.id, envelope.source, envelope.time,
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "version", "line"), LINES)
def test_what_is_written_now_is_what_was_written_then(kind: str, version: int, line: bytes) -> None:
    cls = EVENT_TYPES[kind]
    if version != cls.VERSION:
        pytest.skip("an old version is read, never written")
    envelope = msgspec.json.decode(line, type=Envelope)
    written = encode(
        decode(line, 1).event,
        event_id=envelope.id,
        source=envelope.source,
        time=envelope.time,
        traceparent=envelope.traceparent,
    )
    assert written == line


@pytest.mark.parametrize("cls", EVENT_TYPES.values(), ids=EVENT_TYPES)
def test_the_first_line_has_every_field(cls: type[Event]) -> None:
    envelope = msgspec.json.decode(versions()[cls.TYPE, cls.VERSION][0], type=Envelope)
    data = msgspec.json.decode(envelope.data)
    assert list(data) == list(cls.__struct_fields__)


def test_an_unknown_type_is_said_to_be_unknown() -> None:
    line = versions()["worker.ready", 1][0].replace(b"worker.ready", b"worker.dreaming")
    with pytest.raises(UnknownEvent, match=r"worker\.dreaming"):
        decode(line, 7)


@pytest.mark.parametrize("payload", [b"", b"{}", b"no json", b'{"specversion":"1.0"}'])
def test_what_is_no_envelope_is_refused(payload: bytes) -> None:
    with pytest.raises(UnknownEvent):
        decode(payload, 7)


def test_every_old_version_has_its_upcaster() -> None:
    for name, cls in EVENT_TYPES.items():
        for version in range(1, cls.VERSION):
            assert (name, version) in UPCASTERS
