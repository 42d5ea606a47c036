"""Models in the browser: weighed, registered, named, priced, loaded; and talked to."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.ui.conftest import WAIT_MS, Ui
from tests.ui.labeling_work import BASE, FIRST
from vllm_batch import model_orders

_CONFIG = {
    "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 4, "hidden_size": 256,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 1024,
    "torch_dtype": "bfloat16", "vocab_size": 1000,
}  # fmt: skip
SMALL = 'acme/small" :onclick="document.title = 1'
_TOO_MUCH_BYTES = 100_000_000_000


def _folder(path: Path, weight_bytes: int) -> Path:
    """Write a model of that size; its file has a hole for weights."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(_CONFIG))
    header = json.dumps(
        {"t": {"dtype": "U8", "shape": [weight_bytes], "data_offsets": [0, weight_bytes]}}
    ).encode()
    weights = path / "model.safetensors"
    weights.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(weights, 8 + len(header) + weight_bytes)
    return path


def _fill_in(page: Page, name: str, source: Path) -> Locator:
    page.goto("/models")
    page.get_by_role("button", name="Add model").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name").fill(name)
    dialog.get_by_label("Source").fill(str(source))
    dialog.get_by_role("button", name="Estimate memory").click()
    expect(dialog.get_by_text("Together")).to_be_visible()
    return dialog


@pytest.fixture
def small(ui: Ui, tmp_path: Path) -> Iterator[Path]:
    yield _folder(tmp_path / "small", 1_000_000)
    ui.in_store(lambda store: model_orders.retire(store, SMALL, requested_by="test"))


def test_a_model_is_weighed_added_named_priced_and_loaded(
    ui: Ui, operator: Page, small: Path
) -> None:
    dialog = _fill_in(operator, SMALL, small)
    expect(dialog.get_by_text("fits").first).to_be_visible()
    dialog.get_by_role("button", name="Add", exact=True).click()
    card = operator.get_by_label(f"model {SMALL}", exact=True)
    expect(card.locator(".state")).to_have_text("idle", timeout=WAIT_MS)

    card.get_by_role("button", name="Aliases").click()
    operator.get_by_role("dialog").get_by_label("Aliases").fill("small, tiny")
    operator.get_by_role("dialog").get_by_role("button", name="Save").click()
    expect(card.get_by_text("small, tiny")).to_be_visible()

    card.get_by_role("button", name="Price").click()
    operator.get_by_role("dialog").get_by_label("Input").fill("0.5")
    operator.get_by_role("dialog").get_by_label("Output").fill("2")
    operator.get_by_role("dialog").get_by_role("button", name="Save").click()
    expect(card.get_by_text("0.5 in, 2 out, per million tokens")).to_be_visible()

    card.get_by_role("button", name="Load", exact=True).click()
    operator.get_by_role("dialog").get_by_role("button", name="Load").click()
    expect(card.locator(".state")).to_have_text("ready", timeout=WAIT_MS)
    ui.in_store(  # also by one of them, by name
        lambda store: model_orders.load(store, SMALL, worker="worker-1", requested_by="test")
    )
    expect(card.get_by_text("on worker-1")).to_be_visible()
    card.get_by_role("button", name="Unload").click()
    expect(card.get_by_role("button", name="Unload")).to_have_count(0)


def test_a_model_that_fits_nowhere_is_not_added(operator: Page, tmp_path: Path) -> None:
    dialog = _fill_in(operator, "acme/huge", _folder(tmp_path / "huge", _TOO_MUCH_BYTES))
    expect(dialog.get_by_text("does not fit").first).to_be_visible()
    dialog.get_by_role("button", name="Add", exact=True).click()
    expect(operator.locator(".q-notification")).to_contain_text("Could not register a model")
    dialog.get_by_role("button", name="Cancel").click()
    expect(operator.get_by_label("model acme/huge")).to_have_count(0)


def test_a_viewer_sees_where_an_adapter_comes_from_and_changes_nothing(viewer: Page) -> None:
    viewer.goto("/models")
    card = viewer.get_by_label(f"model {FIRST}")
    expect(card.get_by_text(BASE)).to_be_visible()
    expect(viewer.get_by_label(f"model {BASE}", exact=True)).to_contain_text(FIRST)
    expect(viewer.locator("main").get_by_role("button")).to_have_count(0)


def test_two_chats_are_answered_side_by_side(ui: Ui, operator: Page) -> None:
    ui.wait_ended(ui.submit(ui.lines(1)))  # brings its model back where others were loaded
    operator.goto("/playground")
    operator.get_by_text("Compare two models").click()
    expect(operator.get_by_label("Chat: Second model")).to_be_visible()
    for label in ("Model", "Second model"):
        operator.get_by_role("combobox", name=label, exact=True).click()
        option = operator.get_by_role("option", name=ui.stack.model_name)
        option.click()
        expect(option).to_have_count(0)
    operator.get_by_label("Tokens at most").fill("16")
    operator.get_by_label("Say something").fill("<b>Hello</b>")
    operator.get_by_label("Say something").press("Enter")
    expect(operator.locator(".by-user").first).to_have_text("<b>Hello</b>")
    answers = operator.locator(".by-model")
    expect(answers).to_have_count(2)
    for number in range(2):
        expect(answers.nth(number)).to_contain_text("simulated answer", timeout=WAIT_MS)
    expect(operator.get_by_text("first piece after")).to_have_count(2)
    operator.get_by_role("button", name="Clear").click()
    expect(answers).to_have_count(0)


def test_a_viewer_may_not_spend_tokens(viewer: Page) -> None:
    viewer.goto("/playground")
    expect(viewer.get_by_text("This page takes the role operator.")).to_be_visible()
    expect(viewer.get_by_label("Say something")).to_have_count(0)
