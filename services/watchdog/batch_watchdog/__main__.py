"""``python -m batch_watchdog``: the watchdog as a process."""

from __future__ import annotations

import sys

import structlog
import uvloop

from batch_watchdog import main as watchdog
from vllm_batch.errors import BatchError
from vllm_batch.notify import alive
from vllm_batch.settings import Settings
from vllm_batch.telemetry import configure_logs

log = structlog.get_logger(__name__)


def main() -> int:
    """Run until told to stop; 1 where it cannot start."""
    settings = Settings()
    configure_logs(settings, service="watchdog")
    try:
        uvloop.run(alive(watchdog.run(settings)))
    except BatchError as error:
        log.error("cannot run", error=str(error), code=error.code)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
