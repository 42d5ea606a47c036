"""Making batches from the UI, through the gateway's own API, as any client would.

The file is sent on as it is; the gateway and the planner check it and name every wrong line.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from nicegui.elements.upload_files import FileUpload

from batch_admin.gateway_calls import checked
from batch_admin.services import Services
from vllm_batch.ids import JobId

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
WINDOWS = ("24h", "48h", "7d")


async def upload(services: Services, file: FileUpload) -> str:
    """Upload a file of purpose batch, piece by piece; return its id.

    Raises Rejected, httpx.HTTPError.
    """
    with tempfile.TemporaryDirectory(prefix="vllm-batch-upload-") as folder:
        path = Path(folder) / "file"
        await file.save(path)
        with path.open("rb") as opened:
            answer = await services.gateway.post(
                "/v1/files",
                data={"purpose": "batch"},
                files={"file": (file.name, opened, "application/jsonl")},
            )
    return str(checked(answer)["id"])


async def create(services: Services, *, file_id: str, endpoint: str, window: str) -> JobId:
    """Create a batch; return its id. Raises Rejected, httpx.HTTPError."""
    body = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": window}
    answer = await services.gateway.post("/v1/batches", json=body)
    return JobId(str(checked(answer)["id"]))
