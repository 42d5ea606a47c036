"""API keys: who may call the gateway, and with what scope."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

from nicegui import events, ui

from batch_admin import dialogs
from batch_admin.data_table import DataTable, column
from batch_admin.view import View
from vllm_batch import api_keys
from vllm_batch.errors import InvalidInput
from vllm_batch.ids import KeyId
from vllm_batch.projections.rows import ApiKeyRow

OLD_SECRET_HOURS = 24
_DAY_SECONDS = 86_400
_NAME = re.compile(r"[\w.-]{1,64}")
_COLUMNS = (
    column("name", "Name"),
    column("project", "Project"),
    column("prefix", "Begins with"),
    column("scopes", "Scopes"),
    column("created_at", "Created", "time"),
    column("expires_at", "Expires", "time", never="never"),
    column("state", "State", "state"),
    column("acts", "", "acts"),
)
_ACTS = (
    {"name": "rotate", "label": "Rotate", "bad": False},
    {"name": "revoke", "label": "Revoke", "bad": True},
)


class Keys:
    """The table of keys, and what may be done with one."""

    def __init__(self, view: View) -> None:
        self._view = view
        ui.button("New key", icon="add", on_click=self._create).props("unelevated no-caps")
        self._table = DataTable(
            _COLUMNS, label="API keys", empty='None yet: make one with "New key".'
        )
        self._table.on("act", self._act)

    async def load(self) -> None:
        """Ask for the keys again."""
        now = self._view.services.clock.now().timestamp()
        self._table.show([_row(key, now) for key in await self._view.services.reads.api_keys()])

    async def _act(self, event: events.GenericEventArguments) -> None:
        deeds = {"rotate": self._rotate, "revoke": self._revoke}
        row = next((row for row in self._table.rows if row["id"] == event.args["id"]), None)
        if row is not None:
            await deeds[event.args["name"]](KeyId(row["id"]), row["name"])

    async def _create(self) -> None:
        async def deed() -> str:
            for field in (name, project):
                if not _NAME.fullmatch(field.value or ""):
                    raise InvalidInput("names have 1 to 64 letters, digits, dots, dashes or _")
            now = self._view.services.clock.now().timestamp()
            _, secret = await api_keys.create(
                self._view.services.store,
                project=project.value,
                name=name.value,
                scopes=scopes.value,
                expires_at=int(now + days.value * _DAY_SECONDS) if days.value else None,
                requested_by=self._view.user.name,
            )
            dialogs.show_secret(f"The key {name.value}", secret)
            return ""

        with dialogs.form(
            "New key",
            "A project begins with its first key.",
            do="Create",
            deed=lambda: self._view.act("create a key", name.value, deed, role="admin"),
        ):
            name = ui.input("Name").classes("w-full")
            project = ui.input("Project", value="default").classes("w-full")
            scopes = (
                ui.select(
                    sorted(api_keys.SCOPES), value=sorted(api_keys.DEFAULT_SCOPES),
                    label="Scopes", multiple=True,
                )
                .props("use-chips")
                .classes("w-full")
            )  # fmt: skip
            days = ui.number("Days until it expires; empty: never", min=1, max=3650).classes(
                "w-full"
            )

    async def _rotate(self, key_id: KeyId, name: str) -> None:
        async def deed() -> str:
            old_until = self._view.services.clock.now() + timedelta(hours=OLD_SECRET_HOURS)
            _, secret = await api_keys.rotate(
                self._view.services.store,
                key_id,
                old_until=old_until,
                requested_by=self._view.user.name,
            )
            dialogs.show_secret(f"The new secret of {name}", secret)
            return ""

        effect = f"It gets a new secret; the old one counts for {OLD_SECRET_HOURS} hours more."
        if await dialogs.confirmed(f"Rotate {name}?", effect, do="Rotate"):
            await self._view.act("rotate a key", key_id, deed, role="admin")

    async def _revoke(self, key_id: KeyId, name: str) -> None:
        async def deed() -> str:
            await api_keys.revoke(
                self._view.services.store, key_id, requested_by=self._view.user.name
            )
            return f"{name} opens nothing any more"

        effect = "Whoever uses it is refused from now on. This cannot be taken back."
        if await dialogs.confirmed(f"Revoke {name}?", effect, do="Revoke"):
            await self._view.act("revoke a key", key_id, deed, role="admin")


def _row(key: ApiKeyRow, now: float) -> dict[str, Any]:
    state, colour = "active", "good"
    if key.revoked_at is not None:
        state, colour = "revoked", "idle"
    elif key.expires_at is not None and key.expires_at <= now:
        state, colour = "expired", "warn"
    return {
        "id": key.key_id, "name": key.name, "project": key.project, "prefix": f"{key.prefix}…",
        "scopes": ", ".join(key.scopes), "created_at": key.created_at,
        "expires_at": key.expires_at, "state": state, "colour": colour,
        "acts": [] if state == "revoked" else list(_ACTS),
    }  # fmt: skip
