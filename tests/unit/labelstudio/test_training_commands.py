"""``vllm-batch training``: what it writes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from vllm_batch.blobs import open_blobs
from vllm_batch.cli import service_settings, training
from vllm_batch.settings import Settings

MADE = {
    "dataset_id": "ds_1", "train_examples": 2, "validation_examples": 1, "held_out": 1,
    "train_blob": "datasets/ds_1/train.jsonl",
}  # fmt: skip


def test_an_export_writes_every_file_of_its_dataset_and_of_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(home=tmp_path, blob_url=f"file://{tmp_path}/blobs")
    names = [f"{part}.{end}" for part in ("train", "validation") for end in ("csv", "jsonl")]

    async def store() -> None:
        blobs = open_blobs(settings.blob_url)
        for name in names:
            await blobs.put(f"datasets/ds_1/{name}", name.encode())
            await blobs.put(f"datasets/ds_10/{name}", b"another")

    asyncio.run(store())
    monkeypatch.setattr(training, "_with_store", lambda *_: MADE)
    monkeypatch.setattr(service_settings, "settings_of", lambda _: settings)
    folder = tmp_path / "to" / "here"
    training.export("1", "classification", folder, as_json=True)
    written = {file.name: file.read_text() for file in folder.iterdir()}
    assert written == {name: name for name in names}
    said = json.loads(capsys.readouterr().out)
    assert said["files"] == [str(folder / name) for name in names]
    training.export("1", "sft", None)
    assert "2 + 1 examples in datasets/ds_1/train.jsonl" in capsys.readouterr().out
