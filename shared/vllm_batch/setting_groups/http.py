"""What the services' HTTP servers take in, and their certificates."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field

KIB = 1024


class HttpSettings(BaseModel):
    """See the module; units come last in the names."""

    http_header_bytes_max: int = Field(
        64 * KIB, ge=4 * KIB, description="largest request line and headers of a call together"
    )
    http_headers_max: int = Field(100, ge=10, description="headers of a call")
    http_header_seconds: float = Field(
        30.0, gt=0, description="longest time from the first byte of a call to its last header"
    )
    body_depth_max: int = Field(
        200, ge=10, le=500, description="deepest nesting of a call's JSON body"
    )
    api_tls_cert: Path | None = Field(
        None, description="PEM file of the API's certificate; with its key the API speaks HTTPS"
    )
    api_tls_key: Path | None = Field(None, description="PEM file of its key")
    admin_tls_cert: Path | None = Field(
        None, description="PEM file of the admin UI's certificate; with its key it speaks HTTPS"
    )
    admin_tls_key: Path | None = Field(None, description="PEM file of its key")
    bridge_tls_cert: Path | None = Field(
        None, description="PEM file of the bridge's certificate; with its key it speaks HTTPS"
    )
    bridge_tls_key: Path | None = Field(None, description="PEM file of its key")
