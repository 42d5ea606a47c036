"""What was said about a task: Label Studio's list of regions, and the same as one plain answer.

An answer is what a language model says in JSON: per question a choice or a list of them, a list of
spans, a side, a number or a text. Pure. Offsets count characters (code points) of the task's text,
as the editor of Label Studio 1.23.2 does; where a span's words do not stand there, it does not fit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from vllm_batch.labeling.label_config import Control, LabelConfig

Region = dict[str, Any]
Data = dict[str, Any]


class Span(NamedTuple):
    """A stretch of a text, ``text[start:end]``, that has a label."""

    start: int
    end: int
    label: str
    text: str


Value = list[str] | list[Span] | str | int
_EXPECTED = {"pairwise": "left or right", "rating": "a rating of its scale", "text": "a text"}

Answer = dict[str, Value]
"""By the question's name: choices always as a list, also where only one is allowed."""


def from_result(config: LabelConfig, result: Iterable[Region], data: Data | None = None) -> Answer:
    """Return what regions say; what does not fit the label config is left out.

    With the task's ``data`` the words of spans are those of its text, also where the editor wrote
    them in its own way.
    """
    answer: Answer = {}
    regions: dict[str, list[Region]] = {}
    for region in result:
        regions.setdefault(str(region.get("from_name")), []).append(region)
    for control in config.answerable:
        value = _value_of(control, regions.get(control.name, []))
        if isinstance(value, list) and data is not None and control.kind == "labels":
            text = text_of(control, data)
            spans = [one for one in value if isinstance(one, Span)]
            value = [one._replace(text=text[one.start : one.end]) for one in spans]
        if value is not None:
            answer[control.name] = value
    return answer


def to_result(config: LabelConfig, answer: Answer) -> list[Region]:
    """Return an answer as Label Studio's regions."""
    regions: list[Region] = []
    for control in config.answerable:
        if control.name in answer:
            regions += _regions_of(control, answer[control.name])
    return regions


def check(config: LabelConfig, result: Iterable[Region], data: Data | None = None) -> list[str]:
    """Return a sentence for everything in ``result`` that does not fit the label config, and, where
    the task's ``data`` is given, its text; an empty list if all does."""
    result = list(result)
    problems: list[str] = []
    for region in result:
        name = str(region.get("from_name", ""))
        if "from_name" not in region:
            continue  # a relation between regions
        control = config.find(name)
        if control is None:
            problems.append(f"The label config has no control '{name}'.")
        elif control.kind != "other":
            problems += _problems(control, region, data)
    said = {str(region.get("from_name")) for region in result}
    primary = config.primary
    for control in config.answerable:
        wanted = control.required or (control is primary and control.kind != "labels")
        if wanted and control.name not in said:
            problems.append(f"'{control.name}' has no answer.")
    return problems


def text_of(control: Control, data: Data) -> str:
    """Return the text of a task that a question is about."""
    values = (data.get(field) for field in control.fields)
    return next((value for value in values if isinstance(value, str)), "")


def place(text: str, spans: Iterable[Span]) -> list[Span]:
    """Return the spans at the places where they really are in ``text``, in its order.

    An offset that is wrong is replaced by the nearest free place where the span's words stand;
    a span whose words are not there is left out, and so is one that is there already.
    """
    placed: set[Span] = set()
    for span in spans:
        if text[span.start : span.end] == span.text and span.text:
            placed.add(span)
        elif (found := _search(text, span, placed)) is not None:
            placed.add(found)
    return sorted(placed)


def _search(text: str, span: Span, taken: set[Span]) -> Span | None:
    if not span.text.strip():
        return None
    for flags in (re.NOFLAG, re.IGNORECASE):
        places = [
            Span(match.start(), match.end(), span.label, match.group())
            for match in re.finditer(re.escape(span.text.strip()), text, flags)
        ]
        free = [one for one in places if one not in taken]
        if free:
            return min(free, key=lambda one: abs(one.start - span.start))
    return None


