"""Spans that an annotator marks with the mouse, in the real editor: they are where we read them."""

from __future__ import annotations

import time
from typing import Any

from playwright.sync_api import Browser, Page

from tests.real_label_studio import USER, LabelStudio
from tests.unit.labelstudio.configs import SPANS
from vllm_batch.labeling.answers import Span, check, from_result
from vllm_batch.labeling.label_config import parse

TEXT = "😀 John met 👩‍👧 Ann in\nNew York."
SECONDS = 60
# Where a stretch of the shown text begins and ends on the screen. The editor shows each line in a
# text node of its own, and an emoji is two units of what a browser counts.
PLACES = """([first, last]) => {
  const root = document.querySelector('[class*="richtext"]');
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  const rect = (node, at) => {
    const range = document.createRange();
    range.setStart(node, at); range.setEnd(node, at + 1);
    return range.getBoundingClientRect();
  };
  let from, to;
  while (walker.nextNode()) {
    const node = walker.currentNode, a = node.data.indexOf(first), b = node.data.indexOf(last);
    const begin = a >= 0 && rect(node, a), end = b >= 0 && rect(node, b + last.length - 1);
    if (begin && !from) from = [begin.left + 1, begin.y + begin.height / 2];
    if (end) to = [end.right - 1, end.y + end.height / 2];
  }
  return [from, to];
}"""


def test_what_is_marked_in_the_editor_is_where_we_read_it(
    browser: Browser, label_studio: LabelStudio
) -> None:
    project = label_studio.make_project("spans", SPANS)
    [task] = label_studio.make_tasks(project, [{"text": TEXT}])
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    try:
        sign_in(page, label_studio)
        page.goto(f"{label_studio.url}/projects/{project}/data?task={task}")
        page.get_by_text("met", exact=False).first.wait_for(timeout=SECONDS * 1000)
        mark(page, "PER", "John", "John")
        mark(page, "ORG", "Ann in", "New York")
        page.get_by_role("button", name="Submit").click()
        result = annotated(label_studio, task)
    finally:
        context.close()
    config = parse(SPANS)
    assert check(config, result, {"text": TEXT}) == []
    said = from_result(config, result)["label"]
    assert isinstance(said, list)
    found = [one for one in said if isinstance(one, Span)]
    assert [(TEXT[one.start : one.end], one.label) for one in found] == [
        ("John", "PER"), ("Ann in\nNew York", "ORG"),
    ]  # fmt: skip
    assert found[1].text == "Ann in\\nNew York", "the reason why `check` reads over lines' ends"


def sign_in(page: Page, label_studio: LabelStudio) -> None:
    page.goto(f"{label_studio.url}/user/login/")
    page.fill("input[name=email]", USER)
    page.fill("input[name=password]", label_studio.password)
    page.click("button[type=submit]")
    page.wait_for_url(lambda url: "login" not in url, timeout=SECONDS * 1000)


def mark(page: Page, label: str, first: str, last: str) -> None:
    """Choose a label and draw the mouse from the beginning of ``first`` to the end of ``last``."""
    page.get_by_text(label, exact=True).first.click()
    (left, top), (right, bottom) = page.evaluate(PLACES, [first, last])
    page.mouse.move(left, top)
    page.mouse.down()
    page.mouse.move((left + right) / 2, (top + bottom) / 2, steps=5)
    page.mouse.move(right, bottom, steps=5)
    page.mouse.up()


def annotated(label_studio: LabelStudio, task: int) -> list[dict[str, Any]]:
    """Return what was handed in, once it was."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        found = label_studio.call("GET", f"/api/tasks/{task}/annotations/")
        if found:
            result: list[dict[str, Any]] = found[0]["result"]
            return result
        time.sleep(0.2)
    raise AssertionError("nothing was handed in")
