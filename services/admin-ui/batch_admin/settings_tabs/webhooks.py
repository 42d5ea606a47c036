"""Outgoing webhooks of the services' own project: who is told when a batch ends, and how it went.

Through the gateway, which alone may sign deliveries and reach out.
"""

from __future__ import annotations

from typing import Any

from nicegui import ui

from batch_admin import dialogs, show
from batch_admin.gateway_calls import call
from batch_admin.keyed import Boxes
from batch_admin.shell import notice
from batch_admin.view import View

DELIVERIES_SHOWN = 50
_PATH = "/v1/webhook_endpoints"


class Webhooks:
    """A panel per endpoint, with its deliveries."""

    def __init__(self, view: View) -> None:
        self._view = view
        with ui.row().classes("w-full items-center gap-3"):
            ui.button("New webhook", icon="add", on_click=self._create).props("unelevated no-caps")
            ui.label(
                "For the project of this service's key. Other projects make theirs with "
                "their own key: `vllm-batch webhook create`."
            ).classes("dim")
        with ui.column().classes("w-full") as self._none:
            notice("webhook", "No webhooks", 'Add one with "New webhook".')
        self._none.set_visibility(False)
        self._opened: set[str] = set()
        self._list: Boxes[str, tuple[dict[str, Any], list[dict[str, Any]]]] = Boxes(
            ui.column().classes("w-full gap-3"), self._show
        )

    async def load(self) -> None:
        """Ask for endpoints and deliveries again. Raises Rejected, httpx.HTTPError."""
        services = self._view.services
        found = (await call(services, "GET", _PATH, params={"limit": 100}))["data"]
        deliveries = {}
        for endpoint in found:
            path, limit = f"{_PATH}/{endpoint['id']}/deliveries", {"limit": DELIVERIES_SHOWN}
            deliveries[endpoint["id"]] = (await call(services, "GET", path, params=limit))["data"]
        self._none.set_visibility(not found)
        self._list.sync({one["id"]: (one, deliveries[one["id"]]) for one in found})

    def _show(self, shown: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
        endpoint, deliveries = shown
        name = endpoint["name"]
        with show.named(ui.element("section").classes("panel"), f"webhook {name}"):
            with ui.row().classes("w-full justify-between items-center"):
                ui.label(name).classes("section-title").props("role=heading aria-level=2")
                ui.label(endpoint["status"]).classes(
                    f"state {'good' if endpoint['status'] == 'active' else 'bad'}"
                )
            ui.label(endpoint["url"]).classes("mono").style("overflow-wrap:anywhere")
            ui.label(", ".join(endpoint["event_types"])).classes("dim")
            with ui.row().classes("gap-1"):
                self._button("Test", lambda: self._test(endpoint))
                if endpoint["status"] != "active":
                    self._button("Enable", lambda: self._post(endpoint, "enable", "is active"))
                self._button("Delete", lambda: self._delete(endpoint))
            with ui.expansion(
                _counted(deliveries),
                value=endpoint["id"] in self._opened,
                on_value_change=lambda event: self._note_opened(endpoint["id"], opened=event.value),
            ).classes("w-full"):
                if not deliveries:
                    ui.label("Nothing was delivered yet: a batch has to end.").classes("dim")
                for delivery in deliveries:
                    self._show_delivery(endpoint, delivery)

    def _note_opened(self, endpoint_id: str, *, opened: bool) -> None:
        if opened:
            self._opened.add(endpoint_id)
        else:
            self._opened.discard(endpoint_id)

    def _show_delivery(self, endpoint: dict[str, Any], delivery: dict[str, Any]) -> None:
        said = delivery["last_error"] or delivery["last_status"] or "not tried yet"
        with ui.row().classes("w-full items-center gap-3"):
            show.state(delivery["status"])
            show.moment(delivery["created_at"])
            ui.label(delivery["event_type"])
            ui.link(delivery["batch_id"], f"/batches/{delivery['batch_id']}").classes("mono")
            ui.label(f"{delivery['attempts']} attempts, {said}").classes("dim")
            replay = f"deliveries/{delivery['id']}/replay"
            self._button("Replay", lambda: self._post(endpoint, replay, "is delivered again"))

    def _button(self, label: str, deed: Any) -> None:
        ui.button(label, on_click=deed).props("flat dense no-caps")

    async def _create(self) -> None:
        async def deed() -> str:
            body = {"name": name.value, "url": url.value, "event_types": types.value}
            made = await call(self._view.services, "POST", _PATH, json=body)
            dialogs.show_secret(f"The signing secret of {name.value}", made["signing_secret"])
            await self.load()
            return ""

        known = (await call(self._view.services, "GET", "/v1/webhook_event_types"))["data"]
        with dialogs.form(
            "New webhook",
            "It gets a signed POST whenever a batch ends in one of these ways.",
            do="Create",
            deed=lambda: self._view.act("create a webhook", name.value, deed, role="admin"),
        ):
            name = ui.input("Name").classes("w-full")
            url = ui.input("URL", placeholder="https://…").classes("w-full")
            types = (
                ui.select(known, value=known, label="Events", multiple=True)
                .props("use-chips")
                .classes("w-full")
            )

    async def _test(self, endpoint: dict[str, Any]) -> None:
        async def deed() -> str:
            body = {"event_type": endpoint["event_types"][0]}
            path = f"{_PATH}/{endpoint['id']}/test"
            answer = await call(self._view.services, "POST", path, json=body)
            return f"{endpoint['name']} answered {answer['status_code']}"

        await self._view.act("test a webhook", endpoint["id"], deed, role="admin")

    async def _post(self, endpoint: dict[str, Any], path: str, said: str) -> None:
        async def deed() -> str:
            await call(self._view.services, "POST", f"{_PATH}/{endpoint['id']}/{path}")
            await self.load()
            return f"{endpoint['name']} {said}"

        await self._view.act("change a webhook", endpoint["id"], deed, role="admin")

    async def _delete(self, endpoint: dict[str, Any]) -> None:
        async def deed() -> str:
            await call(self._view.services, "DELETE", f"{_PATH}/{endpoint['id']}")
            await self.load()
            return f"{endpoint['name']} is deleted"

        effect = "What was still to be delivered to it is not delivered."
        if await dialogs.confirmed(f"Delete {endpoint['name']}?", effect, do="Delete"):
            await self._view.act("delete a webhook", endpoint["id"], deed, role="admin")


def _counted(deliveries: list[dict[str, Any]]) -> str:
    newest = "the newest " if len(deliveries) == DELIVERIES_SHOWN else ""
    return f"Deliveries: {newest}{len(deliveries)}"
