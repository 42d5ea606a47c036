"""Secrets of an embedded stack: each in a file of its own that only the owner can read."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

_BYTES = 32


def write_secret(path: Path, secret: str) -> None:
    """Put ``secret`` into ``path``, whole or not at all, readable by the owner only."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(secret + "\n")
    new.rename(path)


def ensure_secret(path: Path) -> str:
    """Return the secret in ``path``; a random one is made where there is none."""
    if not path.exists():
        write_secret(path, secrets.token_urlsafe(_BYTES))
    return path.read_text(encoding="utf-8").strip()
