import io
import json
import logging
import re
from collections.abc import Callable, Iterator

import jwt
import pytest

from gateway.log import configure, mask
from gateway.parsers import LogFormat, LogLevel

TOKEN = jwt.encode({"sub": "alice"}, "s" * 32, "HS256")
log = logging.getLogger("gateway.example")

Configured = Callable[..., io.StringIO]


@pytest.fixture
def configured() -> Iterator[Configured]:
    """Configures logging for one test; what was there before comes back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    uvicorn = {name: logging.getLogger(name) for name in ("uvicorn", "uvicorn.error", "uvicorn.access")}
    before = {name: (logger.handlers[:], logger.propagate) for name, logger in uvicorn.items()}

    def configure_to(log_format: LogFormat, level: LogLevel = LogLevel.INFO) -> io.StringIO:
        stream = io.StringIO()
        configure(log_format, level, stream=stream)
        return stream

    yield configure_to
    root.handlers[:], root.level = handlers, level
    for name, logger in uvicorn.items():
        logger.handlers[:], logger.propagate = before[name]
        logger.disabled = False


def test_a_text_line_has_time_level_logger_message_and_extra_fields(configured: Configured) -> None:
    stream = configured(LogFormat.TEXT)
    log.info("sent %d", 3, extra={"client": "bob", "reason": "two words", "ms": 1.5})
    line = stream.getvalue()
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO gateway\.example: sent 3 ", line)
    assert line.endswith('client=bob reason="two words" ms=1.5\n')


def test_a_json_line_has_the_same_as_members(configured: Configured) -> None:
    stream = configured(LogFormat.JSON)
    log.warning("sent %d", 3, extra={"client": "bob", "ms": 1.5, "level": "not this", "kind": LogLevel})
    entry = json.loads(stream.getvalue())
    assert list(entry)[:4] == ["time", "level", "logger", "message"]
    assert (entry["level"], entry["logger"], entry["message"]) == ("warning", "gateway.example", "sent 3")
    assert (entry["client"], entry["ms"]) == ("bob", 1.5)
    assert "LogLevel" in entry["kind"]


@pytest.mark.parametrize("log_format", LogFormat)
def test_a_traceback_is_logged(configured: Configured, log_format: LogFormat) -> None:
    stream = configured(log_format)
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("failed")
    assert "Traceback" in stream.getvalue()
    assert "ValueError: broken" in stream.getvalue()


def test_what_is_logged_cannot_forge_a_line(configured: Configured) -> None:
    for log_format in LogFormat:
        stream = configured(log_format)
        log.info("hello\n2026-01-01T00:00:00.000Z INFO forged\x1b[2J", extra={"name_given": "a\r\nb\u2028c"})
        assert len(stream.getvalue().splitlines()) == 1
        assert "\x1b" not in stream.getvalue()


def test_what_is_below_the_level_is_left_out(configured: Configured) -> None:
    stream = configured(LogFormat.TEXT, LogLevel.WARNING)
    log.info("quiet")
    log.warning("loud")
    assert "quiet" not in stream.getvalue()
    assert "loud" in stream.getvalue()


def test_configuring_twice_logs_once(configured: Configured) -> None:
    configured(LogFormat.TEXT)
    stream = configured(LogFormat.TEXT)
    log.info("once")
    assert stream.getvalue().count("once") == 1


def test_uvicorn_goes_the_same_way_and_its_access_log_is_off(configured: Configured) -> None:
    logging.getLogger("uvicorn.access").addHandler(logging.StreamHandler(io.StringIO()))
    stream = configured(LogFormat.JSON)
    logging.getLogger("uvicorn.error").info("Started server process [1]")
    logging.getLogger("uvicorn.error").warning("started", extra={"color_message": "\x1b[1mstarted"})
    logging.getLogger("uvicorn.access").info("GET /objects/x?sig=abc")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["started"]
    assert "color_message" not in stream.getvalue()


@pytest.mark.parametrize("log_format", LogFormat)
def test_secrets_are_masked_wherever_they_stand(configured: Configured, log_format: LogFormat) -> None:
    stream = configured(log_format)
    try:
        raise ValueError(f"in a traceback {TOKEN}")
    except ValueError:
        log.exception("as argument %s", TOKEN, extra={"url": "/objects/a?sig=c2VjcmV0&exp=1", "token": TOKEN})
    for secret in (TOKEN, TOKEN.rpartition(".")[2], "c2VjcmV0"):
        assert secret not in stream.getvalue()
    if log_format is LogFormat.JSON:
        json.loads(stream.getvalue())


@pytest.mark.parametrize(
    ("line", "masked"),
    [
        ("GET /objects/a?exp=1&sig=abc-_1&x=2 done", "GET /objects/a?exp=1&sig=[hidden]&x=2 done"),
        ("?token=abc", "?token=[hidden]"),
        ("?X-Amz-Signature=abc&b=1", "?X-Amz-Signature=[hidden]&b=1"),
        ("%3Fsig%3Dabc", "%3Fsig%3D[hidden]"),
        ("Authorization: Bearer opaque-operator-token", "Authorization: Bearer [hidden]"),
        (f"Bearer%20{TOKEN}", "Bearer%20[hidden]"),
        (f"x{TOKEN}", "x[token]"),
        (
            "nothing of the kind: eyJ alone, sign=1, design. tokens",
            "nothing of the kind: eyJ alone, sign=1, design. tokens",
        ),
    ],
)
def test_mask_hides_what_opens_a_door_and_nothing_else(line: str, masked: str) -> None:
    assert mask(line) == masked
