"""The Label Studio bridge: webhooks, tasks, ML backend, validation."""

from __future__ import annotations

from pydantic import BaseModel, Field, SecretStr

_MIB = 1024 * 1024


class LabelStudioSettings(BaseModel):
    """See the module; units come last in the names."""

    label_studio_url: str = Field(
        "", description="Label Studio, e.g. http://127.0.0.1:8080; empty: there is none"
    )
    label_studio_api_key: SecretStr = Field(
        SecretStr(""), description="personal access token, or a legacy token where those are on"
    )
    label_studio_timeout_seconds: float = Field(
        30.0, gt=0, description="longest wait for an answer of Label Studio"
    )
    label_studio_webhook_secret: SecretStr = Field(
        SecretStr(""), description="what its webhooks send as X-Webhook-Secret; empty: all refused"
    )
    label_studio_webhook_bytes_max: int = Field(
        16 * _MIB, ge=1024, description="largest delivery; 5,000 small tasks are 4 MiB"
    )
    label_studio_webhook_seconds: float = Field(
        0.6, gt=0, description="a delivery is recorded within this; Label Studio waits 1 s"
    )
    label_studio_reconcile_seconds: float = Field(
        300.0, gt=0, le=300, description="webhooks that were missed are made up for this often"
    )
    label_studio_page_tasks: int = Field(100, ge=1, le=1000, description="tasks read per call")
    label_studio_import_tasks: int = Field(200, ge=1, le=5000, description="tasks made per call")
    bridge_host: str = "127.0.0.1"
    bridge_port: int = Field(4082, ge=0, le=65535)
    bridge_url: str = Field(
        "http://127.0.0.1:4082", description="where Label Studio reaches the bridge"
    )
    gateway_url: str = Field(
        "http://127.0.0.1:4080", description="where bridge, trainer and UI reach the API"
    )
    gateway_api_key: SecretStr = Field(
        SecretStr(""), description="key of bridge, trainer and UI at the API"
    )
    ml_backend_username: str = Field(
        "", description="whom the ML backend lets in, with its password; as entered in Label Studio"
    )
    ml_backend_password: SecretStr = Field(
        SecretStr(""), description="empty: the ML backend lets everybody in who reaches it"
    )
    ml_backend_bytes_max: int = Field(
        64 * _MIB, ge=1024, description="largest call of the ML backend: all tasks of a retrieval"
    )
    label_predict_seconds: float = Field(
        90.0,
        gt=0,
        description="what is not predicted by then is empty; Label Studio waits 100 s",
    )
    label_annotator_seconds: float = Field(
        20.0, gt=0, description="the same for a single task: somebody has opened it and waits"
    )
    label_predict_in_flight_max: int = Field(
        32, ge=1, description="tasks of one call that models are asked about at the same time"
    )
    label_answer_tokens_max: int = Field(
        512, ge=1, description="longest answer about a task: texts, lists of spans"
    )
    label_confident_score: float = Field(
        0.9, ge=0, le=1, description="so sure, a prediction that differs flags an annotation"
    )
    label_agreement_min: float = Field(
        0.5, ge=-1, le=1, description="annotations that agree less with the others' are flagged"
    )
    label_measure_seconds: float = Field(600.0, gt=0, description="longest measurement of accuracy")
