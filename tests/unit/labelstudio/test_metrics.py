"""Accuracy and agreement, against numbers worked out by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from tests.unit.labelstudio.configs import CHOICES, MANY, PAIRWISE, SPANS

from batch_labelstudio import agreement, metrics
from batch_labelstudio.metrics import NONE
from vllm_batch.aggregates.annotation import Annotation
from vllm_batch.aggregates.labeling import Project
from vllm_batch.events import AnnotationCreated
from vllm_batch.labeling.answers import Span
from vllm_batch.labeling.label_config import Control, parse
from vllm_batch.labeling.projects import ProjectView

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def control_of(xml: str, name: str | None = None) -> Control:
    config = parse(xml)
    found = config.find(name) if name else config.primary
    assert found is not None
    return found


SENTIMENT = control_of(CHOICES)
ENTITY = control_of(SPANS)
STARS = control_of(MANY, "stars")
TOPICS = control_of(MANY, "topics")
POS, NEG = ["Positive"], ["Negative"]


def test_choices_by_class_with_an_answer_missing():
    pairs = [(POS, POS)] * 6 + [(POS, NEG)] * 2 + [(NEG, NEG)] * 1 + [(NEG, None)]
    scores = metrics.score(SENTIMENT, pairs)
    assert (scores.tasks, scores.accuracy) == (10, 0.7)
    assert scores.labels == ["Positive", "Negative", NONE]
    assert scores.confusion == [[6, 2, 0], [0, 1, 1], [0, 0, 0]]
    positive, negative = scores.classes
    assert (positive.precision, positive.recall, positive.support) == (1.0, 0.75, 8)
    assert (negative.precision, negative.recall, negative.support) == (1 / 3, 0.5, 2)
    assert negative.f1 == pytest.approx(0.4)
    assert scores.macro_f1 == pytest.approx((6 / 7 + 0.4) / 2)


def test_the_interval_is_wilsons():
    scores = metrics.score(SENTIMENT, [(POS, POS)] * 7 + [(POS, NEG)] * 3)
    assert (scores.interval_low, scores.interval_high) == pytest.approx((0.3968, 0.8922), abs=1e-4)


def test_kappa_corrects_for_chance():
    pairs = [(POS, POS)] * 20 + [(POS, NEG)] * 5 + [(NEG, POS)] * 10 + [(NEG, NEG)] * 15
    assert metrics.score(SENTIMENT, pairs).kappa == pytest.approx(0.4)
    assert metrics.score(SENTIMENT, [(POS, POS)] * 5).kappa is None


def test_a_rating_that_is_near_is_better_than_one_that_is_far():
    near = metrics.score(STARS, [(1, 2), (5, 4), (3, 3)]).kappa
    far = metrics.score(STARS, [(1, 5), (5, 1), (3, 3)]).kappa
    assert near is not None
    assert far is not None
    assert near > far


def test_a_span_counts_only_where_start_end_and_label_are_right():
    def span(start: int, end: int, label: str) -> Span:
        return Span(start, end, label, "")

    pairs = [
        ([span(0, 4, "PER"), span(8, 11, "ORG")], [span(0, 4, "PER"), span(8, 11, "PER")]),
        ([span(0, 4, "PER")], [span(0, 5, "PER")]),
        ([], []),
    ]
    scores = metrics.score(ENTITY, pairs)
    assert scores.accuracy == pytest.approx(1 / 3)
    assert scores.labels == ["PER", "ORG", NONE]
    assert scores.confusion == [[1, 0, 1], [1, 0, 0], [1, 0, 0]]
    person, organization = scores.classes
    assert (person.precision, person.recall, person.support) == (1 / 3, 0.5, 2)
    assert (organization.f1, organization.support) == (0.0, 1)
    assert scores.kappa is None


def test_of_many_choices_all_have_to_be_right():
    scores = metrics.score(TOPICS, [(["a", "b"], ["b", "a"]), (["a"], ["a", "b"]), (["b"], None)])
    assert scores.accuracy == pytest.approx(1 / 3)
    first, second = scores.classes
    assert (first.precision, first.recall) == (1.0, 1.0)
    assert (second.precision, second.recall) == (0.5, 0.5)
    assert scores.confusion == []


def test_texts_are_equal_but_for_case_and_blanks():
    why = control_of(MANY, "why")
    scores = metrics.score(why, [("So  it is", "so it is"), ("yes", "no")])
    assert scores.accuracy == 0.5


def test_no_spans_anywhere_is_all_right():
    scores = metrics.score(ENTITY, [([], []), ([], None)])
    assert (scores.accuracy, scores.macro_f1, scores.confusion) == (1.0, 1.0, [])


@pytest.mark.parametrize(
    ("control", "one", "other", "expected"),
    [
        (SENTIMENT, POS, POS, 1.0),
        (SENTIMENT, POS, NEG, 0.0),
        (SENTIMENT, None, POS, 0.0),
        (TOPICS, ["a"], ["a", "b"], 0.5),
        (STARS, 1, 5, 0.0),
        (STARS, 2, 3, 0.75),
        (control_of(PAIRWISE), "left", "left", 1.0),
        (ENTITY, [Span(0, 1, "PER", "")], [Span(0, 1, "PER", ""), Span(2, 3, "PER", "")], 2 / 3),
        (ENTITY, [], [], 1.0),
    ],
)
def test_likeness_of_two_answers(control: Control, one, other, expected: float):
    assert agreement.likeness(control, one, other) == pytest.approx(expected)
    assert agreement.likeness(control, other, one) == pytest.approx(expected)


def test_krippendorffs_alpha_with_gaps():

    said = {
        "1": {"a": POS, "b": POS},
        "2": {"a": NEG, "b": NEG},
        "3": {"a": POS, "b": NEG},
        "4": {"a": NEG, "b": NEG},
    }
    # Coincidences: o_pn = 2 of n = 8, n_p = 3, n_n = 5: alpha = 1 - (n - 1) * 2 / (2 * 3 * 5)
    assert agreement.alpha(SENTIMENT, said) == pytest.approx(1 - 7 * 2 / (2 * 3 * 5))
    assert agreement.alpha(SENTIMENT, {"1": {"a": POS, "b": POS}}) is None
    assert agreement.alpha(SENTIMENT, {}) is None
    assert agreement.alpha(ENTITY, {"1": {"a": [], "b": []}}) is None


def handed_in(number: int, task: int, choice: str, **fields: Any) -> AnnotationCreated:
    value = {"choices": [choice]}
    region = {"from_name": "sentiment", "to_name": "text", "type": "choices", "value": value}
    return AnnotationCreated(
        project="1", annotation=str(number), task=str(task), version=T0, result=[region], **fields
    )


def project_of(*handed: AnnotationCreated) -> ProjectView:
    view = ProjectView(Project("1", label_config=CHOICES))
    for seq, one in enumerate(handed, start=1):
        view.set(one.annotation, Annotation(one, seq))
    return view


def test_what_skips_a_task_or_does_not_fit_is_no_answer_to_agree_with():
    report = agreement.of_project(
        project_of(
            handed_in(1, 1, "Positive", completed_by="1"),
            handed_in(2, 1, "Sideways", completed_by="2"),
            handed_in(3, 1, "Negative", completed_by="3", was_cancelled=True),
            handed_in(4, 2, "Positive", completed_by="1"),
            handed_in(5, 2, "Positive", completed_by="2"),
        ),
        parse(CHOICES),
    )
    assert (report.tasks, report.mean) == (1, 1.0)
    assert [(one.one, one.other, one.tasks) for one in report.annotators] == [("1", "2", 1)]


def test_a_report_of_many_tasks_fits_into_a_message_and_has_the_worst_of_them():
    handed = [
        handed_in(2 * task + other, task, choice, completed_by=str(other))
        for task in range(30_000)
        for other, choice in enumerate(["Positive", "Negative" if task % 100 == 7 else "Positive"])
    ]
    report = agreement.of_project(project_of(*handed), parse(CHOICES))
    assert report.tasks == 30_000
    assert sum(likeness == 0.0 for likeness in report.by_task.values()) == 300
    assert len(msgspec.json.encode(report)) < 512 * 1024
