"""Why a socket is closed: every close code of the protocol, what it means, and what the app does then."""

from enum import IntEnum


class CloseCode(IntEnum):
    """Close codes: those of RFC 6455, section 7.4.1, and IANA's registry; from 4400 on, those of the protocol.

    The hundreds of ours follow HTTP: 4401 is to a socket what 401 is to a call. `meaning` and `then` (what the app
    does) go into the AsyncAPI document and stand in the protocol's page, word for word.
    """

    meaning: str
    then: str

    def __new__(cls, value: int, meaning: str, then: str) -> "CloseCode":
        code = int.__new__(cls, value)
        code._value_ = value
        code.meaning = meaning
        code.then = then
        return code

    NORMAL = 1000, "a normal end", "nothing, or reconnect when it suits you"
    GOING_AWAY = 1001, "a normal end: one side goes away", "nothing, or reconnect when it suits you"
    PROTOCOL_ERROR = 1002, "the app broke the WebSocket protocol", "fix the client"
    NOT_TEXT = 1003, "a binary message: all are text", "fix the client"
    INVALID_UTF8 = 1007, "a text that is no UTF-8", "fix the client"
    TOO_LARGE = 1009, "a message that is too long, its fragments together", "fix the client"
    FAULT = 1011, "something is wrong in the gateway", "back off, then reconnect"
    RESTART = 1012, 'the gateway restarts; the reason is `{"retry_ms":N}`', "reconnect after N milliseconds"
    OVERLOADED = 1013, "the gateway has too much to do", "back off, then reconnect"
    MALFORMED = 4400, "too many messages that could not be read", "fix the client"
    UNAUTHORIZED = (
        4401,
        "the token is invalid, expired or somebody else's, or the device or the account is gone",
        "get a new token, then reconnect; not after a log-out",
    )
    SILENT = 4408, "no pong in time", "reconnect"
    DISPLACED = (
        4409,
        "the same device has connected again",
        "do not reconnect: another socket has taken over. In the foreground, hold polls",
    )
    TOO_FAST = 4429, "too many frames", "back off, then reconnect"
