"""Logging, set up once per process: a line of text or of JSON for each record, `extra` fields included.

Whatever logs, nothing that opens a door gets through: what looks like a JWT or a signed query is masked in the
finished line. That is the last line of defence; no call logs a token, a signed URL or a body in the first place.
"""

import json
import logging
import re
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from gateway.parsers import LogFormat, LogLevel

_STANDARD = frozenset(vars(logging.LogRecord("", 0, "", 0, "", None, None))) | {
    "message",
    "asctime",
    "taskName",
    "color_message",  # uvicorn's second copy of the message
}
# The header of a JWT is JSON, so it begins with eyJ (`{"`) in base64url. Bounded: a line full of eyJ stays cheap.
_TOKEN = re.compile(r"eyJ[A-Za-z0-9_-]{2,2000}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?")
_SIGNED = re.compile(r"""(sig|signature|token|credential)(=|%3D)[^&\s"'\\]+""", re.IGNORECASE | re.ASCII)
_BEARER = re.compile(r"""(bearer(?: |%20|\.))[^\s"',\\]+""", re.IGNORECASE | re.ASCII)
_SIGNS = ("eyj", "bearer", "sig", "token", "credential")
"""One of these is in whatever the three above match."""

_CHATTER = ("botocore", "firebase_admin", "google", "hpack", "httpcore", "httpx", "urllib3")
"""What others are talked to with: it would log each push and all credentials found, and at its lowest level what is in
them."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def configure(log_format: LogFormat, level: LogLevel, *, stream: TextIO | None = None) -> None:
    """Send every logger's records to `stream` (stderr), in `log_format`, from `level` on.

    Repeatable. uvicorn's warnings go the same way, and its access log is off; start it with `log_config=None`.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format is LogFormat.JSON else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.asgi", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for name in _CHATTER:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").disabled = True  # it would log every URL, signed ones too
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # what it says besides, `gateway.app` says itself


def mask(line: str) -> str:
    """`line` without JWTs, bearer credentials and the values of signed queries."""
    lower = line.lower()
    if not any(sign in lower for sign in _SIGNS):  # hardly any line has one, and to look for it is cheap
        return line
    return _SIGNED.sub(r"\1\2[hidden]", _BEARER.sub(r"\1[hidden]", _TOKEN.sub("[token]", line)))


class TextFormatter(logging.Formatter):
    """`2026-11-23T19:14:00.123Z INFO gateway.app: message name=value`, a traceback on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """One record. Control characters in it are escaped, so that nothing logged can forge a line."""
        extra = "".join(f" {name}={_quoted(value)}" for name, value in _extra(record).items())
        message = _CONTROL.sub(lambda found: ascii(found[0])[1:-1], record.getMessage() + extra)
        line = f"{_time(record)} {record.levelname} {record.name}: {message}"
        return mask("\n".join([line, *_traceback(self, record)]))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, `message`, the extra fields, `traceback` if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One record; what JSON cannot carry is written as text."""
        fields: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if traceback := _traceback(self, record):
            fields["traceback"] = "\n".join(traceback)
        extra = {name: value for name, value in _extra(record).items() if name not in fields}
        return mask(json.dumps({**fields, **extra}, default=str))


def _extra(record: logging.LogRecord) -> Mapping[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _time(record: logging.LogRecord) -> str:
    # gmtime of the record's own milliseconds: formatTime rounds them apart from the seconds.
    seconds, ms = divmod(int(record.created * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{ms:03d}Z"


def _quoted(value: object) -> str:
    text = str(value)
    return text if re.fullmatch(r"""[^\s"'=]+""", text) else json.dumps(text, ensure_ascii=False)


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    lines = []
    if record.exc_info and record.exc_info[0] is not None:
        lines.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        lines.append(formatter.formatStack(record.stack_info))
    return lines
