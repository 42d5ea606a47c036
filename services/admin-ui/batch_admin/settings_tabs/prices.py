"""Prices: what a million tokens of each model cost."""

from __future__ import annotations

from nicegui import ui

from batch_admin import show
from batch_admin.pages.models import change_price, price_of
from batch_admin.shell import notice
from batch_admin.view import View
from vllm_batch import model_listing


class Prices:
    """A line per registered model."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._list = ui.column().classes("w-full gap-2")

    async def load(self) -> None:
        """Show the prices as they are now."""
        view = self._view
        found = model_listing.listed(view.live.models, view.live.fleet)
        registered = [model for model in found if model.registered]
        self._list.clear()
        with self._list:
            if not registered:
                notice("sell", "No registered models", "Register one on the page Models.")
            for model in registered:
                with (
                    ui.row()
                    .classes("w-full items-center justify-between panel no-wrap")
                    .style("flex-direction:row")
                ):
                    ui.label(model.name).classes("font-medium")
                    ui.label(price_of(model)).classes("dim")
                    button = ui.button(
                        "Change", on_click=lambda model=model: change_price(view, model)
                    ).props("flat dense no-caps")
                    show.named(button, f"Change the price of {model.name}")
