"""What a call needs: which scopes open it."""

from __future__ import annotations

from vllm_batch.api_keys import ADMIN, BATCH, INFERENCE, READ
from vllm_batch.labeling import webhook_endpoint

HEALTH_PAGE = "/admin/health"
GUARDED = ("/v1", "/admin")
INFERENCE_PATHS = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/inference",
        "/v1/responses",
    }
)
_READS = frozenset({"GET", "HEAD", "OPTIONS"})


def root_of(path: str) -> str | None:
    """Return the guarded root that ``path`` lies under; None for what asks for no key of ours."""
    if path == webhook_endpoint.PATH:
        return None  # has a secret of its own: Label Studio has no key
    return next((root for root in GUARDED if path == root or path.startswith(f"{root}/")), None)


def opened_by(method: str, path: str) -> tuple[str, ...]:
    """Return the scopes any of which opens the call; the scope admin opens everything."""
    if root_of(path) == "/admin":
        return (ADMIN,)
    if path in INFERENCE_PATHS:
        return (INFERENCE,)
    if path == "/v1/models" or path.startswith("/v1/models/"):
        return (READ, BATCH, INFERENCE)
    return (READ, BATCH) if method in _READS else (BATCH,)


def changes_the_service(method: str, path: str) -> bool:
    """Tell whether the call manages the service, so that it is on record who made it."""
    return root_of(path) == "/admin" and method not in _READS


def starts_work(method: str, path: str) -> bool:
    """Tell whether the call counts against a project's requests per minute."""
    return method == "POST" and root_of(path) == "/v1"
