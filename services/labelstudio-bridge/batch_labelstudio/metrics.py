"""How well answers meet the truth: the numbers, from scikit-learn and SciPy. Pure.

All is about one question of a project. For choices, sides, ratings and texts an item is a task, for
spans a stretch of text; a span counts if start, end and label are right. ``NONE`` stands for no
answer, and for a span that one of the two does not have.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score, confusion_matrix, precision_recall_fscore_support
from sklearn.preprocessing import MultiLabelBinarizer

from vllm_batch.events.labeling import ClassScore
from vllm_batch.labeling.answers import Span, Value
from vllm_batch.labeling.label_config import Control

NONE = "(none)"
CONFIDENCE = 0.95

Pair = tuple[Value | None, Value | None]
"""What is true, and what was answered."""


class Scores(NamedTuple):
    """See `events.labeling.LabelingAccuracyMeasured`, whose fields these are.

    ``accuracy`` is the share of tasks whose whole answer is right, also for spans.
    """

    tasks: int
    accuracy: float
    interval_low: float
    interval_high: float
    macro_f1: float
    kappa: float | None
    classes: list[ClassScore]
    labels: list[str]
    confusion: list[list[int]]


def score(control: Control, pairs: Sequence[Pair]) -> Scores:
    """Return how well answers meet the truth.

    Raises:
        ValueError: there are no pairs.
    """
    right = sum(comparable(control, true) == comparable(control, said) for true, said in pairs)
    low, high = binomtest(right, len(pairs)).proportion_ci(CONFIDENCE, method="wilson")
    classes: list[ClassScore] = []
    labels: list[str] = []
    confusion: list[list[int]] = []
    kappa = None
    if control.kind == "choices" and control.multiple:
        classes = _of_sets(control.options, pairs)
    elif control.kind != "text":
        items = list(_items(control, pairs))
        wanted = _labels(control)
        classes = _of_items(wanted, items)
        labels = [*wanted, NONE]
        if items:
            true, said = _columns(items)
            confusion = confusion_matrix(true, said, labels=labels).tolist()
        if control.kind != "labels":
            kappa = cohen_kappa(control, items)
    scored = [one.f1 for one in classes if one.support]
    return Scores(
        tasks=len(pairs),
        accuracy=right / len(pairs),
        interval_low=float(low),
        interval_high=float(high),
        macro_f1=float(np.mean(scored)) if scored else right / len(pairs),
        kappa=kappa,
        classes=classes,
        labels=labels,
        confusion=confusion,
    )


def comparable(control: Control, value: Value | None) -> Hashable:
    """Return a value so that it equals another one that says the same."""
    match value:
        case None:
            return frozenset() if control.kind == "labels" else None
        case [*many]:
            return frozenset(
                (one.start, one.end, one.label) if isinstance(one, Span) else one for one in many
            )
        case str() if control.kind == "text":
            return " ".join(value.split()).casefold()
    return value


def span_f1(true: Iterable[Span], said: Iterable[Span]) -> float:
    """Return the F1 of two sets of spans, 1 where both are empty."""
    first, second = ({(one.start, one.end, one.label) for one in spans} for spans in (true, said))
    return 2 * len(first & second) / (len(first) + len(second)) if first or second else 1.0


def cohen_kappa(control: Control, items: Sequence[tuple[str, str]]) -> float | None:
    """Return Cohen's kappa, weighted by distance for ratings; None where it is not defined: there
    is nothing, or both always say the same one thing."""
    if not items or len({one for item in items for one in item}) < 2:
        return None
    true, said = _columns(items)
    labels = [*_labels(control), NONE]
    weights = "linear" if control.kind == "rating" and NONE not in (*true, *said) else None
    return float(cohen_kappa_score(true, said, labels=labels, weights=weights))


def class_of(control: Control, value: Value | None) -> str:
    """Return the class that an answer with one value belongs to."""
    match value:
        case [str(only)]:
            return only
        case str() | int() if control.kind in {"pairwise", "rating"}:
            return str(value)
    return NONE


def _labels(control: Control) -> list[str]:
    if control.kind == "rating":
        return [str(one) for one in range(1, control.rating_max + 1)]
    return list(control.options)


def _items(control: Control, pairs: Sequence[Pair]) -> Iterable[tuple[str, str]]:
    for true, said in pairs:
        if control.kind == "labels":
            yield from _span_items(_spans(true), _spans(said))
        else:
            yield class_of(control, true), class_of(control, said)


def _spans(value: Value | None) -> list[Span]:
    return [one for one in value if isinstance(one, Span)] if isinstance(value, list) else []


def _span_items(true: list[Span], said: list[Span]) -> Iterable[tuple[str, str]]:
    """Yield true and answered label of every stretch that has one: equal ones together first."""
    for place in sorted({(one.start, one.end) for one in (*true, *said)}):
        first, second = (
            {one.label for one in spans if (one.start, one.end) == place} for spans in (true, said)
        )
        yield from ((label, label) for label in sorted(first & second))
        yield from zip_longest(sorted(first - second), sorted(second - first), fillvalue=NONE)


def _columns(items: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
    return [true for true, _ in items], [said for _, said in items]


def _of_items(labels: list[str], items: Sequence[tuple[str, str]]) -> list[ClassScore]:
    if not items:
        return [ClassScore(label, 0.0, 0.0, 0.0, 0) for label in labels]
    true, said = _columns(items)
    columns = precision_recall_fscore_support(true, said, labels=labels, zero_division=0)
    return _class_scores(labels, columns)


def _of_sets(options: Sequence[str], pairs: Sequence[Pair]) -> list[ClassScore]:
    binarizer = MultiLabelBinarizer(classes=list(options))
    true, said = (
        binarizer.fit_transform([value if isinstance(value, list) else [] for value in column])
        for column in zip(*pairs, strict=True)
    )
    columns = precision_recall_fscore_support(true, said, average=None, zero_division=0)
    return _class_scores(list(options), columns)


def _class_scores(labels: Sequence[str], columns: Iterable[Iterable[float]]) -> list[ClassScore]:
    return [
        ClassScore(label, float(precision), float(recall), float(f1), int(support))
        for label, precision, recall, f1, support in zip(labels, *columns, strict=True)
    ]
