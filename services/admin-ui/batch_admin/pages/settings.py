"""Settings: API keys, projects and their limits, outgoing webhooks, prices."""

from __future__ import annotations

import httpx
from nicegui import ui

from batch_admin.settings_tabs.keys import Keys
from batch_admin.settings_tabs.prices import Prices
from batch_admin.settings_tabs.projects import Projects
from batch_admin.settings_tabs.webhooks import Webhooks
from batch_admin.shell import Page, heading
from batch_admin.view import View
from vllm_batch.errors import Rejected
from vllm_batch.events import Recorded

_TABS = {"keys": "API keys", "projects": "Projects", "webhooks": "Webhooks", "prices": "Prices"}
_WEBHOOKS_SECONDS = 3.0


async def build(view: View) -> None:
    """Show the tabs; each follows its own events."""
    heading("Settings")
    chosen = view.query.get("tab", "keys")
    with ui.tabs().props("align=left no-caps dense") as tabs:
        for name, label in _TABS.items():
            ui.tab(name, label)
    with ui.tab_panels(tabs, value=chosen).props("keep-alive").classes("w-full bg-transparent"):
        with ui.tab_panel("keys").classes("p-0 gap-3"):
            keys = Keys(view)
        with ui.tab_panel("projects").classes("p-0"):
            projects = Projects(view)
        with ui.tab_panel("webhooks").classes("p-0 gap-3"):
            problem = ui.label().style("color:var(--bad)")
            problem.bind_visibility_from(problem, "text")
            webhooks = Webhooks(view)
        with ui.tab_panel("prices").classes("p-0"):
            prices = Prices(view)

    async def from_read_models(_: list[Recorded]) -> None:
        await keys.load()
        await projects.load()

    async def from_gateway(_: list[Recorded]) -> None:
        try:
            await webhooks.load()
        except (Rejected, httpx.HTTPError) as error:
            problem.set_text(f"The gateway does not say which webhooks there are: {error}")
        else:
            problem.set_text("")

    async def from_log(_: list[Recorded]) -> None:
        await prices.load()

    await from_read_models([])
    await from_gateway([])
    await from_log([])
    view.refresh_on({"apikey", "project"}, from_read_models, reads=True)
    view.refresh_on({"webhook"}, from_gateway, seconds=_WEBHOOKS_SECONDS)
    view.refresh_on({"model"}, from_log)


PAGE = Page(path="/settings", title="Settings", build=build, icon="settings", role="admin")
