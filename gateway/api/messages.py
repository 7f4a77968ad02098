"""What travels over a socket besides info packets, as types: an app's messages are decoded into them, and the AsyncAPI
document is made from them.

JSON types are exact, as in bodies; unknown members are ignored.
"""

from typing import Annotated, Any

import msgspec
import orjson
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from gateway.api import bodies
from gateway.api.bodies import check_id, check_video_id
from gateway.api.http import decode
from gateway.errors import Code, GatewayError
from gateway.service import Said
from gateway.transit.decisions import Reason, Result, Verdict
from gateway.transit.state import ClientId, Status, VideoId

Echoed = Annotated[Raw, Meta(description="Anything; the answer repeats it")]

# --- From the app


class Ack(Struct, tag_field="type", tag="ack"):
    """This device has applied this version. Not answered."""

    version: bodies.Version


class StatusMessage(Struct, tag_field="type", tag="status"):
    """A status that a video reached, as in the HTTP call; `version` acknowledges as well."""

    video_id: bodies.Uuid
    status: bodies.Reported
    id: Echoed | UnsetType = UNSET
    recipient_id: bodies.Id | UnsetType = UNSET
    version: bodies.Version | UnsetType = UNSET

    def __post_init__(self) -> None:
        check_video_id(self.video_id)
        if self.recipient_id is not UNSET:
            check_id("recipient_id", self.recipient_id)

    @property
    def said(self) -> Said:
        """What it says."""
        to = None if self.recipient_id is UNSET else ClientId(self.recipient_id)
        return Said(VideoId(self.video_id), Status(self.status), to)


class TokenMessage(Struct, tag_field="type", tag="token"):
    """A new token of the same client and device: the socket's authorization lasts as long as it does."""

    token: Annotated[str, Meta(description="The JWT; a secret")]
    id: Echoed | UnsetType = UNSET


# --- To the app


class ResultMessage(Struct, tag_field="type", tag="result", omit_defaults=True):
    """What became of a message. All three results mean: done, do not repeat."""

    id: Any
    result: Result
    version: bodies.Version
    reason: Reason | UnsetType = UNSET


class ErrorMessage(Struct, tag_field="type", tag="error"):
    """A message was refused; treat the code as that of the HTTP call. `id` is null where it could not be read."""

    id: Any
    code: Code
    detail: str


Message = Ack | StatusMessage | TokenMessage
"""Everything that an app may send."""

_message: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


class _Envelope(Struct):
    id: Raw | UnsetType = UNSET


_envelope = msgspec.json.Decoder(_Envelope)


def read(text: bytes) -> Message:
    """An app's message. Raises Invalid, with a detail that names the member."""
    return decode(_message, text)


def echo(text: bytes) -> bytes:
    """The `id` of a message that could not be read otherwise, as JSON; null where not even that could be."""
    try:
        return _id(_envelope.decode(text).id)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return b"null"


def _id(given: Raw | UnsetType) -> bytes:
    return b"null" if given is UNSET else bytes(given)


def result(to: StatusMessage | TokenMessage, verdict: Verdict, version: int) -> bytes:
    """The answer to a message that did what it was for, or need not be repeated."""
    reason = b"" if verdict.reason is None else b'"reason":"%b",' % verdict.reason.encode()
    kind = verdict.result.encode()
    return b'{"type":"result","id":%b,"result":"%b",%b"version":%d}' % (_id(to.id), kind, reason, version)


def refused(id_: bytes, error: GatewayError) -> bytes:
    """The answer to a message that was refused; `id_` is JSON already."""
    detail = orjson.dumps(error.detail)
    return b'{"type":"error","id":%b,"code":"%b","detail":%b}' % (id_, error.code.encode(), detail)


def refused_message(to: StatusMessage | TokenMessage, error: GatewayError) -> bytes:
    """The answer to a message that was read, but refused."""
    return refused(_id(to.id), error)
