"""The bridge's HTTP application: what Label Studio calls."""

from __future__ import annotations

from importlib import metadata

from fastapi import APIRouter, FastAPI

from batch_labelstudio import ml_backend, webhooks
from batch_labelstudio.bridge import Bridge
from vllm_batch.metrics.http import Measured
from vllm_batch.tracing.http import NO_SECOND_SPANS, Traced

_ROUTERS: tuple[APIRouter, ...] = (webhooks.router, ml_backend.router)


def create_app(bridge: Bridge) -> FastAPI:
    """Return the application; its routes find ``bridge`` as `app.state.bridge`."""
    app = FastAPI(
        title="vllm-batch Label Studio bridge",
        version=metadata.version("vllm-batch"),
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        telemetry=NO_SECOND_SPANS,
    )
    app.state.bridge = bridge
    for router in _ROUTERS:
        app.include_router(router)
    app.add_middleware(Traced)
    app.add_middleware(Measured, metrics=bridge.metrics.http)
    return app
