"""How far the annotators of a project agree, as bridge, API and command line tell each other."""

from __future__ import annotations

import msgspec

BY_TASK_MAX = 1000  # an answer has to fit into a NATS message of 1 MiB


class AnnotatorPair(msgspec.Struct, frozen=True, kw_only=True):
    """Two annotators over the ``tasks`` that both answered. ``mean`` likeness is in [0, 1],
    Cohen's ``kappa`` in [-1, 1], None where it is not defined."""

    one: str
    other: str
    tasks: int
    mean: float
    kappa: float | None = None


class AgreementReport(msgspec.Struct, frozen=True, kw_only=True):
    """A project's first question, ``control``, over the ``tasks`` with more than one annotator.

    ``alpha`` is Krippendorff's, in [-1, 1]; None where it is not defined. ``by_task``: the mean
    likeness of the annotators of each task, in [0, 1], of the ``BY_TASK_MAX`` tasks where it is
    lowest.
    """

    project: str
    control: str | None
    tasks: int = 0
    mean: float | None = None
    alpha: float | None = None
    annotators: list[AnnotatorPair] = []
    by_task: dict[str, float] = {}
