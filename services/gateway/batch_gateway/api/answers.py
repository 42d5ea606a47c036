"""Answers in JSON, encoded by msgspec, and what the OpenAPI document says of them."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from batch_gateway.api.errors import ErrorDetail, ErrorEnvelope

SCHEMA_REFERENCE = "#/components/schemas/{name}"
_encoder = msgspec.json.Encoder()


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """A list of anything, as the client's cursor pages read it."""

    object: str = "list"
    data: list[Any]
    first_id: str | None
    last_id: str | None
    has_more: bool


def answer(value: object, status: int = 200) -> Response:
    """Return ``value`` as a JSON answer."""
    return Response(_encoder.encode(value), status_code=status, media_type="application/json")


def page_of(objects: list[Any], *, has_more: bool) -> Response:
    """Return a page of objects that have an ``id``."""
    return answer(
        Page(
            data=objects,
            first_id=objects[0].id if objects else None,
            last_id=objects[-1].id if objects else None,
            has_more=has_more,
        )
    )


def _reference(cls: type) -> dict[str, Any]:
    return {"schema": {"$ref": SCHEMA_REFERENCE.format(name=cls.__name__)}}


def documented(cls: type, *, status: int = 200) -> dict[int | str, dict[str, Any]]:
    """Return what an endpoint says of its answers: a ``cls`` or the error envelope."""
    return {
        status: {"description": cls.__doc__, "content": {"application/json": _reference(cls)}},
        **DOCUMENTED_ERRORS,
    }


DOCUMENTED_ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": ErrorEnvelope.__doc__,
        "content": {"application/json": _reference(ErrorEnvelope)},
    }
}


def takes(cls: type) -> dict[str, Any]:
    """Return what an endpoint says of the JSON object it takes."""
    return {"requestBody": {"required": True, "content": {"application/json": _reference(cls)}}}


def takes_form(
    properties: dict[str, Any], required: list[str], **more: dict[str, Any]
) -> dict[str, Any]:
    """Return what an endpoint says of the form it takes."""
    schema = {"type": "object", "properties": properties, "required": required, **more}
    content = {"multipart/form-data": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def schemas(*classes: type) -> dict[str, Any]:
    """Return the JSON schemas of ``classes`` and of what they are made of."""
    _, components = msgspec.json.schema_components(
        [*classes, ErrorDetail, ErrorEnvelope], ref_template=SCHEMA_REFERENCE
    )
    return dict(components)
