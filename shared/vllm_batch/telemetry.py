"""Structured logs: JSON lines on stderr for services, readable lines on a terminal.

Lines that are written within a trace carry its ids, as ``trace_id`` and ``span_id``.
"""

from __future__ import annotations

import logging
import sys

import structlog

from vllm_batch import tracing
from vllm_batch.redaction import Redactor
from vllm_batch.settings import Settings


def configure_logs(
    settings: Settings, *, service: str, tap: structlog.types.Processor | None = None
) -> None:
    """Send structlog to stderr, one event per line, with the service's name in each.

    ``tap`` sees, and may change, every event before it is written. Third-party loggers keep to
    warnings. No line has a secret of the settings, or what looks like one.
    """
    redactor = Redactor(settings)
    renderer: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer()
        if sys.stderr.isatty()
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _add_trace_ids,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _cleaned_by(redactor),
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
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_CleanFormatter(redactor))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


class _CleanFormatter(logging.Formatter):
    """The usual format, without secrets."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__(logging.BASIC_FORMAT)
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return self._redactor.clean(super().format(record))


def _cleaned_by(redactor: Redactor) -> structlog.types.Processor:
    def clean(
        _logger: object, _method: str, event: structlog.types.EventDict
    ) -> structlog.types.EventDict:
        return {name: redactor.clean_value(value) for name, value in event.items()}

    return clean


def _add_trace_ids(
    _logger: object, _method: str, event: structlog.types.EventDict
) -> structlog.types.EventDict:
    if (ids := tracing.ids()) is not None:
        event["trace_id"], event["span_id"] = ids
    return event
