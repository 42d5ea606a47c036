from __future__ import annotations

import pytest
from tests.unit.labelstudio.configs import CHOICES, MANY, PAIRWISE, SPANS

from vllm_batch.errors import Rejected
from vllm_batch.labeling.templates import template_of


@pytest.mark.parametrize(
    ("xml", "wanted", "template"),
    [
        (CHOICES, None, "classification"),
        (SPANS, None, "ner"),
        (PAIRWISE, "pairwise", "pairwise"),
        (MANY, None, "classification"),
        (MANY, "rating", "rating"),
        (MANY, "text", "text"),
    ],
)
def test_a_template_is_what_the_label_config_asks(
    xml: str, wanted: str | None, template: str
) -> None:
    assert template_of(xml, wanted) == template


@pytest.mark.parametrize(
    ("xml", "wanted", "why"),
    [
        (CHOICES, "ner", "does not ask for 'ner'; it fits --template classification"),
        (MANY, "ner", "--template classification or --template rating or --template text"),
        ("<View></View>", None, "nothing that a language model could answer"),
        ("<View>", "text", "no label config"),
    ],
)
def test_a_template_that_does_not_fit_is_refused_and_what_fits_is_said(
    xml: str, wanted: str | None, why: str
) -> None:
    with pytest.raises(Rejected, match=why):
        template_of(xml, wanted)
