"""However often and in whatever order things are said of an annotation, the log ends the same."""

from __future__ import annotations

import asyncio
import itertools
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from batch_labelstudio.feed import ProjectFeed
from batch_labelstudio.recorder import Recorder, Said
from vllm_batch import tasks
from vllm_batch.aggregates import annotation as rules
from vllm_batch.aggregates import labeling
from vllm_batch.blobs import open_blobs
from vllm_batch.errors import AlreadyDone, NotFound
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.events import (
    AnnotationCreated,
    AnnotationDeleted,
    AnnotationFlagged,
    AnnotationValidated,
    LabelingProjectUpdated,
    LabelingPushFailed,
    LabelingPushRequested,
    LabelingTasksCreated,
    LabelingTasksDeleted,
    Recorded,
)
from vllm_batch.ids import EventId
from vllm_batch.labeling import projects

START = datetime(2026, 1, 1, tzinfo=UTC)


def written(version: int, *, task: str = "9", annotation: str = "4") -> AnnotationCreated:
    return AnnotationCreated(
        project="2", annotation=annotation, task=task, version=START + timedelta(seconds=version),
        result=[{"version": version}],
    )  # fmt: skip


def folded(*events: rules.Written | rules.Verdict | AnnotationDeleted) -> rules.Annotation | None:
    state = None
    for seq, event in enumerate(events, start=1):
        state = rules.evolve(state, Recorded(seq, EventId(str(seq)), START, "test", event))
    return state


def test_an_older_version_never_follows_a_newer_one() -> None:
    state = folded(written(2))
    with pytest.raises(AlreadyDone):
        rules.write(state, written(1))
    with pytest.raises(AlreadyDone):
        rules.write(state, written(2))
    assert rules.write(state, written(3)).TYPE == "annotation.updated"


def test_nothing_follows_a_deletion_but_what_somebody_has_seen_since() -> None:
    gone = AnnotationDeleted(project="2", annotation="4")
    for state in (folded(written(1), gone), folded(gone)):
        with pytest.raises(AlreadyDone):
            rules.write(state, written(5))
        with pytest.raises(AlreadyDone):
            rules.delete(state, gone)
        assert rules.write(state, written(5), revive=True).TYPE == "annotation.created"


def test_a_verdict_counts_for_the_version_that_was_looked_at() -> None:
    verdict = AnnotationValidated(project="2", annotation="4", version=written(1).version)
    state = folded(written(1), rules.judge(folded(written(1)), verdict))
    assert state is not None
    assert state.verdict == verdict
    with pytest.raises(AlreadyDone):
        rules.judge(state, verdict)
    changed = folded(written(1), verdict, rules.write(state, written(2)))
    assert changed is not None
    assert changed.verdict is None
    with pytest.raises(AlreadyDone):
        rules.judge(changed, verdict)
    flagged = AnnotationFlagged(
        project="2", annotation="4", version=written(2).version, reasons=["schema"]
    )
    assert rules.judge(changed, flagged) == flagged


async def replayed(said: list[Said], folder: Path) -> tuple[projects.ProjectView, list[str]]:
    """Record ``said`` in this order; return the project and the types in the log."""
    store = MemoryEventStore()
    feed = ProjectFeed(store)
    recorder = Recorder(store, open_blobs(folder.as_uri()), feed)
    following = asyncio.ensure_future(feed.follow())
    for one in said:
        if isinstance(one, LabelingTasksDeleted):
            await recorder.delete_tasks(one.project, one.tasks, "webhook")
        else:
            await recorder.record(one)
    await tasks.end(following)
    view = feed.projects.find("2")
    assert view is not None
    types = [one.event.TYPE async for batch in store.read(">") for one in batch]
    return view, types


async def test_every_order_of_a_small_history_ends_the_same(tmp_path: Path) -> None:
    said: list[Said] = [
        written(1), written(2), LabelingTasksCreated(project="2", tasks=["9"]),
        written(1, annotation="5"), AnnotationDeleted(project="2", annotation="5"),
    ]  # fmt: skip
    for order in itertools.permutations(said):
        view, types = await replayed([*order, *order], tmp_path)
        annotation = view.annotations["4"]
        assert annotation.written is not None
        assert annotation.written.result == [{"version": 2}]
        assert view.annotations["5"].deleted
        assert view.project.tasks == {"9"}
        for once in ("labeling.tasks_created", "annotation.deleted"):
            assert types.count(once) == 1


async def test_a_task_that_is_gone_takes_its_annotations_along_in_any_order(tmp_path: Path) -> None:
    said: list[Said] = [
        LabelingTasksCreated(project="2", tasks=["8", "9"]), written(1), written(2),
        written(1, task="8", annotation="6"), LabelingTasksDeleted(project="2", tasks=["9"]),
    ]  # fmt: skip
    for seed in range(30):
        order = said * 3
        random.Random(seed).shuffle(order)
        view, _ = await replayed(order, tmp_path)
        assert view.project.tasks == {"8"}, seed
        assert [i for i, _ in view.present()] == ["6"], seed


async def test_a_project_is_as_its_newest_version_says(tmp_path: Path) -> None:
    old, new = (
        LabelingProjectUpdated(
            project="2", title=f"v{n}", label_config="<View/>", version=START + timedelta(seconds=n)
        )
        for n in (1, 2)
    )
    for order in ([old, new], [new, old]):
        view, _ = await replayed([*order, *order], tmp_path)
        assert view.project.title == "v2"


async def test_a_long_result_is_a_blob(tmp_path: Path) -> None:
    long = AnnotationCreated(
        project="2", annotation="4", task="9", version=START, result=[{"text": "x" * 300_000}]
    )
    view, _ = await replayed([long], tmp_path)
    kept = view.annotations["4"].written
    assert kept is not None
    assert kept.result == []
    assert kept.result_blob is not None
    assert len(await open_blobs(tmp_path.as_uri()).get(kept.result_blob)) > 300_000


def test_a_push_is_asked_for_once_and_ends_once() -> None:
    asked = LabelingPushRequested(project="2", push_id="p", source="batch_1", requested_by="me")
    end = LabelingPushFailed(project="2", push_id="p", source="batch_1", reason="no")
    assert labeling.request_push(None, asked) == asked
    assert labeling.finish_push(asked, end) == end
    with pytest.raises(AlreadyDone):
        labeling.request_push(asked, asked)
    with pytest.raises(AlreadyDone):
        labeling.finish_push(end, end)
    with pytest.raises(NotFound):
        labeling.finish_push(None, end)
