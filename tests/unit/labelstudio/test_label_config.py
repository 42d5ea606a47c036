"""Label configs as questions, against the configs of real projects."""

from __future__ import annotations

import pytest
from tests.unit.labelstudio.configs import CHOICES, PAIRWISE, SPANS

from vllm_batch.errors import InvalidInput
from vllm_batch.labeling.label_config import parse
from vllm_batch.labeling.prompting import schema_of


def test_choices_of_one():
    config = parse(CHOICES)
    control = config.primary
    assert control is not None
    assert (control.name, control.kind, control.multiple) == ("sentiment", "choices", False)
    assert control.options == ("Positive", "Negative")
    assert (control.to_names, control.fields, config.fields) == (("text",), ("text",), ("text",))


def test_choices_of_many_by_alias():
    config = parse(
        '<View><Text name="t" value="$t"/><Choices name="c" toName="t" choice="multiple" '
        'required="true"><Choice value="A long name" alias="a"/><Choice value="b"/></Choices>'
        "</View>"
    )
    assert config.primary is not None
    assert config.primary.options == ("a", "b")
    assert config.primary.multiple
    assert config.primary.required


def test_spans_of_a_text():
    control = parse(SPANS).primary
    assert control is not None
    assert (control.kind, control.options) == ("labels", ("PER", "ORG"))


def test_pairwise_knows_both_fields_and_what_is_shown_beside_them():
    config = parse(PAIRWISE)
    assert config.primary is not None
    assert config.primary.fields == ("answer_a", "answer_b")
    assert config.primary.options == ("left", "right")
    assert config.fields == ("prompt", "answer_a", "answer_b")


@pytest.mark.parametrize(("given", "expected"), [("10", 10), ("", 5), ("many", 5), ("0", 5)])
def test_rating_has_a_range(given: str, expected: int):
    xml = (
        f'<View><Text name="t" value="$t"/><Rating name="r" toName="t" maxRating="{given}"/></View>'
    )
    control = parse(xml).primary
    assert control is not None
    assert (control.kind, control.rating_max) == ("rating", expected)


@pytest.mark.parametrize(
    "control",
    [
        '<RectangleLabels name="c" toName="t"><Label value="a"/></RectangleLabels>',
        '<Choices name="c" toName="t" perRegion="true"><Choice value="a"/></Choices>',
        '<Choices name="c" toName="t" value="$options"/>',
        '<Labels name="c" toName="html"><Label value="a"/></Labels>',
        '<Pairwise name="c" toName="t"/>',
    ],
)
def test_what_no_text_answers_is_left_to_people(control: str):
    config = parse(
        '<View><Text name="t" value="$t"/><HyperText name="html" value="$html"/>'
        f'{control}<TextArea name="why" toName="t"/></View>'
    )
    assert [one.kind for one in config.controls] == ["other", "text"]
    assert config.primary is not None
    assert config.primary.name == "why"


@pytest.mark.parametrize(
    "xml",
    [
        "",
        "<View>",
        '<View><Choices toName="t"/></View>',
        '<!DOCTYPE v [<!ENTITY a "b">]><View>&a;</View>',
        "<View>" + " " * 1_000_000 + "</View>",
    ],
)
def test_what_is_no_label_config_is_said(xml: str):
    with pytest.raises(InvalidInput, match="no label config"):
        parse(xml)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("7", 7), ("007", 7), ("0", 5), ("", 5), ("x", 5), ("999999999999", 100), ("9" * 5000, 100)],
)
def test_a_scale_has_an_end(given: str, expected: int):
    rating = f'<Rating name="r" toName="t" maxRating="{given}"/>'
    config = parse(f'<View><Text name="t" value="$t"/>{rating}</View>')
    [control] = config.controls
    assert control.rating_max == expected
    assert len(schema_of(config)["properties"]["r"]["enum"]) == expected
