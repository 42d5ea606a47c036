"""What somebody should look at now, and where. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from batch_admin.live import Live
from batch_admin.open_batches import Queue
from batch_admin.today import Figures
from batch_admin.workers_now import WorkerNow
from vllm_batch import model_listing

SHOWN_MAX = 20


def troubles(
    live: Live, found: list[WorkerNow], queues: Mapping[str, Queue], figures: Figures | None
) -> list[tuple[str, str]]:
    """Return (what is wrong, the page that shows it), the gravest kind first."""
    listed = model_listing.listed(live.models, live.fleet)
    said = [(f"Worker {one.name} is {_state(one)}", "/workers") for one in found
            if one.needs_attention]  # fmt: skip
    said += [
        (f"Batch {one.job_id} is stuck: {one.stuck}", f"/batches/{one.job_id}")
        for one in live.batches.batches.values()
        if one.stuck
    ]
    said += [
        (f"Model {model.name} cannot be loaded: {reasons}", "/models")
        for model in listed
        if model.status == "failed"
        for reasons in ["; ".join(one.reason or "no reason given" for one in model.workers)]
    ]
    there = {one.name for one in listed if one.status in {"ready", "loading", "failed"}}
    said += [
        (f"{queue.requests:,} requests wait for {name}: no worker serves it", "/models")
        for name, queue in queues.items()
        if queue.ready and name not in there
    ]
    for project, title, count in figures.flagged if figures else ():
        what = f"{count:,} annotations are flagged" if count > 1 else "1 annotation is flagged"
        said.append((f"{title or f'Project {project}'}: {what}", f"/labeling/{project}"))
    if len(said) > SHOWN_MAX:
        rest = (f"and {len(said) - SHOWN_MAX} more", "/workers")
        said = [*said[:SHOWN_MAX], rest]
    return said


def _state(one: WorkerNow) -> str:
    return f"{one.state}: {one.view.reason}" if one.view.reason else one.state
