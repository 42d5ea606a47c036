"""The admin web UI."""

from __future__ import annotations

from pydantic import BaseModel, Field


class AdminUiSettings(BaseModel):
    """See the module; units come last in the names."""

    admin_host: str = "127.0.0.1"
    admin_port: int = Field(4081, ge=0, le=65535)
    admin_session_seconds: int = Field(
        12 * 3600, ge=60, description="a sign-in lasts this long, unless the password changes"
    )
    admin_sign_in_attempts_max: int = Field(
        5, ge=1, description="wrong passwords for one name or from one address; then it waits"
    )
    admin_sign_in_wait_seconds: float = Field(
        60.0, gt=0, description="how long wrong passwords are counted"
    )
    admin_log_lines_max: int = Field(
        100_000, ge=1000, description="log lines that a page of worker logs holds"
    )
