"""Settings in the browser: keys that open and stop opening, limits, webhooks; usage at prices."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.ui.conftest import WAIT_MS, Ui
from vllm_batch import project_limits
from vllm_batch.ids import ProjectId


def _status(ui: Ui, secret: str) -> int:
    headers = {"Authorization": f"Bearer {secret}"}
    return httpx.get(f"{ui.stack.settings.gateway_url}/v1/models", headers=headers).status_code


def _wait_status(ui: Ui, secret: str, status: int) -> None:
    end = time.monotonic() + WAIT_MS / 1000
    while _status(ui, secret) != status:  # the gateway hears of it from the log
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_key_is_made_shown_once_and_revoked(ui: Ui, admin: Page) -> None:
    admin.goto("/settings")
    admin.get_by_role("button", name="New key").click()
    admin.get_by_role("dialog").get_by_label("Name").fill("robot")
    admin.get_by_role("dialog").get_by_label("Project").fill("search")
    admin.get_by_role("dialog").get_by_role("button", name="Create").click()
    secret = admin.get_by_role("textbox", name="Secret").input_value()
    admin.get_by_role("button", name="Done").click()
    expect(admin.get_by_role("textbox", name="Secret")).to_have_count(0)
    row = admin.get_by_role("row").filter(has_text="robot")
    expect(row).to_contain_text("active", timeout=WAIT_MS)
    assert secret not in admin.content()
    _wait_status(ui, secret, 200)
    admin.get_by_role("button", name="Rotate robot").click()
    admin.get_by_role("dialog").get_by_role("button", name="Rotate").click()
    rotated = admin.get_by_role("textbox", name="Secret").input_value()
    assert rotated != secret
    admin.get_by_role("button", name="Done").click()
    for one in (rotated, secret):  # the old one has its time
        _wait_status(ui, one, 200)
    admin.get_by_role("button", name="Revoke robot").click()
    admin.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(row).to_contain_text("revoked", timeout=WAIT_MS)
    for one in (rotated, secret):
        _wait_status(ui, one, 401)


def test_a_project_gets_limits(ui: Ui, admin: Page) -> None:
    admin.goto("/settings?tab=projects")
    card = admin.get_by_label("project default")
    card.get_by_role("button", name="Limits").click()
    admin.get_by_role("dialog").get_by_label("Budget per month").fill("50")
    admin.get_by_role("dialog").get_by_role("button", name="Save").click()
    expect(card.get_by_text("50.00 per month, warns then")).to_be_visible(timeout=WAIT_MS)
    limits = ui.in_store(lambda store: project_limits.load(store, ui.stack.settings))
    assert limits.of(ProjectId("default")).budget_per_month == 50


@pytest.fixture
def receiver() -> Iterator[str]:
    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/batches"
        server.shutdown()


def test_a_webhook_is_made_tested_and_its_deliveries_are_listed(
    ui: Ui, admin: Page, receiver: str
) -> None:
    for batch in ui.client.batches.list(limit=100).data:
        if batch.status in {"validating", "in_progress", "finalizing"}:
            ui.wait_ended(batch.id)  # nothing but ours is to be delivered
    name = 'pager" :onclick="document.title = 1'
    admin.goto("/settings?tab=webhooks")
    admin.get_by_role("button", name="New webhook").click()
    admin.get_by_role("dialog").get_by_label("Name").fill(name)
    admin.get_by_role("dialog").get_by_label("URL").fill(receiver)
    admin.get_by_role("dialog").get_by_role("button", name="Create").click()
    assert admin.get_by_role("textbox", name="Secret").input_value().startswith("whsec_")
    admin.get_by_role("button", name="Done").click()
    panel = admin.get_by_label(f"webhook {name}", exact=True)
    panel.get_by_role("button", name="Test").click()
    expect(admin.get_by_text(f"{name} answered 204")).to_be_visible(timeout=WAIT_MS)
    batch_id = ui.submit(ui.lines(1))
    panel.get_by_text("Deliveries: 1").click(timeout=WAIT_MS)
    expect(panel.get_by_role("link", name=batch_id)).to_be_visible(timeout=WAIT_MS)
    expect(panel.get_by_text("delivered", exact=True)).to_be_visible(timeout=WAIT_MS)
    panel.get_by_role("button", name="Delete").click()
    admin.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(panel).to_have_count(0, timeout=WAIT_MS)


def test_only_admins_have_settings(operator: Page) -> None:
    operator.goto("/settings")
    expect(operator.get_by_text("This page takes the role admin.")).to_be_visible()
    expect(operator.get_by_role("link", name="Settings")).to_have_count(0)


def test_usage_is_priced_anew_and_downloaded(ui: Ui, viewer: Page) -> None:
    viewer.goto("/usage")
    tile = viewer.locator(".tile")
    expect(tile.filter(has_text="Requests").locator(".value")).not_to_have_text("0")
    price = viewer.get_by_label(f"Input: {ui.stack.model_name}", exact=True)
    price.fill("1000000")
    # At one per token, the cost is the count of tokens; both tiles are drawn together.
    viewer.wait_for_function(
        """() => {
            const tiles = [...document.querySelectorAll('.tile')];
            const value = (name) => tiles.find((tile) => tile.textContent.startsWith(name))
                .querySelector('.value').textContent;
            return value('At other prices') === value('Input tokens') + '.0000';
        }"""
    )
    with viewer.expect_download() as download:
        viewer.get_by_role("button", name="CSV").click()
    with download.value.path().open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} >= {ui.stack.model_name}
    assert sum(int(row["requests"]) for row in rows) > 0
