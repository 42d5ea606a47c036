"""Before a run: what is trained on, and what an adapter is made of."""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory

from batch_labelstudio import datasets, results
from batch_labelstudio.bridge import Bridge
from batch_labelstudio.dataset_files import DatasetFiles
from batch_labelstudio.datasets import Curation
from batch_labelstudio.project_config import config_of
from vllm_batch.aggregates.training import Run
from vllm_batch.errors import Conflict, LabelStudioUnavailable, Rejected
from vllm_batch.events import TrainingDatasetCreated, TrainingPrepared
from vllm_batch.events.training import DatasetFormat
from vllm_batch.labeling.projects import ProjectView


async def prepare(bridge: Bridge, view: ProjectView, run: Run) -> TrainingPrepared:
    """Return what a trainer needs for ``run``; the dataset is stored and on record.

    Raises:
        Rejected, InvalidInput: the project cannot be trained; says what to do.
        LabelStudioUnavailable: the tasks cannot be read now.
        BlobError: the dataset cannot be written.
    """
    configured = view.project.configured
    if configured is None:
        raise Rejected("the project is not configured: `vllm-batch label configure`")
    registry, alias = bridge.models.registry, configured.model
    name = registry.resolve(alias)
    model = registry.find(name) if name else None
    if model is None or name == alias:
        raise Rejected(
            f"{alias!r} is no alias of a registered model, so there is nothing that a promotion "
            f"could move: `vllm-batch model alias NAME --add ALIAS`, and configure that alias"
        )
    base = registry.find(model.base) if model.base else model
    if base is None:
        raise Rejected(f"the base {model.base!r} of {name} is not registered: add it first")
    known, wanted = len(view.truths()), bridge.settings.training_ground_truth_min
    if known < wanted:
        raise Rejected(
            f"{known} tasks with ground truth cannot say which version is better, {wanted} are "
            f"needed: `vllm-batch label ground-truth mark`"
        )
    made = await export(bridge, view, "sft")
    least = bridge.settings.training_examples_min
    if made.train_examples < least:
        raise Rejected(
            f"there are {made.train_examples} validated examples beside ground truth, "
            f"training needs {least}: annotate more"
        )
    return TrainingPrepared(
        run_id=run.run_id,
        project=made.project,
        dataset_id=made.dataset_id,
        train_blob=made.train_blob,
        validation_blob=made.validation_blob,
        base_model=base.name,
        base_source=base.source,
        alias=alias,
    )


async def export(bridge: Bridge, view: ProjectView, kind: DatasetFormat) -> TrainingDatasetCreated:
    """Store what is validated now as a dataset, unless it is there.

    Raises:
        InvalidInput: the project asks nothing that such a dataset could be made of.
        BridgeUnreachable: its label config has not been read yet.
        LabelStudioUnavailable: the tasks cannot be read now.
        BlobError: it cannot be written.
    """
    if bridge.label_studio is None:
        raise LabelStudioUnavailable("no Label Studio is configured")
    project, config = view.project.project, config_of(view)
    truths = await bridge.label_studio.data_of(datasets.truth_tasks(view))
    curation = Curation(
        view, config, kind,
        validation_share=bridge.settings.training_validation_share, truths=truths.values(),
    )  # fmt: skip
    columns = datasets.columns_of(config) if kind == "classification" else ()
    with TemporaryDirectory() as folder, DatasetFiles(Path(folder), kind, columns) as files:
        async for page in bridge.label_studio.tasks(project):
            for task in page:
                if written := curation.written_of(str(task["id"])):
                    result = await results.of(written, bridge.blobs)
                    if placed := curation.take(written.task, task["data"], result):
                        files.add(placed)
        sha256 = await asyncio.to_thread(files.finish)
        made = await files.store(project, sha256, curation.held_out, bridge.blobs)
    try:
        await bridge.store.append(made, expected=0)
    except Conflict:
        return made  # the same content was exported before
    return made
