"""Every call of the protocol: what it takes, what it answers, and what it does.

`CALLS` is the one table from which both the routes and the OpenAPI document are made.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import orjson

from gateway import packet
from gateway.api import bodies
from gateway.api.auth import Identity
from gateway.api.demo import keep_apart
from gateway.api.http import Reply, Request, decode
from gateway.errors import Code, Forbidden, GatewayError, Invalid
from gateway.live.hub import Hub, Packet
from gateway.registry import Registry, tokens
from gateway.service import Said, Service
from gateway.transit.decisions import Verdict, VideoRef
from gateway.transit.receiving import Acknowledgement
from gateway.transit.state import ClientId, ClientState, DeviceId, Status, VideoId, valid_id, valid_video_id

BODY_BYTES = 16 * 1024
SYNC_BYTES = 64 * 1024
"""The largest bodies that are read."""

LAST_VERSION = 2**63 - 1

_TAG = re.compile(r'"([0-9]{1,19})"\Z', re.ASCII)
"""One entity tag, as ours are: what nearly every poll has."""

_NO_STORE = ((b"cache-control", b"no-store"),)

_announcement = msgspec.json.Decoder(bodies.Announcement)
_status = msgspec.json.Decoder(bodies.StatusReport)
_registration = msgspec.json.Decoder(bodies.DeviceRegistration)
_sync_status = msgspec.json.Decoder(bodies.SyncStatus)


class _Sync(msgspec.Struct):
    """A sync, its items not decoded yet: one that is wrong must not keep the others from being reported."""

    statuses: list[msgspec.Raw]
    device_id: bodies.Id | msgspec.UnsetType = msgspec.UNSET
    version: bodies.Version | msgspec.UnsetType = msgspec.UNSET


_sync = msgspec.json.Decoder(_Sync)


@dataclass(frozen=True, slots=True)
class Backends:
    """What the calls are made with."""

    service: Service
    registry: Registry
    hub: Hub
    public_url: str | None
    demo: bool = False
    """Whether there is one: its clients and others then send to one another no videos."""


class Caller(NamedTuple):
    """An authorized request."""

    request: Request
    identity: Identity
    backends: Backends

    @property
    def client_id(self) -> ClientId:
        return self.identity.client_id

    def video_id(self) -> VideoId:
        """The video that the path names."""
        text = self.request.path["video_id"]
        if not valid_video_id(text):
            raise Invalid("video_id: must be a UUIDv7 in canonical lower-case form")
        return VideoId(text)

    def device(self, named: str | None) -> DeviceId | None:
        """The device that speaks: the one it names, or the one its token is bound to. Raises Invalid, Forbidden."""
        if named is not None and not valid_id(named):
            raise Invalid("device_id: must be 1 to 64 of A-Z a-z 0-9 . _ - and not . or ..")
        bound = self.identity.device_id
        if bound is None:
            return None if named is None else DeviceId(named)
        if named not in (None, bound):
            raise Forbidden("the token is bound to another device")
        return bound

    def device_in_path(self) -> DeviceId:
        """The device that the path names. Raises Invalid, Forbidden."""
        named = self.request.path["device_id"]
        self.device(named)
        return DeviceId(named)

    def seen(self, named: str | None, version: int | None) -> Acknowledgement | None:
        """What the device says that it has applied, if it says so."""
        device_id = self.device(named)
        return Acknowledgement(device_id, version) if device_id is not None and version else None

    def seen_in_query(self) -> Acknowledgement | None:
        version = self.request.integer("version", 0, LAST_VERSION)
        return self.seen(self.request.query.get("device_id"), version)

    def absolute(self, url: str) -> str:
        """A URL that a store gave, made absolute: against `PUBLIC_URL`, or else against how the app reached us."""
        if not url.startswith("/"):
            return url
        base = self.backends.public_url
        return (base or f"{self.request.scope['scheme']}://{self.request.header(b'host') or ''}") + url


# --- The calls


async def poll(caller: Caller) -> Reply:
    """Give the caller its info packet.

    `If-None-Match` names the version that the device has: then the answer is 304 where there is nothing newer, and with
    `wait` it is held until there is. Naming its device, the caller acknowledges that version.
    """
    wait = caller.request.integer("wait", 1, bodies.LONGEST_WAIT_S)
    known = _etag_version(caller.request.header(b"if-none-match"))
    version = caller.request.integer("version", 0, LAST_VERSION)
    seen = caller.seen(caller.request.query.get("device_id"), version if version is not None else known)
    state = await caller.backends.service.poll(caller.client_id, seen, known=max(version or 0, known or 0))
    if known is None or state.version > known:
        return _packet_reply(Packet(state.version, packet.encode(state)))
    if wait is not None:
        device_id = caller.device(caller.request.query.get("device_id"))
        newer = await caller.request.while_connected(
            caller.backends.hub.newer(caller.client_id, state.version, wait_s=wait, device_id=device_id)
        )
        if newer is not None:
            return _packet_reply(newer)
    return Reply(304, headers=_packet_headers(state.version))


def _packet_reply(found: Packet) -> Reply:
    return Reply(200, found.body, headers=_packet_headers(found.version))


def _packet_headers(version: int) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"etag", b'"%d"' % version), (b"cache-control", b"private, no-cache"))


def _etag_version(header: str | None) -> int | None:
    """The highest version among the entity tags (RFC 9110, section 13.1.2); None where none is one of ours."""
    if header is None:
        return None
    if (one := _TAG.match(header)) is not None:
        return int(one[1])
    tags = (tag.strip().removeprefix("W/").strip('"') for tag in header.split(","))
    return max((int(tag) for tag in tags if tag.isascii() and tag.isdecimal() and len(tag) <= 19), default=None)


async def sync(caller: Caller) -> Reply:
    """Report everything that is still to be reported, then get the info packet: one call on start-up and after a push.

    A status that is refused does not keep the others from being applied.
    """
    body = decode(_sync, await caller.request.body(SYNC_BYTES))
    if len(body.statuses) > bodies.MOST_STATUSES:
        raise Invalid(f"statuses: at most {bodies.MOST_STATUSES} in one sync")
    named = None if body.device_id is msgspec.UNSET else body.device_id
    seen = caller.seen(named, None if body.version is msgspec.UNSET else body.version)
    items = [_said(raw) for raw in body.statuses]
    said = [item for item in items if isinstance(item, Said)]
    answers, state = await caller.backends.service.report(caller.client_id, said, seen)
    rest = iter(answers)
    results = [_result(next(rest) if isinstance(item, Said) else item, state) for item in items]
    body_out = b'{"results":%b,"packet":%b}' % (orjson.dumps(results), packet.encode(state))
    return Reply(200, body_out, headers=_NO_STORE)


def _said(raw: msgspec.Raw) -> Said | GatewayError:
    try:
        item = decode(_sync_status, bytes(raw))
    except GatewayError as error:
        return error
    to = None if item.recipient_id is msgspec.UNSET else ClientId(item.recipient_id)
    return Said(VideoId(item.video_id), Status(item.status), to)


def _result(answer: Verdict | GatewayError, state: ClientState) -> dict[str, str | int]:
    if isinstance(answer, GatewayError):
        return {"result": "failed", "code": answer.code, "detail": answer.detail}
    result: dict[str, str | int] = {"result": answer.result, "version": state.version}
    if answer.reason is not None:
        result["reason"] = answer.reason
    return result


async def report_status(caller: Caller) -> Reply:
    """Report the status that a video has reached: the sender `uploaded`, the recipient the others."""
    video_id = caller.video_id()
    seen = caller.seen_in_query()
    body = decode(_status, await caller.request.body(BODY_BYTES))
    to = None if body.recipient_id is msgspec.UNSET else ClientId(body.recipient_id)
    said = Said(video_id, Status(body.status), to)
    [answer], state = await caller.backends.service.report(caller.client_id, [said], seen)
    if isinstance(answer, GatewayError):
        raise answer
    return Reply(200, orjson.dumps(_result(answer, state)), headers=_NO_STORE)


async def announce(caller: Caller) -> Reply:
    """Announce an upload: get an id and a signed URL. Nothing is stored yet."""
    body = decode(_announcement, await caller.request.body(BODY_BYTES))
    if caller.backends.demo:
        keep_apart(caller.client_id, ClientId(body.recipient_id))
    video_id, upload = await caller.backends.service.announce(
        caller.client_id,
        ClientId(body.recipient_id),
        size=body.size,
        content_type=body.content_type,
        sha256=None if body.sha256 is msgspec.UNSET else body.sha256,
    )
    answer = {
        "video_id": video_id,
        "upload": {
            "method": "PUT",
            "url": caller.absolute(upload.url),
            "headers": upload.headers,
            "expires_at": upload.expires_at,
        },
    }
    return Reply(201, orjson.dumps(answer), headers=_NO_STORE)


async def delete_video(caller: Caller) -> Reply:
    """Cancel a video in whatever state, announced only or long in transit, and delete its bytes."""
    to = caller.request.query.get("recipient_id")
    if to is None or not valid_id(to):
        raise Invalid("recipient_id: is required, 1 to 64 of A-Z a-z 0-9 . _ - and not . or ..")
    ref = VideoRef(caller.video_id(), caller.client_id, ClientId(to))
    verdict, state = await caller.backends.service.delete(ref)
    return Reply(200, orjson.dumps(_result(verdict, state)), headers=_NO_STORE)


async def content(caller: Caller) -> Reply:
    """Say where the bytes are: a redirect, or with `Accept: application/json` the URL itself.

    Fetch it without the Authorization header; `Range` works there.
    """
    download = await caller.backends.service.content(caller.client_id, caller.video_id())
    url = caller.absolute(download.url)
    if "application/json" in (caller.request.header(b"accept") or ""):
        return Reply(200, orjson.dumps({"url": url, "expires_at": download.expires_at}), headers=_NO_STORE)
    return Reply(307, headers=((b"location", url.encode()), *_NO_STORE))


async def register_device(caller: Caller) -> Reply:
    """Register a device, or replace its push token. A token that another device or client had moves here."""
    device_id = caller.device_in_path()
    body = decode(_registration, await caller.request.body(BODY_BYTES))
    await caller.backends.registry.register(
        caller.client_id,
        device_id,
        platform=body.platform,
        environment=body.environment,
        token=body.token,
    )
    return Reply(204)


async def unregister_device(caller: Caller) -> Reply:
    """Log out: no more pushes to this device, and its socket and its held polls end."""
    device_id = caller.device_in_path()
    await caller.backends.registry.unregister(caller.client_id, device_id)
    await caller.backends.hub.log_out(caller.client_id, device_id)
    return Reply(204)


async def end_client(caller: Caller) -> Reply:
    """End the account: its devices and what it sent go; what it was sent expires for the senders."""
    backends = caller.backends
    began = backends.service.changes.now()
    held = tokens(await backends.service.changes.load(caller.client_id))
    await backends.service.leave(caller.client_id)
    for device_id, key in held:
        await backends.registry.release(caller.client_id, device_id, key, before=began)
    await backends.hub.log_out(caller.client_id)
    return Reply(204)


# --- The table


class Parameter(NamedTuple):
    """A parameter of the query or a header, as the OpenAPI document describes it."""

    name: str
    type: object
    description: str
    required: bool = False
    place: str = "query"


DEVICE = Parameter("device_id", bodies.Id, "The device that speaks; not needed where the token is bound to one")
VERSION = Parameter("version", bodies.Version, "The version that this device has applied: acknowledges it")
WAIT = Parameter("wait", bodies.Wait, "Seconds to hold the answer until there is a newer packet")
KNOWN = Parameter("If-None-Match", str, "The version that the device has, as an entity tag", place="header")
RECIPIENT = Parameter("recipient_id", bodies.Id, "Whom the video was for", required=True)
ACCEPT = Parameter("Accept", str, "`application/json` for the URL in a body, else a redirect", place="header")


@dataclass(frozen=True, slots=True)
class Call:
    """One call: where it is, what it takes, what it answers, which errors of its own it has."""

    method: str
    path: str
    handler: Callable[[Caller], Awaitable[Reply]]
    answers: Sequence[tuple[int, object]]
    body: type | None = None
    parameters: Sequence[Parameter] = ()
    errors: Sequence[Code] = ()

    @property
    def name(self) -> str:
        """The handler's name: the operation's id, and the label of its metrics."""
        return self.handler.__name__


_STATUS_ERRORS = (Code.FORBIDDEN, Code.NOT_STORED, Code.TOO_MANY_IN_TRANSIT, Code.TOO_LARGE)

CALLS: tuple[Call, ...] = (
    Call(
        "GET",
        "/v1/poll",
        poll,
        [(200, bodies.InfoPacket), (304, None)],
        None,
        (DEVICE, VERSION, WAIT, KNOWN),
        (Code.FORBIDDEN,),
    ),
    Call(
        "POST",
        "/v1/videos/{video_id}/status",
        report_status,
        [(200, bodies.Reached)],
        bodies.StatusReport,
        (DEVICE, VERSION),
        _STATUS_ERRORS,
    ),
    Call("POST", "/v1/sync", sync, [(200, bodies.Synced)], bodies.SyncRequest, (), (Code.FORBIDDEN, Code.TOO_LARGE)),
    Call(
        "POST",
        "/v1/videos",
        announce,
        [(201, bodies.Announced)],
        bodies.Announcement,
        (),
        (Code.FORBIDDEN, Code.TOO_MANY_IN_TRANSIT, Code.TOO_LARGE),
    ),
    Call(
        "GET",
        "/v1/videos/{video_id}/content",
        content,
        [(307, None), (200, bodies.Download)],
        None,
        (ACCEPT,),
        (Code.NOT_TRACKED,),
    ),
    Call("DELETE", "/v1/videos/{video_id}", delete_video, [(200, bodies.Reached)], None, (RECIPIENT,)),
    Call(
        "PUT",
        "/v1/devices/{device_id}",
        register_device,
        [(204, None)],
        bodies.DeviceRegistration,
        (),
        (Code.FORBIDDEN, Code.TOO_LARGE),
    ),
    Call("DELETE", "/v1/devices/{device_id}", unregister_device, [(204, None)], None, (), (Code.FORBIDDEN,)),
    Call("DELETE", "/v1/client", end_client, [(204, None)]),
)
