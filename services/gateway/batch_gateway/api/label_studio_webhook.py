"""Deliveries of Label Studio, taken in by the gateway as the bridge does it, which may be down."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from batch_gateway.api.dependencies import Api
from vllm_batch.labeling import webhook_endpoint
from vllm_batch.labeling.webhook_endpoint import WebhookEndpoint

router = APIRouter(tags=["Labeling"])


@router.post(webhook_endpoint.PATH)
async def receive(request: Request, api: Api) -> Response:
    """Record a delivery of Label Studio; asks for the webhook's secret instead of a key."""
    endpoint = WebhookEndpoint(
        api.store,
        api.blobs,
        api.settings,
        is_connected=lambda: api.client is None or api.client.is_connected,
    )
    return await endpoint.answer(request)
