"""Batches in the browser: made, followed, understood, cancelled."""

from __future__ import annotations

import json
import re

from playwright.sync_api import Page, expect

from tests.ui.conftest import WAIT_MS, Ui
from vllm_batch import api_keys


def _upload(page: Page, content: bytes) -> None:
    page.goto("/batches")
    page.get_by_role("button", name="New batch").click()
    page.locator("input[type=file]").set_input_files(
        {"name": "work.jsonl", "mimeType": "application/jsonl", "buffer": content}
    )
    expect(page).to_have_url(re.compile("/batches/batch_"), timeout=WAIT_MS)


def test_a_batch_is_started_from_the_page_and_seen_to_finish(ui: Ui, operator: Page) -> None:
    _upload(operator, ui.lines(40))
    batch_id = operator.url.rpartition("/")[2]
    expect(operator.locator(".state")).to_have_text("completed", timeout=WAIT_MS)
    expect(operator.get_by_text("of 40, 100.0 %")).to_be_visible()
    expect(operator.get_by_text("started: 40 requests in 3 chunks")).to_be_visible()
    with operator.expect_download() as download:
        operator.get_by_role("button", name="Output").click()
    answers = download.value.path().read_text().splitlines()
    expect(operator.get_by_text("The first ones of the output file")).to_be_visible()
    first = json.loads(answers[0])
    shown = operator.locator(".result").filter(has_text=first["custom_id"]).first
    text = first["response"]["body"]["choices"][0]["message"]["content"]
    expect(shown).to_contain_text(text[:20])

    operator.get_by_role("button", name="Clone").click()
    expect(operator).not_to_have_url(re.compile(batch_id), timeout=WAIT_MS)
    expect(operator.locator(".state")).to_have_text("completed", timeout=WAIT_MS)
    expect(operator.get_by_text("of 40, 100.0 %")).to_be_visible()


def test_a_batch_is_seen_as_of_any_of_its_events(ui: Ui, operator: Page) -> None:
    batch_id = ui.submit(ui.lines(40))
    ui.wait_ended(batch_id)
    operator.goto(f"/events?batch={batch_id}")
    event, state = operator.locator(".json").first, operator.locator(".json").last
    expect(operator.get_by_text("events in order")).to_be_visible(timeout=WAIT_MS)
    expect(event).to_contain_text('"type": "job.completed"')
    expect(state).to_contain_text('"status": "completed"')
    expect(state).to_contain_text('"requests_done": 40')
    operator.get_by_role("button", name="Earlier").click()
    expect(state).to_contain_text('"status": "finalizing"')
    operator.get_by_role("button", name="First").click()
    expect(event).to_contain_text('"type": "job.submitted"')
    expect(state).to_contain_text('"status": "validating"')
    operator.get_by_role("button", name="Later").click()
    expect(event).not_to_contain_text('"type": "job.submitted"')


def test_a_file_that_is_refused_is_told_and_another_one_may_follow(ui: Ui, operator: Page) -> None:
    operator.goto("/batches")
    operator.get_by_role("button", name="New batch").click()
    files = operator.locator("input[type=file]")
    with operator.expect_file_chooser() as chooser:
        operator.get_by_role("button", name="Choose a file").click()
    chooser.value.set_files({"name": 'ä "1".jsonl', "mimeType": "application/jsonl", "buffer": b""})
    refusal = operator.get_by_text("Could not create a batch: ")
    expect(refusal).to_be_visible(timeout=WAIT_MS)
    content = ui.lines(2)
    files.set_input_files({"name": 'ä "2".jsonl', "mimeType": "", "buffer": content})
    expect(operator).to_have_url(re.compile("/batches/batch_"), timeout=WAIT_MS)
    batch = ui.client.batches.retrieve(operator.url.rpartition("/")[2])
    file = ui.client.files.retrieve(batch.input_file_id)
    assert (file.filename, file.bytes) == ('ä "2".jsonl', len(content))


def test_the_errors_of_a_file_are_shown_by_line(ui: Ui, operator: Page) -> None:
    _upload(operator, ui.lines(2) + b"{broken\n")
    expect(operator.locator(".state")).to_have_text("failed", timeout=WAIT_MS)
    expect(operator.get_by_text("line 3:")).to_be_visible()


def test_failed_requests_are_grouped_with_examples(ui: Ui, operator: Page) -> None:
    _upload(operator, ui.lines(120))
    expect(operator.locator(".state")).to_have_text("completed", timeout=WAIT_MS)
    cause = operator.locator(".q-expansion-item").first
    expect(cause).to_be_visible(timeout=WAIT_MS)
    cause.click()
    expect(cause.get_by_text("request-").first).to_be_visible()


