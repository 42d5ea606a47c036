"""The rules of an annotation.

    (none) ──write──► PRESENT ──write, newer──► PRESENT ──delete──► DELETED
       │                 └──judge, same version──► PRESENT            ▲
       └────────────────────────────delete────────────────────────────┘

Deliveries come twice, late and in any order. The first that is seen is ``annotation.created``,
each one with a later ``updated_at`` is ``annotation.updated``; an older one changes nothing. Label
Studio never gives an id again, so nothing follows a deletion, except that somebody who has asked
Label Studio after it may revive what he found there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec

from vllm_batch.errors import AlreadyDone
from vllm_batch.events import (
    AnnotationCreated,
    AnnotationDeleted,
    AnnotationFlagged,
    AnnotationUpdated,
    AnnotationValidated,
    Recorded,
)

Written = AnnotationCreated | AnnotationUpdated
Verdict = AnnotationValidated | AnnotationFlagged


@dataclass(frozen=True, slots=True)
class Annotation:
    """An annotation as the log has it. ``written`` is None where only its deletion was seen."""

    written: Written | None
    seq: int
    deleted: bool = False
    judged: Verdict | None = None

    @property
    def verdict(self) -> Verdict | None:
        """What validation said about this very version; None: it has not said anything yet."""
        if self.written and self.judged and self.judged.version == self.written.version:
            return self.judged
        return None


def evolve(state: Annotation | None, recorded: Recorded) -> Annotation:
    """Return the annotation after ``recorded``."""
    match recorded.event:
        case AnnotationCreated() | AnnotationUpdated() as written:
            judged = state.judged if state else None
            return Annotation(written, recorded.seq, judged=judged)
        case AnnotationDeleted():
            if state is None:
                return Annotation(None, recorded.seq, deleted=True)
            return replace(state, seq=recorded.seq, deleted=True)
        case AnnotationValidated() | AnnotationFlagged() as verdict if state is not None:
            return replace(state, seq=recorded.seq, judged=verdict)
    raise ValueError(f"event {recorded.seq} is none of an annotation's")


def write(state: Annotation | None, said: AnnotationCreated, *, revive: bool = False) -> Written:
    """Return the event that records what an annotation is now.

    Raises:
        AlreadyDone: this or a newer version is known, or it is deleted (and not to be revived).
    """
    if state is None or (state.deleted and revive):
        return said
    if state.deleted:
        raise AlreadyDone(f"annotation {said.annotation} is deleted")
    if state.written and said.version <= state.written.version:
        raise AlreadyDone(f"annotation {said.annotation} is known as of {state.written.version}")
    return AnnotationUpdated(**msgspec.structs.asdict(said))


def delete(state: Annotation | None, said: AnnotationDeleted) -> AnnotationDeleted:
    """Return the event of the deletion, also of what was never seen: its creation may come late.

    Raises:
        AlreadyDone: it is deleted.
    """
    if state is not None and state.deleted:
        raise AlreadyDone(f"annotation {said.annotation} is deleted")
    return said


def judge(state: Annotation | None, said: Verdict) -> Verdict:
    """Return the verdict on the version that was looked at.

    Raises:
        AlreadyDone: that version is history, or the same was said of it.
    """
    if state is None or state.deleted or state.written is None:
        raise AlreadyDone(f"annotation {said.annotation} is gone")
    if said.version != state.written.version or state.verdict == said:
        raise AlreadyDone(f"annotation {said.annotation} has moved on, or this was said of it")
    return said
