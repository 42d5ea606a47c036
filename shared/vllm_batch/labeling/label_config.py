"""A project's label config, Label Studio's XML, as the questions that it asks of a task.

Pure: reads text, knows no server. A control that no language model can answer from text (boxes,
brushes, regions of HTML, choices per region or from the task's data) is of the kind ``other``:
it is neither predicted nor measured, and annotations with it are not judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal
from xml.etree.ElementTree import Element, ParseError, XMLParser

from vllm_batch.errors import InvalidInput

Kind = Literal["choices", "labels", "pairwise", "rating", "text", "other"]

SIDES = ("left", "right")
DEFAULT_RATING_MAX = 5
RATING_MAX = 100
"""Longer scales end here: models and confusion matrices have every rating of a scale listed."""
LABEL_CONFIG_CHARACTERS_MAX = 1_000_000
_KINDS: dict[str, Kind] = {
    "Choices": "choices",
    "Labels": "labels",
    "Pairwise": "pairwise",
    "Rating": "rating",
    "TextArea": "text",
}
_OPTION_TAGS = {"choices": "Choice", "labels": "Label"}
_TEXT_TAG = "Text"


@dataclass(frozen=True, slots=True)
class Control:
    """One question. ``options``: what may be answered; a rating is 1 to ``rating_max``.

    ``to_names`` are the objects it is about, ``fields`` the task's fields that these show.
    """

    name: str
    kind: Kind
    to_names: tuple[str, ...]
    fields: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    multiple: bool = False
    required: bool = False
    rating_max: int = DEFAULT_RATING_MAX


@dataclass(frozen=True)
class LabelConfig:
    """All questions of a project, in its order, and every field of a task that it shows."""

    controls: tuple[Control, ...]
    fields: tuple[str, ...]

    @cached_property
    def answerable(self) -> tuple[Control, ...]:
        """The questions that a language model can answer."""
        return tuple(control for control in self.controls if control.kind != "other")

    @cached_property
    def primary(self) -> Control | None:
        """The question that accuracy and agreement are about: the first answerable one."""
        return next(iter(self.answerable), None)

    def find(self, name: str) -> Control | None:
        """Return the question of that name."""
        return self._by_name.get(name)

    @cached_property
    def _by_name(self) -> dict[str, Control]:
        return {control.name: control for control in reversed(self.controls)}


def parse(xml: str) -> LabelConfig:
    """Return what a label config asks.

    Raises:
        InvalidInput: it is not a label config; the message says where.
    """
    root = _tree(xml)
    objects = dict(_objects(root))
    controls = tuple(
        _control(element, objects) for element in root.iter() if element.get("toName") is not None
    )
    shown = (
        value[1:] for element in root.iter() if (value := element.get("value", "")).startswith("$")
    )
    return LabelConfig(controls, tuple(dict.fromkeys(shown)))


def _tree(xml: str) -> Element:
    if len(xml) > LABEL_CONFIG_CHARACTERS_MAX:
        raise _wrong(f"it has more than {LABEL_CONFIG_CHARACTERS_MAX} characters")
    if "<!" in xml.replace("<!--", ""):  # a document type: the only way to define entities
        raise _wrong("it may not have a document type")
    parser = XMLParser()  # noqa: S314 - without entities there is nothing to expand
    try:
        parser.feed(xml)
        root: Element = parser.close()
    except ParseError as error:
        raise _wrong(str(error)) from error
    return root


def _objects(root: Element) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield name, tag and field of everything that shows a field of a task."""
    for element in root.iter():
        name, value = element.get("name"), element.get("value", "")
        if name and value.startswith("$") and element.get("toName") is None:
            yield name, (element.tag, value[1:])


def _control(element: Element, objects: dict[str, tuple[str, str]]) -> Control:
    name = element.get("name", "")
    if not name:
        raise _wrong(f"<{element.tag}> has no name")
    to_names = tuple(one.strip() for one in element.get("toName", "").split(","))
    fields = tuple(objects[one][1] for one in to_names if one in objects)
    tags = {objects[one][0] for one in to_names if one in objects}
    kind = _KINDS.get(element.tag, "other")
    options = _options(element, kind)
    if (
        element.get("perRegion") == "true"
        or (kind in _OPTION_TAGS and not options)
        or (kind == "labels" and tags != {_TEXT_TAG})
        or (kind == "pairwise" and len(fields) != len(SIDES))
    ):
        kind = "other"
    return Control(
        name=name,
        kind=kind,
        to_names=to_names,
        fields=fields,
        options=options,
        multiple=element.get("choice") == "multiple",
        required=element.get("required") == "true",
        rating_max=_rating_max(element),
    )


def _options(element: Element, kind: Kind) -> tuple[str, ...]:
    if kind == "pairwise":
        return SIDES
    values = (
        option.get("alias", option.get("value", ""))
        for option in element.iter(_OPTION_TAGS.get(kind, ""))
    )
    return tuple(dict.fromkeys(value for value in values if value))


def _rating_max(element: Element) -> int:
    given = element.get("maxRating", "")
    digits = given.lstrip("0")
    if not given.isascii() or not digits.isdigit():
        return DEFAULT_RATING_MAX
    return RATING_MAX if len(digits) > len(str(RATING_MAX)) else min(int(digits), RATING_MAX)


def _wrong(why: str) -> InvalidInput:
    return InvalidInput(f"This is no label config of Label Studio: {why}.", param="label_config")
