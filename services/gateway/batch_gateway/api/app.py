"""The application: routes, the outermost layer, error answers and the OpenAPI document."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from batch_gateway.api import (
    admin,
    answers,
    batch_events,
    batches,
    content,
    errors,
    files,
    health,
    models,
    results,
    uploads,
)
from batch_gateway.api.batch_object import Batch
from batch_gateway.api.batch_request import CreateBatchRequest
from batch_gateway.api.dependencies import Dependencies
from batch_gateway.api.edge import GUARDED, Edge
from batch_gateway.api.file_object import FileDeletion, FileObject
from vllm_batch import fleet_report

_DOCUMENTED = (
    Batch,
    CreateBatchRequest,
    FileDeletion,
    FileObject,
    admin.Order,
    admin.WorkerLogs,
    fleet_report.WorkerReport,
    admin.Workers,
    answers.Page,
    models.Model,
    models.ModelList,
    uploads.CompleteRequest,
    uploads.PartObject,
    uploads.UploadObject,
    uploads.UploadRequest,
)


def create_app(dependencies: Dependencies) -> FastAPI:
    """Return the application that serves with ``dependencies``."""
    app = FastAPI(
        title="vllm-batch",
        version=metadata.version("vllm-batch"),
        redirect_slashes=False,
        redoc_url=None,
    )
    app.state.dependencies = dependencies
    modules = (files, content, uploads, batches, results, batch_events, models, admin, health)
    for module in modules:
        app.include_router(module.router)
    errors.install(app, [route for module in modules for route in module.router.routes])
    app.add_middleware(
        Edge,
        keys=dependencies.keys,
        clock=dependencies.clock,
        new_id=dependencies.new_id,
    )
    app.openapi = lambda: _document(app)  # type: ignore[method-assign] # FastAPI's documented way
    return app


def _document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document: FastAPI's, with the schemas of what msgspec encodes."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        components = document.setdefault("components", {})
        components["schemas"] = answers.schemas(*_DOCUMENTED)
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation["responses"].pop("422", None)  # answered as 400 in the envelope
                if path.startswith(GUARDED):
                    operation["security"] = [{"key": []}]
        app.openapi_schema = document
    return app.openapi_schema
