"""Lines of results as tasks with predictions, for each kind of project."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from batch_labelstudio.task_mapping import Line, Unmappable, task_of
from vllm_batch.labeling import label_config

TEXT = '<Text name="t" value="$text"/>'
CHOICES = label_config.parse(
    f'<View>{TEXT}<Choices name="c" toName="t"><Choice value="Positive"/>'
    '<Choice value="Negative"/></Choices></View>'
)
NER = label_config.parse(
    f'<View>{TEXT}<Labels name="l" toName="t"><Label value="PER"/></Labels></View>'
)
PAIRWISE = label_config.parse(
    '<View><Text name="q" value="$prompt"/><Text name="a" value="$one"/>'
    '<Text name="b" value="$two"/><Pairwise name="p" toName="a,b"/></View>'
)
RATING = label_config.parse(
    '<View><Text name="q" value="$prompt"/><Text name="a" value="$answer"/>'
    '<Rating name="r" toName="a" maxRating="5"/></View>'
)
FREE = label_config.parse(f'<View>{TEXT}<TextArea name="x" toName="t"/></View>')


def line(*answers: str, asked: Any = "Bob likes it", **body: Any) -> Line:
    choices = [{"message": {"content": answer}} for answer in answers]
    response = {"status_code": 200, "body": {"model": "m", "choices": choices, **body}}
    return Line("r1", {"messages": [{"role": "user", "content": asked}]}, response)


def regions(config: label_config.LabelConfig, result: Line) -> list[dict[str, Any]]:
    (prediction,) = task_of(result, config, "batch_1")["predictions"]
    assert prediction["model_version"] == "m"
    return [region["value"] for region in prediction["result"]]


@pytest.mark.parametrize("answer", ['{"c": "Negative"}', "Negative", " negative. ", '"Negative"'])
def test_a_choice_in_json_or_bare(answer: str) -> None:
    assert regions(CHOICES, line(answer)) == [{"choices": ["Negative"]}]


def test_spans_are_where_the_text_has_them() -> None:
    said = json.dumps({"l": [{"start": 9, "end": 12, "text": "Bob", "label": "PER"}]})
    (found,) = regions(NER, line(said))
    assert (found["start"], found["end"], found["labels"]) == (0, 3, ["PER"])


def test_two_answers_are_candidates_to_compare() -> None:
    task = task_of(line("A", "B", asked="Why?"), PAIRWISE, "batch_1")
    assert task == {"data": {"prompt": "Why?", "one": "A", "two": "B", "external_id": "batch_1/r1"}}
    with pytest.raises(Unmappable, match="n=2"):
        task_of(line("A"), PAIRWISE, "batch_1")


def test_an_answer_that_is_rated_is_shown() -> None:
    task = task_of(line("Because.", asked="Why?"), RATING, "batch_1")
    assert task["data"] == {"prompt": "Why?", "answer": "Because.", "external_id": "batch_1/r1"}
    assert "predictions" not in task
    assert regions(RATING, line("4")) == [{"rating": 4}]


def test_free_text_is_taken_as_it_is() -> None:
    assert regions(FREE, line("any words")) == [{"text": ["any words"]}]


def test_metadata_of_the_request_fills_fields_first() -> None:
    result = line("Positive", asked="Classify: great")
    assert result.body is not None
    result.body["metadata"] = {"text": "great", "source": "web"}
    data = task_of(result, CHOICES, "b")["data"]
    assert data == {"text": "great", "source": "web", "external_id": "b/r1"}


def test_rubbish_makes_a_task_without_a_prediction() -> None:
    assert "predictions" not in task_of(line("maybe?"), CHOICES, "b")


def test_the_score_is_a_number_from_logprobs() -> None:
    tokens = [{"token": "x", "logprob": math.log(p)} for p in (0.5, 0.5)]
    result = line("Positive")
    assert result.response is not None
    result.response["body"]["choices"][0]["logprobs"] = {"content": tokens}
    (prediction,) = task_of(result, CHOICES, "b")["predictions"]
    assert prediction["score"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "broken",
    [
        Line("r1", None, None, {"code": "x"}),
        Line("r1", None, {"status_code": 400, "body": {"error": {}}}),
        Line("r1", None, {"status_code": 200, "body": {"choices": []}}),
        Line("r1", None, {"status_code": 200, "body": {"choices": [{"text": "Positive"}]}}),
        Line("r1", None, "x"),
        Line("r1", "x", ["x"]),
        Line("r1", None, {"status_code": 200, "body": "hi"}),
        Line("r1", None, {"status_code": 200, "body": {"choices": [{"message": "hi"}, 5]}}),
        Line("r1", None, {"status_code": 200, "body": {"choices": 5, "output": 5}}),
        Line("r1", None, {"status_code": 200, "body": {"output": [5, {"content": 5}]}}),
    ],
)
def test_what_cannot_be_a_task_says_so(broken: Line) -> None:
    with pytest.raises(Unmappable, match="r1: "):
        task_of(broken, CHOICES, "b")


def test_a_line_that_brings_no_request_along_is_told_what_it_lacks() -> None:
    answered = Line("r1", None, line("Positive").response)
    with pytest.raises(Unmappable, match="'text'; the line has no `body`"):
        task_of(answered, CHOICES, "b")


@pytest.mark.parametrize("logprob", [10**400, 1e308, "x", None])
def test_a_logprob_that_is_none_gives_no_more_than_a_score(logprob: Any) -> None:
    result = line("Positive")
    logprobs = {"content": [{"token": "x", "logprob": logprob}]}
    result.response["body"]["choices"][0]["logprobs"] = logprobs
    (prediction,) = task_of(result, CHOICES, "b")["predictions"]
    assert prediction.get("score") in {None, 1.0}
