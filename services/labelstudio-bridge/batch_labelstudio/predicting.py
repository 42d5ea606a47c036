"""Asks a model about tasks through the gateway's online API, in the form of the label config.

Used by the ML backend, by measurements of accuracy and by the judge: the same way each time.
Records nothing. A model that says nothing usable gives an empty answer; a model that cannot be
reached gives none, with the reason.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec
import structlog

from batch_labelstudio import scoring
from vllm_batch.errors import ModelRefused
from vllm_batch.labeling.answers import Answer, Data
from vllm_batch.labeling.label_config import Control, LabelConfig
from vllm_batch.labeling.prompting import Message, chat_of, read_answer, schema_of
from vllm_batch.settings import Settings
from vllm_batch.tracing.http import pass_on

log = structlog.get_logger(__name__)

CONNECT_SECONDS = 5.0
RETRY_SECONDS = 0.5
RETRY_SECONDS_MAX = 5.0
_RETRYABLE = frozenset({408, 409, 425, 429, 502, 503})
_SLACK_TOKENS = 16
_PATH = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a model: the same for all tasks of a call."""

    config: LabelConfig
    model: str
    prompt: str = ""
    so_far: Answer = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prediction:
    """A model's answer to one task; empty if it said nothing usable.

    ``score``: how sure it was, in [0, 1]; None if the engine does not tell. ``failed``: why there
    was no answer at all.
    """

    answer: Answer = field(default_factory=dict)
    score: float | None = None
    failed: str | None = None


class _Logprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None


class _Logprobs(msgspec.Struct):
    content: list[_Logprob] | None = None


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    logprobs: _Logprobs | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]


class Predictor:
    """Asks; bounded in time and in requests at once."""

    def __init__(
        self, client: httpx.AsyncClient, settings: Settings, *, rng: random.Random | None = None
    ) -> None:
        self._client = client
        self._in_flight_max = settings.label_predict_in_flight_max
        self._tokens_max = settings.label_answer_tokens_max
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not a secret

    async def predict(
        self, tasks: Sequence[Data], question: Question, *, seconds: float
    ) -> list[Prediction]:
        """Return one prediction per task, in their order, within ``seconds``."""
        if not tasks or not question.config.answerable:
            return [Prediction() for _ in tasks]
        slots = asyncio.Semaphore(self._in_flight_max)

        async def one(data: Data) -> Prediction:
            async with slots:
                return await self._one(data, question)

        asked = [asyncio.create_task(one(data)) for data in tasks]
        try:
            await asyncio.wait(asked, timeout=seconds)
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        late = Prediction(failed=f"no answer within {seconds:g} s")
        found = [late if task.cancelled() else task.result() for task in asked]
        if failures := [one.failed for one in found if one.failed]:
            log.warning(
                "tasks without a prediction",
                model=question.model, tasks=len(tasks), failed=len(failures), why=failures[0],
            )  # fmt: skip
        return found

    async def ask(
        self, model: str, messages: list[Message], schema: dict[str, Any], *, tokens_max: int
    ) -> tuple[str, list[scoring.Token]]:
        """Return a model's text and its tokens, an empty text if it said nothing; waits as long
        as the gateway is busy or away.

        Raises:
            ModelRefused: it is no use to ask again; the message says why.
        """
        body = {
            "model": model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": tokens_max,
            "logprobs": True,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": schema, "strict": True},
            },
        }
        while True:
            try:
                answer = await self._client.post(_PATH, json=body)
            except httpx.LocalProtocolError as error:
                raise ModelRefused(f"the gateway cannot be asked: {error}") from error
            except httpx.TransportError as error:
                log.debug("asking again", why=repr(error))
                await self._pause("")
                continue
            if answer.status_code not in _RETRYABLE:
                return _read(answer)
            await self._pause(answer.headers.get("retry-after", ""))

    async def _one(self, data: Data, question: Question) -> Prediction:
        config = question.config
        messages = chat_of(data, config, question.prompt, so_far=question.so_far)
        try:
            text, tokens = await self.ask(
                question.model,
                messages,
                schema_of(config),
                tokens_max=_tokens_max(config, self._tokens_max),
            )
        except ModelRefused as error:
            return Prediction(failed=str(error))
        answer = read_answer(text, config, data)
        return Prediction(answer, scoring.score(text, tokens, list(answer)))

    async def _pause(self, retry_after: str) -> None:
        seconds = float(retry_after) if retry_after.isascii() and retry_after.isdigit() else 0.0
        seconds = min(max(seconds, RETRY_SECONDS), RETRY_SECONDS_MAX)
        await asyncio.sleep(seconds * self._rng.uniform(0.5, 1.0))


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[Predictor]:
    """Yield a predictor that asks the gateway of the settings with their key."""
    key = settings.gateway_api_key.get_secret_value()
    async with httpx.AsyncClient(
        base_url=settings.gateway_url.rstrip("/"),
        headers={"authorization": f"Bearer {key}"} if key else {},
        # How long an answer takes is the caller's to say; how many run, too.
        timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
        limits=httpx.Limits(max_connections=None),
        event_hooks={"request": [pass_on]},
    ) as client:
        yield Predictor(client, settings)


def _read(answer: httpx.Response) -> tuple[str, list[scoring.Token]]:
    if not answer.is_success:
        raise ModelRefused(f"the gateway answers {answer.status_code}: {answer.text[:300]}")
    try:
        [choice, *_] = msgspec.json.decode(answer.content, type=_Completion).choices
    except (msgspec.DecodeError, ValueError):
        return "", []
    tokens = (choice.logprobs.content if choice.logprobs else None) or []
    return choice.message.content or "", [
        scoring.Token(
            bytes(token.bytes) if token.bytes is not None else token.token.encode(), token.logprob
        )
        for token in tokens
    ]


def _tokens_max(config: LabelConfig, limit: int) -> int:
    """Return how many tokens an answer may have: a token has at least one byte."""
    sizes = [_bytes_max(control) for control in config.answerable]
    return limit if math.inf in sizes else min(limit, int(sum(sizes)) + _SLACK_TOKENS)


def _bytes_max(control: Control) -> float:
    name = len(msgspec.json.encode(control.name)) + len(": , ")
    match control.kind:
        case "choices" if control.multiple:
            return name + len(msgspec.json.encode(control.options)) + len(control.options)
        case "choices" | "pairwise":
            return name + max(len(msgspec.json.encode(option)) for option in control.options)
        case "rating":
            return name + len(str(control.rating_max))
        case _:
            return math.inf
