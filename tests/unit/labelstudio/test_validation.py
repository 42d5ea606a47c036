"""What speaks against an annotation, and what does not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from tests.unit.labelstudio.configs import CHOICES

from batch_labelstudio.validation.duty import is_open
from batch_labelstudio.validation.rules import Findings, Handed, Limits, ModelOpinion, examine
from vllm_batch.aggregates import annotation as annotation_rules
from vllm_batch.events import AnnotationCreated, AnnotationFlagged, AnnotationValidated
from vllm_batch.events.annotation import FlagReason
from vllm_batch.labeling.label_config import parse

CONFIG = parse(CHOICES)
LIMITS = Limits(agreement_min=0.5, confident_score=0.9)


def chosen(choice: str) -> list[dict[str, Any]]:
    return [
        {
            "from_name": "sentiment",
            "to_name": "text",
            "type": "choices",
            "value": {"choices": [choice]},
        }
    ]


def handed(choice: str, annotator: str = "1", **fields: Any) -> Handed:
    return Handed(annotator, chosen(choice), **fields)


def opinion(choice: str, score: float | None) -> ModelOpinion:
    return ModelOpinion(datetime(2026, 1, 1, tzinfo=UTC), chosen(choice), "m-1", score)


def examined(mine: Handed, *others: Handed, opinion: ModelOpinion | None = None) -> Findings:
    data = {"text": "fine"}
    return examine(CONFIG, mine, others, data=data, opinion=opinion, limits=LIMITS)


def test_nothing_speaks_against_one_that_fits():
    findings = examined(handed("Positive"))
    assert findings.reasons == []
    assert findings.agreement is None


def test_a_skipped_task_is_flagged_for_that_alone():
    findings = examined(Handed("1", [], was_cancelled=True), handed("Positive", "2"))
    assert findings.reasons == ["skipped"]


def test_what_does_not_fit_the_label_config_is_judged_by_nothing_else():
    findings = examined(handed("Neutral"), handed("Positive", "2", ground_truth=True))
    assert findings.reasons == ["schema"]
    assert "no option 'Neutral'" in findings.details[0]


def test_against_the_ground_truth():
    truth = handed("Positive", "2", ground_truth=True)
    assert "ground_truth_mismatch" in examined(handed("Negative"), truth).reasons
    assert examined(handed("Positive"), truth).reasons == []
    assert examined(truth, handed("Negative")).reasons == []


def test_a_truth_by_the_same_annotator_counts_too():
    truth = handed("Positive", "1", ground_truth=True)
    findings = examined(handed("Negative", "1"), truth)
    assert findings.reasons == ["ground_truth_mismatch"]
    assert findings.agreement is None


@pytest.mark.parametrize(
    ("others", "agreement", "flagged"),
    [
        (["Positive"], 1.0, False),
        (["Negative"], 0.0, True),
        (["Positive", "Negative"], 0.5, False),
        (["Negative", "Negative", "Positive"], 1 / 3, True),
    ],
)
def test_annotators_who_disagree(others: list[str], agreement: float, flagged: bool):
    findings = examined(
        handed("Positive"), *(handed(one, f"other {n}") for n, one in enumerate(others))
    )
    assert findings.agreement == pytest.approx(agreement)
    assert findings.reasons == (["annotators_disagree"] if flagged else [])


def test_skipped_and_unsound_annotations_agree_with_nobody():
    findings = examined(
        handed("Positive"), Handed("2", [], was_cancelled=True), handed("Neutral", "3")
    )
    assert (findings.agreement, findings.reasons) == (None, [])


@pytest.mark.parametrize(
    ("said", "score", "agrees", "flagged"),
    [
        ("Negative", 0.95, False, True),
        ("Negative", 0.5, False, False),
        ("Negative", None, False, False),
        ("Positive", 0.95, True, False),
    ],
)
def test_a_model_that_is_sure_of_something_else(
    said: str, score: float | None, agrees: bool, flagged: bool
):
    findings = examined(handed("Positive"), opinion=opinion(said, score))
    assert (findings.model_version, findings.model_agrees) == ("m-1", agrees)
    assert findings.reasons == (["model_disagrees"] if flagged else [])


def test_several_reasons_each_have_a_sentence():
    findings = examined(
        handed("Positive"),
        handed("Negative", "2", ground_truth=True),
        opinion=opinion("Negative", 0.99),
    )
    assert findings.reasons == ["ground_truth_mismatch", "annotators_disagree", "model_disagrees"]
    assert len(findings.details) == 3


def judged(
    choice: str, reasons: list[FlagReason] | None = None, **written: Any
) -> annotation_rules.Annotation:
    """Return an annotation with a verdict: validated, or flagged for these reasons."""
    version = datetime(2026, 1, 1, tzinfo=UTC)
    name: dict[str, Any] = {"project": "1", "annotation": "4", "version": version}
    made = AnnotationCreated(**name, task="9", result=chosen(choice), **written)
    verdict = AnnotationFlagged(**name, reasons=reasons) if reasons else AnnotationValidated(**name)
    return annotation_rules.Annotation(made, 2, judged=verdict)


def test_another_label_config_opens_what_it_contradicts_and_nothing_else():
    renamed = parse(CHOICES.replace('value="Positive"', 'value="Good"'))
    for config, old, new in ((CONFIG, "Positive", "Good"), (renamed, "Good", "Positive")):
        assert not is_open(judged(old), config)
        assert is_open(judged(new), config)
        assert is_open(judged(old, ["schema"]), config)
        assert not is_open(judged(new, ["schema"]), config)
        assert not is_open(judged(old, ["annotators_disagree"]), config)
        assert not is_open(judged(new, ["skipped"], was_cancelled=True), config)
