"""The client: one method for each call of the protocol, and what this device has applied."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Literal, Self

import httpx

from gateway.client import transfers
from gateway.client.calls import CALL_S, Calls, Token
from gateway.client.delivery import Delivery, Step
from gateway.client.failures import (
    BACKOFF,
    Backoff,
    DownloadError,
    GatewayError,
    Remedy,
    reaching,
    retrying,
    understood,
)
from gateway.client.fields import Fields
from gateway.client.live import Live, listening
from gateway.client.messages import Announced, Packet, Push, Report, Result, Synced
from gateway.client.transfers import Progress, Source
from gateway.transit.state import ClientId, DeviceId, Status

SENDING = frozenset({Remedy.RETRY, Remedy.UPLOAD, Remedy.ANNOUNCE})
"""What is tried again while a video is being sent."""


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
        calls: Calls | None = None,
    ) -> None:
        self.address = address.rstrip("/")
        self.device_id = None if device_id is None else DeviceId(device_id)
        self.client_id = None if client_id is None else ClientId(client_id)
        self._calls = calls or Calls(self.address, token, http, call_s)
        self._version = version
        self._logged_out = False

    def speaking_for(self, client_id: str, device_id: str, token: str) -> "Client":
        """A client over the same connections that speaks for another account or device; it need not be closed."""
        return Client(self.address, token, device_id, client_id=client_id, calls=self._calls.bearing(token))

    async def token(self, *, instead_of: str | None = None) -> str:
        """The token in use, or a new one where it is that one; the same again where there is no other."""
        return await self._calls.token(instead_of=instead_of)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections that it opened itself."""
        await self._calls.close()

    # --- What has been applied

    @property
    def version(self) -> int:
        """The version of the packet that was applied last: what the next call acknowledges."""
        return self._version

    def wants(self, packet: Packet) -> bool:
        """Whether this packet is to be applied: it is this client's, and not older than what was applied."""
        return packet.client_id == (self.client_id or packet.client_id) and packet.version >= self._version

    def remembers(self, version: int) -> None:
        """This device has applied the packet of that version, as it remembers."""
        self._version = max(self._version, version)

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
        answer = await self._calls.call("POST", "/v1/videos", body=body)
        with understood(answer):
            return Announced.parse(answer.content, recipient_id, size)

    async def upload(self, announced: Announced, source: Source, *, progress: Progress | None = None) -> None:
        """Store the bytes; they are stored too where the store has them already.

        Raises UploadError, and ValueError where the source has not as many bytes as were announced.
        """
        await transfers.upload(self._calls, announced, source, progress)

    async def confirm(self, video_id: str, recipient_id: str) -> Result:
        """The upload is done."""
        return await self._report(Report(video_id, Status.UPLOADED, recipient_id))

    async def delete(self, video_id: str, recipient_id: str) -> Result:
        """Cancel a video that this client sent, in whatever state, and have its bytes deleted."""
        answer = await self._calls.call("DELETE", f"/v1/videos/{video_id}", query={"recipient_id": recipient_id})
        with understood(answer):
            return Result.parse(answer.content, video_id)

    async def send_video(
        self,
        path: Path,
        recipient_id: str,
        *,
        content_type: str = "video/mp4",
        progress: Progress | None = None,
        backoff: Backoff = BACKOFF,
    ) -> Result:
        """Announce the video, upload it and confirm that; each step is repeated, or begun anew, as the protocol says.

        Raises the GatewayError of the last try when that is no use, or no time is left.
        """
        size, sha256 = await asyncio.to_thread(transfers.measured, path)
        delivery = Delivery(str(path), size, content_type, sha256)
        sending = _Sending(self, delivery, recipient_id, progress)
        return await retrying(sending.go_on, backoff=backoff, remedies=SENDING)

    # --- Recipients

    async def report(self, video_id: str, status: Status) -> Result:
        """A video that was received has been `notified`, `downloaded` or `viewed`."""
        return await self._report(Report(video_id, status))

    async def download(self, video_id: str, to: Path, *, progress: Progress | None = None) -> int:
        """Fetch the bytes of a video into the file `to`; how many they are. `to` appears once it is whole and durable.

        What arrives is kept beside it until then, and the next try goes on from there. Raises DownloadError.
        """
        part = transfers.part_of(to, video_id)
        size = await transfers.download(self._calls, await self._location(video_id), part, progress)
        await asyncio.to_thread(part.replace, to)
        return size

    async def _location(self, video_id: str) -> str:
        """Where the bytes are. Asked for as JSON: whoever follows a redirect logs where to."""
        path = f"/v1/videos/{video_id}/content"
        answer = await self._calls.call("GET", path, headers={"accept": "application/json"}, error=DownloadError)
        with understood(answer):
            return Fields.parse(answer.content).text("url")

    # --- Everybody

    async def poll(self, known: int | None = None, wait: int | None = None) -> Packet | None:
        """The info packet; None where it is not newer than version `known`, for `wait` seconds if need be."""
        headers = {} if known is None else {"if-none-match": f'"{known}"'}
        query = self._seen() if wait is None else {**self._seen(), "wait": str(wait)}
        answer = await self._calls.call("GET", "/v1/poll", query=query, headers=headers, held_s=wait or 0)
        if answer.status_code == HTTPStatus.NOT_MODIFIED:
            return None
        with understood(answer):
            packet = Packet.parse(answer.content)
        self._learn(packet)
        return packet

    async def sync(self, reports: Iterable[Report] = ()) -> Synced:
        """Report all that is still to be reported (at most 256), and get the packet that includes it."""
        reports = tuple(reports)
        body = {"statuses": [report.members for report in reports], "version": self._version}
        if self.device_id is not None:
            body["device_id"] = self.device_id
        answer = await self._calls.call("POST", "/v1/sync", body=body)
        with understood(answer):
            synced = Synced.parse(answer.content, reports)
        self._learn(synced.packet)
        return synced

    @asynccontextmanager
    async def live(self, version: int = 0) -> AsyncIterator[Live]:
        """This client's packets as they come, over a socket that is open for the time of the block.

        `version`: of the packet that this device has applied: it is acknowledged, and only newer ones come. With 0, the
        newest comes first.
        """
        self._logged_out = False
        socket = await self._calls.socket("/v1/ws", {**self._seen(), "version": str(version)})
        async with listening(socket, call_s=self._calls.call_s, logged_out=lambda: self._logged_out) as live:
            yield live

    async def register(
        self,
        platform: Literal["apns", "fcm"],
        push_token: str,
        environment: Literal["production", "sandbox"] = "production",
    ) -> None:
        """Have this device woken with that push token, instead of the one before."""
        body = {"platform": platform, "token": push_token, "environment": environment}
        await self._calls.call("PUT", self._device_path(), body=body)

    async def unregister(self) -> None:
        """Log out: this device gets no more pushes, and its socket ends."""
        self._logged_out = True
        await self._calls.call("DELETE", self._device_path())

    async def end(self) -> None:
        """End the account: devices and sent videos go, received ones expire for their senders, sockets end."""
        self._logged_out = True
        await self._calls.call("DELETE", "/v1/client")

    @asynccontextmanager
    async def pushes(self, *, idle_s: float = 60.0) -> AsyncIterator[AsyncIterator[Push]]:
        """What arrives at this registered device from now on, where the gateway sends its pushes to its own console.

        The iteration ends with the gateway, and with a GatewayError when nothing came for `idle_s` seconds.
        """
        async with (
            self._calls.streamed(self._device_path() + "/pushes", idle_s=idle_s) as response,
            contextlib.aclosing(_arriving(response)) as arriving,
        ):
            yield arriving

    async def _report(self, report: Report) -> Result:
        body = report.members
        path = f"/v1/videos/{body.pop('video_id')}/status"
        answer = await self._calls.call("POST", path, query=self._seen(), body=body)
        with understood(answer):
            return Result.parse(answer.content, report.video_id)

    def _seen(self) -> dict[str, str]:
        """What this device has applied: the acknowledgement."""
        seen = {"version": str(self._version)}
        if self.device_id is not None:
            seen["device_id"] = self.device_id
        return seen

    def _learn(self, packet: Packet) -> None:
        """A client that was not told who it is believes the first packet."""
        if self.client_id is None:
            self.client_id = packet.client_id

    def _device_path(self) -> str:
        if self.device_id is None:
            raise ValueError("this client has no device_id")
        return f"/v1/devices/{self.device_id}"


