"""The application: routes, the outermost layer, error answers and the OpenAPI document."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from batch_gateway.api import (
    admin,
    admin_keys,
    admin_models,
    admin_projects,
    answers,
    batch_events,
    batches,
    content,
    errors,
    events,
    files,
    health,
    health_page,
    inference,
    label_studio_webhook,
    labeling,
    models,
    results,
    uploads,
    usage,
    webhook_endpoints,
    webhook_objects,
)
from batch_gateway.api.access import root_of
from batch_gateway.api.audit import Audit
from batch_gateway.api.batch_object import Batch
from batch_gateway.api.batch_request import CreateBatchRequest
from batch_gateway.api.dependencies import Dependencies
from batch_gateway.api.edge import Edge
from batch_gateway.api.file_object import FileDeletion, FileObject
from batch_gateway.api.gate import Gate
from vllm_batch import fleet_report, model_fit, model_listing
from vllm_batch.events import LabelingAccuracyMeasured
from vllm_batch.health.report import HealthReport
from vllm_batch.labeling import agreement_report, project_report
from vllm_batch.metrics.http import Measured
from vllm_batch.tracing.http import NO_SECOND_SPANS, Traced

_MODULES = (
    files,
    content,
    uploads,
    batches,
    results,
    batch_events,
    events,
    models,
    inference,
    admin,
    admin_keys,
    admin_models,
    admin_projects,
    webhook_endpoints,
    usage,
    label_studio_webhook,
    labeling,
    health,
    health_page,
)
_DOCUMENTED = (
    Batch,
    CreateBatchRequest,
    FileDeletion,
    FileObject,
    admin.Order,
    admin.WorkerLogs,
    fleet_report.WorkerReport,
    admin.Workers,
    admin_keys.Key,
    admin_keys.KeyRequest,
    admin_keys.Keys,
    admin_projects.LimitsRequest,
    admin_projects.Project,
    admin_projects.Projects,
    answers.Page,
    admin_models.ModelAliasRequest,
    admin_models.ModelEstimateRequest,
    admin_models.ModelPriceRequest,
    admin_models.ModelRegistration,
    admin_models.Models,
    admin_models.ModelWorkerRequest,
    admin_models.RegisteredModel,
    model_fit.Examination,
    model_listing.ModelStatus,
    inference.Inference,
    LabelingAccuracyMeasured,
    agreement_report.AgreementReport,
    labeling.GroundTruthMark,
    HealthReport,
    project_report.LabelingAccuracy,
    project_report.LabelingAnnotation,
    project_report.LabelingProject,
    models.Model,
    models.ModelList,
    uploads.CompleteRequest,
    uploads.PartObject,
    uploads.UploadObject,
    uploads.UploadRequest,
    usage.UsageReport,
    webhook_endpoints.Deleted,
    webhook_endpoints.EventTypeList,
    webhook_endpoints.TestResult,
    webhook_objects.WebhookDelivery,
    webhook_objects.WebhookEndpoint,
    webhook_objects.WebhookEndpointRequest,
)


def create_app(dependencies: Dependencies) -> FastAPI:
    """Return the application that serves with ``dependencies``."""
    app = FastAPI(
        title="vllm-batch",
        version=metadata.version("vllm-batch"),
        redirect_slashes=False,
        docs_url=None,  # its page takes scripts from elsewhere
        redoc_url=None,
        telemetry=NO_SECOND_SPANS,
    )
    app.state.dependencies = dependencies
    for module in _MODULES:
        app.include_router(module.router)
    errors.install(app, [route for module in _MODULES for route in module.router.routes])
    app.add_middleware(Audit, store=dependencies.store, new_id=dependencies.new_id)
    app.add_middleware(
        Edge,
        gate=Gate(dependencies.keys, dependencies.limits, dependencies.rates, dependencies.clock),
        clock=dependencies.clock,
        new_id=dependencies.new_id,
    )
    app.add_middleware(Traced)
    app.add_middleware(Measured, metrics=dependencies.metrics.http)
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
                if root_of(path) is not None:
                    operation["security"] = [{"key": []}]
        app.openapi_schema = document
    return app.openapi_schema
