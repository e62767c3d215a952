"""Structured logs of the daemons: events with fields, JSON unless standard error is a terminal."""

from __future__ import annotations

import logging
import sys

import structlog


def configure_logging(component: str, *, level: str = "info") -> None:
    """Set up structlog for this process; called once, in `main`.

    Args:
        component: Bound to every line: "scheduler", "agent", "supervisor".
        level: Lowest level that is written: debug, info, warning or error.
    """
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(component=component)