class _Sending:
    """A video that is being sent: each `go_on` takes up where the one before failed."""

    def __init__(self, client: Client, delivery: Delivery, recipient_id: str, progress: Progress | None) -> None:
        self._client = client
        self._delivery = delivery
        self._recipient_id = recipient_id
        self._progress = progress
        self._announced: Announced | None = None

    async def go_on(self) -> Result:
        """Raises GatewayError, after which it can be called again if the remedy is one of `SENDING`."""
        if self._announced is None or self._delivery.step is Step.ANNOUNCE:
            self._announced = await self._announce()
        if self._delivery.step is Step.UPLOAD:
            await self._upload(self._announced)
        try:
            return await self._client.confirm(self._announced.video_id, self._recipient_id)
        except GatewayError as error:
            if error.remedy is Remedy.UPLOAD:
                self._delivery = self._delivery.not_stored()
            raise

    async def _announce(self) -> Announced:
        what = self._delivery
        announced = await self._client.announce(
            self._recipient_id, size=what.size, content_type=what.content_type, sha256=what.sha256
        )
        self._delivery = what.announced(announced.upload)
        return announced

    async def _upload(self, announced: Announced) -> None:
        self._delivery = self._delivery.uploading()
        try:
            await self._client.upload(announced, Path(self._delivery.source), progress=self._progress)
        except GatewayError as error:
            self._delivery = self._delivery.not_uploaded(error)
            raise


async def _arriving(response: httpx.Response) -> AsyncGenerator[Push, None]:
    """The pushes in a stream of server-sent events: `data:` lines, an empty line behind each event."""
    waiting = b""
    chunks = response.aiter_raw()
    while True:
        with reaching():
            chunk = await anext(chunks, None)
        if chunk is None:
            return
        *events, waiting = (waiting + chunk).split(b"\n\n")
        for event in events:
            if event.startswith(b"data: "):
                with understood(response):
                    push = Push.parse(event.removeprefix(b"data: "))
                yield push
