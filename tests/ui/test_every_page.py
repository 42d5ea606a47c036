"""What holds for each page: nothing leaves the machine, it is accessible, in light and dark, fits a
phone, and is seen: pictures of each are in the folder ``screenshots``."""

from __future__ import annotations

import re
import signal
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, Request, expect

from batch_admin.pages import PAGES
from tests.ui.conftest import SCREENSHOTS, WAIT_MS, Ui
from tests.ui.labeling_work import PROJECT

PATHS = [page.path for page in PAGES if "{" not in page.path]
BATCH, TRAVEL = "/batches/{newest}", "/events?batch={newest}"
DESK, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


@pytest.fixture(scope="package")
def newest(ui: Ui) -> str:
    """A batch with results, errors and a history."""
    batch_id = ui.submit(ui.lines(240), team="search")
    ui.wait_ended(batch_id)
    return batch_id


@pytest.mark.parametrize("path", [*PATHS, f"/labeling/{PROJECT}", BATCH, TRAVEL])
def test_a_page_is_accessible_fits_a_phone_and_asks_nobody_else(
    ui: Ui, admin: Page, newest: str, path: str
) -> None:
    outside: list[str] = []

    def note(request: Request) -> None:
        if not request.url.startswith((ui.stack.admin_url, "data:", "blob:")):
            outside.append(request.url)

    admin.on("request", note)
    name = path.format(newest="").strip("/").partition("?")[0].replace("/", "_") or "overview"
    name = {BATCH: "batch", TRAVEL: "time_travel"}.get(path, name)
    admin.set_viewport_size(DESK)  # type: ignore[arg-type]
    admin.emulate_media(color_scheme="light")
    admin.goto(path.format(newest=newest))
    expect(admin.get_by_role("heading", level=1)).to_be_visible(timeout=WAIT_MS)
    admin.wait_for_function("window.did_handshake")
    _see(admin, f"{name}.png")
    _look_for_barriers(admin)
    admin.emulate_media(color_scheme="dark")
    expect(admin.locator("body.body--dark")).to_have_count(1)
    _see(admin, f"{name}_dark.png")
    _look_for_barriers(admin)
    admin.set_viewport_size(PHONE)  # type: ignore[arg-type]
    admin.wait_for_function(
        f"document.documentElement.scrollWidth <= {PHONE['width']}", timeout=WAIT_MS
    )
    _see(admin, f"{name}_phone.png", whole=True)
    assert outside == []


def _see(page: Page, name: str, *, whole: bool = False) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / name, full_page=whole, animations="disabled")
    assert (SCREENSHOTS / name).stat().st_size > 10_000


def _look_for_barriers(page: Page, inside: str | None = None, **options: Any) -> None:
    grave = [
        (one["id"], [node["html"][:160] for node in one["nodes"]])
        for one in Axe().run(page, context=inside, options=options or None).response["violations"]
        if one["impact"] in {"serious", "critical"}
    ]
    assert grave == []


def _look_into_the_dialog(page: Page) -> None:
    """What is behind it cannot be reached. axe takes the dimmed page for the background of a
    dialog's buttons; their colours are those of buttons on pages."""
    _look_for_barriers(page, ".q-dialog", rules={"color-contrast": {"enabled": False}})


def test_a_page_comes_back_by_itself_after_a_restart_of_the_server(ui: Ui, viewer: Page) -> None:
    viewer.goto("/batches")
    expect(viewer.locator("tbody tr").first).to_be_visible()
    service = ui.stack.service("admin-ui")
    service.wait_restarted(service.kill(signal.SIGKILL), 60)
    batch_id = ui.submit(ui.lines(2))
    expect(viewer.get_by_role("link", name=batch_id)).to_be_visible(timeout=60_000)


def test_dark_stays_dark_on_the_next_page(ui: Ui) -> None:
    context, page = ui.sign_in("vera", color_scheme="light")
    dark = page.locator("body.body--dark")
    expect(dark).to_have_count(0)
    page.get_by_role("button", name="Dark or light").click()
    expect(dark).to_have_count(1)
    page.wait_for_function("document.cookie.includes('theme=dark')")
    page.goto("/workers")
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    expect(dark).to_have_count(1)
    context.close()


def test_times_are_in_the_viewers_zone_and_exact_on_hover(ui: Ui, newest: str) -> None:
    seen = {}
    for zone in ("Asia/Tokyo", "America/Los_Angeles"):
        context, page = ui.sign_in("vera", timezone_id=zone, locale="en-GB")
        page.goto(f"/batches/{newest}")
        time = page.locator("time").first
        expect(time).to_be_visible()
        seen[zone] = (time.inner_text(), time.get_attribute("title"))
        context.close()
    (tokyo, exact), (angeles, same) = seen.values()
    assert tokyo != angeles
    assert exact == same
    assert exact is not None
    assert exact.endswith("Z")


def test_the_keyboard_is_enough(ui: Ui, operator: Page) -> None:
    operator.goto("/workers")
    card = operator.get_by_label("worker worker-1", exact=True)
    expect(card).to_be_visible()
    operator.wait_for_function("window.did_handshake")
    kill = card.get_by_role("button", name="Kill engine")
    for _ in range(80):
        operator.keyboard.press("Tab")
        if kill.evaluate("element => element === document.activeElement"):
            break
    else:
        pytest.fail("Tab never reaches the button")
    assert kill.evaluate("element => getComputedStyle(element).boxShadow") != "none"
    operator.keyboard.press("Enter")
    dialog = operator.get_by_role("dialog")
    expect(dialog).to_be_visible()
    _look_into_the_dialog(operator)
    operator.keyboard.press("Escape")
    expect(dialog).to_have_count(0)

    operator.goto("/events")
    first = operator.get_by_role("button", name="Show event").first
    operator.get_by_text("Pause").click()
    first.focus()
    operator.keyboard.press("Enter")
    expect(operator.locator(".json")).to_contain_text('"data": {')


@pytest.mark.parametrize(
    ("path", "button"),
    [("/batches", "New batch"), ("/models", "Add model"), ("/settings", "New key")],
)
def test_a_dialog_is_accessible(admin: Page, path: str, button: str) -> None:
    admin.goto(path)
    admin.get_by_role("button", name=button).click()
    expect(admin.get_by_role("dialog")).to_be_visible()
    _look_into_the_dialog(admin)


def test_the_tail_of_events_is_live_and_filtered(ui: Ui, viewer: Page) -> None:
    viewer.goto("/events")
    viewer.get_by_role("combobox", name="About").click()
    viewer.get_by_role("option", name="file", exact=True).click()
    kinds = viewer.locator("tbody tr td:nth-child(3)")
    expect(kinds.filter(has_not_text=re.compile(r"^file\."))).to_have_count(0)
    batch_id = ui.submit(ui.lines(1))
    file_id = ui.client.batches.retrieve(batch_id).input_file_id
    row = viewer.locator("tbody tr").filter(has_text=file_id)
    expect(row.first).to_contain_text("file.uploaded")
    viewer.get_by_label("Search type, id or content").fill(file_id.upper())
    expect(kinds).to_have_count(1)
    expect(kinds).to_have_text("file.uploaded")


def test_pages_without_anything_say_what_to_do_next(ui: Ui, viewer: Page) -> None:
    viewer.goto("/batches/batch_000000000000000000000000")
    expect(viewer.get_by_text("No such batch")).to_be_visible()
    viewer.goto("/batches?status=expired")
    expect(viewer.get_by_text("No batch is like this")).to_be_visible()
