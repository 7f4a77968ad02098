"""The reference client: an app's side of the protocol, all of it.

Needs httpx, orjson and websockets, and nothing of the server. A `Device` is one device of one account, and does what
the protocol asks of a good client: what it was told to do happens sooner or later, and it tells what changes.

    client = Client("https://gateway.example.com", token, "phone", client_id="alice")
    videos = VideoFolder(client, Path("videos"))
    async with Device(client, FileStore(Path("record")), videos) as device:
        await device.send("hello.mp4", "bob")
        async for change in device.changes():
            print(change.key, change.status)

Its `Core` decides, without I/O: it is what to read, or to port, for an app in another language. A `Client` makes single
calls, and repeats nothing. Its failures are `GatewayError`, and `SocketClosed` for a socket that ends; the `remedy` of
either says what the protocol has an app do about it. Tokens and signed URLs appear in no `repr`, no exception and no
log, those of httpx and websockets included.
"""

from gateway.client.calls import CALL_S, STALL_S, Token
from gateway.client.client import Client
from gateway.client.core import Core
from gateway.client.device import Device, Watch
from gateway.client.failures import (
    REPEATED,
    Backoff,
    DownloadError,
    GatewayError,
    Remedy,
    SocketClosed,
    UploadError,
    retrying,
)
from gateway.client.live import Live
from gateway.client.messages import (
    Alert,
    Announced,
    Incoming,
    Outcome,
    Outgoing,
    Packet,
    Push,
    Report,
    Result,
    Synced,
    Upload,
)
from gateway.client.record import Change, Received, ReceivedStatus, Record, Sent, SentStatus
from gateway.client.store import FileStore, MemoryStore, Store, StoreInUse
from gateway.client.transfers import Progress, Source
from gateway.client.videos import VideoFolder, Videos

__all__ = [
    "CALL_S",
    "REPEATED",
    "STALL_S",
    "Alert",
    "Announced",
    "Backoff",
    "Change",
    "Client",
    "Core",
    "Device",
    "DownloadError",
    "FileStore",
    "GatewayError",
    "Incoming",
    "Live",
    "MemoryStore",
    "Outcome",
    "Outgoing",
    "Packet",
    "Progress",
    "Push",
    "Received",
    "ReceivedStatus",
    "Record",
    "Remedy",
    "Report",
    "Result",
    "Sent",
    "SentStatus",
    "SocketClosed",
    "Source",
    "Store",
    "StoreInUse",
    "Synced",
    "Token",
    "Upload",
    "UploadError",
    "VideoFolder",
    "Videos",
    "Watch",
    "retrying",
]
