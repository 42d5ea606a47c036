"""Looking at a model on a hub: a server beside us answers the hub client's real calls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from tests import model_hub

from vllm_batch import model_source
from vllm_batch.errors import InvalidInput


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with model_hub.served() as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield


def test_a_model_that_is_there(hub: None) -> None:
    found = model_source.look("org/there", adapter=False)
    assert found.config == {"hidden_size": 8, "model_type": "llama"}
    assert found.weight_bytes == 1200
    assert not found.warnings


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("org/nowhere", "has no model org/nowhere"),
        ("org/empty", r"no config\.json"),
        ("not a/hub/id", "neither a folder nor a hub id"),
    ],
)
def test_what_is_not_there_is_refused(hub: None, source: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        model_source.look(source, adapter=False)


def test_a_model_is_no_adapter(hub: None) -> None:
    with pytest.raises(InvalidInput, match="no adapter"):
        model_source.look("org/there", adapter=True)


def test_what_cannot_be_seen_is_said(hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "licence" in model_source.look("org/gated", adapter=False).warnings[0]
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in model_source.look("org/there", adapter=False).warnings[0]
