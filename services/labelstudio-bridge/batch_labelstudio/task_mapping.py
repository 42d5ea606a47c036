"""From a line of results to a task with a prediction. Pure.

A task's fields are those that the project's label config shows. They are filled, in this order,
from the ``metadata`` of the request, from what it asked, and from what was answered: a field called
``answer``, ``response``, ``output`` or ``completion`` takes the answer, the two sides of a pairwise
comparison take the first two choices of one request, every other field takes the question.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from vllm_batch.labeling.answers import Answer, to_result
from vllm_batch.labeling.label_config import Control, LabelConfig
from vllm_batch.labeling.prompting import read_answer

ANSWER_FIELDS = frozenset({"answer", "response", "output", "completion"})
EXTERNAL_ID = "external_id"

Json = dict[str, Any]


class Unmappable(Exception):
    """A line cannot become a task; the message says why, for people."""


@dataclass(frozen=True, slots=True)
class Line:
    """A request and its answer, as they stand in files. ``body``: the request's; None where only
    the answer is known."""

    custom_id: str
    body: Any
    response: Any
    error: Any = None


def task_of(line: Line, config: LabelConfig, source: str) -> Json:
    """Return the task as Label Studio imports it.

    Raises:
        Unmappable: the request failed, or does not have what the label config shows.
    """
    response = _object(line.response)
    answered = _object(response.get("body"))
    if line.error or response.get("status_code") != 200 or not answered:
        raise Unmappable(f"{line.custom_id}: the request failed")
    answers = _answers(answered)
    if not answers:
        raise Unmappable(f"{line.custom_id}: there is no text in the answer")
    data = _data(line, config, answers)
    data[EXTERNAL_ID] = f"{source}/{line.custom_id}"
    task: Json = {"data": data}
    if answer := _read(answers[0], config, data):
        prediction: Json = {
            "result": to_result(config, answer),
            "model_version": str(answered.get("model") or "unknown"),
        }
        if (score := _score(answered)) is not None:
            prediction["score"] = score
        task["predictions"] = [prediction]
    return task


def _data(line: Line, config: LabelConfig, answers: list[str]) -> Json:
    body = _object(line.body)
    data: Json = dict(_object(body.get("metadata")))
    pairwise = next((c for c in config.controls if c.kind == "pairwise"), None)
    if pairwise and not set(pairwise.fields) <= data.keys():
        if len(answers) < len(pairwise.fields):
            raise Unmappable(f"{line.custom_id}: two answers are compared; ask with n=2")
        data |= dict(zip(pairwise.fields, answers, strict=False))
    question = _question(body)
    for field in config.fields:
        if field in data:
            continue
        value = answers[0] if field in ANSWER_FIELDS else question
        if not value:
            why = "" if body else "; the line has no `body`, the request that it answers"
            raise Unmappable(f"{line.custom_id}: nothing for the field '{field}'{why}")
        data[field] = value
    return data


def _question(body: Json) -> str:
    """Return what a request asked: its last message of a user, its prompt or its input."""
    messages = body.get("messages") or body.get("input")
    if isinstance(messages, list):
        users = (m for m in reversed(messages) if isinstance(m, dict) and m.get("role") == "user")
        return _text(next(users, {}).get("content"))
    return _text(messages or body.get("prompt"))


def _answers(answered: Json) -> list[str]:
    """Return the texts of a chat completion, a completion or a response."""
    match answered:
        case {"choices": [*choices]}:
            given = [_object(_object(one).get("message")).get("content") or _object(one).get("text")
                     for one in choices]  # fmt: skip
        case {"output": [*items]}:
            given = [_object(item).get("content") for item in items]
        case _:
            return []
    return [text for text in map(_text, given) if text]


def _object(given: Any) -> Json:
    """Return what is an object in JSON; an empty one for anything else that stands in its place."""
    return given if isinstance(given, dict) else {}


def _text(content: Any) -> str:
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _read(text: str, config: LabelConfig, data: Json) -> Answer:
    """Return what a model said, in JSON as our prompts ask for, or as the bare answer."""
    if answer := read_answer(text, config, data):
        return answer
    primary = config.primary
    if primary is None or primary.kind == "labels":
        return {}
    if primary.kind == "text":
        return {primary.name: text}
    bare = json.dumps({primary.name: _bare(text, primary)})
    return read_answer(bare, config, data)


def _bare(text: str, control: Control) -> Any:
    plain = text.strip().strip(".\"'*").casefold()
    if control.kind == "rating":
        return int(plain) if plain.isascii() and plain.isdigit() else None
    option = next((one for one in control.options if one.casefold() == plain), None)
    return [option] if control.multiple else option


def _score(answered: Json) -> float | None:
    """Return the geometric mean of the probabilities of the answer's tokens, where it has them."""
    try:
        tokens = answered["choices"][0]["logprobs"]["content"]
        logprobs = [float(token["logprob"]) for token in tokens]
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        return None
    if not logprobs or not all(math.isfinite(one) for one in logprobs):
        return None
    return math.exp(min(0.0, sum(logprobs) / len(logprobs)))
