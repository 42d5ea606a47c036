"""What running batches wait for: models that they have ready chunks for and no worker serves."""

from __future__ import annotations

import msgspec

from vllm_batch.ids import JobId


class WaitingRow(msgspec.Struct, frozen=True, kw_only=True):
    """A batch waits for ``model`` with ``requests`` requests. ``loading``: names of live workers
    that load it; ``failed``: why live workers could not."""

    job_id: JobId
    model: str
    requests: int
    registered: bool
    loading: list[str] | None = None
    failed: dict[str, str | None] | None = None


def why(row: WaitingRow) -> str:
    """Say why nobody serves the model, and what to do."""
    if row.loading:
        return f"{row.model!r} is being loaded by {', '.join(row.loading)}."
    if row.failed:
        reasons = "; ".join(f"{worker}: {reason}" for worker, reason in row.failed.items())
        return f"{row.model!r} could not be loaded ({reasons})."
    if row.registered:
        return (
            f"No worker serves {row.model!r} now. It is registered: a worker loads it when it is "
            f"its turn, or at once after `vllm-batch model load {row.model}`."
        )
    return f"No worker serves {row.model!r} now. Start one that does."
