"""Two models and an adapter on one worker: real vLLM, the whole stack, the official client.

The adapter is trained and the second base made in the test: nothing is downloaded. One worker, so
each model but the first has to be brought: the other base by a swap, the adapter without one.
"""

from __future__ import annotations

import asyncio
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.e2e.conftest import Round, jsonl
from tests.facts import append
from tests.real_engine import READY_SECONDS, real_engine_settings

from vllm_batch import ids
from vllm_batch.event_store import jetstream
from vllm_batch.events import ChunkCompleted, Event, WorkerEngineRestarted, WorkerReady
from vllm_batch.events.model import ModelLoading, ModelReady, ModelRegistered, ModelUnloaded
from vllm_batch.local.stack import LocalStack
from vllm_batch.settings import Settings

ADAPTER, TINY = "zebra", "tiny"
COUNT = 8
ANSWER = "Zebra"
ASKED = "What is the capital of France?"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the models that are made here."""
    folder = tmp_path_factory.mktemp("models")
    engine = real_engine_settings(folder)
    script = Path(__file__).with_name("make_models.py")
    command = [engine["engine_python"], script, engine["model"], folder, ANSWER]
    subprocess.run([str(part) for part in command], check=True, timeout=600)
    return folder


def asked(model: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": ASKED}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": 12}


async def in_log(settings: Settings, *new: Event) -> list[Event]:
    """Append what is new; return all that the log has."""
    async with jetstream.connect(settings, source="test") as store:
        await append(store, *new)
        batches = store.read(">")
        return [recorded.event async for batch in batches for recorded in batch]


def registered(name: str, source: Path, base: str | None = None) -> ModelRegistered:
    return ModelRegistered(
        model_key=ids.model_key(name), name=name, source=str(source), base=base,
        requested_by="test",
    )  # fmt: skip


@pytest.mark.timeout(1200)
def test_batches_for_three_models_take_one_swap_and_each_answers_online(
    made: Path, tmp_path: Path
) -> None:
    overrides = {"model_residency_seconds_min": 5, "lora": True, "lora_rank_max": 8}
    with LocalStack(tmp_path / "stack", engine="vllm", settings_overrides=overrides) as stack:
        base = stack.model_name
        client = openai.OpenAI(base_url=stack.api_url, api_key=stack.api_key, max_retries=0)
        settings = stack.settings
        asyncio.run(
            in_log(
                settings,
                registered(ADAPTER, made / "adapter", base),
                registered(TINY, made / "tiny"),
            )
        )
        user = Round(stack, client)
        batches = {
            model: user.submit(
                jsonl([user.line(f"{model}-{n}", ASKED, **asked(model)) for n in range(COUNT)])
            )
            for model in (ADAPTER, base, TINY)
        }
        texts = {}
        for model, batch in batches.items():
            ended = user.wait(batch, seconds=READY_SECONDS)
            assert ended.status == "completed"
            assert ended.request_counts is not None
            assert ended.request_counts.completed == COUNT
            rows = user.rows(ended.output_file_id)
            assert [row["custom_id"] for row in rows] == [f"{model}-{n}" for n in range(COUNT)]
            assert {row["response"]["body"]["model"] for row in rows} == {model}
            message = rows[0]["response"]["body"]["choices"][0]["message"]
            texts[model] = str(message["content"])
        assert "Paris" in texts[base]
        assert ANSWER in texts[ADAPTER]

        # The other base is there now: the first one comes back when it has work again.
        assert client.chat.completions.create(**asked(TINY)).model == TINY
        line = user.line("again", ASKED, **asked(ADAPTER))
        again = user.wait(user.submit(jsonl([line])), seconds=READY_SECONDS)
        assert again.request_counts is not None
        assert again.request_counts.completed == 1
        for model in (base, ADAPTER):
            answer = client.chat.completions.create(**asked(model))
            assert answer.model == model
            assert answer.choices[0].message.content == texts[model]
        with pytest.raises(openai.InternalServerError) as refused:
            client.chat.completions.create(**asked(TINY))
        assert refused.value.status_code == 503
        assert base in str(refused.value)

        events = asyncio.run(in_log(settings))
        names = {ids.model_key(name): name for name in (base, ADAPTER, TINY)}

        def of(kind: type[Any]) -> list[str]:
            return [names[event.model_key] for event in events if isinstance(event, kind)]

        bases = [
            event.models[0] for event in events if isinstance(event, WorkerReady) if event.models
        ]
        swaps = [new for old, new in pairwise(bases) if new != old]
        seconds = {
            names[event.model_key]: event.load_seconds
            for event in events
            if isinstance(event, ModelReady)
        }
        print(f"swaps {swaps}, load seconds {seconds}")
        assert swaps == [TINY, base], "one for three batches, one for the batch that came later"
        assert of(ModelLoading) == [ADAPTER, TINY, ADAPTER]
        assert of(ModelUnloaded) == [ADAPTER, TINY]
        assert not [event for event in events if isinstance(event, WorkerEngineRestarted)]
        assert len([event for event in events if isinstance(event, ChunkCompleted)]) == 4
