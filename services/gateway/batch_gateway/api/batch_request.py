"""What a client may ask for when it creates a batch; anything else is an error that names it."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from batch_gateway.api.request_body import (
    Body,
    ExpiresAfter,
    checked_integer,
    checked_text,
    expiry_seconds,
    invalid,
    required_text,
    wrong_type,
)
from vllm_batch.errors import InvalidInput

SERVED_ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
UNSERVED_ENDPOINTS = (
    "/v1/moderations",
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/videos",
)
METADATA_PAIRS_MAX = 16
METADATA_KEY_CHARACTERS_MAX = 64
METADATA_VALUE_CHARACTERS_MAX = 512
PRIORITY_MAX = 100
IDEMPOTENCY_KEY_CHARACTERS_MAX = 255
_WINDOW = re.compile(r"([1-9][0-9]{0,8})([mhd])", re.ASCII)
_UNIT_SECONDS = {"m": 60, "h": 3600, "d": 24 * 3600}


class BatchRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A valid request for a batch."""

    input_file_id: str
    endpoint: str
    completion_window: str
    window_seconds: int
    metadata: dict[str, str] | None
    output_expires_after_seconds: int | None
    priority: int

    def fingerprint(self) -> str:
        """Return a hash that equal requests share."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


MetadataKey = Annotated[str, Meta(max_length=METADATA_KEY_CHARACTERS_MAX)]
MetadataValue = Annotated[str, Meta(max_length=METADATA_VALUE_CHARACTERS_MAX)]


class CreateBatchRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What creates a batch, for the OpenAPI document; it is read by hand, for errors that name the
    parameter."""

    input_file_id: Annotated[str, Meta(min_length=1)]
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
    completion_window: Annotated[str, Meta(pattern="^[1-9][0-9]{0,8}[mhd]$", examples=["24h"])]
    metadata: (
        Annotated[dict[MetadataKey, MetadataValue], Meta(max_length=METADATA_PAIRS_MAX)] | None
    ) = None
    output_expires_after: ExpiresAfter | None = None
    priority: Annotated[int, Meta(ge=-PRIORITY_MAX, le=PRIORITY_MAX)] | None = None


def parse(body: Body, *, window_seconds_max: int) -> BatchRequest:
    """Return the request in ``body``; unknown fields are ignored.

    Raises:
        InvalidInput: a parameter is missing or wrong.
    """
    input_file_id = required_text(body, "input_file_id")
    endpoint = _endpoint(body)
    window, window_seconds = _window(body, window_seconds_max)
    priority = body.get("priority")
    return BatchRequest(
        input_file_id=input_file_id,
        endpoint=endpoint,
        completion_window=window,
        window_seconds=window_seconds,
        metadata=_metadata(body.get("metadata")),
        output_expires_after_seconds=expiry_seconds(body, "output_expires_after"),
        priority=0
        if priority is None
        else checked_integer(priority, "priority", -PRIORITY_MAX, PRIORITY_MAX),
    )


def checked_idempotency_key(value: str | None) -> str | None:
    """Return the Idempotency-Key header's value, if there is one.

    Raises:
        InvalidInput: it is empty or too long.
    """
    if value is not None and not 0 < len(value) <= IDEMPOTENCY_KEY_CHARACTERS_MAX:
        raise InvalidInput(
            f"The Idempotency-Key header needs 1 to {IDEMPOTENCY_KEY_CHARACTERS_MAX} characters."
        )
    return value


def _endpoint(body: Body) -> str:
    endpoint = required_text(body, "endpoint")
    if endpoint in UNSERVED_ENDPOINTS:
        raise invalid(
            "endpoint",
            f"this server cannot serve {endpoint}; it serves {', '.join(SERVED_ENDPOINTS)}",
        )
    if endpoint not in SERVED_ENDPOINTS:
        raise invalid("endpoint", f"it has to be one of {', '.join(SERVED_ENDPOINTS)}")
    return endpoint


def _window(body: Body, seconds_max: int) -> tuple[str, int]:
    window = required_text(body, "completion_window")
    match = _WINDOW.fullmatch(window)
    if match is None:
        raise invalid(
            "completion_window", "it has to be '24h' or another number of minutes, hours or days"
        )
    seconds = int(match[1]) * _UNIT_SECONDS[match[2]]
    if seconds > seconds_max:
        raise invalid("completion_window", f"the longest window is {seconds_max} seconds")
    return window, seconds


def _metadata(value: object) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise wrong_type("metadata", "an object", value)
    if len(value) > METADATA_PAIRS_MAX:
        raise invalid("metadata", f"more than {METADATA_PAIRS_MAX} pairs")
    return {
        checked_text(key, "metadata", METADATA_KEY_CHARACTERS_MAX): checked_text(
            text, f"metadata.{key[:METADATA_KEY_CHARACTERS_MAX]}", METADATA_VALUE_CHARACTERS_MAX
        )
        for key, text in value.items()
    }
