"""Calls of the gateway's API, as any client would make them."""

from __future__ import annotations

from typing import Any

import httpx

from batch_admin.services import Services
from vllm_batch.errors import Rejected


async def call(services: Services, method: str, path: str, **options: Any) -> dict[str, Any]:
    """Return a good answer's body. Raises Rejected, httpx.HTTPError."""
    return checked(await services.gateway.request(method, path, **options))


def checked(answer: httpx.Response) -> dict[str, Any]:
    """Return a good answer's body. Raises Rejected with the API's own words."""
    body: dict[str, Any] = answer.json()
    if answer.is_success:
        return body
    raise Rejected(body.get("error", {}).get("message", f"status {answer.status_code}"))
