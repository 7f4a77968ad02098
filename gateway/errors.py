"""What the gateway refuses, and why: one exception for each error code of the protocol.

An error knows its stable `code`; the HTTP status that goes with it stands in `STATUS`, the only place that maps them.
`detail` is one sentence for the app's developer. It never repeats a token, a signed URL or a body.
"""

from collections.abc import Sequence
from enum import StrEnum


class Code(StrEnum):
    """The stable error codes of the protocol."""

    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    NOT_TRACKED = "not_tracked"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    UPGRADE_REQUIRED = "upgrade_required"
    NOT_STORED = "not_stored"
    TOO_MANY_IN_TRANSIT = "too_many_in_transit"
    TOO_LARGE = "too_large"
    INVALID = "invalid"
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"


STATUS: dict[Code, int] = {
    Code.UNAUTHORIZED: 401,
    Code.FORBIDDEN: 403,
    Code.NOT_TRACKED: 404,
    Code.NOT_FOUND: 404,
    Code.METHOD_NOT_ALLOWED: 405,
    Code.UPGRADE_REQUIRED: 426,
    Code.NOT_STORED: 409,
    Code.TOO_MANY_IN_TRANSIT: 409,
    Code.TOO_LARGE: 413,
    Code.INVALID: 422,
    Code.RATE_LIMITED: 429,
    Code.UNAVAILABLE: 503,
}
"""The HTTP status of each code."""


class GatewayError(Exception):
    """A call is refused with `code`; `retry_after_s` says when to come back, where that is known."""

    code: Code

    def __init__(self, detail: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s


class Unauthorized(GatewayError):
    """The token is missing, ill-formed, expired or not ours."""

    code = Code.UNAUTHORIZED


class Forbidden(GatewayError):
    """The token is good, but not for this."""

    code = Code.FORBIDDEN


class NotTracked(GatewayError):
    """The gateway does not track this video for the caller."""

    code = Code.NOT_TRACKED


class NotFound(GatewayError):
    """There is nothing at this address."""

    code = Code.NOT_FOUND


class MethodNotAllowed(GatewayError):
    """The address does not know this method, but the `allowed` ones."""

    code = Code.METHOD_NOT_ALLOWED

    def __init__(self, allowed: Sequence[str]) -> None:
        super().__init__(f"this address takes {', '.join(allowed)}")
        self.allowed = tuple(allowed)


class UpgradeRequired(GatewayError):
    """The address takes sockets, in version 13 of the WebSocket protocol, and nothing else."""

    code = Code.UPGRADE_REQUIRED


class NotStored(GatewayError):
    """The upload is to be confirmed, but its bytes are not there."""

    code = Code.NOT_STORED


class TooManyInTransit(GatewayError):
    """The sender or the recipient has as many videos in transit as it may."""

    code = Code.TOO_MANY_IN_TRANSIT


class TooLarge(GatewayError):
    """A body or a video is larger than allowed."""

    code = Code.TOO_LARGE


class Invalid(GatewayError):
    """The request is not what the protocol says; the detail names the member."""

    code = Code.INVALID


class RateLimited(GatewayError):
    """The client calls more often than it may."""

    code = Code.RATE_LIMITED


class Unavailable(GatewayError):
    """Something that the gateway needs does not answer now."""

    code = Code.UNAVAILABLE

    def __init__(self, detail: str, *, retry_after_s: int = 2) -> None:
        super().__init__(detail, retry_after_s=retry_after_s)
