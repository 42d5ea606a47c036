"""Structured output of a label config on real vLLM, through the gateway: every answer fits."""

from __future__ import annotations

from typing import Any

import pytest
from tests.e2e.conftest import Round
from tests.unit.labelstudio.configs import CHOICES, MANY, PAIRWISE, SPANS

from batch_labelstudio import predicting
from batch_labelstudio.predicting import Question
from vllm_batch.labeling.answers import check, to_result
from vllm_batch.labeling.label_config import parse
from vllm_batch.settings import Settings

SECONDS = 400.0


@pytest.mark.parametrize(
    ("xml", "data"),
    [
        (CHOICES, {"text": "I love it, great."}),
        (SPANS, {"text": "John met Ann at IBM."}),
        (PAIRWISE, {"prompt": "2 + 2?", "answer_a": "4", "answer_b": "a fish"}),
        (MANY, {"t": "All is good."}),
    ],
    ids=["choices", "spans", "pairwise", "many questions"],
)
async def test_what_the_model_says_fits_the_label_config(
    real: Round, xml: str, data: dict[str, Any]
):
    settings = Settings(
        home=real.stack.home.root,
        gateway_url=real.stack.settings.gateway_url,
        gateway_api_key=real.stack.api_key,
        label_answer_tokens_max=128,
    )
    config = parse(xml)
    async with predicting.connected(settings) as predictor:
        [found] = await predictor.predict([data], Question(config, real.model), seconds=SECONDS)
    assert found.failed is None
    assert check(config, to_result(config, found.answer), data) == []
    assert found.answer.keys() == {control.name for control in config.controls}
    assert found.score is not None
    assert 0 < found.score <= 1
