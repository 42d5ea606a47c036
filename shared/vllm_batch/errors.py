"""Every error the system raises on purpose.

    BatchError                       code, retryable
    ├── Rejected                     the command is not allowed in the present state
    │   ├── LeaseLost                the epoch is over: another worker, a cancel or the end
    │   └── AlreadyDone              the deed is already recorded
    ├── InvalidInput                 a user's value is wrong; has param
    ├── NotFound                     no such thing, or not yours
    ├── EventStoreError
    │   ├── Conflict                 the aggregate has moved on since it was read
    │   ├── EventStoreUnavailable    no answer within the time limit (retryable)
    │   └── UnknownEvent             a type or version this release cannot read
    ├── BlobError
    │   ├── BlobMissing
    │   └── StorageFull              no space left (retryable once there is)
    ├── ProjectionError
    │   ├── ProjectionUnavailable    Postgres is away (retryable)
    │   └── ForeignStream            the database belongs to another event log
    ├── EngineError
    │   ├── EngineUnavailable        the engine cannot take the request now (retryable)
    │   │   ├── EngineDown           it never got the request: starting or not reachable
    │   │   └── EngineCrashed        it died while it held the request
    │   └── EngineFailed             the engine will not start
    ├── LabelStudioError             Label Studio refuses what we ask
    │   └── LabelStudioUnavailable   it does not answer (retryable)
    ├── ModelRefused                 the API will not have a model answer this, now or later
    ├── BridgeUnreachable            no Label Studio bridge answers a command (retryable)
    ├── WorkerUnreachable            a worker does not answer a command (retryable)
    └── StackError                   the embedded stack cannot start, with what to do next

Only the gateway maps codes to OpenAI's error JSON.
"""

from __future__ import annotations

from typing import ClassVar


class BatchError(Exception):
    """Base of the tree."""

    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False


class Rejected(BatchError):
    """The command is not allowed in the aggregate's present state."""

    code = "rejected"


class LeaseLost(Rejected):
    """The lease's epoch is over; nothing more may be recorded under it."""

    code = "lease_lost"


class AlreadyDone(Rejected):
    """What the command asks for is already recorded; nothing to do."""

    code = "already_done"


class InvalidInput(BatchError):
    """A value from outside is wrong; ``param`` names it where it has a name."""

    code = "invalid_value"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.detail_code = code


class NotFound(BatchError):
    """No such thing in this project."""

    code = "not_found"


class EventStoreError(BatchError):
    """Something is wrong between us and the event log."""

    code = "event_store_error"


class Conflict(EventStoreError):
    """The aggregate's last sequence is not the expected one: read it again and decide anew."""

    code = "conflict"


class EventStoreUnavailable(EventStoreError):
    """The event log did not answer in time. Whether the append happened is unknown."""

    code = "event_store_unavailable"
    retryable = True


class UnknownEvent(EventStoreError):
    """The log holds an event type or version that this release cannot read."""

    code = "unknown_event"


class BlobError(BatchError):
    """Something is wrong with the blob store."""

    code = "blob_error"


class BlobMissing(BlobError):
    """No blob under that key."""

    code = "blob_missing"


class StorageFull(BlobError):
    """The blob store has no space left; nothing was left behind."""

    code = "storage_full"
    retryable = True


class ProjectionError(BatchError):
    """Something is wrong with the read models."""

    code = "projection_error"


class ProjectionUnavailable(ProjectionError):
    """Postgres is away; lists have to wait, work goes on."""

    code = "projection_unavailable"
    retryable = True


class ForeignStream(ProjectionError):
    """The database was filled from another event log: rebuild it or point to the right one."""

    code = "foreign_stream"


class EngineError(BatchError):
    """Something is wrong with the inference engine."""

    code = "engine_error"


class EngineUnavailable(EngineError):
    """The engine cannot take the request now; try again later."""

    code = "engine_unavailable"
    retryable = True


class EngineDown(EngineUnavailable):
    """The engine never got the request: it is starting, restarting or cannot be reached."""

    code = "engine_down"


class EngineCrashed(EngineUnavailable):
    """The engine died while it held the request."""

    code = "engine_crash"


class EngineFailed(EngineError):
    """The engine did not start; the message has its last words."""

    code = "engine_failed"


class LabelStudioError(BatchError):
    """Label Studio refuses what it was asked; the message has its words."""

    code = "label_studio_error"


class LabelStudioUnavailable(LabelStudioError):
    """Label Studio does not answer, or not now."""

    code = "label_studio_unavailable"
    retryable = True


class ModelRefused(BatchError):
    """The API will not have a model answer this, now or later; the message is its own."""

    code = "model_refused"


class BridgeUnreachable(BatchError):
    """No Label Studio bridge answered a command, or it could not carry it out now."""

    code = "bridge_unreachable"
    retryable = True


class WorkerUnreachable(BatchError):
    """The worker did not answer a command: it is gone, cut off or busy with another one."""

    code = "worker_unreachable"
    retryable = True


class StackError(BatchError):
    """The embedded stack cannot start; the message says what to do."""

    code = "stack_error"
