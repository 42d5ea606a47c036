"""The API keys of an embedded stack: made once, each in a file that only the owner can read.

``<home>/api-key`` is the user's, ``<home>/service-key`` that of our own services.
"""

from __future__ import annotations

from vllm_batch import api_keys
from vllm_batch.event_store import EventStore
from vllm_batch.local.home import Home
from vllm_batch.local.secret_file import write_secret
from vllm_batch.settings import Settings


async def ensure_api_keys(home: Home, settings: Settings) -> None:
    """Make the keys that have no file yet. The event log must be reachable."""
    if home.api_key_file.exists() and home.service_key_file.exists():
        return
    from vllm_batch.event_store import jetstream

    async with jetstream.connect(settings, source="cli") as store:
        if not home.api_key_file.exists():
            _, secret = await api_keys.create(store, project="default", name="default")
            write_secret(home.api_key_file, secret)
        if not home.service_key_file.exists():
            write_secret(home.service_key_file, await _service_key(store))


async def _service_key(store: EventStore) -> str:
    _, secret = await api_keys.create(
        store, project="default", name="services", scopes=api_keys.SCOPES
    )
    return secret
