"""Outgoing webhooks: where they may go, and how long they are tried."""

from __future__ import annotations

from pydantic import BaseModel, Field, SecretStr


class WebhookSettings(BaseModel):
    """See the module; units come last in the names."""

    secret_key: SecretStr = Field(
        SecretStr(""),
        description="of this deployment; signing secrets derive from it. The embedded stack makes "
        "one; elsewhere: 32 random bytes as text, the same for every process",
    )
    webhook_networks_allowed: tuple[str, ...] = Field(
        (),
        description="networks that are not public and may get webhooks all the same, with plain "
        'http too, a JSON list: ["10.1.0.0/16"]',
    )
    webhook_timeout_seconds: float = Field(15.0, gt=0, description="longest wait for an answer")
    webhook_retry_seconds: float = Field(
        5.0, gt=0, description="pause after the first failure; then 1, 5, 30 minutes, 2, 5 hours"
    )
    webhook_retry_seconds_max: float = Field(
        24 * 3600, gt=0, description="a delivery is given up after this long"
    )
    webhook_in_flight_max: int = Field(32, ge=1, description="deliveries at once")
    webhook_endpoints_max: int = Field(20, ge=1, description="endpoints of one project")
