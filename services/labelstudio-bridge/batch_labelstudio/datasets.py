"""What may be trained on, and what an example of it is. Pure.

An example is a task with its newest validated annotation that fits the label config. Ground truth
is in no part of any dataset, nor is a task that was ground truth once in another annotation, nor
one that shows the same text as such a task: what measures a model must be new to it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from vllm_batch.aggregates.annotation import Written
from vllm_batch.errors import InvalidInput
from vllm_batch.events.training import DatasetFormat
from vllm_batch.labeling.answers import Data, Region, check, from_result
from vllm_batch.labeling.label_config import Kind, LabelConfig
from vllm_batch.labeling.projects import ProjectView
from vllm_batch.labeling.prompting import Message, answer_of, chat_of

_HASH_RANGE = 2**64

Example = dict[str, Any]


class Labeled(NamedTuple):
    """A task with what was validated about it. ``key`` is its external id, else its own."""

    key: str
    data: Data
    result: list[Region]


class Placed(NamedTuple):
    """An example and the part it belongs to."""

    example: Example
    is_validation: bool


class Curation:
    """Makes examples of a project's tasks, which come one by one, in the order of their ids.

    ``held_out`` counts the tasks that ground truth keeps away. ``truths``: the data of the tasks
    with ground truth, as far as these are left.
    """

    def __init__(
        self,
        view: ProjectView,
        config: LabelConfig,
        kind: DatasetFormat,
        *,
        validation_share: float,
        truths: Iterable[Data],
    ) -> None:
        """Raises InvalidInput: the project asks nothing that such a dataset could be made of."""
        _check(config, kind)
        self.held_out = 0
        self._config = config
        self._make = _MAKERS[kind]
        self._share = validation_share
        self._prompt = view.project.configured.prompt if view.project.configured else ""
        self._newest = _newest(view)
        self._truth_tasks = truth_tasks(view)
        self._secret = {_shown(data, self._config.fields) for data in truths}

    def written_of(self, task: str) -> Written | None:
        """Return the annotation that an example of the task would have, None if there is none."""
        return self._newest.get(task)

    def take(self, task: str, data: Data, result: list[Region]) -> Placed | None:
        """Return a task's example; None if it is held out, or says nothing in that format."""
        if task in self._truth_tasks or _shown(data, self._config.fields) in self._secret:
            self.held_out += 1
            return None
        one = Labeled(str(data.get("external_id", task)), data, result)
        if check(self._config, result, data):
            return None  # it was validated by another label config
        example = self._make(one, self._config, self._prompt)
        if example is None:
            return None
        return Placed(example, _is_validation(one, self._config, self._share))


def truth_tasks(view: ProjectView) -> set[str]:
    """Return the tasks that have an annotation which is marked as ground truth."""
    return {one.written.task for one in view.ground_truth().values() if one.written}


def columns_of(config: LabelConfig) -> list[str]:
    """Return the columns of a classification's tables."""
    return list(dict.fromkeys(["id", *config.fields, "label"]))


def asked_in(train: bytes) -> set[str]:
    """Return what is asked in the part ``train`` of a dataset for chats, as `asked` returns it."""
    lines = train.split(b"\n")
    return {asked(json.loads(line)["messages"][:-1]) for line in lines if line}


def asked(messages: Sequence[Message]) -> str:
    """Return the messages that ask a model as one text."""
    return json.dumps(list(messages), sort_keys=True)


def _newest(view: ProjectView) -> dict[str, Written]:
    """Return the validated annotation of each task; of several the one validated last."""
    found: dict[str, Written] = {}
    for one in sorted(view.validated().values(), key=lambda one: one.seq):
        if one.written and not one.written.was_cancelled:
            found[one.written.task] = one.written
    return found


def _shown(data: Data, fields: Sequence[str]) -> str:
    """Return what an annotator reads, however it is spaced and capitalised."""
    values = (data.get(field) for field in fields)
    texts = (one if isinstance(one, str) else json.dumps(one, sort_keys=True) for one in values)
    return json.dumps([" ".join(text.casefold().split()) for text in texts])


def _is_validation(one: Labeled, config: LabelConfig, share: float) -> bool:
    """Tell by what is shown: equal texts are on the same side, for ever."""
    digest = hashlib.blake2b(_shown(one.data, config.fields).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * _HASH_RANGE


def _sft(one: Labeled, config: LabelConfig, prompt: str) -> Example | None:
    if not from_result(config, one.result):
        return None
    said = {"role": "assistant", "content": answer_of(one.result, config, one.data)}
    return {"messages": [*chat_of(one.data, config, prompt), said]}


def _preference(one: Labeled, config: LabelConfig, _prompt: str) -> Example | None:
    pair = next(control for control in config.answerable if control.kind == "pairwise")
    side = from_result(config, one.result).get(pair.name)
    if side not in pair.options:
        return None
    texts = [str(one.data.get(field, "")) for field in pair.fields]
    chosen, rejected = texts if side == pair.options[0] else reversed(texts)
    others = {k: v for k, v in one.data.items() if k not in {*pair.fields, "external_id"}}
    asked = str(others.get("prompt") or json.dumps(others, ensure_ascii=False, sort_keys=True))
    return {"prompt": asked, "chosen": chosen, "rejected": rejected}


def _classification(one: Labeled, config: LabelConfig, _prompt: str) -> Example | None:
    control = next(control for control in config.answerable if control.kind == "choices")
    chosen = from_result(config, one.result).get(control.name)
    if not isinstance(chosen, list) or not chosen:
        return None
    shown = {field: str(one.data.get(field, "")) for field in config.fields}
    return {"id": one.key, **shown, "label": "|".join(map(str, chosen))}


_NEEDED: dict[DatasetFormat, tuple[Kind, str]] = {
    "preference": ("pairwise", "Preference pairs need a project with a <Pairwise> control."),
    "classification": ("choices", "A classification needs a project with a <Choices> control."),
}


def _check(config: LabelConfig, kind: DatasetFormat) -> None:
    needed, problem = _NEEDED.get(kind, (None, ""))
    if needed and all(control.kind != needed for control in config.answerable):
        raise InvalidInput(problem)


_MAKERS = {"sft": _sft, "preference": _preference, "classification": _classification}
