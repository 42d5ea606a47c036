"""Questions that a page asks before it does something.

They belong to the page, not to what was clicked: that may be drawn anew meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from nicegui import ui

from batch_admin import show


async def confirmed(title: str, effect: str, *, do: str) -> bool:
    """Ask whether it shall be done; ``effect`` says what it means, ``do`` is on the button."""
    with ui.context.client, show.named(ui.dialog(), title) as dialog, ui.card():
        _title(title)
        ui.label(effect).classes("dim")
        with ui.row().classes("w-full justify-end"):
            ui.button("Cancel", on_click=lambda: dialog.submit(False)).props("flat no-caps")
            ui.button(do, on_click=lambda: dialog.submit(True)).props(
                "unelevated no-caps color=negative"
            )
    answer = bool(await dialog)
    dialog.delete()
    return answer


@contextmanager
def form(
    title: str, explanation: str, *, do: str, deed: Callable[[], Awaitable[bool]]
) -> Iterator[None]:
    """Open a dialog whose fields the caller puts in; it closes once ``deed`` says it is done."""

    async def attempt() -> None:
        if await deed():
            dialog.close()

    with (
        ui.context.client,
        show.named(ui.dialog(), title) as dialog,
        ui.card().classes("dialog"),
    ):
        _title(title)
        ui.label(explanation).classes("dim")
        yield
        with ui.row().classes("w-full justify-end"):
            ui.button("Cancel", on_click=dialog.close).props("flat no-caps")
            ui.button(do, on_click=attempt).props("unelevated no-caps")
    dialog.on("hide", dialog.delete)
    dialog.open()


def show_secret(title: str, secret: str) -> None:
    """Show what is shown only once; the dialog stays until it is closed on purpose."""
    with (
        ui.context.client,
        show.named(ui.dialog().props("persistent"), title) as dialog,
        ui.card().classes("dialog"),
    ):
        _title(title)
        ui.label("Keep it now: nobody can show it again.").classes("dim")
        ui.input("Secret", value=secret).props("readonly outlined dense").classes("w-full mono")
        with ui.row().classes("w-full justify-end"):
            ui.button("Copy", on_click=lambda: ui.clipboard.write(secret)).props("flat no-caps")
            ui.button("Done", on_click=dialog.close).props("unelevated no-caps")
    dialog.on("hide", dialog.delete)
    dialog.open()


def _title(text: str) -> None:
    ui.label(text).classes("section-title").props("role=heading aria-level=2")
