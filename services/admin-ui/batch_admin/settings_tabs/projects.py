"""Projects: what each has, and what it may use."""

from __future__ import annotations

from nicegui import ui

from batch_admin import dialogs, show
from batch_admin.keyed import Boxes
from batch_admin.view import View
from batch_admin.widgets import Facts
from vllm_batch import ids, project_limits
from vllm_batch.events.project import ProjectConfigured
from vllm_batch.ids import ProjectId
from vllm_batch.project_limits import Limits
from vllm_batch.projections.rows import ProjectUse

_COUNTS = {
    "requests_per_minute": "Requests per minute",
    "tokens_per_minute": "Tokens per minute",
    "queued_requests_max": "Queued requests at most",
    "storage_bytes_max": "Storage at most, bytes",
}


class Projects:
    """A card per project."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._cards: Boxes[ProjectId, tuple[ProjectId, ProjectUse, Limits, bool]] = Boxes(
            ui.element("div").classes("cards"), self._card, classes=""
        )

    async def load(self) -> None:
        """Ask for the projects again."""
        services = self._view.services
        limits = await project_limits.load(services.store, services.settings)
        with_keys = [key.project for key in await services.reads.api_keys()]
        names = dict.fromkeys([*with_keys, *(one.project for one in limits.configured)])
        used = {name: await services.reads.project_use(name) for name in names}
        self._cards.sync(
            {
                name: (name, use, limits.of(name), limits.is_closed(name))
                for name, use in used.items()
            }
        )

    def _card(self, shown: tuple[ProjectId, ProjectUse, Limits, bool]) -> None:
        name, use, limits, closed = shown
        with show.named(ui.element("section").classes("panel h-full"), f"project {name}"):
            with ui.row().classes("w-full justify-between items-center"):
                ui.label(name).classes("section-title").props("role=heading aria-level=2")
                show.state("closed" if closed else "active")
            facts = [
                ("Files", f"{use.files:,}, {show.size(use.storage_bytes)}"),
                ("Batches", f"{use.batches:,}"),
                ("Queued", f"{use.queued_requests:,} requests"),
                *_limit_facts(limits),
            ]
            Facts(facts)
            if not closed:
                self._actions(name, limits)

    def _actions(self, name: ProjectId, limits: Limits) -> None:
        with ui.row().classes("gap-1"):
            ui.button("Limits", on_click=lambda: self._change(name, limits)).props(
                "flat dense no-caps"
            )
            ui.button("Close", on_click=lambda: self._close(name)).props(
                "flat dense no-caps color=negative"
            )

    async def _change(self, name: ProjectId, now: Limits) -> None:
        async def deed() -> str:
            event = ProjectConfigured(
                project_key=ids.project_key(name),
                project=name,
                requested_by=self._view.user.name,
                budget_per_month=budget.value,
                budget_stops=stops.value,
                **{key: int(field.value or 0) for key, field in counts.items()},
            )
            await project_limits.record(self._view.services.store, event)
            return f"the limits of {name} count from now on"

        with dialogs.form(
            f"Limits of {name}",
            "0 is no limit. They count at once, on every gateway.",
            do="Save",
            deed=lambda: self._view.act("change limits", name, deed, role="admin"),
        ):
            counts = {
                key: ui.number(label, value=getattr(now, key), min=0, format="%.0f")
                .props("dense outlined")
                .classes("w-full")
                for key, label in _COUNTS.items()
            }
            budget = (
                ui.number("Budget per month; empty: none", value=now.budget_per_month, min=0)
                .props("dense outlined")
                .classes("w-full")
            )
            stops = ui.checkbox("Refuse new work once it is used up", value=now.budget_stops)

    async def _close(self, name: ProjectId) -> None:
        async def deed() -> str:
            await project_limits.purge(
                self._view.services.store, name, requested_by=self._view.user.name
            )
            return f"{name} is closed; its files go one after the other"

        effect = (
            "For good: its keys open nothing, its batches are cancelled, its files deleted. "
            "This cannot be taken back."
        )
        if await dialogs.confirmed(f"Close {name}?", effect, do="Close"):
            await self._view.act("close a project", name, deed, role="admin")


def _limit_facts(limits: Limits) -> list[tuple[str, str]]:
    facts = [
        (label.split(",")[0], show.size(value) if key == "storage_bytes_max" else f"{value:,}")
        for key, label in _COUNTS.items()
        if (value := getattr(limits, key))
    ]
    if limits.budget_per_month is not None:
        effect = "refuses then" if limits.budget_stops else "warns then"
        facts.append(("Budget", f"{limits.budget_per_month:,.2f} per month, {effect}"))
    return facts or [("Limits", "none")]
