"""Making batches from the UI, through the gateway's own API, as any client would.

The file is sent on as it comes; the gateway and the planner check it and name every wrong line.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import Any

from batch_admin.gateway_calls import call, checked
from batch_admin.raw_upload import RawFile
from batch_admin.services import Services
from vllm_batch import api_keys
from vllm_batch.errors import NotFound
from vllm_batch.events import JobSubmitted
from vllm_batch.ids import JobId, ProjectId
from vllm_batch.messaging import subjects

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
WINDOWS = ("24h", "48h", "7d")
_NOT_IN_NAMES = str.maketrans({'"': "%22", "\r": "%0D", "\n": "%0A"})


async def upload(services: Services, file: RawFile) -> str:
    """Upload a file of purpose batch, piece by piece as it comes; return its id.

    Raises Rejected, httpx.HTTPError.
    """
    boundary = secrets.token_hex(16)
    answer = await services.gateway.post(
        "/v1/files",
        content=_form(file, boundary),
        headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )
    return str(checked(answer)["id"])


async def _form(file: RawFile, boundary: str) -> AsyncIterator[bytes]:
    """Yield a form with a file: httpx makes one only of files that can be read at once."""
    disposition = f"--{boundary}\r\nContent-Disposition: form-data; name="
    name = file.name.translate(_NOT_IN_NAMES)
    yield f'{disposition}"purpose"\r\n\r\nbatch\r\n'.encode()
    yield f'{disposition}"file"; filename="{name}"\r\n\r\n'.encode()
    async for piece in file.pieces:
        yield piece
    yield f"\r\n--{boundary}--\r\n".encode()


async def create(
    services: Services, *, file_id: str, endpoint: str, window: str, **more: Any
) -> JobId:
    """Create a batch; return its id. ``more``: of the API's body, where it is not None.

    Raises Rejected, httpx.HTTPError.
    """
    body = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": window}
    body |= {name: value for name, value in more.items() if value is not None}
    return JobId(str((await call(services, "POST", "/v1/batches", json=body))["id"]))


async def clone(services: Services, job_id: JobId) -> JobId:
    """Create a batch as another one was created; return its id.

    Raises NotFound, Rejected, httpx.HTTPError.
    """
    async for batch in services.store.read(subjects.job(job_id)):
        for recorded in batch:
            if isinstance(asked := recorded.event, JobSubmitted):
                seconds = asked.output_expires_after_seconds
                return await create(
                    services,
                    file_id=asked.input_file_id,
                    endpoint=asked.endpoint,
                    window=asked.completion_window,
                    metadata=asked.metadata,
                    priority=asked.priority,
                    output_expires_after=seconds and {"anchor": "created_at", "seconds": seconds},
                )
    raise NotFound(f"there is no batch {job_id}")


async def own_project(services: Services) -> ProjectId | None:
    """Return the project of this service's key, in which its batches are; None: of no known key."""
    digest = api_keys.digest(services.settings.gateway_api_key.get_secret_value())
    found = (key.project for key in await services.reads.api_keys() if key.sha256 == digest)
    return next(found, None)
