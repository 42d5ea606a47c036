"""What a judge says of an annotation, and what it means where it says nothing."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from tests.unit.labelstudio.configs import CHOICES

from batch_labelstudio import judge
from batch_labelstudio.predicting import Predictor
from vllm_batch.labeling.label_config import parse
from vllm_batch.settings import Settings

RESULT = [{"from_name": "sentiment", "to_name": "text", "value": {"choices": ["Positive"]}}]


async def objection(folder: Path, answer: httpx.Response) -> str | None:
    transport = httpx.MockTransport(lambda _: answer)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        return await judge.objection(
            Predictor(client, Settings(home=folder)),
            "judge",
            config=parse(CHOICES),
            prompt="",
            data={"text": "fine"},
            result=RESULT,
            seconds=0.05,
        )


def says(text: str) -> httpx.Response:
    return httpx.Response(200, json={"choices": [{"message": {"content": text}}]})


@pytest.mark.parametrize(
    ("verdict", "reason", "objected"),
    [
        ("right", "yes", None),
        ("wrong", "It reads so.", "It reads so."),
        ("wrong", "", "It gave no reason."),
        ("wrong", "so \ud83d", "so ?"),
    ],
)
async def test_a_judge_objects_where_it_calls_an_annotation_wrong(
    tmp_path: Path, verdict: str, reason: str, objected: str | None
) -> None:
    said = json.dumps({"verdict": verdict, "reason": reason})
    assert await objection(tmp_path, says(said)) == objected


@pytest.mark.parametrize(
    "answer",
    [
        says(""),
        says("It is right."),
        says('{"verdict": "perhaps", "reason": ""}'),
        says("[" * 100_000),
        httpx.Response(404, text="no such model"),
        httpx.Response(503),
    ],
)
async def test_a_judge_that_is_unavailable_approves_of_nothing(
    tmp_path: Path, answer: httpx.Response
) -> None:
    assert "unavailable" in (await objection(tmp_path, answer) or "")
