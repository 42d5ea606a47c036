"""What was said about a task: regions, answers, and models' JSON, there and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.labelstudio.configs import CHOICES, MANY, PAIRWISE, SPANS

from vllm_batch.labeling.answers import Span, check, from_result, place, to_result
from vllm_batch.labeling.label_config import parse
from vllm_batch.labeling.prompting import answer_of, chat_of, read_answer, schema_of

TEXT = "John met Ann. John works for IBM."


def spans_region(start: int, end: int, text: str, label: str = "PER") -> dict:
    value = {"start": start, "end": end, "text": text, "labels": [label]}
    return {"from_name": "label", "to_name": "text", "type": "labels", "value": value}


@pytest.mark.parametrize(
    ("xml", "data", "said"),
    [
        (CHOICES, {"text": "fine"}, {"sentiment": "Negative"}),
        (PAIRWISE, {"answer_a": "x", "answer_b": "y"}, {"pw": "right"}),
        (MANY, {"t": "x"}, {"topics": ["a", "b"], "stars": 4, "why": "so"}),
        (
            SPANS,
            {"text": TEXT},
            {"label": [{"start": 29, "end": 32, "text": "IBM", "label": "ORG"}]},
        ),
    ],
)
def test_an_answer_becomes_regions_and_again_the_same_answer(xml: str, data: dict, said: dict):
    config = parse(xml)
    result = to_result(config, read_answer(json.dumps(said), config, data))
    assert check(config, result, data) == []
    assert json.loads(answer_of(result, config, data)) == said


def test_regions_are_as_label_studio_writes_them():
    config = parse(PAIRWISE)
    assert to_result(config, {"pw": "left"}) == [
        {
            "id": "pw-0",
            "from_name": "pw",
            "to_name": "a,b",
            "type": "pairwise",
            "value": {"selected": "left"},
        }
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I think it is positive.",
        "[]",
        "null",
        '{"sentiment": "positive-ish"}',
        '{"sentiment": ["Positive"]}',
        '{"sentiment": {"a": 1}}',
        '{"other": "Positive"}',
        '{"sentiment": "Pos',
        "[" * 100_000,
    ],
)
def test_rubbish_is_an_empty_answer(text: str):
    assert read_answer(text, parse(CHOICES), {"text": "fine"}) == {}


def test_half_a_character_in_an_answer_can_be_sent_on():
    answer = read_answer('{"why": "so \\ud83d"}', parse(MANY), {})
    assert answer == {"why": "so ?"}
    assert json.dumps(to_result(parse(MANY), answer), ensure_ascii=False).encode()


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=4))
def test_no_json_of_a_model_raises(value: object):
    for xml in (CHOICES, SPANS, PAIRWISE, MANY):
        config = parse(xml)
        said = json.dumps({control.name: value for control in config.controls})
        answer = read_answer(said, config, {"text": TEXT})
        assert check(config, to_result(config, answer)) == [] or len(answer) < len(config.controls)


@pytest.mark.parametrize("rating", [0, 6, -1, 2.5, "3", True])
def test_a_rating_outside_its_range_is_no_answer(rating: object):
    assert read_answer(json.dumps({"stars": rating}), parse(MANY), {}) == {}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([(0, 4, "John")], [(0, 4)]),
        ([(1, 5, "John")], [(0, 4)]),
        ([(12, 16, "John")], [(14, 18)]),
        ([(0, 0, "John"), (0, 0, "John")], [(0, 4), (14, 18)]),
        ([(0, 4, "John"), (0, 4, "John")], [(0, 4)]),
        ([(0, 3, " ann ")], [(9, 12)]),
        ([(0, 4, "Jack")], []),
        ([(0, 0, "")], []),
        ([(-9, 10**9, "IBM")], [(29, 32)]),
    ],
)
def test_spans_are_put_where_their_words_are(said: list, expected: list):
    placed = place(TEXT, [Span(start, end, "PER", text) for start, end, text in said])
    assert [(span.start, span.end) for span in placed] == expected
    assert all(TEXT[span.start : span.end] == span.text for span in placed)


def test_offsets_that_no_model_gave_are_found():
    config = parse(SPANS)
    answer = read_answer('{"label": [{"text": "IBM", "label": "ORG"}]}', config, {"text": TEXT})
    assert answer == {"label": [Span(29, 32, "ORG", "IBM")]}


@pytest.mark.parametrize(
    ("xml", "value", "problem"),
    [
        (CHOICES, {"choices": ["Neutral"]}, "no option 'Neutral'"),
        (CHOICES, {"choices": ["Positive", "Negative"]}, "allows one choice"),
        (CHOICES, {"choices": []}, "no choice"),
        (CHOICES, "Positive", "no value"),
        (SPANS, {"start": 0, "end": 4, "labels": ["DOG"]}, "no option 'DOG'"),
        (SPANS, {"start": 4, "end": 4, "labels": ["PER"]}, "start and end"),
        (SPANS, {"start": 0, "end": 99, "labels": ["PER"]}, "after the text's end"),
        (SPANS, {"start": 0, "end": 4, "text": "Jack", "labels": ["PER"]}, "is not 'Jack'"),
        (SPANS, {"start": 0, "end": 4}, "no label"),
        (PAIRWISE, {"selected": "both"}, "left or right"),
    ],
)
def test_what_does_not_fit_the_label_config_is_said(xml: str, value: object, problem: str):
    config = parse(xml)
    [control] = config.controls
    region = {"from_name": control.name, "to_name": "text", "value": value}
    [said] = check(config, [region], {"text": TEXT})
    assert problem in said


def test_an_annotation_without_an_answer_does_not_fit_unless_there_may_be_no_span():
    assert check(parse(CHOICES), []) == ["'sentiment' has no answer."]
    assert check(parse(SPANS), []) == []
    assert "no control 'mood'" in check(parse(SPANS), [{"from_name": "mood", "value": {}}])[0]


def test_an_emoji_is_one_character_as_in_the_editor_and_not_two():
    data = {"text": "😀 John met 👩‍👧 Ann."}
    assert check(parse(SPANS), [spans_region(2, 6, "John")], data) == []
    [said] = check(parse(SPANS), [spans_region(3, 7, "John")], data)
    assert said == "The text from 3 to 7 is not 'John'."
    [beyond] = check(parse(SPANS), [spans_region(0, 21, "all of it")], data)
    assert "after the text's end" in beyond


@pytest.mark.parametrize("words", ["John\\nDoe", "John\nDoe", "John Doe", "John  Doe "])
def test_a_span_over_a_lines_end_is_as_the_editor_writes_it(words: str):
    data = {"text": "I met John\nDoe."}
    assert check(parse(SPANS), [spans_region(6, 14, words)], data) == []


def test_a_model_learns_the_words_of_the_text_not_the_editors_spelling_of_them():
    config, data = parse(SPANS), {"text": "I met John\nDoe."}
    said = answer_of([spans_region(6, 14, "John\\nDoe")], config, data)
    assert json.loads(said)["label"][0]["text"] == "John\nDoe"
    assert read_answer(said, config, data) == {"label": [Span(6, 14, "PER", "John\nDoe")]}


@pytest.mark.parametrize("name", [["sentiment"], {}, 5, None])
def test_a_region_of_no_proper_question_says_nothing_and_does_not_fit(name: object):
    config = parse(CHOICES)
    region = {"from_name": name, "value": {"choices": ["Positive"]}}
    assert from_result(config, [region]) == {}
    assert "no control" in check(config, [region])[0]


def test_a_choice_that_is_offered_no_more_is_no_answer():
    config = parse(CHOICES)
    region = {"from_name": "sentiment", "to_name": "text", "value": {"choices": ["Neutral"]}}
    assert from_result(config, [region]) == {}


def test_real_annotations_fit_their_projects(captures: Path):
    for name in ("ANNOTATION_CREATED", "ANNOTATION_CREATED.ner", "ANNOTATION_CREATED.pairwise"):
        body = json.loads((captures / f"webhook.{name}.json").read_text())["request"]["body"]
        config = parse(body["project"]["label_config"])
        result = body["annotation"]["result"]
        assert check(config, result, body["task"]["data"]) == []
        assert from_result(config, result)


def test_a_model_is_asked_for_what_the_project_shows():
    [system, user] = chat_of({"text": "fine", "secret": "x"}, parse(CHOICES))
    assert system["content"] == (
        'Answer with a JSON object: {"sentiment": one of "Positive", "Negative"}'
    )
    assert user["content"] == "fine"


def test_a_prompt_has_the_fields_in_braces():
    [_, user] = chat_of({"text": "{text}", "n": 3}, parse(CHOICES), "Is {text} good? {n} {other} {")
    assert user["content"] == "Is {text} good? 3 {other} {"


def test_in_interactive_mode_it_hears_what_the_annotator_said():
    [_, user] = chat_of({"text": "fine"}, parse(CHOICES), so_far={"sentiment": ["Negative"]})
    assert user["content"].endswith('So far the annotator says: {"sentiment": "Negative"}')


def test_the_schema_allows_what_the_project_allows():
    assert schema_of(parse(CHOICES)) == {
        "type": "object",
        "properties": {"sentiment": {"type": "string", "enum": ["Positive", "Negative"]}},
        "required": ["sentiment"],
        "additionalProperties": False,
    }
    assert schema_of(parse(MANY))["properties"]["stars"]["enum"] == [1, 2, 3, 4, 5]
