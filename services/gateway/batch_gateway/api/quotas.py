"""How much a project may have: stored bytes, and requests waiting in its batches.

Asks the read models, and only where a limit is set; while they are away nothing is refused, for
work must not stop with Postgres. Calls of one project take turns at what is left, in this process:
each other gateway may let one more call in.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from batch_gateway.api.authentication import Caller
from batch_gateway.api.dependencies import Dependencies
from batch_gateway.api.errors import HttpRefusal
from vllm_batch.errors import ProjectionUnavailable
from vllm_batch.ids import UploadId
from vllm_batch.projections.rows import ProjectUse

log = structlog.get_logger(__name__)

RETRY_SECONDS = 60


@asynccontextmanager
async def turn(api: Dependencies, caller: Caller) -> AsyncIterator[None]:
    """Hold this from a check until its outcome shows in the read models, so that no two calls are
    given the same rest.

    Raises:
        HttpRefusal: the project was closed since the call came in; nothing may be added to it.
    """
    if api.limits.is_closed(caller.project):
        raise project_closed()
    limits = api.limits.of(caller.project)
    if not limits.storage_bytes_max and not limits.queued_requests_max:
        yield
        return
    async with api.locks.of(f"quotas of {caller.project}"):
        yield


def project_closed() -> HttpRefusal:
    """Return the answer to whoever comes with a key of a closed project."""
    message = "This project was closed and its data deleted."
    return HttpRefusal(403, message, code="project_closed")


async def check_storage(
    api: Dependencies, caller: Caller, more_bytes: int, *, upload_id: UploadId | None = None
) -> None:
    """Raise HttpRefusal (429) where ``more_bytes`` are more than the project may store.

    What open uploads declared counts as stored, but for the upload that becomes a file now.
    """
    limit = api.limits.of(caller.project).storage_bytes_max
    if not limit or (use := await _use(api, caller)) is None:
        return
    opened = api.open_uploads.declared_bytes(caller.project, besides=upload_id)
    if use.storage_bytes + opened + more_bytes > limit:
        open_too = f" and {opened} in open uploads" if opened else ""
        raise HttpRefusal(
            429,
            f"This project may store {limit} bytes and has {use.storage_bytes}{open_too}; delete "
            "files or ask for more.",
            code="insufficient_quota",
            headers={"x-should-retry": "false"},
        )


async def check_queue(api: Dependencies, caller: Caller, more_requests: int) -> None:
    """Raise HttpRefusal (429) where ``more_requests`` are more than may wait in batches."""
    limit = api.limits.of(caller.project).queued_requests_max
    if not limit or (use := await _use(api, caller)) is None:
        return
    if use.queued_requests + more_requests > limit:
        raise HttpRefusal(
            429,
            f"This project may have {limit} requests in unfinished batches and has "
            f"{use.queued_requests}; wait until some are done.",
            code="queue_limit_exceeded",
            headers={"retry-after": str(RETRY_SECONDS), "x-should-retry": "false"},
        )


async def _use(api: Dependencies, caller: Caller) -> ProjectUse | None:
    try:
        lists = await api.reads.fresh_lists()
        return await lists.project_use(caller.project)
    except ProjectionUnavailable as error:
        log.warning("quota not checked", project=caller.project, error=str(error))
        return None
