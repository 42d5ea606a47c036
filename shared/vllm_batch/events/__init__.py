"""Facts. Frozen structs, one module per aggregate; the envelope; upcasters; the registry of all of
them."""

from vllm_batch.events.apikey import ApiKeyCreated, ApiKeyRevoked
from vllm_batch.events.base import Event, Usage
from vllm_batch.events.chunk import (
    ChunkClosed,
    ChunkCompleted,
    ChunkLeased,
    ChunkPlanned,
    ChunkProgressed,
    ChunkReleased,
    Segment,
)
from vllm_batch.events.envelope import Envelope, Recorded, decode, encode
from vllm_batch.events.file import FileCreated, FileDeleted, FileUploaded
from vllm_batch.events.job import (
    JobCancelled,
    JobCancelRequested,
    JobCompleted,
    JobExpired,
    JobFailed,
    JobFinalizing,
    JobStarted,
    JobStuck,
    JobSubmitted,
    JobWindowClosed,
    LineError,
)
from vllm_batch.events.registry import EVENT_TYPES
from vllm_batch.events.upload import (
    UploadCancelled,
    UploadCompleted,
    UploadCreated,
    UploadPartAdded,
)
from vllm_batch.events.worker import (
    RestartReason,
    WorkerCleared,
    WorkerCrashLooping,
    WorkerEngineKilled,
    WorkerEngineRestarted,
    WorkerGpuCleared,
    WorkerLost,
    WorkerReady,
    WorkerRestartRequested,
    WorkerStarted,
    WorkerStopped,
)

__all__ = [
    "EVENT_TYPES",
    "ApiKeyCreated",
    "ApiKeyRevoked",
    "ChunkClosed",
    "ChunkCompleted",
    "ChunkLeased",
    "ChunkPlanned",
    "ChunkProgressed",
    "ChunkReleased",
    "Envelope",
    "Event",
    "FileCreated",
    "FileDeleted",
    "FileUploaded",
    "JobCancelRequested",
    "JobCancelled",
    "JobCompleted",
    "JobExpired",
    "JobFailed",
    "JobFinalizing",
    "JobStarted",
    "JobStuck",
    "JobSubmitted",
    "JobWindowClosed",
    "LineError",
    "Recorded",
    "RestartReason",
    "Segment",
    "UploadCancelled",
    "UploadCompleted",
    "UploadCreated",
    "UploadPartAdded",
    "Usage",
    "WorkerCleared",
    "WorkerCrashLooping",
    "WorkerEngineKilled",
    "WorkerEngineRestarted",
    "WorkerGpuCleared",
    "WorkerLost",
    "WorkerReady",
    "WorkerRestartRequested",
    "WorkerStarted",
    "WorkerStopped",
    "decode",
    "encode",
]