def _value_of(control: Control, regions: Sequence[Region]) -> Value | None:
    values = [value for region in regions if isinstance(value := region.get("value"), dict)]
    if control.kind == "labels":
        return sorted({span for value in values for span in _spans_of(control, value)})
    for value in values:
        match control.kind, value:
            case "choices", {"choices": [*chosen]}:
                return [one for one in control.options if one in chosen] or None
            case "pairwise", {"selected": str(side)} if side in control.options:
                return side
            case "rating", {"rating": int(rating)} if 1 <= rating <= control.rating_max:
                return rating
            case "text", {"text": str() | list() as text}:
                return text if isinstance(text, str) else "\n".join(map(str, text))
    return None


def _spans_of(control: Control, value: dict[str, Any]) -> list[Span]:
    match value:
        case {"start": int(start), "end": int(end), "labels": [*labels]}:
            text = str(value.get("text", ""))
            return [Span(start, end, one, text) for one in labels if one in control.options]
    return []


def _regions_of(control: Control, value: Value) -> list[Region]:
    match control.kind, value:
        case "labels", [*spans]:
            values: list[tuple[str, dict[str, Any]]] = [
                (
                    "labels",
                    {
                        "start": span.start,
                        "end": span.end,
                        "text": span.text,
                        "labels": [span.label],
                    },
                )
                for span in spans
                if isinstance(span, Span)
            ]
        case "choices", _:
            values = [("choices", {"choices": value})]
        case "pairwise", _:
            values = [("pairwise", {"selected": value})]
        case "rating", _:
            values = [("rating", {"rating": value})]
        case _:
            values = [("textarea", {"text": [value]})]
    return [
        {
            "id": f"{control.name}-{number}",
            "from_name": control.name,
            "to_name": ",".join(control.to_names),
            "type": kind,
            "value": one,
        }
        for number, (kind, one) in enumerate(values)
    ]


def _problems(control: Control, region: Region, data: Data | None) -> list[str]:
    value = region.get("value")
    if not isinstance(value, dict):
        return [f"A region of '{control.name}' has no value."]
    match control.kind:
        case "choices":
            return _choice_problems(control, value)
        case "labels":
            return _span_problems(control, value, data)
        case _ if _value_of(control, [region]) is None:
            return [f"'{control.name}' is not {_EXPECTED[control.kind]}."]
    return []


def _choice_problems(control: Control, value: dict[str, Any]) -> list[str]:
    chosen = value.get("choices")
    if not isinstance(chosen, list) or not chosen:
        return [f"'{control.name}' has no choice."]
    if len(chosen) > 1 and not control.multiple:
        return [f"'{control.name}' allows one choice and has {len(chosen)}."]
    return _unknown(control, chosen)


def _span_problems(control: Control, value: dict[str, Any], data: Data | None) -> list[str]:
    labels, start, end = value.get("labels"), value.get("start"), value.get("end")
    if not isinstance(labels, list) or not labels:
        return [f"A span of '{control.name}' has no label."]
    if not isinstance(start, int) or not isinstance(end, int) or not 0 <= start < end:
        return [f"A span of '{control.name}' has no proper start and end."]
    problems = _unknown(control, labels)
    if data is not None:
        text, words = text_of(control, data), value.get("text")
        if end > len(text):
            problems.append(f"A span of '{control.name}' ends at {end}, after the text's end.")
        elif isinstance(words, str) and _as_read(words) != _as_read(text[start:end]):
            problems.append(f"The text from {start} to {end} is not '{words[:40]}'.")
    return problems


def _as_read(words: str) -> str:
    """Return words however they break into lines: the editor writes a line's end as ``\\n``, and
    blanks as the browser shows them."""
    return " ".join(words.replace("\\r", " ").replace("\\n", " ").split())


def _unknown(control: Control, values: list[Any]) -> list[str]:
    unknown = [str(one) for one in values if one not in control.options]
    return [f"'{control.name}' has no option '{one[:40]}'." for one in unknown]
