"""The catalogue is a valid AsyncAPI 3 document, and what it says of a message is true of one."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from vllm_batch.events import EVENT_TYPES, Event
from vllm_batch.events.catalogue import asyncapi

GOLDEN = Path(__file__).with_name("golden")
DOCUMENT = asyncapi("1.2.3", server="nats://somebody:pa55w0rd@events.example:4333,nats://other:1")


def test_it_is_asyncapi_3() -> None:
    with warnings.catch_warnings(action="ignore"):  # names of its own fields
        import asyncapi3

        asyncapi3.AsyncAPI3.model_validate(DOCUMENT)


def test_it_names_the_server_without_its_password() -> None:
    assert DOCUMENT["servers"]["nats"] == {"host": "events.example:4333", "protocol": "nats"}
    assert "pa55w0rd" not in json.dumps(DOCUMENT)


@pytest.mark.parametrize("cls", EVENT_TYPES.values(), ids=EVENT_TYPES)
def test_every_event_has_a_channel_an_operation_and_a_summary(cls: type[Event]) -> None:
    channel = DOCUMENT["channels"][cls.__name__]
    tokens = channel["address"].removeprefix(f"{cls.TYPE}.").split(".")
    assert (
        tokens
        == [f"{{{name}}}" for name in cls.AGGREGATE]
        == [f"{{{n}}}" for n in channel["parameters"]]
    )
    operation = DOCUMENT["operations"][cls.__name__]
    assert operation["action"] == "send"
    assert operation["channel"] == {"$ref": f"#/channels/{cls.__name__}"}
    assert operation["summary"].endswith((".", ":"))


@pytest.mark.parametrize("path", sorted(GOLDEN.iterdir()), ids=lambda path: path.stem)
def test_recorded_events_fit_their_schema(path: Path) -> None:
    name, _, version = path.stem.rpartition(".v")
    cls = EVENT_TYPES[name]
    if int(version) != cls.VERSION:
        pytest.skip("the catalogue shows the present version")
    payload = DOCUMENT["components"]["messages"][cls.__name__]["payload"]
    schema: dict[str, Any] = {**payload, "components": DOCUMENT["components"]}
    validator = jsonschema.Draft202012Validator(schema)
    for line in path.read_bytes().splitlines():
        validator.validate(json.loads(line))
    wrong = json.loads(line) | {"data": {}}
    assert not validator.is_valid(wrong)


@pytest.mark.parametrize("cls", EVENT_TYPES.values(), ids=EVENT_TYPES)
def test_hashes_of_passwords_and_keys_are_shown_to_nobody(cls: type[Event]) -> None:
    secret = {name for name in cls.__struct_fields__ if "hash" in name or "password" in name}
    if cls.TYPE.startswith("apikey."):
        secret |= {"sha256"} & set(cls.__struct_fields__)
    assert secret <= cls.HIDDEN
