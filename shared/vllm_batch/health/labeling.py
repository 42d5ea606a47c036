"""Label Studio projects: whether what people do there is delivered."""

from __future__ import annotations

from datetime import datetime, timedelta

from vllm_batch.events import (
    LabelingProjectConfigured,
    LabelingProjectConnected,
    LabelingProjectDeleted,
)
from vllm_batch.health.report import Check, Problem, check_of, counted, warning
from vllm_batch.health.sources import Sources
from vllm_batch.labeling import webhook_address
from vllm_batch.messaging import subjects

CONNECT_SECONDS = 60.0
"""So long the bridge may take to connect a project before that is worth a word."""
_WANTED = (LabelingProjectConfigured, LabelingProjectConnected, LabelingProjectDeleted)


async def webhooks_in(sources: Sources) -> Check:
    """Look for projects that are configured and whose events Label Studio delivers to nobody.

    Raises:
        EventStoreUnavailable: the log does not answer.
    """
    waiting, connected = await _projects(sources)
    late = sources.now - timedelta(seconds=CONNECT_SECONDS)
    silent = sorted((name for name, since in waiting.items() if since < late), key=int)
    summary = f"{counted(len(connected), 'project')} connected"
    return check_of("labeling", summary, [_problem(sources, silent)] if silent else None)


async def _projects(sources: Sources) -> tuple[dict[str, datetime], set[str]]:
    """Return the projects that wait for their webhook, since when, and those that have one."""
    configured: dict[str, tuple[int, datetime]] = {}
    connected: dict[str, int] = {}
    deleted: dict[str, int] = {}
    for wanted in _WANTED:
        async for batch in sources.store.read(subjects.every(wanted)):
            for one in batch:
                match one.event:
                    case LabelingProjectConfigured(project=project):
                        configured[project] = (one.seq, one.time)
                    case LabelingProjectConnected(project=project):
                        connected[project] = one.seq
                    case LabelingProjectDeleted(project=project):
                        deleted[project] = one.seq
    living = {name for name, seq in connected.items() if seq > deleted.get(name, 0)}
    waiting = {
        name: since
        for name, (seq, since) in configured.items()
        if name not in living and seq > deleted.get(name, 0)
    }
    return waiting, living


def _problem(sources: Sources, silent: list[str]) -> Problem:
    what = (
        f"Label Studio delivers nothing of {counted(len(silent), 'project')} "
        f"({', '.join(silent[:5])}): what people annotate there is only found by looking."
    )
    if refusal := webhook_address.refusal(sources.settings.bridge_url):
        return warning(what, f"{refusal}.")
    return warning(what, "`vllm-batch logs labelstudio-bridge` says why no webhook was made.")
