"""All event types by name: what decoding, the topology and the catalogue are built from."""

from __future__ import annotations

from typing import get_args

from vllm_batch.events.admin import AdminEvent
from vllm_batch.events.annotation import AnnotationEvent
from vllm_batch.events.apikey import ApiKeyEvent
from vllm_batch.events.base import Event
from vllm_batch.events.chunk import ChunkEvent
from vllm_batch.events.file import FileEvent
from vllm_batch.events.job import JobEvent
from vllm_batch.events.labeling import LabelingEvent
from vllm_batch.events.model import ModelEvent
from vllm_batch.events.project import ProjectEvent
from vllm_batch.events.tool import ToolEvent
from vllm_batch.events.training import TrainingEvent
from vllm_batch.events.upload import UploadEvent
from vllm_batch.events.usage import UsageEvent
from vllm_batch.events.webhook import WebhookEvent
from vllm_batch.events.worker import WorkerEvent

_UNIONS = (
    JobEvent,
    ChunkEvent,
    FileEvent,
    UploadEvent,
    ApiKeyEvent,
    WorkerEvent,
    ModelEvent,
    AnnotationEvent,
    LabelingEvent,
    TrainingEvent,
    WebhookEvent,
    ProjectEvent,
    UsageEvent,
    AdminEvent,
    ToolEvent,
)

EVENT_TYPES: dict[str, type[Event]] = {
    cls.TYPE: cls for union in _UNIONS for cls in get_args(union) or (union,)
}
