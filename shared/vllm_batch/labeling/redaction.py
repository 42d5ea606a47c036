"""What must never be stored or logged of what Label Studio sends: tokens and passwords.

Its webhooks carry the project's token and the password of its task data, calls of its ML backend
protocol carry the token of a person.
"""

from __future__ import annotations

from typing import Any

REDACTED = "[redacted]"
_NAMES = frozenset(
    {"token", "password", "secret", "api_key", "apikey", "authorization", "task_data_login"}
)
_ENDINGS = ("_token", "_password", "_secret", "_api_key")


def redacted(value: Any) -> Any:
    """Return a copy of a JSON value without credentials, at whatever depth they were."""
    if isinstance(value, dict):
        return {k: REDACTED if v and _is_secret(k) else redacted(v) for k, v in value.items()}
    if isinstance(value, list):
        return [redacted(item) for item in value]
    return value


def _is_secret(name: str) -> bool:
    plain = name.lower().replace("-", "_")
    return plain in _NAMES or plain.endswith(_ENDINGS)
