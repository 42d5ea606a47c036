"""Every limit and address of the system, named once, with its default.

Read from the environment with the prefix ``VLLM_BATCH_``, from secret files such as
``/run/secrets/vllm_batch_nats_url`` and from ``<home>/settings.toml``; the first one wins. Built
once in a process's main and passed down; nothing reads the environment later.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from vllm_batch.setting_groups.admin_ui import AdminUiSettings
from vllm_batch.setting_groups.http import HttpSettings
from vllm_batch.setting_groups.inference import InferenceSettings
from vllm_batch.setting_groups.labelstudio import LabelStudioSettings
from vllm_batch.setting_groups.limits import LimitSettings
from vllm_batch.setting_groups.models import ModelSettings
from vllm_batch.setting_groups.observability import ObservabilitySettings
from vllm_batch.setting_groups.planning import PlanningSettings
from vllm_batch.setting_groups.training import TrainingSettings
from vllm_batch.setting_groups.webhooks import WebhookSettings

MIB = 1024 * 1024


def default_home() -> Path:
    """Where the embedded stack keeps its data unless told otherwise (``VLLM_BATCH_HOME``)."""
    if home := os.environ.get("VLLM_BATCH_HOME"):
        return Path(home)
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "vllm-batch"


def secrets_dir() -> Path:
    """Where Docker puts secrets, one file each (``VLLM_BATCH_SECRETS_DIR``)."""
    return Path(os.environ.get("VLLM_BATCH_SECRETS_DIR") or "/run/secrets")


class Settings(
    InferenceSettings,
    ModelSettings,
    PlanningSettings,
    LabelStudioSettings,
    TrainingSettings,
    AdminUiSettings,
    WebhookSettings,
    LimitSettings,
    ObservabilitySettings,
    HttpSettings,
    BaseSettings,
):
    """Settings of every process. Units come last in the names; byte sizes are plain bytes."""

    model_config = SettingsConfigDict(
        env_prefix="VLLM_BATCH_", frozen=True, extra="forbid", env_ignore_empty=True
    )

    # Where things are
    home: Path = Field(default_factory=default_home, description="data of the embedded stack")
    nats_url: str = Field(
        "nats://127.0.0.1:4222", description="NATS server, or several, comma-separated"
    )
    nats_tls_ca: Path | None = Field(
        None, description="PEM file of the authority that NATS servers are checked by; turns TLS on"
    )
    nats_tls_cert: Path | None = Field(
        None, description="PEM file of the certificate shown to NATS, where it asks for one"
    )
    nats_tls_key: Path | None = Field(None, description="PEM file of its key")
    postgres_dsn: SecretStr = Field(
        SecretStr("postgresql://postgres@127.0.0.1:5432/postgres"),
        description="projections' database",
    )
    postgres_schema: str = Field("vllm_batch", pattern=r"^[a-z_][a-z0-9_]{0,62}$")
    blob_url: str = Field(
        "", description="file:// s3:// gs:// az:// root of files and segments; default <home>/blobs"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_dir: Path | None = Field(
        None, description="a worker outside the embedded stack writes its log here: 7 files, 10 MB"
    )

    # JetStream
    events_replicas: int = Field(
        1, ge=1, le=5, description="copies of the event log; 3 in a cluster"
    )
    append_timeout_seconds: float = Field(
        15.0, gt=0, description="longest wait for one append, retries included"
    )
    append_in_flight_max: int = Field(64, ge=1)
    telemetry_age_max_seconds: int = Field(24 * 3600, ge=60)
    telemetry_bytes_max: int = Field(256 * MIB, ge=MIB)

    # Gateway: api
    api_host: str = "127.0.0.1"
    api_port: int = Field(4080, ge=0, le=65535)
    file_bytes_max: int = Field(512 * MIB, ge=1, description="largest upload of any purpose")
    batch_file_bytes_max: int = Field(
        200 * MIB, ge=1, description="largest upload of purpose batch"
    )
    upload_bytes_max: int = Field(8 * 1024 * MIB, ge=1, description="largest multi-part upload")
    upload_part_bytes_max: int = Field(64 * MIB, ge=1)
    upload_expiry_seconds: int = Field(3600, ge=60)
    batch_file_expiry_seconds: int = Field(
        30 * 24 * 3600, ge=3600, description="default for purpose batch"
    )
    body_bytes_max: int = Field(1 * MIB, ge=1024, description="largest JSON body of a call")
    read_your_writes_seconds: float = Field(
        2.0, ge=0, description="longest wait for the projection"
    )
    read_models_answer_seconds: float = Field(
        0.8, gt=0, description="longest wait for an answer of Postgres"
    )
    blob_free_bytes_min: int = Field(64 * MIB, ge=0, description="uploads are refused below this")

    # Gateway: orchestrator
    batch_requests_max: int = Field(50_000, ge=1, description="requests in one batch")
    embedding_inputs_max: int = Field(50_000, ge=1, description="embedding inputs in one batch")
    request_bytes_max: int = Field(16 * MIB, ge=1024, description="longest line of a batch file")
    json_depth_max: int = Field(10_000, ge=50, le=50_000, description="deepest nesting of a line")
    validation_errors_max: int = Field(100, ge=1, description="errors listed on a failed batch")
    chunk_requests_max: int = Field(
        256, ge=1, description="requests in one chunk (unit of leasing)"
    )
    chunk_bytes_max: int = Field(8 * MIB, ge=1024)
    completion_window_seconds_max: int = Field(30 * 24 * 3600, ge=60)
    release_window_chunks: int = Field(
        4, ge=1, description="hints offered ahead per live worker and model"
    )
    leader_lease_seconds: float = Field(3.0, ge=0.5)
    lease_seconds: float = Field(
        10.0, ge=0.5, description="a worker unheard of for this long loses its leases"
    )
    cancel_grace_seconds: float = Field(
        5.0, ge=0, description="time for workers to hand in what is done"
    )
    batch_retention_seconds: int = Field(
        0,
        ge=0,
        description="a batch and its output are deleted so long after its end; 0: never",
    )
    segment_retention_seconds: int = Field(
        24 * 3600, ge=0, description="result segments kept after the end"
    )
    reconcile_seconds: float = Field(1.0, gt=0)

    # GPU worker
    worker_name: str = Field(
        default_factory=socket.gethostname,
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        validate_default=False,
    )
    heartbeat_seconds: float = Field(2.0, gt=0)
    engine: Literal["vllm", "openai", "simulated"] = "simulated"
    model: str = Field("", description="Hugging Face id or local directory the engine loads")
    model_name: str = Field("", description="the name clients use; default: the last part of model")
    engine_variant: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="build of vLLM the embedded stack installs; auto: by the NVIDIA driver"
    )
    engine_python: Path | None = Field(
        None, description="Python of the environment vLLM is installed in"
    )
    engine_args: tuple[str, ...] = Field(
        (), description="extra arguments of the vLLM server, a JSON list"
    )
    engine_url: str = Field(
        "", description="engine openai: base URL, e.g. http://127.0.0.1:8000/v1"
    )
    engine_api_key: SecretStr = SecretStr("")
    engine_max_num_seqs: int = Field(128, ge=1, description="requests the engine runs at once")
    engine_ready_seconds: float = Field(
        600.0, gt=0, description="longest wait for a starting engine"
    )
    engine_frozen_seconds: float = Field(
        60.0, gt=0, description="an engine that makes no token for this long, though it has work, "
        "and answers no small request either, is replaced",
    )  # fmt: skip
    engine_canary_seconds: float = Field(
        20.0, gt=0, description="longest wait for the answer to that small request"
    )
    engine_rss_bytes_max: int = Field(
        0, ge=0, description="an engine with more host memory is started anew between requests; "
        "0: no limit",
    )  # fmt: skip
    log_lines_waiting_max: int = Field(
        2000, ge=1, description="log lines kept for sending; the oldest are dropped beyond"
    )
    in_flight_factor: float = Field(
        2.0, ge=1, le=8, description="requests in flight / engine_max_num_seqs"
    )
    flush_seconds: float = Field(1.0, gt=0, description="checkpoint at least this often")
    flush_results: int = Field(64, ge=1, description="... or after this many results")
    request_timeout_seconds: float = Field(600.0, gt=0)
    request_attempts_max: int = Field(5, ge=1, description="tries for transient engine errors")
    retry_backoff_seconds: float = Field(0.5, ge=0, description="first pause; doubles, with jitter")
    retry_backoff_seconds_max: float = Field(30.0, ge=0)
    retry_after_seconds_max: float = Field(
        120.0, ge=0, description="longest pause that an engine's Retry-After is given"
    )
    drain_notice_seconds: float = Field(30.0, ge=0, description="time between SIGTERM and the end")

    # Watchdog
    watchdog_check_seconds: float = Field(
        30.0, gt=0, description="looks at least this often; at once when a worker is lost"
    )
    watchdog_restarter: Literal["none", "local", "systemd", "docker"] = Field(
        "none", description="how lost workers are started again"
    )
    watchdog_restart_target: str = Field(
        "",
        description="unit or container to restart, with {name} for the worker's name; "
        "default: vllm-batch-worker@{name}.service, or {name}",
    )
    watchdog_restart_grace_seconds: float = Field(
        20.0, ge=0, description="a lost worker may come back by itself for this long"
    )
    watchdog_backoff_seconds: float = Field(5.0, ge=0, description="first pause; doubles")
    watchdog_backoff_seconds_max: float = Field(300.0, ge=0)
    crash_loop_restarts: int = Field(
        5, ge=1, description="this many deaths within the window are a crash loop"
    )
    crash_loop_window_seconds: float = Field(600.0, gt=0)
    stuck_job_seconds: float = Field(
        1800.0, gt=0, description="a batch or a lease without progress for this long is stuck"
    )
    stuck_rounds_max: int = Field(
        3, ge=1, description="requests found leased without progress this often fail"
    )

    # Engine simulated (tests and benchmarks of what lies around the engine)
    simulated_latency_seconds: float = Field(0.0, ge=0)
    simulated_output_tokens: int = Field(8, ge=1)
    simulated_error_rate: float = Field(
        0.0, ge=0, le=1, description="share of answers that are a 503"
    )
    simulated_seed: int = 0
    simulated_journal: Path | None = Field(
        None, description="file that gets a line with the digest of every request it executes"
    )

    @model_validator(mode="after")
    def _derive(self) -> Settings:
        if not self.blob_url:
            object.__setattr__(self, "blob_url", (self.home.absolute() / "blobs").as_uri())
        if not self.model_name:
            name = Path(self.model).name if self.model else f"{self.engine}-model"
            object.__setattr__(self, "model_name", name)
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then secret files, then ``<home>/settings.toml``."""
        home = init_settings().get("home") or default_home()
        toml = TomlConfigSettingsSource(settings_cls, Path(home) / "settings.toml")
        folder = secrets_dir()
        if not folder.is_dir():  # the source warns of a folder that is not there
            return init_settings, env_settings, toml
        secret_files = SecretsSettingsSource(settings_cls, secrets_dir=folder)
        return init_settings, env_settings, secret_files, toml
