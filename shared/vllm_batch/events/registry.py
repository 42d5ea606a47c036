"""All event types by name: what decoding, the topology and the catalogue are built from."""

from __future__ import annotations

from typing import get_args

from vllm_batch.events.apikey import ApiKeyEvent
from vllm_batch.events.base import Event
from vllm_batch.events.chunk import ChunkEvent
from vllm_batch.events.file import FileEvent
from vllm_batch.events.job import JobEvent
from vllm_batch.events.upload import UploadEvent
from vllm_batch.events.worker import WorkerEvent

_UNIONS = (JobEvent, ChunkEvent, FileEvent, UploadEvent, ApiKeyEvent, WorkerEvent)

EVENT_TYPES: dict[str, type[Event]] = {
    cls.TYPE: cls for union in _UNIONS for cls in get_args(union)
}