def test_a_running_batch_is_cancelled(ui: Ui, operator: Page) -> None:
    slow = [{"role": "user", "content": "[[sim:sleep=5]]"}]
    _upload(operator, ui.lines(3000, messages=slow))
    batch_id = operator.url.rpartition("/")[2]
    expect(operator.get_by_text("The newest ones")).to_be_visible()  # it still runs
    expect(operator.locator(".result").first).to_contain_text("request-")
    overview = operator.context.new_page()
    overview.goto("/")
    running = overview.get_by_role("link", name=batch_id).locator("xpath=..")
    expect(running).to_contain_text(re.compile(r"\d+ of 3,000 · .+ left"), timeout=WAIT_MS)
    expect(overview.get_by_text(re.compile(r"requests · chunks: [\d,]+ ready"))).to_be_visible()
    expect(overview.locator(".tile").filter(has_text="Queue")).to_contain_text(re.compile("[1-9]"))
    overview.close()
    operator.get_by_role("button", name="Cancel").click()
    operator.get_by_role("dialog").get_by_role("button", name="Cancel the batch").click()
    expect(operator.locator(".state")).to_have_text("cancelled", timeout=WAIT_MS)


def test_the_server_finds_and_sorts(ui: Ui, viewer: Page) -> None:
    batch_id = ui.submit(ui.lines(1), colour="viridian")
    viewer.goto("/batches")
    expect(viewer.locator("tbody tr").nth(3)).to_be_visible()
    viewer.get_by_label("Search").fill("VIRIDIAN")
    expect(viewer.locator("tbody tr")).to_have_count(1, timeout=WAIT_MS)
    expect(viewer.get_by_role("link", name=batch_id)).to_be_visible()
    viewer.get_by_label("Search").fill("no such thing")
    expect(viewer.get_by_text("No batch is like this")).to_be_visible(timeout=WAIT_MS)

    viewer.get_by_label("Search").fill("")
    requests = viewer.get_by_role("columnheader", name="Requests")
    requests.get_by_role("button").press("Enter")
    expect(requests).to_have_attribute("aria-sort", "ascending", timeout=WAIT_MS)
    sizes = viewer.locator("tbody tr td:nth-child(4)")
    expect(sizes.first).to_have_text("0")  # the file that was none
    viewer.get_by_role("combobox", name="Status").click()
    viewer.get_by_role("option", name="failed").click()
    expect(viewer.locator("tbody .state:not(.bad)")).to_have_count(0, timeout=WAIT_MS)
    expect(viewer.locator("tbody .state.bad").first).to_have_text("failed")


def test_the_server_pages_and_filters_by_project(ui: Ui, operator: Page) -> None:
    for _ in range(11):
        ui.submit(ui.lines(1))
    _, secret = ui.in_store(
        lambda store: api_keys.create(
            store, project="elsewhere", name="elsewhere", scopes=["read", "batch"]
        )
    )
    theirs = ui.submit_as(secret, ui.lines(1))
    operator.goto("/batches")
    rows = operator.locator("tbody tr")
    operator.get_by_label("Rows").select_option("10")
    expect(rows).to_have_count(10)
    places = operator.locator(".table-foot").get_by_role("status")
    expect(places).to_have_text(re.compile(r"^1\W10 of"))
    newest = rows.first.get_by_role("link").inner_text()
    operator.get_by_role("button", name="Next page").click()
    expect(places).to_have_text(re.compile(r"^11\W"))
    expect(operator.get_by_role("link", name=newest)).to_have_count(0)

    operator.goto("/batches")
    operator.get_by_role("combobox", name="Project").click()
    operator.get_by_role("option", name="elsewhere").click()
    expect(rows).to_have_count(1)
    operator.get_by_role("link", name=theirs).click()
    expect(operator.get_by_role("button", name="Clone")).to_be_disabled()


def test_a_batch_is_looked_at_as_of_any_event(ui: Ui, viewer: Page) -> None:
    batch_id = ui.submit(ui.lines(3))
    viewer.goto(f"/events?batch={batch_id}")
    state = viewer.locator(".json").nth(1)
    while '"status": "validating"' not in state.inner_text():
        before = viewer.locator(".json").first.inner_text()
        viewer.get_by_role("button", name="Earlier").click()
        expect(viewer.locator(".json").first).not_to_have_text(before, timeout=WAIT_MS)
