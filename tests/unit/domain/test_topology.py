"""What happens to streams that are there already."""

from __future__ import annotations

from pathlib import Path

import pytest
from nats.js.api import StreamConfig

from vllm_batch.messaging.topology import change_of, streams
from vllm_batch.settings import Settings


@pytest.mark.parametrize(
    ("copies_now", "copies_wanted", "copies_then"), [(1, 1, None), (1, 3, 3), (3, 1, None)]
)
def test_a_process_that_knows_of_fewer_copies_takes_none_away(
    tmp_path: Path, copies_now: int, copies_wanted: int, copies_then: int | None
) -> None:
    existing = streams(Settings(home=tmp_path, events_replicas=copies_now))[0]
    wanted = streams(Settings(home=tmp_path, events_replicas=copies_wanted))[0]
    change = change_of(existing, wanted)
    assert (change and change.num_replicas) == copies_then


def test_subjects_of_another_release_are_kept_with_all_copies() -> None:
    existing = StreamConfig(name="S", subjects=["a.>", "newer.>"], num_replicas=3)
    change = change_of(existing, StreamConfig(name="S", subjects=["a.>", "b.>"], num_replicas=1))
    assert change is not None
    assert change.subjects == ["a.>", "b.>", "newer.>"]
    assert change.num_replicas == 3
    assert change_of(change, StreamConfig(name="S", subjects=["a.>"], num_replicas=1)) is None
