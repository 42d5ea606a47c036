"""How far annotators agree: about one task, each two of them, and all of a project. Pure.

About one task it is a likeness in [0, 1]: equal or not for choices and sides, shared ones of many
choices (Jaccard), distance of ratings, F1 of spans. Over a project it is Cohen's kappa for each two
(scikit-learn) and Krippendorff's alpha for all (krippendorff): corrected for chance, in [-1, 1].
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import combinations
from typing import Literal

import krippendorff
import numpy as np

from batch_labelstudio import metrics
from vllm_batch.labeling.agreement_report import BY_TASK_MAX, AgreementReport, AnnotatorPair
from vllm_batch.labeling.answers import Span, Value, from_result
from vllm_batch.labeling.label_config import Control, LabelConfig
from vllm_batch.labeling.projects import ProjectView

Said = Mapping[str, Mapping[str, Value | None]]
"""By task: by annotator."""


def likeness(control: Control, one: Value | None, other: Value | None) -> float:
    """Return how alike two answers to the same question about the same task are, in [0, 1]."""
    match control.kind, one, other:
        case "labels", _, _:
            return metrics.span_f1(_spans(one), _spans(other))
        case "choices", [*first], [*second] if control.multiple:
            every = {*first, *second}
            return len({*first} & {*second}) / len(every) if every else 1.0
        case "rating", int(first), int(second):
            return 1 - abs(first - second) / max(1, control.rating_max - 1)
    return float(metrics.comparable(control, one) == metrics.comparable(control, other))


def with_others(
    control: Control, value: Value | None, others: Iterable[Value | None]
) -> float | None:
    """Return the mean likeness of an answer with others', None if there are none."""
    found = [likeness(control, value, other) for other in others]
    return float(np.mean(found)) if found else None


def of_project(view: ProjectView, config: LabelConfig) -> AgreementReport:
    """Return how far the annotators of a project agree about its first question."""
    control = config.primary
    said = _said(view, config) if control else {}
    if control is None:
        return AgreementReport(project=view.project.project, control=None)
    shared = {task: by for task, by in said.items() if len(by) > 1}
    means = [
        float(np.mean([likeness(control, a, b) for a, b in combinations(by.values(), 2)]))
        for by in shared.values()
    ]
    pairs = zip(shared, means, strict=True)
    lowest = heapq.nsmallest(BY_TASK_MAX, pairs, key=lambda pair: pair[1])
    return AgreementReport(
        project=view.project.project,
        control=control.name,
        tasks=len(shared),
        mean=float(np.mean(means)) if means else None,
        alpha=alpha(control, shared),
        annotators=_pairs(control, shared),
        by_task=dict(lowest),
    )


def alpha(control: Control, said: Said) -> float | None:
    """Return Krippendorff's alpha: interval for ratings, else nominal; None where it is not
    defined: for spans and texts, without shared tasks, or where only one thing was ever said."""
    if control.kind in {"labels", "text"} or not said:
        return None
    annotators = sorted({annotator for by in said.values() for annotator in by})
    classes = [
        [_class(control, by[annotator]) if annotator in by else None for by in said.values()]
        for annotator in annotators
    ]
    known = sorted({one for row in classes for one in row if one is not None})
    if len(known) < 2:
        return None
    codes = {one: float(one) if control.kind == "rating" else n for n, one in enumerate(known)}
    table = [[np.nan if one is None else codes[one] for one in row] for row in classes]
    level: Literal["interval", "nominal"] = "interval" if control.kind == "rating" else "nominal"
    return float(krippendorff.alpha(np.array(table, float), level_of_measurement=level))


def _said(view: ProjectView, config: LabelConfig) -> dict[str, dict[str, Value | None]]:
    """Return the newest answer of each annotator about each task; what skips it, or does not fit
    the label config, is none."""
    control = config.primary
    found: dict[str, dict[str, Value | None]] = defaultdict(dict)
    newest: dict[tuple[str, str], datetime] = {}
    for annotation_id, annotation in view.present():
        written = annotation.written
        if control is None or written is None or written.was_cancelled or written.result_blob:
            continue
        annotator = written.completed_by or f"annotation {annotation_id}"
        place = (written.task, annotator)
        if place in newest and written.version < newest[place]:
            continue
        newest[place] = written.version
        value = from_result(config, written.result).get(control.name)
        if value is not None:
            found[written.task][annotator] = value
    return found


def _pairs(control: Control, said: Said) -> list[AnnotatorPair]:
    shared: dict[tuple[str, str], list[tuple[Value | None, Value | None]]] = defaultdict(list)
    for by in said.values():
        for one, other in combinations(sorted(by), 2):
            shared[one, other].append((by[one], by[other]))
    return [
        AnnotatorPair(
            one=one,
            other=other,
            tasks=len(pairs),
            mean=float(np.mean([likeness(control, a, b) for a, b in pairs])),
            kappa=_kappa(control, pairs),
        )
        for (one, other), pairs in sorted(shared.items())
    ]


def _kappa(control: Control, pairs: list[tuple[Value | None, Value | None]]) -> float | None:
    if control.kind in {"labels", "text"} or control.multiple:
        return None
    classes = metrics.class_of
    return metrics.cohen_kappa(
        control, [(classes(control, a), classes(control, b)) for a, b in pairs]
    )


def _class(control: Control, value: Value | None) -> str | None:
    """Return an answer as one class; a set of choices is one."""
    if control.multiple:
        return ",".join(sorted(map(str, value))) if isinstance(value, list) else None
    found = metrics.class_of(control, value)
    return None if found == metrics.NONE else found


def _spans(value: Value | None) -> list[Span]:
    return [one for one in value if isinstance(one, Span)] if isinstance(value, list) else []
