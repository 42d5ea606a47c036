"""What a project asks of a task, as far as the log knows it."""

from __future__ import annotations

from vllm_batch.errors import BridgeUnreachable
from vllm_batch.labeling.label_config import LabelConfig, parse
from vllm_batch.labeling.projects import ProjectView


def config_of(view: ProjectView) -> LabelConfig:
    """Return a project's label config.

    Raises:
        BridgeUnreachable: it has not been read yet; the reconciler does so in a moment.
        InvalidInput: it is none.
    """
    if not view.project.label_config:
        raise BridgeUnreachable(
            f"the label config of project {view.project.project} has not been read yet; try again"
        )
    return parse(view.project.label_config)
