"""An uploaded file of results, which belongs to no batch, becomes tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests import facts
from tests.facts import append
from tests.unit.labelstudio.configs import CHOICES

from batch_labelstudio import result_lines
from batch_labelstudio.task_mapping import task_of
from vllm_batch.blobs import open_blobs
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.labeling.label_config import parse

FILE = "file-1"


def result(custom_id: str, **more: Any) -> dict[str, Any]:
    choices = [{"message": {"content": "Positive"}}]
    body = {"model": "m", "choices": choices}
    return {"custom_id": custom_id, "response": {"status_code": 200, "body": body}, **more}


async def test_a_file_whose_lines_have_their_requests_is_pushed_like_a_batch(
    tmp_path: Path,
) -> None:
    store, blobs = MemoryEventStore(), open_blobs(f"file://{tmp_path}")
    file = facts.uploaded(FILE)
    asked = {"messages": [{"role": "user", "content": "a fine film"}]}
    lines = [result("r1", body=asked), {"id": "no result"}, result("r2", body="x")]
    await blobs.put(file.blob, b"".join(json.dumps(one).encode() + b"\n" for one in lines))
    await append(store, file)
    files = await result_lines.files_of(store, FILE)
    found = [line async for line in result_lines.lines_of(files, blobs)]
    first, second, third = found
    assert not isinstance(first, str)
    task = task_of(first, parse(CHOICES), FILE)
    assert task["data"] == {"text": "a fine film", "external_id": "file-1/r1"}
    assert task["predictions"][0]["result"][0]["value"] == {"choices": ["Positive"]}
    assert second == "line 2 is no result of a request"
    assert not isinstance(third, str)
