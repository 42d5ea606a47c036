"""What a model is asked about a task, in which form it has to answer, and how that is read.

The same for predictions, for accuracy and for the examples of a training: a model is trained on
exactly what it is asked later. Pure.
"""

from __future__ import annotations

import json
import re
from typing import Any

from vllm_batch.labeling.answers import (
    Answer,
    Data,
    Region,
    Span,
    Value,
    from_result,
    place,
    text_of,
)
from vllm_batch.labeling.label_config import Control, LabelConfig

Message = dict[str, str]

SPANS_MAX = 100
_FIELD = re.compile(r"\{(\w+)\}")
_SPAN_KEYS = ("start", "end", "text", "label")


def chat_of(
    data: Data, config: LabelConfig, prompt: str = "", *, so_far: Answer | None = None
) -> list[Message]:
    """Return the messages that ask a model about a task.

    ``prompt`` has the task's fields in braces; empty: the fields that the project shows, one per
    line. ``so_far``: what an annotator has said already (interactive mode).
    """
    asked = (
        _FIELD.sub(lambda field: _filled(field, data), prompt) if prompt else _shown(config, data)
    )
    if so_far:
        asked += f"\n\nSo far the annotator says: {_encoded(config, so_far)}"
    return [
        {"role": "system", "content": _form(config)},
        {"role": "user", "content": asked},
    ]


def answer_of(result: list[Region], config: LabelConfig, data: Data) -> str:
    """Return what a model should have answered about a task, where ``result`` is right: JSON on one
    line."""
    return _encoded(config, from_result(config, result, data))


def schema_of(config: LabelConfig) -> dict[str, Any]:
    """Return the JSON schema of an answer: an object with one property per question."""
    controls = config.answerable
    return {
        "type": "object",
        "properties": {control.name: _schema(control) for control in controls},
        "required": [control.name for control in controls],
        "additionalProperties": False,
    }


def read_answer(text: str, config: LabelConfig, data: Data) -> Answer:
    """Return what a model answered; questions that it did not answer properly are left out.

    Nothing in ``text`` is an error: an answer that cannot be read is an empty one.
    """
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(said, dict):
        return {}
    answer: Answer = {}
    for control in config.answerable:
        value = _read(control, said.get(control.name), data)
        if value is not None:
            answer[control.name] = value
    return answer


def encodable(text: str) -> str:
    """Return what a model said as text that can be stored and sent on: JSON may have escapes of
    half a character (``\\ud83d``), which no UTF-8 can say; they become question marks."""
    return text.encode(errors="replace").decode()


def _filled(field: re.Match[str], data: Data) -> str:
    name = field[1]
    return _as_text(data[name]) if name in data else field[0]


def _shown(config: LabelConfig, data: Data) -> str:
    fields = [field for field in config.fields if field in data]
    if len(fields) == 1:
        return _as_text(data[fields[0]])
    return "\n".join(f"{field}: {_as_text(data[field])}" for field in fields)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _form(config: LabelConfig) -> str:
    parts = (f"{json.dumps(control.name)}: {_wanted(control)}" for control in config.answerable)
    return f"Answer with a JSON object: {{{', '.join(parts)}}}"


def _wanted(control: Control) -> str:
    options = ", ".join(json.dumps(option, ensure_ascii=False) for option in control.options)
    match control.kind:
        case "choices" if control.multiple:
            return f"a list of those that fit among {options}"
        case "choices":
            return f"one of {options}"
        case "labels":
            return (
                'a list of {"start", "end", "text", "label"} for words of the text, '
                f"each label one of {options}"
            )
        case "pairwise":
            return f'"left" if {control.fields[0]} is better, "right" if {control.fields[-1]} is'
        case "rating":
            return f"a whole number from 1 to {control.rating_max}"
        case _:
            return "a text"


def _schema(control: Control) -> dict[str, Any]:
    option = {"type": "string", "enum": list(control.options)}
    match control.kind:
        case "choices" if control.multiple:
            return {"type": "array", "items": option, "maxItems": len(control.options)}
        case "choices" | "pairwise":
            return option
        case "labels":
            number, text = {"type": "integer", "minimum": 0}, {"type": "string"}
            kinds = dict(zip(_SPAN_KEYS, (number, number, text, option), strict=True))
            span = {
                "type": "object",
                "properties": kinds,
                "required": list(_SPAN_KEYS),
                "additionalProperties": False,
            }
            return {"type": "array", "items": span, "maxItems": SPANS_MAX}
        case "rating":
            return {"type": "integer", "enum": list(range(1, control.rating_max + 1))}
        case _:
            return {"type": "string"}


def _encoded(config: LabelConfig, answer: Answer) -> str:
    said = {
        control.name: _plain(control, answer[control.name])
        for control in config.answerable
        if control.name in answer
    }
    return json.dumps(said, ensure_ascii=False)


def _plain(control: Control, value: Value) -> Any:
    match control.kind, value:
        case "choices", [first, *_] if not control.multiple:
            return first
        case "labels", [*spans]:
            return [{key: getattr(span, key) for key in _SPAN_KEYS} for span in spans]
    return value


def _read(control: Control, said: Any, data: Data) -> Value | None:
    match control.kind, said:
        case "choices", [*many] if control.multiple:
            return [one for one in control.options if one in many] or None
        case "choices" | "pairwise", str(one) if one in control.options:
            return one if control.kind == "pairwise" else [one]
        case "labels", [*spans]:
            found = [span for one in spans[:SPANS_MAX] if (span := _read_span(control, one))]
            return place(text_of(control, data), found)
        case "rating", int(rating) if not isinstance(rating, bool):
            return rating if 1 <= rating <= control.rating_max else None
        case "text", str(text) if text.strip():
            return encodable(text)
    return None


def _read_span(control: Control, said: Any) -> Span | None:
    match said:
        case {"text": str(text), "label": str(label)} if label in control.options:
            start, end = said.get("start"), said.get("end")
            proper = isinstance(start, int) and isinstance(end, int)
            return Span(start, end, label, text) if proper else Span(0, 0, label, text)
    return None
