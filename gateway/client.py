"""The reference client: the protocol's calls as an app makes them, and what it does when one fails.

Needs httpx and orjson, and nothing of the server. A `Client` speaks for one device of one account:

    async with Client("https://gateway.example.com", token, device_id="phone") as client:
        sent = await client.send_video(Path("hello.mp4"), "bob")
        packet = await client.poll()
        client.applied(packet)

Each call acknowledges the newest packet that was handed to `applied`, and nothing else: a packet that arrived but was
not applied may still get lost. Failures are `GatewayError`; its `remedy` says what the protocol has an app do about
it. Tokens and signed URLs appear in no `repr`, no exception and no log, httpx's own included.
"""

import asyncio
import contextlib
import hashlib
import inspect
import json
import random
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO, ClassVar, Literal, Self, TypeVar

import httpx
import orjson

from gateway.errors import STATUS, Code
from gateway.transit.state import ClientId, DeviceId, Status, VideoId

CALL_S = 20.0
"""How long a call may take unless a client is told otherwise; a held poll may take its wait longer."""

STALL_S = 60.0
"""How long bytes of a video may fail to move before the transfer is given up."""

CHUNK_BYTES = 256 * 1024

Token = str | Callable[[], str | Awaitable[str]]
"""A bearer token, or what gets one: it is asked again after a 401."""

Source = bytes | Path | AsyncIterator[bytes]
"""The bytes of a video. An iterator is good for one try."""

Progress = Callable[[int, int], None]
"""Told how many bytes have moved, and how many there are."""

T = TypeVar("T")


# --- What goes wrong


class Remedy(StrEnum):
    """What an app does about an error."""

    RETRY = "retry"
    """The same again, after a pause."""
    RENEW = "renew"
    """Get a new token, then the same again."""
    UPLOAD = "upload"
    """Put the bytes again while the URL lives, else announce anew."""
    ANNOUNCE = "announce"
    """Announce the video anew: this upload URL is of no use any more."""
    POLL = "poll"
    """Poll, and download again only what is still listed."""
    NONE = "none"
    """Give it up: the same again would fail again."""


