"""``vllm-batch label``: what it says when the bridge does not do at once what it was asked."""

from __future__ import annotations

import pytest

from vllm_batch.cli import label


def test_a_push_that_has_not_ended_in_time_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(label, "_with_store", lambda *_: None)
    with pytest.raises(label.PushUnfinished, match=r"within 5 s.*logs labelstudio-bridge"):
        label.push("batch_1", "1", wait=5.0)
    label.push("batch_1", "1", wait=0.0)
    assert capsys.readouterr().out.startswith("asked for: push_")
