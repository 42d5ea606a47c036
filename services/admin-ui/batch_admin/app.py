"""Puts the admin UI together: the gate, the sign-in, downloads, and one NiceGUI page per module."""

from __future__ import annotations

from fastapi import FastAPI
from nicegui import Client, ui
from nicegui import app as nicegui_app

from batch_admin import downloads, shell, signing_in, worker_log_lines
from batch_admin.gate import Gate
from batch_admin.pages import PAGES
from batch_admin.services import Services
from batch_admin.sessions import Sessions
from vllm_batch.metrics.http import Measured
from vllm_batch.tracing.http import NO_SECOND_SPANS, Traced

RECONNECT_SECONDS = 10.0
"""How long a page that has lost its connection, or was closed, is kept."""


def create_app(services: Services) -> FastAPI:
    """Return the ASGI application; its lifespan starts NiceGUI."""
    app = FastAPI(
        title="vllm-batch admin",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        telemetry=NO_SECOND_SPANS,
    )
    sessions = Sessions(services.settings, services.live.users, services.clock)
    app.include_router(signing_in.create_router(services, sessions))
    app.include_router(downloads.create_router(services))
    app.include_router(worker_log_lines.create_router(services))
    for page in PAGES:
        shell.register(page, PAGES, services)
    ui.run_with(
        app,
        title="vllm-batch",
        dark=None,
        language="en-US",
        favicon=shell.FAVICON,
        reconnect_timeout=RECONNECT_SECONDS,
        tailwind=False,  # a compiler in every page, for the dozen classes that are in shell.css
        show_welcome_message=False,
    )
    # Log lines are one request without an end: a bar that shows requests would never be gone.
    nicegui_app.config.quasar_config["loadingBar"]["skipHijack"] = True
    app.add_middleware(Gate, sessions=sessions)
    app.add_middleware(Traced)
    app.add_middleware(Measured, metrics=services.metrics.http)
    return app


def pages_open() -> int:
    """Return how many pages browsers have open now."""
    return sum(client.has_socket_connection for client in Client.instances.values())
