"""The default API key: made once, kept in ``<home>/api-key``, readable by the owner only."""

from __future__ import annotations

import os

from vllm_batch.local.home import Home
from vllm_batch.settings import Settings


async def ensure_api_key(home: Home, settings: Settings) -> None:
    """Make the default key unless the file is there. The event log must be reachable."""
    if home.api_key_file.exists():
        return
    from vllm_batch import api_keys
    from vllm_batch.event_store import jetstream

    async with jetstream.connect(settings, source="cli") as store:
        _, secret = await api_keys.create(store, project="default", name="default")
    new = home.api_key_file.with_suffix(".new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(secret + "\n")
    new.rename(home.api_key_file)
