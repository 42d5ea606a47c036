"""What a model is estimated to need, against the files of the small one."""

from __future__ import annotations

import json

from vllm_batch.local.model import model_dir
from vllm_batch.model_estimate import estimate, stored_bytes


def test_the_small_model_is_estimated_as_large_as_it_is() -> None:
    config = json.loads((model_dir() / "config.json").read_bytes())
    stored = stored_bytes(model_dir())
    assert stored == 269_030_016
    by_shape = estimate(config, [], weight_bytes=None, sequences=8)
    by_files = estimate(config, [], weight_bytes=stored, sequences=8)
    assert by_shape is not None
    assert by_files is not None
    assert (by_shape.weights_from, by_shape.weight_bytes) == ("shape", stored)
    assert by_files.weights_from == "files"
