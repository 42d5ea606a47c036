"""What speaks against an annotation. Pure.

One that skips its task, or does not fit the label config, is judged by nothing else. Ground truth
is what others are measured by: it only has to fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from batch_labelstudio import agreement
from batch_labelstudio.metrics import comparable
from vllm_batch.events.annotation import FlagReason
from vllm_batch.labeling.answers import Data, Region, Value, check, from_result
from vllm_batch.labeling.label_config import Control, LabelConfig


@dataclass(frozen=True, slots=True)
class Handed:
    """An annotation as it was handed in."""

    annotator: str | None
    result: list[Region]
    was_cancelled: bool = False
    ground_truth: bool = False


class ModelOpinion(msgspec.Struct, frozen=True):
    """A prediction as Label Studio has it."""

    created_at: datetime
    result: list[dict[str, Any]]
    model_version: str | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """From when on a difference counts."""

    agreement_min: float
    confident_score: float


@dataclass(slots=True)
class Findings:
    """All that is known of an annotation; nothing speaks against it if there are no reasons."""

    reasons: list[FlagReason] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    agreement: float | None = None
    model_version: str | None = None
    model_agrees: bool | None = None

    def add(self, reason: FlagReason, detail: str) -> None:
        """Let something speak against it."""
        self.reasons.append(reason)
        self.details.append(detail)


def examine(
    config: LabelConfig,
    mine: Handed,
    others: Sequence[Handed],
    *,
    data: Data | None,
    opinion: ModelOpinion | None,
    limits: Limits,
) -> Findings:
    """Return what speaks against ``mine``. ``others`` are the task's other annotations,
    ``opinion`` is what a model said of the task."""
    findings = Findings()
    if mine.was_cancelled:
        findings.add("skipped", "The annotator skipped the task.")
        return findings
    if problems := check(config, mine.result, data):
        findings.add("schema", " ".join(problems))
        return findings
    control = config.primary
    if control is None:
        return findings
    value = _value(config, control, mine)
    _compare_with_others(findings, config, control, mine, others, limits=limits)
    if opinion is not None:
        said = from_result(config, opinion.result).get(control.name)
        findings.model_version = opinion.model_version
        findings.model_agrees = comparable(control, said) == comparable(control, value)
        sure = opinion.score is not None and opinion.score >= limits.confident_score
        if sure and not findings.model_agrees and not mine.ground_truth:
            findings.add(
                "model_disagrees",
                f"{opinion.model_version or 'The model'} is sure ({opinion.score:.2f}) of "
                f"another answer.",
            )
    return findings


def _compare_with_others(
    findings: Findings,
    config: LabelConfig,
    control: Control,
    mine: Handed,
    others: Sequence[Handed],
    *,
    limits: Limits,
) -> None:
    value = _value(config, control, mine)
    sound = [one for one in others if not one.was_cancelled and not check(config, one.result)]
    truths = [one for one in sound if one.ground_truth]
    if not mine.ground_truth and any(
        comparable(control, _value(config, control, one)) != comparable(control, value)
        for one in truths
    ):
        findings.add("ground_truth_mismatch", "The task's ground truth says otherwise.")
    rivals = [
        _value(config, control, one)
        for one in sound
        if one.annotator is None or one.annotator != mine.annotator
    ]
    findings.agreement = agreement.with_others(control, value, rivals)
    if (
        findings.agreement is not None
        and findings.agreement < limits.agreement_min
        and not mine.ground_truth
    ):
        findings.add(
            "annotators_disagree",
            f"It agrees with the {len(rivals)} other annotation(s) of the task "
            f"by {findings.agreement:.2f}; {limits.agreement_min:.2f} is wanted.",
        )


def _value(config: LabelConfig, control: Control, one: Handed) -> Value | None:
    return from_result(config, one.result).get(control.name)
