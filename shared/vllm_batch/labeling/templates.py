"""What a project is about, in a word: its template, which follows from its label config. Pure."""

from __future__ import annotations

from vllm_batch.errors import InvalidInput, Rejected
from vllm_batch.events.labeling import Template
from vllm_batch.labeling.label_config import Kind, parse

_OF_KIND: dict[Kind, Template] = {
    "choices": "classification",
    "labels": "ner",
    "pairwise": "pairwise",
    "rating": "rating",
    "text": "text",
}


def template_of(xml: str, wanted: str | None) -> Template:
    """Return the template of a label config: ``wanted``, or that of its first question.

    Raises:
        Rejected: it is no label config, asks nothing that a model could answer, or not what is
            wanted; says what would fit.
    """
    try:
        asked = [_OF_KIND[control.kind] for control in parse(xml).answerable]
    except InvalidInput as error:
        raise Rejected(str(error)) from error
    if not asked:
        raise Rejected(
            "the project's label config asks nothing that a language model could answer of a text: "
            "set one up in Label Studio first, with Choices, Labels, Pairwise, Rating or TextArea"
        )
    for template in asked:
        if wanted in {None, template}:
            return template
    fitting = " or ".join(f"--template {template}" for template in dict.fromkeys(asked))
    raise Rejected(f"the project's label config does not ask for {wanted!r}; it fits {fitting}")
