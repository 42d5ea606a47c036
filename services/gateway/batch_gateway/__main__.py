"""``python -m batch_gateway api|orchestrator``: one role of the gateway as a process."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Coroutine
from typing import Any

import structlog
import uvloop

from vllm_batch.errors import BatchError
from vllm_batch.notify import alive
from vllm_batch.settings import Settings
from vllm_batch.telemetry import configure_logs

log = structlog.get_logger(__name__)


def _duty(role: str, settings: Settings) -> Coroutine[Any, Any, None]:
    if role == "api":
        from batch_gateway.api import server

        return server.run(settings)
    from batch_gateway.orchestrator import main as orchestrator

    duty: Coroutine[Any, Any, None] = orchestrator.run(settings)
    return duty


def main() -> int:
    """Run the role until it is told to stop; 1 where it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m batch_gateway", description=__doc__)
    parser.add_argument("role", choices=("api", "orchestrator"))
    role = parser.parse_args().role
    settings = Settings()
    configure_logs(settings, service=role)
    try:
        uvloop.run(alive(_duty(role, settings)))
    except BatchError as error:
        log.error("cannot run", role=role, error=str(error), code=error.code)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
