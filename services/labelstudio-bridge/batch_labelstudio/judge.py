"""A language model's opinion of an annotation, where a project has a ``judge_model``."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import msgspec
import structlog

from batch_labelstudio.predicting import Predictor
from vllm_batch.errors import ModelRefused
from vllm_batch.labeling.answers import Data, Region
from vllm_batch.labeling.label_config import LabelConfig
from vllm_batch.labeling.prompting import answer_of, chat_of, encodable

log = structlog.get_logger(__name__)

TOKENS_MAX = 200
WHY_CHARACTERS_MAX = 300
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "verdict": {"type": "string", "enum": ["right", "wrong"]},
        "reason": {"type": "string", "maxLength": 300},
    },
    "required": ["verdict", "reason"],
    "additionalProperties": False,
}


class _Opinion(msgspec.Struct):
    verdict: Literal["right", "wrong"]
    reason: str = ""


async def objection(
    predictor: Predictor,
    model: str,
    *,
    config: LabelConfig,
    prompt: str,
    data: Data,
    result: list[Region],
    seconds: float,
) -> str | None:
    """Return why ``model`` does not call an annotation right; None: it does.

    A judge that cannot be asked, or says nothing usable, approves of nothing: a person decides.
    """
    [form, asked] = chat_of(data, config, prompt)
    messages = [
        {
            "role": "system",
            "content": "You check the work of annotators. "
            'Answer with a JSON object: {"verdict": "right" or "wrong", "reason": a sentence}',
        },
        {
            "role": "user",
            "content": f"The annotator was told: {form['content']}\n\n{asked['content']}\n\n"
            f"The annotator answered: {answer_of(result, config, data)}",
        },
    ]
    try:
        async with asyncio.timeout(seconds):
            text, _ = await predictor.ask(model, messages, _SCHEMA, tokens_max=TOKENS_MAX)
        opinion = msgspec.convert(json.loads(text), _Opinion)
    except (ModelRefused, TimeoutError, ValueError, RecursionError) as error:
        why = str(error) or "out of time"
        log.warning("the judge has no opinion", model=model, why=why)
        return encodable(f"The judge is unavailable: {why[:WHY_CHARACTERS_MAX]}")
    if opinion.verdict == "right":
        return None
    return encodable(opinion.reason) or "It gave no reason."