class GatewayError(Exception):
    """A call that failed. `status`: of the answer, or None where none came. `code`: one of the protocol's, if any."""

    _BY_STATUS: ClassVar[Mapping[int, Remedy]] = {401: Remedy.RENEW}

    def __init__(self, status: int | None, code: str | None, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(status, code, detail, retry_after_s)
        self.status = status
        self.code = code
        self.detail = detail
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return " ".join([str(self.status or "no answer"), *([self.code] if self.code else [])]) + f": {self.detail}"

    @property
    def remedy(self) -> Remedy:
        """What the protocol has an app do about it."""
        if self.status is None:
            return Remedy.RETRY
        if self.status in self._BY_STATUS:
            return self._BY_STATUS[self.status]
        if self.code == Code.NOT_STORED:
            return Remedy.UPLOAD
        if self.code in {None, Code.RATE_LIMITED} or self.status in {408, 425, 429}:
            return Remedy.RETRY
        return Remedy.NONE if 400 <= self.status < 500 else Remedy.RETRY

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later, with a new token perhaps: a message stays queued."""
        return self.remedy in {Remedy.RETRY, Remedy.RENEW}


class UploadError(GatewayError):
    """The object store did not take a video."""

    _BY_STATUS: ClassVar[Mapping[int, Remedy]] = {403: Remedy.ANNOUNCE, 409: Remedy.RETRY}


class DownloadError(GatewayError):
    """A video could not be downloaded."""

    _BY_STATUS: ClassVar[Mapping[int, Remedy]] = {401: Remedy.RENEW, 403: Remedy.POLL, 404: Remedy.POLL}


@dataclass(frozen=True, slots=True)
class Backoff:
    """How calls are repeated: with pauses of full jitter that double from `base_s` to `cap_s`, none of them ending
    later than `deadline_s` after the first try."""

    base_s: float = 0.5
    cap_s: float = 30.0
    deadline_s: float = 60.0

    def pause_s(self, tries: int, retry_after_s: float | None, *, jitter: float) -> float:
        """How long to pause after that many tries; `jitter` from 0 to 1. Never shorter than the gateway asked for, and
        a little longer, since it asked everybody."""
        return (retry_after_s or 0.0) + jitter * min(self.cap_s, self.base_s * 2.0 ** min(tries - 1, 60))


REPEATED = frozenset({Remedy.RETRY})


async def retrying(
    call: Callable[[], Awaitable[T]], *, backoff: Backoff = Backoff(), remedies: Iterable[Remedy] = REPEATED
) -> T:
    """What `call` returns, at the first try that succeeds.

    Raises the error of the last try once its remedy is none of `remedies`, or no time is left. A 401 is not repeated:
    a `Client` has tried a new token by then.
    """
    clock = asyncio.get_running_loop().time
    ends_at = clock() + backoff.deadline_s
    tries = 0
    while True:
        tries += 1
        try:
            return await call()
        except GatewayError as error:
            pause_s = backoff.pause_s(tries, error.retry_after_s, jitter=random.random())
            if error.remedy not in remedies or clock() + pause_s > ends_at:
                raise
        await asyncio.sleep(pause_s)


# --- What comes back


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A video that this client sent, and how far it has come. `at`: when, in ms since the epoch."""

    video_id: VideoId
    recipient_id: ClientId
    status: Status
    at: int


@dataclass(frozen=True, slots=True)
class Incoming:
    """A video that was sent to this client: `uploaded` or `downloaded`. `at`: since when, in ms since the epoch."""

    video_id: VideoId
    sender_id: ClientId
    status: Status
    url: str
    size: int
    content_type: str
    at: int


@dataclass(frozen=True, slots=True)
class Packet:
    """An info packet: the whole of what a client needs to know. `body`: its bytes, exactly as they came."""

    client_id: ClientId
    version: int
    outgoing: tuple[Outgoing, ...]
    incoming: tuple[Incoming, ...]
    body: bytes = field(repr=False)

    @classmethod
    def parse(cls, body: bytes) -> "Packet":
        """Raises ValueError for what is no info packet. Members that it does not know are ignored."""
        with _readable("not an info packet"):
            fields = _Fields(orjson.loads(body))
            if fields.text("type") != "info":
                raise ValueError
            return cls(
                ClientId(fields.text("client_id")),
                fields.number("version"),
                tuple(_outgoing(entry) for entry in fields.entries("outgoing")),
                tuple(_incoming(entry) for entry in fields.entries("incoming")),
                body,
            )

    def sent(self, video_id: str) -> Outgoing | None:
        """The outgoing video with that id, if it is listed."""
        return next((video for video in self.outgoing if video.video_id == video_id), None)

    def received(self, video_id: str) -> Incoming | None:
        """The incoming video with that id, if it is listed."""
        return next((video for video in self.incoming if video.video_id == video_id), None)


@dataclass(frozen=True, slots=True)
class Upload:
    """How to upload: `method` and `headers` to `url`, until `expires_at` (ms since the epoch). The URL is a secret."""

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    expires_at: int


@dataclass(frozen=True, slots=True)
class Announced:
    """A video to be: its id, what was announced of it, and how to upload it."""

    video_id: VideoId
    recipient_id: ClientId
    size: int
    upload: Upload


class Outcome(StrEnum):
    """What became of a status. `FAILED` is only ever seen in a sync; the others all mean: done, do not repeat."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    IGNORED = "ignored"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Result:
    """What became of the status of a video.

    `version`: of the caller's packet that includes it (0 where it failed). `reason`: why it was ignored. `error`: what
    it failed with, to be treated as that error.
    """

    video_id: VideoId
    outcome: Outcome
    version: int
    reason: str | None = None
    error: GatewayError | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """A status that a client still has to report; `recipient_id` goes with `uploaded`."""

    video_id: str
    status: Status
    recipient_id: str | None = None


@dataclass(frozen=True, slots=True)
class Synced:
    """What became of each report of a sync, in their order, and the packet that includes them."""

    results: tuple[Result, ...]
    packet: Packet


@dataclass(frozen=True, slots=True)
class Alert:
    """What the user is shown: a text to be looked up with its arguments, the number on the app's icon, with a sound?"""

    loc_key: str
    loc_args: tuple[str, ...]
    badge: int
    sound: bool


@dataclass(frozen=True, slots=True)
class Push:
    """What arrived at a device. `packet`: None where it had no room. `alert`: None where the user is shown nothing."""

    version: int
    packet: Packet | None
    alert: Alert | None

    @classmethod
    def parse(cls, body: bytes) -> "Push":
        """Raises ValueError for what is no push."""
        with _readable("not a push"):
            fields = _Fields(orjson.loads(body))
            return cls(
                int(fields.text("version")),
                Packet.parse(fields.text("packet").encode()) if "packet" in fields else None,
                _alert(fields.fields("alert")) if "alert" in fields else None,
            )


# --- The client


class Client:
    """One device of one account. Opens connections when it is used; close it, or use it as a context manager.

    `device_id`: without one, nothing is acknowledged (unless the token is bound to a device). `client_id`: whose
    packets to believe; without one, whose packet the gateway answers with first. `version`: of the packet that the
    device applied last, where it remembers. `http`: what to call with; it stays open. `call_s`: how long a call may
    take, the wait of a held poll not counted.

    Every call raises GatewayError. None repeats itself (`retrying` does that), but for once after a 401, where the
    token can be renewed.
    """

    def __init__(
        self,
        address: str,
        token: Token,
        device_id: str | None = None,
        http: httpx.AsyncClient | None = None,
        *,
        client_id: str | None = None,
        version: int = 0,
        call_s: float = CALL_S,
    ) -> None:
        self.address = address.rstrip("/")
        self.device_id = None if device_id is None else DeviceId(device_id)
        self.client_id = None if client_id is None else ClientId(client_id)
        self._bearer = _Bearer(token)
        self._http = http or httpx.AsyncClient()
        self._owns_http = http is None
        self._version = version
        self._call_s = call_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections that it opened itself."""
        if self._owns_http:
            await self._http.aclose()

    # --- What has been applied

    @property
    def version(self) -> int:
        """The version of the packet that was applied last: what the next call acknowledges."""
        return self._version

    def wants(self, packet: Packet) -> bool:
        """Whether this packet is to be applied: it is this client's, and not older than what was applied."""
        return packet.client_id == (self.client_id or packet.client_id) and packet.version >= self._version

    def applied(self, packet: Packet) -> None:
        """This device has applied that packet; the next call says so. ValueError for one that it does not want."""
        if not self.wants(packet):
            raise ValueError("this packet is older than what was applied, or somebody else's: it is to be dropped")
        self.client_id = packet.client_id
        self._version = packet.version

    # --- Senders

    async def announce(
        self, recipient_id: str, *, size: int, content_type: str = "video/mp4", sha256: str | None = None
    ) -> Announced:
        """Announce an upload of `size` bytes; nothing is stored yet. `sha256`: of the bytes, in lower-case hex."""
        body = {"recipient_id": recipient_id, "size": size, "content_type": content_type}
        if sha256 is not None:
            body["sha256"] = sha256
        answer = await self._call("POST", "/v1/videos", body=body)
        with _understood(answer):
            fields = _Fields(orjson.loads(answer.content))
            return Announced(
                VideoId(fields.text("video_id")), ClientId(recipient_id), size, _upload(fields.fields("upload"))
            )

    async def upload(self, announced: Announced, source: Source, *, progress: Progress | None = None) -> None:
        """Store the bytes; they are stored too where the store has them already.

        Raises UploadError, and ValueError where the source has not as many bytes as were announced.
        """
        upload = announced.upload
        with _reaching(UploadError):
            request = self._signed_request(
                upload.method,
                upload.url,
                headers={**upload.headers, "content-length": str(announced.size)},
                content=_counted(_chunks(source), announced.size, progress),
            )
            answer = await self._http.send(request, auth=None)
        if not answer.is_success and answer.status_code != HTTPStatus.PRECONDITION_FAILED:
            raise _refusal(answer, UploadError)

    async def confirm(self, video_id: str, recipient_id: str) -> Result:
        """The upload is done."""
        return await self._report(Report(video_id, Status.UPLOADED, recipient_id))

    async def delete(self, video_id: str, recipient_id: str) -> Result:
        """Cancel a video that this client sent, in whatever state, and have its bytes deleted."""
        answer = await self._call("DELETE", f"/v1/videos/{video_id}", query={"recipient_id": recipient_id})
        with _understood(answer):
            return _result(video_id, _Fields(orjson.loads(answer.content)))

    async def send_video(
        self,
        path: Path,
        recipient_id: str,
        *,
        content_type: str = "video/mp4",
        progress: Progress | None = None,
        backoff: Backoff = Backoff(),
    ) -> Result:
        """Announce the video, upload it and confirm that; each step is repeated, or begun anew, as the protocol says.

        Raises the GatewayError of the last try when that is no use, or no time is left.
        """
        size, sha256 = await asyncio.to_thread(_measured, path)

        async def announce() -> Announced:
            return await self.announce(recipient_id, size=size, content_type=content_type, sha256=sha256)

        async def upload(announced: Announced) -> None:
            await self.upload(announced, path, progress=progress)

        delivery = _Delivery(announce, upload, self.confirm)
        return await retrying(delivery.advance, backoff=backoff, remedies=_Delivery.REMEDIES)

    # --- Recipients

    async def report(self, video_id: str, status: Status) -> Result:
        """A video that was received has been `notified`, `downloaded` or `viewed`."""
        return await self._report(Report(video_id, status))

    async def download(self, video_id: str, to: Path, *, progress: Progress | None = None) -> int:
        """Fetch the bytes of a video into the file `to`; how many they are. `to` appears once it is complete.

        What arrives is kept beside it until then, and the next try goes on from there. Raises DownloadError.
        """
        part = to.with_name(f".{to.name}.{video_id}.part")
        url = await self._location(video_id)
        have = await asyncio.to_thread(_length, part)
        asked = {"accept-encoding": "identity", **({"range": f"bytes={have}-"} if have else {})}
        with _reaching(DownloadError):
            response = await self._http.send(self._signed_request("GET", url, headers=asked), auth=None, stream=True)
        try:
            size = await _received(response, part, have, progress)
        finally:
            await response.aclose()
        await asyncio.to_thread(part.replace, to)
        return size

    async def _location(self, video_id: str) -> str:
        """Where the bytes are. Asked for as JSON: whoever follows a redirect logs where to."""
        path = f"/v1/videos/{video_id}/content"
        answer = await self._call("GET", path, headers={"accept": "application/json"}, error=DownloadError)
        with _understood(answer):
            return _Fields(orjson.loads(answer.content)).text("url")

    # --- Everybody

    async def poll(self, known: int | None = None, wait: int | None = None) -> Packet | None:
        """The info packet; None where it is not newer than version `known`, for `wait` seconds if need be."""
        headers = {} if known is None else {"if-none-match": f'"{known}"'}
        query = self._seen() if wait is None else {**self._seen(), "wait": str(wait)}
        answer = await self._call("GET", "/v1/poll", query=query, headers=headers, held_s=wait or 0)
        return None if answer.status_code == HTTPStatus.NOT_MODIFIED else self._packet(answer, answer.content)

    async def sync(self, reports: Iterable[Report] = ()) -> Synced:
        """Report all that is still to be reported (at most 256), and get the packet that includes it."""
        reports = tuple(reports)
        body = {"statuses": [_said(report) for report in reports], "version": self._version}
        if self.device_id is not None:
            body["device_id"] = self.device_id
        answer = await self._call("POST", "/v1/sync", body=body)
        with _understood(answer):
            members = _members(answer.content)
            entries = (_Fields(entry) for entry in orjson.loads(members["results"]))
            results = tuple(_result(report.video_id, entry) for report, entry in zip(reports, entries, strict=True))
            packet = members["packet"]
        return Synced(results, self._packet(answer, packet))

    async def register(
        self,
        platform: Literal["apns", "fcm"],
        push_token: str,
        environment: Literal["production", "sandbox"] = "production",
    ) -> None:
        """Have this device woken with that push token, instead of the one before."""
        body = {"platform": platform, "token": push_token, "environment": environment}
        await self._call("PUT", self._device_path(), body=body)

    async def unregister(self) -> None:
        """Log out: this device gets no more pushes."""
        await self._call("DELETE", self._device_path())

    async def end(self) -> None:
        """End the account: devices and sent videos go, received ones expire for their senders."""
        await self._call("DELETE", "/v1/client")

    @asynccontextmanager
    async def pushes(self, *, idle_s: float = 60.0) -> AsyncIterator[AsyncIterator[Push]]:
        """What arrives at this registered device from now on, where the gateway sends its pushes to its own console.

        The iteration ends with the gateway, and with a GatewayError when nothing came for `idle_s` seconds.
        """
        token = await self._bearer.token()
        request = self._request("GET", self._device_path() + "/pushes", token=token)
        request.extensions["timeout"] = httpx.Timeout(self._call_s, read=idle_s).as_dict()
        with _reaching():
            async with asyncio.timeout(self._call_s):
                response = await self._http.send(request, stream=True)
        try:
            if not response.is_success:
                with _reaching():
                    await response.aread()
                raise _refusal(response)
            async with contextlib.aclosing(_arriving(response)) as arriving:
                yield arriving
        finally:
            await response.aclose()

    # --- How calls are made

    async def _report(self, report: Report) -> Result:
        body = _said(report)
        answer = await self._call("POST", f"/v1/videos/{body.pop('video_id')}/status", query=self._seen(), body=body)
        with _understood(answer):
            return _result(report.video_id, _Fields(orjson.loads(answer.content)))

    def _seen(self) -> dict[str, str]:
        """What this device has applied: the acknowledgement."""
        seen = {"version": str(self._version)}
        if self.device_id is not None:
            seen["device_id"] = self.device_id
        return seen

    def _packet(self, answer: httpx.Response, body: bytes) -> Packet:
        with _understood(answer):
            packet = Packet.parse(body)
        if self.client_id is None:
            self.client_id = packet.client_id
        return packet

    def _device_path(self) -> str:
        if self.device_id is None:
            raise ValueError("this client has no device_id")
        return f"/v1/devices/{self.device_id}"

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        held_s: float = 0,
        error: type[GatewayError] = GatewayError,
    ) -> httpx.Response:
        """The answer of a call that succeeded; once more with a new token where the one it had is refused."""
        timeout_s = self._call_s + held_s
        refused: str | None = None
        while True:
            token = await self._bearer.token(instead_of=refused)
            request = self._request(method, path, token=token, query=query, body=body, headers=headers)
            request.extensions["timeout"] = httpx.Timeout(timeout_s).as_dict()
            with _reaching(error):
                async with asyncio.timeout(timeout_s):
                    answer = await self._http.send(request)
            if answer.is_success or answer.status_code == HTTPStatus.NOT_MODIFIED:
                return answer
            if answer.status_code != HTTPStatus.UNAUTHORIZED or refused or not self._bearer.renewable:
                raise _refusal(answer, error)
            refused = token

    def _request(
        self,
        method: str,
        path: str,
        *,
        token: str,
        query: Mapping[str, str] | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Request:
        return self._http.build_request(
            method,
            self.address + path,
            params=query,
            content=None if body is None else orjson.dumps(body),
            headers={
                **(headers or {}),
                **({} if body is None else {"content-type": "application/json"}),
                "authorization": f"Bearer {token}",
            },
        )

    def _signed_request(
        self, method: str, url: str, *, headers: Mapping[str, str], content: AsyncIterator[bytes] | None = None
    ) -> httpx.Request:
        """A request to a signed URL: without the token, which is none of the store's business, and unloggable."""
        timeout = httpx.Timeout(STALL_S, connect=self._call_s)
        request = self._http.build_request(method, url, headers=headers, content=content, timeout=timeout)
        request.headers.pop("authorization", None)
        request.url = _SignedUrl(request.url)
        return request


class _Bearer:
    """The token in use, and where the next one comes from."""

    def __init__(self, token: Token) -> None:
        self._source = token
        self._renewing = asyncio.Lock()
        self._current: str | None = None

    @property
    def renewable(self) -> bool:
        return callable(self._source)

    async def token(self, *, instead_of: str | None = None) -> str:
        """The token in use, or a new one where that is the one that was refused. Calls that fail together share it."""
        async with self._renewing:
            if self._current is None or self._current == instead_of:
                self._current = await self._get()
            return self._current

    async def _get(self) -> str:
        got = self._source() if callable(self._source) else self._source
        token = await got if inspect.isawaitable(got) else got
        if not re.fullmatch(r"[!-~]+", token):
            # A header cannot carry it; what would refuse it otherwise repeats it in its message.
            raise ValueError("the token is empty, or has white space or control characters in it")
        return token


class _SignedUrl(httpx.URL):
    """A URL whose query opens a door: shown without it, since httpx logs every URL that it calls."""

    def __str__(self) -> str:
        return str(httpx.URL(self).copy_with(query=None))

    def __repr__(self) -> str:
        return f"URL({str(self)!r})"


class _Delivery:
    """One video on its way to the gateway. Every `advance` goes on where the one before failed."""

    REMEDIES = frozenset({Remedy.RETRY, Remedy.UPLOAD, Remedy.ANNOUNCE})

    def __init__(
        self,
        announce: Callable[[], Awaitable[Announced]],
        upload: Callable[[Announced], Awaitable[None]],
        confirm: Callable[[str, str], Awaitable[Result]],
    ) -> None:
        self._announce = announce
        self._upload = upload
        self._confirm = confirm
        self._announced: Announced | None = None
        self._maybe_stored = False

    async def advance(self) -> Result:
        """Raises GatewayError, after which it can be called again if the remedy is one of `REMEDIES`."""
        if self._announced is None:
            self._announced = await self._announce()
        if not self._maybe_stored:
            await self._put(self._announced)
        try:
            return await self._confirm(self._announced.video_id, self._announced.recipient_id)
        except GatewayError as error:
            if error.remedy is Remedy.UPLOAD:
                self._maybe_stored = False
            raise

    async def _put(self, announced: Announced) -> None:
        # An upload without an answer may have arrived whole; asking that first can save sending it all again.
        self._maybe_stored = True
        try:
            await self._upload(announced)
        except GatewayError as error:
            if error.status is not None:
                self._maybe_stored = False
            if error.remedy is Remedy.ANNOUNCE:
                self._announced = None
            raise


# --- Bytes of videos


async def _chunks(source: Source) -> AsyncIterator[bytes]:
    if isinstance(source, Path):
        with await asyncio.to_thread(source.open, "rb") as file:
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                yield chunk
    elif isinstance(source, bytes):
        for start in range(0, len(source), CHUNK_BYTES):
            yield source[start : start + CHUNK_BYTES]
    else:
        async for chunk in source:
            yield chunk


async def _counted(chunks: AsyncIterator[bytes], size: int, progress: Progress | None) -> AsyncIterator[bytes]:
    """The chunks. Raises ValueError as soon as it is clear that they are not `size` bytes."""
    moved = 0
    async for chunk in chunks:
        moved += len(chunk)
        if moved > size:
            break
        yield chunk
        if progress:
            progress(moved, size)
    if moved != size:
        raise ValueError(f"{size} bytes were announced, and the source has {'more' if moved > size else moved}")


def _measured(path: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()


def _length(path: Path) -> int:
    """How many bytes a file has; 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


async def _received(response: httpx.Response, part: Path, have: int, progress: Progress | None) -> int:
    """Write what comes to `part`, behind the `have` bytes there where that is what comes; how many it then has."""
    start, size = await _extent(response, have)
    if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        if start == size:
            return size
        await asyncio.to_thread(part.unlink)  # it is longer than the video, so it is none of it
        raise DownloadError(416, None, "what was there already is not of this video, and was removed")
    with await asyncio.to_thread(part.open, "ab" if start else "wb") as file:
        await _written(response, file, start, size, progress)
    return size


async def _extent(response: httpx.Response, have: int) -> tuple[int, int]:
    """Where in the video the bytes begin that come, and how many it has in all (RFC 9110, section 14.4)."""
    found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+)", response.headers.get("content-range", ""))
    length = response.headers.get("content-length", "")
    match response.status_code:
        case HTTPStatus.OK if length.isdecimal():
            return 0, int(length)
        case HTTPStatus.PARTIAL_CONTENT if found and found[1] == str(have):
            return have, int(found[2])
        case HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE if found and have:
            return have, int(found[2])
        case HTTPStatus.OK | HTTPStatus.PARTIAL_CONTENT:
            raise DownloadError(response.status_code, None, "the answer does not say which bytes it has")
    with _reaching(DownloadError):
        await response.aread()
    raise _refusal(response, DownloadError)


async def _written(response: httpx.Response, file: BinaryIO, start: int, size: int, progress: Progress | None) -> None:
    moved = start
    chunks = response.aiter_raw()  # as they come: what a full chunk waits for would be lost
    while True:
        with _reaching(DownloadError):
            chunk = await anext(chunks, None)
        if chunk is None:
            break
        await asyncio.to_thread(file.write, chunk)
        moved += len(chunk)
        if progress:
            progress(moved, size)
    if moved != size:
        raise DownloadError(None, None, f"{moved} of {size} bytes came")


# --- Answers


@contextlib.contextmanager
def _reaching(error: type[GatewayError] = GatewayError) -> Iterator[None]:
    """Turns what httpx raises into `error`: no answer came."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, TimeoutError) as failure:
        # Not chained, and only named: it holds the request, and with it the token or the signed URL.
        raise error(None, None, type(failure).__name__) from None


def _refusal(answer: httpx.Response, error: type[GatewayError] = GatewayError) -> GatewayError:
    """The error that an answer is. Only a problem document of ours is repeated: S3 echoes what was signed."""
    code: str | None = None
    detail = "without a code"
    with contextlib.suppress(ValueError):
        problem = _Fields(orjson.loads(answer.content))
        code, detail = problem.text("code"), problem.text("detail")
    return error(answer.status_code, code, detail, _retry_after_s(answer.headers.get("retry-after")))


def _retry_after_s(header: str | None) -> float | None:
    """Seconds from now (RFC 9110, section 10.2.3)."""
    if header is None:
        return None
    if header.isascii() and header.isdecimal():
        return float(header[:9])
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None


@contextlib.contextmanager
def _understood(answer: httpx.Response) -> Iterator[None]:
    """A success that does not read as one came from something else on the way: an error without a code."""
    try:
        yield
    except (ValueError, LookupError):
        raise GatewayError(answer.status_code, None, "the answer is not what the protocol says") from None


@contextlib.contextmanager
def _readable(sentence: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(sentence) from error


class _Fields:
    """The members of a JSON object, each read as what it must be. Raises ValueError for what is something else."""

    def __init__(self, value: object) -> None:
        if not isinstance(value, dict):
            raise ValueError("no JSON object")
        self._members: dict[str, object] = value

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def text(self, name: str) -> str:
        return self._of(name, str)

    def number(self, name: str) -> int:
        return self._of(name, int)

    def flag(self, name: str) -> bool:
        return self._of(name, bool)

    def entries(self, name: str) -> "list[_Fields]":
        return [_Fields(entry) for entry in self._of(name, list)]

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(self._of(name, list))

    def fields(self, name: str) -> "_Fields":
        return _Fields(self._members.get(name))

    def headers(self, name: str) -> dict[str, str]:
        return {key: str(value) for key, value in self._of(name, dict).items()}

    def _of(self, name: str, kind: type[T]) -> T:
        value = self._members.get(name)
        if type(value) is not kind:
            raise ValueError(f"{name}: no {kind.__name__}")
        return value


def _outgoing(entry: _Fields) -> Outgoing:
    return Outgoing(
        VideoId(entry.text("video_id")),
        ClientId(entry.text("recipient_id")),
        Status(entry.text("status")),
        entry.number("at"),
    )


def _incoming(entry: _Fields) -> Incoming:
    return Incoming(
        VideoId(entry.text("video_id")),
        ClientId(entry.text("sender_id")),
        Status(entry.text("status")),
        entry.text("url"),
        entry.number("size"),
        entry.text("content_type"),
        entry.number("at"),
    )


def _upload(fields: _Fields) -> Upload:
    return Upload(fields.text("method"), fields.text("url"), fields.headers("headers"), fields.number("expires_at"))


def _alert(fields: _Fields) -> Alert:
    return Alert(fields.text("loc-key"), fields.texts("loc-args"), fields.number("badge"), fields.flag("sound"))


def _result(video_id: str, fields: _Fields) -> Result:
    outcome = Outcome(fields.text("result"))
    if outcome is Outcome.FAILED:
        code = fields.text("code")
        error = GatewayError(_status_of(code), code, fields.text("detail"))
        return Result(VideoId(video_id), outcome, 0, error=error)
    reason = fields.text("reason") if "reason" in fields else None
    return Result(VideoId(video_id), outcome, fields.number("version"), reason)


def _status_of(code: str) -> int:
    """The HTTP status that a call of its own would have been answered with; 400 for a code that is new here."""
    return STATUS[Code(code)] if code in list(Code) else 400


def _said(report: Report) -> dict[str, str]:
    body = {"video_id": report.video_id, "status": str(report.status)}
    if report.recipient_id is not None:
        body["recipient_id"] = report.recipient_id
    return body


def _members(body: bytes) -> dict[str, bytes]:
    """The members of a JSON object, the bytes of each value exactly as they came. Raises ValueError."""
    text = body.decode()
    decoder = json.JSONDecoder()
    space = re.compile(r"[ \t\r\n]*")
    members: dict[str, bytes] = {}

    def past(at: int, mark: str) -> int:
        at = space.match(text, at).end()  # type: ignore[union-attr]  # matches the empty string too
        if not text.startswith(mark, at):
            raise ValueError(f"no {mark} at {at}")
        return space.match(text, at + len(mark)).end()  # type: ignore[union-attr]  # as above

    at = past(0, "{")
    while True:
        name, at = decoder.raw_decode(text, at)
        at = past(at, ":")
        _, end = decoder.raw_decode(text, at)
        members[name] = text[at:end].encode()
        at = past(end, "")
        if text.startswith("}", at):
            return members
        at = past(at, ",")


async def _arriving(response: httpx.Response) -> AsyncGenerator[Push, None]:
    """The pushes in a stream of server-sent events: `data:` lines, an empty line behind each event."""
    waiting = b""
    chunks = response.aiter_raw()
    while True:
        with _reaching():
            chunk = await anext(chunks, None)
        if chunk is None:
            return
        *events, waiting = (waiting + chunk).split(b"\n\n")
        for event in events:
            if event.startswith(b"data: "):
                with _understood(response):
                    push = Push.parse(event.removeprefix(b"data: "))
                yield push
