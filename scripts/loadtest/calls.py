"""What a task of the client's core is as a request, and what an answer to it says."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlencode

import orjson

from gateway.client import Announced, DownloadError, GatewayError, Packet, Result, Synced, UploadError
from gateway.client.failures import problem
from gateway.client.fields import Fields
from gateway.client.tasks import Announce, Delete, Download, Poll, Put, Register, Sync
from gateway.client.tasks import Answer as Outcome
from scripts.loadtest.connections import Answer, request

CALL_S = 20.0
"""How long a call may take; a held poll its wait longer."""

Http = Sync | Poll | Announce | Put | Delete | Download | Register
"""The tasks that are calls."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request, what kind of call it is, what its answer says, and what its failure is. `read` raises ValueError for
    what the protocol does not have."""

    kind: str
    request: bytes
    read: Callable[[Answer], Outcome]
    error: type[GatewayError] = GatewayError
    held_s: float = 0.0

    def outcome(self, answer: Answer | None) -> Outcome:
        """What the core is told. Raises GatewayError."""
        if answer is None:
            raise self.error(None, None, "no answer came")
        if not (200 <= answer.status < 300 or answer.status in {HTTPStatus.NOT_MODIFIED, self._also}):
            raise problem(answer.status, answer.body, answer.retry_after, self.error)
        try:
            return self.read(answer)
        except ValueError:
            raise self.error(answer.status, None, "the answer is not what the protocol says") from None

    @property
    def _also(self) -> int:
        """A store that has the bytes already says so."""
        return HTTPStatus.PRECONDITION_FAILED if self.error is UploadError else HTTPStatus.OK


class Caller:
    """Makes the requests of one device."""

    __slots__ = ("_authority", "_bearer", "device_id")

    def __init__(self, authority: str, token: str, device_id: str) -> None:
        self._authority = authority
        self._bearer = f"Bearer {token}"
        self.device_id = device_id

    def __call__(self, task: Http, version: int) -> Call:
        """What a task begins with. `version`: of the packet that was applied last."""
        match task:
            case Sync(reports):
                body = {"statuses": [report.members for report in reports], "device_id": self.device_id}
                sync = self._request("POST", "/v1/sync", body | {"version": version})
                return Call("sync", sync, lambda answer: Synced.parse(answer.body, reports))
            case Poll(known, wait_s):
                query = self._seen(version) | ({"wait": str(wait_s)} if wait_s else {})
                poll = self._request("GET", f"/v1/poll?{urlencode(query)}", headers={"If-None-Match": f'"{known}"'})
                return Call("poll", poll, _polled, held_s=wait_s)
            case Announce(_, recipient_id, delivery):
                size, kind, sha256 = delivery.size, delivery.content_type, delivery.sha256
                announced = {"recipient_id": recipient_id, "size": size, "content_type": kind, "sha256": sha256}
                asked = self._request("POST", "/v1/videos", announced)
                return Call("announce", asked, lambda answer: Announced.parse(answer.body, recipient_id, size))
            case Delete(video_id, recipient_id):
                delete = self._request("DELETE", f"/v1/videos/{video_id}?{urlencode({'recipient_id': recipient_id})}")
                return Call("delete", delete, lambda answer: Result.parse(answer.body, video_id))
            case Register(new):
                device = {"platform": new.platform, "token": new.token, "environment": new.environment}
                return Call("register", self._request("PUT", self.device_path, device), _nothing)
            case Download(video_id):
                content = self._request("GET", f"/v1/videos/{video_id}/content", headers={"Accept": "application/json"})
                return Call("content", content, _nothing, DownloadError)
            case Put():
                raise TypeError("an upload is no call to the gateway")

    def handshake(self, version: int) -> bytes:
        """What asks for a socket, but for its key and its end."""
        headers = {
            "Authorization": self._bearer,
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Protocol": "info.v1",
        }
        query = urlencode({"device_id": self.device_id, "version": str(version)})
        return request("GET", f"/v1/ws?{query}", self._authority, headers)[:-2]

    def farewell(self) -> bytes:
        """What ends the account."""
        return self._request("DELETE", "/v1/client")

    def pushes(self) -> bytes:
        """What listens for the pushes to this device."""
        return self._request("GET", f"{self.device_path}/pushes")

    @property
    def device_path(self) -> str:
        return f"/v1/devices/{self.device_id}"

    def _seen(self, version: int) -> dict[str, str]:
        return {"device_id": self.device_id, "version": str(version)}

    def _request(self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> bytes:
        data = None if body is None else orjson.dumps(body)
        return request(method, path, self._authority, {"Authorization": self._bearer, **(headers or {})}, data)


def location(answer: Answer) -> str:
    """Where the bytes of a video are. Raises ValueError."""
    return Fields.parse(answer.body).text("url")


def _polled(answer: Answer) -> Packet | None:
    return None if answer.status == HTTPStatus.NOT_MODIFIED else Packet.parse(answer.body)


def _nothing(answer: Answer) -> None:  # noqa: ARG001 - what a reader is given
    return None
