"""Who gets in, and what each may do."""

from __future__ import annotations

import signal

import httpx
from playwright.sync_api import Page, expect

from tests.ui.conftest import PASSWORD, WAIT_MS, Ui
from vllm_batch import admin_users
from vllm_batch.events.admin import AdminActionFailed, AdminActionTaken
from vllm_batch.events.worker import WorkerRestartRequested
from vllm_batch.messaging import subjects


def _try(page: Page, name: str, password: str) -> None:
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()


def test_wrong_passwords_are_refused_and_soon_not_even_looked_at(ui: Ui) -> None:
    context = ui.browser.new_context(base_url=ui.stack.admin_url)
    page = context.new_page()
    page.goto("/batches")
    expect(page).to_have_url(f"{ui.stack.admin_url}/login?next=/batches")
    for _ in range(3):
        _try(page, "mallory", "let me in, please")
        expect(page.get_by_role("alert")).to_have_text("The name or the password is wrong.")
    _try(page, "mallory", "let me in, please")
    expect(page.get_by_role("alert")).to_contain_text("Too many wrong passwords")
    assert "vllm_batch_admin" not in {cookie["name"] for cookie in context.cookies()}
    context.close()


def test_nothing_is_served_without_a_session_nor_to_another_site(ui: Ui) -> None:
    with httpx.Client(base_url=ui.stack.admin_url) as client:
        for path in ("/batches", "/admin/worker-logs/lines", "/files/file-1/content"):
            assert client.get(path).status_code == 401
        assert client.get("/_nicegui_ws/socket.io/?EIO=4&transport=polling").status_code == 401
        form = {"name": "ada", "password": PASSWORD, "token": "guessed"}
        assert client.post("/login", data=form).status_code == 403
        answer = client.post("/login", data=form, headers={"Origin": "http://evil.example"})
        assert answer.status_code == 403
        assert "another site" in answer.text


def test_the_session_cookie_is_for_the_server_only(ui: Ui) -> None:
    context, page = ui.sign_in("ada")
    cookie = next(one for one in context.cookies() if one["name"] == "vllm_batch_admin")
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Lax"
    assert "vllm_batch_admin" not in page.evaluate("document.cookie")
    context.close()


def test_a_viewer_sees_no_button_that_acts(ui: Ui, viewer: Page) -> None:
    viewer.goto("/workers")
    expect(viewer.get_by_text("worker-1", exact=True)).to_be_visible()
    expect(viewer.get_by_role("button", name="Kill engine")).to_have_count(0)
    viewer.goto("/batches")
    expect(viewer.get_by_role("heading", name="Batches")).to_be_visible()
    expect(viewer.get_by_role("button", name="New batch")).to_have_count(0)


def test_who_became_a_viewer_is_refused_by_the_server_though_the_button_is_there(ui: Ui) -> None:
    ui.in_store(lambda store: admin_users.create(store, "ines", PASSWORD, "operator"))
    context, page = ui.sign_in("ines")
    page.goto("/workers")
    card = page.get_by_label("worker worker-2")
    expect(card.get_by_role("button", name="Restart now")).to_be_visible()
    ui.in_store(lambda store: admin_users.change_role(store, "ines", "viewer"))
    card.get_by_role("button", name="Restart now").click()
    page.get_by_role("dialog").get_by_role("button", name="Restart now").click()
    expect(page.get_by_text("You may not restart worker-2")).to_be_visible(timeout=WAIT_MS)
    context.close()
    assert not [one for one in _events(ui, "worker") if isinstance(one, WorkerRestartRequested)]
    taken = [one for one in _events(ui, "admin") if isinstance(one, AdminActionTaken)]
    refused = next(one for one in taken if one.action == "restart worker-2")
    failed = [one for one in _events(ui, "admin") if isinstance(one, AdminActionFailed)]
    reasons = {one.action_id: one.reason for one in failed}
    assert reasons[refused.action_id] == "refused: that takes the role operator"


def test_a_new_password_ends_the_sessions_of_the_old_one(ui: Ui) -> None:
    ui.in_store(lambda store: admin_users.create(store, "pia", PASSWORD, "viewer"))
    context, page = ui.sign_in("pia")
    page.wait_for_function("window.did_handshake")
    ui.in_store(lambda store: admin_users.change_password(store, "pia", "another fine password"))
    expect(page.get_by_role("button", name="Sign in")).to_be_visible(timeout=WAIT_MS)
    assert context.request.get("/batches", headers={"Accept": "*/*"}).status == 401
    context.close()


def test_signing_out_ends_every_page_and_copy_of_that_sign_in(ui: Ui) -> None:
    context, page = ui.sign_in("vera")
    other = context.new_page()
    other.goto("/admin/worker-logs")
    other.wait_for_function("window.did_handshake")
    copies = {one["name"]: one["value"] for one in context.cookies()}
    page.get_by_role("button", name="Sign out").click()
    for one in (page, other):
        expect(one.get_by_role("button", name="Sign in")).to_be_visible(timeout=WAIT_MS)
    with httpx.Client(base_url=ui.stack.admin_url, cookies=copies) as client:
        assert client.get("/batches").status_code == 401
    context.close()
    taken = [one for one in _events(ui, "admin") if isinstance(one, AdminActionTaken)]
    assert ("vera", "sign out") in {(one.name, one.action) for one in taken}


def test_a_page_whose_session_has_ended_meanwhile_goes_to_the_sign_in(ui: Ui) -> None:
    context, page = ui.sign_in("vera")
    page.goto("/batches")
    page.wait_for_function("window.did_handshake")
    service = ui.stack.service("admin-ui")
    killed = service.kill(signal.SIGKILL)
    context.clear_cookies()  # as after a restart with another key: the server knows nobody
    service.wait_restarted(killed, 60)
    expect(page.get_by_role("button", name="Sign in")).to_be_visible(timeout=WAIT_MS)
    expect(page).to_have_url(f"{ui.stack.admin_url}/login?next=/batches")
    context.close()


def _events(ui: Ui, noun: str) -> list[object]:
    async def read(store: object) -> list[object]:
        found: list[object] = []
        subject = subjects.ALL_WORKERS if noun == "worker" else subjects.ALL_ADMIN
        async for batch in store.read(subject):  # type: ignore[attr-defined]
            found += [recorded.event for recorded in batch]
        return found

    return ui.in_store(read)
