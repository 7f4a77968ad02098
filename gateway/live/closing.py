"""Why a socket is closed: every code that the gateway sends, and what the app does then."""

from enum import IntEnum


class CloseCode(IntEnum):
    """Close codes: those of RFC 6455, section 7.4.1, and IANA's registry; from 4400 on, those of the protocol.

    The hundreds of ours follow HTTP: 4401 is to a socket what 401 is to a call.
    """

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    NOT_TEXT = 1003
    INVALID_UTF8 = 1007
    TOO_LARGE = 1009
    FAULT = 1011
    RESTART = 1012
    OVERLOADED = 1013
    MALFORMED = 4400
    UNAUTHORIZED = 4401
    SILENT = 4408
    DISPLACED = 4409
    TOO_FAST = 4429
