"""Structured logs: JSON lines on stderr for services, readable lines on a terminal."""

from __future__ import annotations

import logging
import sys

import structlog

from vllm_batch.settings import Settings


def configure_logs(
    settings: Settings, *, service: str, tap: structlog.types.Processor | None = None
) -> None:
    """Send structlog to stderr, one event per line, with the service's name in each.

    ``tap`` sees, and may change, every event before it is written. Third-party loggers keep to
    warnings.
    """
    renderer: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer()
        if sys.stderr.isatty()
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            *([tap] if tap else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[settings.log_level]
        ),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
