"""The reference client: the protocol's calls as an app makes them, and what it does when one fails.

Needs httpx, orjson and websockets, and nothing of the server. A `Client` speaks for one device of one account:

    async with Client("https://gateway.example.com", token, device_id="phone") as client:
        sent = await client.send_video(Path("hello.mp4"), "bob")
        packet = await client.poll()
        client.applied(packet)
        async with client.live(client.version) as live:
            async for packet in live:
                client.applied(packet)
                await live.acknowledge(packet.version)

Each call acknowledges the newest packet that was handed to `applied`, and nothing else: a packet that arrived but was
not applied may still get lost. Failures are `GatewayError`, and `SocketClosed` for a socket that ends; the `remedy` of
either says what the protocol has an app do about it. Tokens and signed URLs appear in no `repr`, no exception and no
log, those of httpx and websockets included.
"""

from gateway.client.calls import CALL_S, STALL_S, Token
from gateway.client.client import Client
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
from gateway.client.transfers import Progress, Source

__all__ = [
    "CALL_S",
    "REPEATED",
    "STALL_S",
    "Alert",
    "Announced",
    "Backoff",
    "Client",
    "DownloadError",
    "GatewayError",
    "Incoming",
    "Live",
    "Outcome",
    "Outgoing",
    "Packet",
    "Progress",
    "Push",
    "Remedy",
    "Report",
    "Result",
    "SocketClosed",
    "Source",
    "Synced",
    "Token",
    "Upload",
    "UploadError",
    "retrying",
]
