"""The root logger as AWS's Python runtime sets it up: text lines or JSON objects on stdout, with the request id."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback

TEXT_FORMAT = "[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(aws_request_id)s\t%(message)s\n"
TIME_FORMAT = "%Y-%m-%dT%H:%M:%S"
_STANDARD_ATTRIBUTES = frozenset(
    logging.LogRecord("", 0, "", 0, "", None, None).__dict__.keys()
    | {"message", "asctime", "aws_request_id", "taskName"}
)


class CurrentRequest:
    """The id of the invocation that runs; empty during init."""

    __slots__ = ("request_id",)

    def __init__(self) -> None:
        self.request_id = ""


class RequestIdFilter(logging.Filter):
    """Puts the request id on every record."""

    def __init__(self, current: CurrentRequest) -> None:
        super().__init__()
        self._current = current

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass."""
        record.aws_request_id = self._current.request_id
        return True


class StandardOutputHandler(logging.Handler):
    """Writes to whatever `sys.stdout` is at the time, so that a function may replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            sys.stdout.write(self.format(record))
        except Exception:  # noqa: BLE001 - the contract of logging.Handler.emit: no logging call raises
            self.handleError(record)


class JsonFormatter(logging.Formatter):
    """One JSON object a record, with AWS's members (`LogFormat` JSON)."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line."""
        entry: dict[str, object] = {
            "timestamp": self.formatTime(record, TIME_FORMAT) + "Z",
            "level": record.levelname,
            "message": record.getMessage(),
            "logger": record.name,
            "requestId": record.__dict__.get("aws_request_id", ""),
        }
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            entry["stackTrace"] = traceback.format_list(traceback.extract_tb(error.__traceback__))
            entry["errorType"] = type(error).__name__
            entry["errorMessage"] = str(error)
            entry["location"] = f"{record.pathname}:{record.funcName}:{record.lineno}"
        extra = {name: value for name, value in record.__dict__.items() if name not in _STANDARD_ATTRIBUTES}
        return json.dumps({**extra, **entry}, default=str) + "\n"


def install(current: CurrentRequest) -> None:
    """Give the root logger its handler, for text.

    Args:
        current: Where the request id is read from at each record.
    """
    handler = StandardOutputHandler()
    handler.setFormatter(_in_utc(logging.Formatter(TEXT_FORMAT, TIME_FORMAT)))
    handler.addFilter(RequestIdFilter(current))
    logging.getLogger().addHandler(handler)


def configure(log_format: str | None, level: str | None) -> None:
    """Apply the function's configuration to what `install` has made.

    Args:
        log_format: `JSON`, or anything else for text (`AWS_LAMBDA_LOG_FORMAT`).
        level: Name of a level, or None for logging's default (`AWS_LAMBDA_LOG_LEVEL`).
    """
    if log_format == "JSON":
        for handler in logging.getLogger().handlers:
            handler.setFormatter(_in_utc(JsonFormatter()))
    if level in ("TRACE", "DEBUG", "INFO", "WARNING", "WARN", "ERROR", "CRITICAL", "FATAL"):
        logging.getLogger().setLevel({"TRACE": "DEBUG", "WARN": "WARNING", "FATAL": "CRITICAL"}.get(level, level))


def _in_utc(formatter: logging.Formatter) -> logging.Formatter:
    formatter.converter = time.gmtime
    return formatter
