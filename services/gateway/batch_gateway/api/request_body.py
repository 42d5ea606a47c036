"""Reading the JSON body of a call and taking typed values out of it.

Bodies are bounded in bytes and depth; a wrong value is an `InvalidInput` that names the parameter.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from starlette.requests import Request

from batch_gateway.api.errors import missing, too_large
from vllm_batch.errors import InvalidInput
from vllm_batch.settings import Settings

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_INNERMOST = re.compile(rb"\[\]|\{\}")

EXPIRY_SECONDS_MIN = 3600
EXPIRY_SECONDS_MAX = 30 * 24 * 3600

Body = dict[str, Any]


class ExpiresAfter(msgspec.Struct, frozen=True, kw_only=True):
    """When a file expires, for the OpenAPI document."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, msgspec.Meta(ge=EXPIRY_SECONDS_MIN, le=EXPIRY_SECONDS_MAX)]


async def read_bounded(request: Request, bytes_max: int) -> bytes:
    """Return the whole body.

    Raises:
        HttpRefusal: 413, it is larger than ``bytes_max``; told by Content-Length or found out.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > bytes_max:
        raise too_large("The request body", bytes_max)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > bytes_max:
            raise too_large("The request body", bytes_max)
    return bytes(body)


def check_depth(raw: bytes | bytearray, depth_max: int) -> None:
    """Raise InvalidInput where JSON is nested deeper than ``depth_max``."""
    if raw.count(b"[") + raw.count(b"{") <= depth_max:
        return
    brackets = _STRING.sub(b"", raw).translate(None, _NO_BRACKETS)
    for _ in range(depth_max):
        if not brackets:
            return
        brackets = _INNERMOST.sub(b"", brackets)
    if brackets:
        raise InvalidInput(
            f"The JSON body of your request is nested deeper than {depth_max} levels.",
            code="nested_too_deep",
        )


async def read_object(request: Request, settings: Settings) -> Body:
    """Return the body as a JSON object.

    Raises:
        HttpRefusal: it is too large.
        InvalidInput: it is not JSON, not an object, or nested too deep.
    """
    raw = await read_bounded(request, settings.body_bytes_max)
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise InvalidInput(f"We could not parse the JSON body of your request: {error}.") from error
    except RecursionError as error:
        raise InvalidInput("The JSON body of your request is nested too deep.") from error
    check_depth(raw, settings.body_depth_max)
    if not isinstance(body, dict):
        raise InvalidInput(f"The body has to be a JSON object, not {json_type(body)}.")
    return body


def json_type(value: object) -> str:
    """Return JSON's name for the type of ``value``, with an article."""
    names = {str: "a string", bool: "a boolean", dict: "an object", list: "an array"}
    names |= {int: "an integer", float: "a number", type(None): "null"}
    return names.get(type(value), "something else")


def wrong_type(param: str, wanted: str, value: object) -> InvalidInput:
    """Return the error for a value of another type than ``wanted``."""
    return InvalidInput(
        f"Invalid type for '{param}': expected {wanted}, but got {json_type(value)} instead.",
        param=param,
        code="invalid_type",
    )


def invalid(param: str, why: str) -> InvalidInput:
    """Return the error for a value that is not allowed."""
    return InvalidInput(f"Invalid value for '{param}': {why}.", param=param, code="invalid_value")


def checked_text(value: object, param: str, characters_max: int) -> str:
    """Return ``value`` if it is text that every store can hold."""
    if not isinstance(value, str):
        raise wrong_type(param, "a string", value)
    if len(value) > characters_max:
        raise invalid(param, f"longer than {characters_max} characters")
    if "\0" in value:
        raise invalid(param, "it contains a NUL character")
    return value


def required_text(body: Body, param: str, characters_max: int = 1024) -> str:
    """Return a text that has to be there and not be empty."""
    if param not in body:
        raise missing(param)
    value = checked_text(body[param], param, characters_max)
    if not value:
        raise invalid(param, "it is empty")
    return value


def checked_integer(value: object, param: str, minimum: int, maximum: int) -> int:
    """Return ``value`` if it is an integer in [minimum, maximum]."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong_type(param, "an integer", value)
    if not minimum <= value <= maximum:
        raise invalid(param, f"{value} is not between {minimum} and {maximum}")
    return value


class _Pair(NamedTuple):
    anchor: object
    seconds: object


def expiry_seconds(body: Body, param: str) -> int | None:
    """Return the seconds of an ``expires_after`` object; None where there is none."""
    value = body.get(param)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise wrong_type(param, "an object", value)
    pair = _Pair(value.get("anchor"), value.get("seconds"))
    for name, given in pair._asdict().items():
        if given is None:
            raise missing(f"{param}.{name}")
    if pair.anchor != "created_at":
        raise invalid(f"{param}.anchor", "the only anchor is 'created_at'")
    return checked_integer(pair.seconds, f"{param}.seconds", EXPIRY_SECONDS_MIN, EXPIRY_SECONDS_MAX)
