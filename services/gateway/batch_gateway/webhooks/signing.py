"""Signing as Standard Webhooks has it, with secrets that are kept nowhere.

A secret derives from the deployment's secret key, the endpoint and a generation, so whoever reads
the event log or the database cannot sign.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import datetime

from standardwebhooks import Webhook

from vllm_batch.aggregates.webhook import Endpoint
from vllm_batch.errors import BatchError

_PREFIX = "whsec_"
_KEY_CHARACTERS_MIN = 16


class NoSecretKey(BatchError):
    """The deployment has no secret key, so nothing can be signed."""

    code = "no_secret_key"


def secret_of(secret_key: str, endpoint_id: str, generation: int) -> str:
    """Return the signing secret (``whsec_…``, 32 bytes).

    Raises:
        NoSecretKey: the setting ``secret_key`` is missing or short.
    """
    if len(secret_key) < _KEY_CHARACTERS_MIN:
        raise NoSecretKey(
            "webhooks need the setting secret_key (VLLM_BATCH_SECRET_KEY): at least "
            f"{_KEY_CHARACTERS_MIN} random characters, the same for every process"
        )
    text = f"webhook:{endpoint_id}:{generation}"
    digest = hmac.new(secret_key.encode(), text.encode(), hashlib.sha256).digest()
    return _PREFIX + base64.b64encode(digest).decode()


def hint_of(secret: str) -> str:
    """Return what may be shown of a secret."""
    return f"{_PREFIX}…{secret[-4:]}"


def headers(
    secret_key: str, endpoint: Endpoint, delivery_id: str, body: str, now: datetime
) -> dict[str, str]:
    """Return the headers that prove ``body``; signed twice while an old secret still counts.

    Raises:
        NoSecretKey: see `secret_of`.
    """
    generations = [endpoint.generation]
    if endpoint.old_until is not None and now < endpoint.old_until:
        generations.append(endpoint.generation - 1)
    secrets = [secret_of(secret_key, endpoint.endpoint_id, number) for number in generations]
    signatures = [Webhook(secret).sign(delivery_id, now, body) for secret in secrets]
    return {
        "content-type": "application/json",
        "webhook-id": delivery_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signatures),
    }
