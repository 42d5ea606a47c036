"""The frame of every page: navigation, who is signed in, dark or light; and registering pages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nicegui import ui
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from batch_admin.services import Services
from batch_admin.sessions import SignIn
from batch_admin.view import View
from batch_admin.widgets import LeaveWhenSignedOut
from vllm_batch.errors import BatchError
from vllm_batch.events.admin import Role

FAVICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" '
    'rx="7" fill="#0b5cad"/><path d="M8 10h16M8 16h11M8 22h6" stroke="#fff" stroke-width="3" '
    'stroke-linecap="round"/></svg>'
)
THEME_COOKIE = "vllm_batch_theme"
_THEMES = {"dark": True, "light": False}
_THEME_SECONDS = 365 * 86_400
_BROWSER_SECONDS = 10.0  # for an answer of the browser
_CSS = Path(__file__).with_name("shell.css")


@dataclass(frozen=True, kw_only=True)
class Page:
    """One page: ``build`` fills the frame. ``icon`` is empty for pages that no menu shows."""

    path: str
    title: str
    build: Callable[[View], Awaitable[None]]
    icon: str = ""
    role: Role = "viewer"


def register(page: Page, pages: Sequence[Page], services: Services) -> None:
    """Serve ``page`` under its path."""

    async def show(request: Request) -> Response | None:
        sign_in: SignIn = request.state.sign_in
        user = sign_in.user(services.live.users, services.clock.now())
        if user is None:  # just now
            return RedirectResponse("/login", status_code=303)
        view = View(
            services,
            sign_in,
            user,
            request.path_params,
            dict(request.query_params),
            theme=request.cookies.get(THEME_COOKIE, ""),
        )
        view.leave_when_signed_out()
        _frame(view, page, pages)
        with ui.element("div").classes("page"):
            if not view.may(page.role):
                notice("lock", "Not for you", f"This page takes the role {page.role}.")
                return None
            await view.open()
            try:
                await page.build(view)
            except BatchError as error:
                notice("cloud_off", "Not there right now", f"{error}. Reload the page in a moment.")
        return None

    ui.page(page.path, title=f"{page.title} · vllm-batch")(show)


def heading(title: str) -> None:
    """Show the page's title."""
    ui.label(title).props("role=heading aria-level=1").classes("page-title")


def section(title: str) -> None:
    """Show a section's title."""
    ui.label(title).props("role=heading aria-level=2").classes("section-title")


def notice(icon: str, title: str, text: str) -> None:
    """Say that there is nothing here, and what to do next."""
    with ui.column().classes("empty items-center w-full"):
        ui.icon(icon).classes("empty-icon").props("aria-hidden=true")
        ui.label(title).classes("text-lg font-medium")
        ui.label(text).classes("dim text-center")


def _frame(view: View, page: Page, pages: Sequence[Page]) -> None:
    ui.add_css(_CSS)
    LeaveWhenSignedOut()
    ui.colors(primary="#0b5cad", positive="#18713a", negative="#a3201d", warning="#8a5300")
    dark = ui.dark_mode(_THEMES.get(view.theme))
    with ui.header(elevated=False).classes("top"):
        drawer_button = ui.button(icon="menu").props(
            'flat round dense color=inherit aria-label="Menu"'
        )
        ui.label("vllm-batch").classes("brand")
        ui.space()
        ui.label(f"{view.user.name} · {view.user.role}").classes("who")
        ui.button(icon="brightness_6", on_click=lambda: _toggle(dark)).props(
            'flat round dense color=inherit aria-label="Dark or light"'
        )
        with ui.element("form").props("method=post action=/logout"):
            ui.button(icon="logout").props(
                'flat round dense color=inherit type=submit aria-label="Sign out"'
            )
    drawer = ui.left_drawer(bordered=True).classes("nav").props("width=208 breakpoint=900")
    with drawer, ui.element("nav").props('aria-label="Pages"'):
        for one in pages:
            if one.icon and view.may(one.role):
                _link(one, current=one.path == page.path)
    drawer_button.on_click(drawer.toggle)


def _link(page: Page, *, current: bool) -> None:
    with ui.link(target=page.path).classes("nav-link" + (" current" if current else "")) as link:
        ui.icon(page.icon).props("aria-hidden=true")
        ui.label(page.title)
    if current:
        link.props("aria-current=page")


async def _toggle(dark: ui.dark_mode) -> None:
    """Turn dark to light or back, and keep it for the other pages of this browser."""
    is_dark = await ui.run_javascript(
        "document.body.classList.contains('body--dark')", timeout=_BROWSER_SECONDS
    )
    dark.value = not is_dark
    theme = "light" if is_dark else "dark"
    cookie = f"{THEME_COOKIE}={theme}; path=/; max-age={_THEME_SECONDS}; samesite=lax"
    ui.run_javascript(f"document.cookie = '{cookie}'")
