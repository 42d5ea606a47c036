"""Labeling in the browser: what is flagged, how accurate models are, and who answers."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.ui import labeling_work as work
from tests.ui.conftest import WAIT_MS, Ui
from vllm_batch import model_orders, model_registry


def _meant(ui: Ui) -> str | None:
    return ui.in_store(model_registry.load).resolve(work.ALIAS)


def test_a_project_shows_its_annotations_accuracy_and_runs(viewer: Page) -> None:
    viewer.goto("/labeling")
    card = viewer.get_by_label(f"project {work.PROJECT}")
    expect(card).to_contain_text("connected")
    card.get_by_role("link", name=work.TITLE).click()
    expect(viewer.get_by_role("heading", name=work.TITLE)).to_be_visible()
    flagged = viewer.get_by_text("Two annotators say positive")
    expect(flagged).to_have_count(work.ANNOTATIONS // work.FLAGGED_EVERY)
    expect(viewer.get_by_label("Measurement")).to_have_value(f"{work.SECOND}: 74.0 % of 18")
    expect(viewer.get_by_text("61.0 % → 83.0 % over 18 tasks")).to_be_visible()
    expect(viewer.get_by_text("no Label Studio bridge runs")).to_be_visible(timeout=WAIT_MS)
    expect(viewer.get_by_role("button", name="Promote")).to_have_count(0)


def test_a_model_is_rolled_back_and_another_promoted(ui: Ui, operator: Page) -> None:
    operator.goto(f"/labeling/{work.PROJECT}")
    operator.get_by_role("button", name="Roll back").click()
    operator.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    expect(operator.get_by_text(f"{work.BASE} answers again")).to_be_visible(timeout=WAIT_MS)
    assert _meant(ui) == work.BASE

    # What nobody serves would let clients wait: it is loaded first.
    _promote(operator)
    expect(operator.get_by_text("promote it once it is ready")).to_be_visible(timeout=WAIT_MS)
    other = operator.context.new_page()
    other.goto("/models")
    card = other.get_by_label(f"model {work.SECOND}")
    expect(card.locator(".state")).to_have_text("ready", timeout=WAIT_MS)
    _promote(operator)
    said = f"{work.SECOND} answers for {work.ALIAS}"
    expect(operator.get_by_text(said)).to_be_visible(timeout=WAIT_MS)
    assert _meant(ui) == work.SECOND

    operator.get_by_role("button", name="Roll back").click()
    operator.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    expect(operator.get_by_text(f"{work.BASE} answers again").first).to_be_visible()
    expect(operator.get_by_role("button", name="Promote run_second")).to_be_visible()
    assert _meant(ui) == work.BASE
    ui.in_store(lambda store: model_orders.unload(store, work.SECOND, requested_by="test"))


def _promote(page: Page) -> None:
    page.get_by_role("button", name="Promote run_second").click()
    page.get_by_role("dialog").get_by_role("button", name="Promote").click()
