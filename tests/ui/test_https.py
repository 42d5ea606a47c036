"""Admin UI, bridge and gateway over HTTPS, with a certificate of an authority of one's own."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest
from playwright.sync_api import Browser, expect

from tests.authority import Authority
from tests.ui.conftest import PASSWORD, WAIT_MS, Ui
from vllm_batch import admin_users
from vllm_batch.local.stack import CORE_ROLES, LocalStack


@pytest.fixture(scope="module")
def https(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    authority = Authority(tmp_path_factory.mktemp("authority"))
    cert, key = authority.issue("server")
    overrides = {
        f"{server}_tls_{part}": path
        for server in ("api", "admin", "bridge")
        for part, path in (("cert", cert), ("key", key))
    }
    home = tmp_path_factory.mktemp("https") / "home"
    roles = CORE_ROLES | {"admin-ui", "bridge"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(authority.ca))
        with (
            LocalStack(home, engine="simulated", only=roles, settings_overrides=overrides) as stack,
            openai.OpenAI(base_url=stack.api_url, api_key=stack.api_key) as client,
        ):
            ui = Ui(stack, browser, client)
            ui.in_store(lambda store: admin_users.create(store, "ada", PASSWORD, "admin"))
            yield ui


def test_pages_work_and_their_cookies_stay_on_https(https: Ui) -> None:
    assert https.stack.admin_url.startswith("https://")
    context, page = https.sign_in("ada", ignore_https_errors=True)
    page.wait_for_function("window.did_handshake")
    cookies = context.cookies()
    assert cookies
    assert all(cookie["secure"] and cookie["httpOnly"] for cookie in cookies)
    page.goto("/playground")  # which asks the gateway
    page.get_by_label("Say something").fill("Hello")
    page.get_by_label("Say something").press("Enter")
    expect(page.locator(".by-model")).to_contain_text("simulated answer", timeout=WAIT_MS)
    context.close()


def test_the_gateway_passes_webhooks_on_to_the_bridge(https: Ui) -> None:
    settings = https.stack.settings
    assert settings.bridge_url.startswith("https://")
    assert httpx.get(f"{settings.bridge_url}/health").status_code == 200
    url = https.stack.api_url + "/webhooks/label-studio"
    answer = httpx.post(url, json={"action": "PROJECT_UPDATED"})
    assert answer.status_code == 401, answer.text  # by the bridge, which asks for the secret
