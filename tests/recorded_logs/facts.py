"""What a recording cannot have happen on one machine without GPUs and Label Studio: appended."""

from __future__ import annotations

from tests.facts import append
from tests.integration.test_labeling_read_model import some_history as labeling
from tests.integration.test_training_read_model import some_history as training
from tests.integration.test_usage import online, priced, registered
from vllm_batch import ids
from vllm_batch.event_store import EventStore
from vllm_batch.events import (
    JobStuck,
    ModelAliased,
    ModelFailed,
    ModelLoading,
    ModelLoadRequested,
    ModelReady,
    ModelRetired,
    ModelUnloaded,
    ModelUnloadRequested,
    WorkerCleared,
    WorkerCrashLooping,
    WorkerGpuCleared,
)
from vllm_batch.events.admin import (
    AdminActionFailed,
    AdminActionTaken,
    AdminPasswordChanged,
    AdminRoleChanged,
    AdminUserCreated,
    AdminUserRemoved,
)
from vllm_batch.events.project import ProjectBudgetReached
from vllm_batch.ids import JobId, ProjectId, WorkerId

WORKER = WorkerId("worker_" + "1" * 24)


async def append_all(store: EventStore) -> None:
    """Append them: prices that change, models on workers, operators, labels, trainings."""
    key = ids.model_key("m")
    on_worker = {"model_key": key, "worker_id": WORKER, "worker_name": "gpu-1"}
    asked = {"model_key": key, "worker": "gpu-1", "requested_by": "me"}
    await append(
        store,
        registered((2.0, 10.0)),
        online(1),
        priced((20.0, 100.0)),
        online(2, "etl"),
        ModelAliased(model_key=key, aliases=["sentiment"], requested_by="me"),
        ModelLoadRequested(**asked),
        ModelLoading(**on_worker),
        ModelReady(**on_worker, load_seconds=3.5),
        ModelUnloadRequested(**asked),
        ModelUnloaded(**on_worker, reason="requested"),
        ModelLoading(**on_worker),
        ModelFailed(**on_worker, reason="it does not fit"),
        ModelRetired(model_key=key, requested_by="me"),
        WorkerGpuCleared(worker_id=WORKER, requested_by="me", killed_pids=(7,)),
        WorkerCrashLooping(worker_id=WORKER, restarts=5, window_seconds=600.0),
        WorkerCleared(worker_id=WORKER, requested_by="me"),
        JobStuck(
            job_id=JobId("batch_" + "0" * 24), reason="no_worker", detail="nobody serves it",
            idle_seconds=1800,
        ),
        ProjectBudgetReached(
            project_key=ids.project_key("etl"), project=ProjectId("etl"),
            requested_by="orchestrator", month="2026-01", share=0.8, spent=4.0, budget=5.0,
        ),
    )  # fmt: skip
    user = {"user_id": "user_1"}
    await append(
        store,
        AdminUserCreated(**user, name="ann", role="viewer", password_hash="$argon2id$"),
        AdminRoleChanged(**user, role="operator"),
        AdminPasswordChanged(**user, password_hash="$argon2id$2"),
        AdminActionTaken(**user, action_id="action_1", name="ann", action="cancel", target="batch"),
        AdminActionFailed(**user, action_id="action_1", reason="it has ended"),
        AdminUserRemoved(**user),
    )
    await labeling(store)
    await training(store)
