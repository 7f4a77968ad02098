"""What publishes a packet to each connection, byte for byte as the publishers of each peer write it (`Mail` in
`load.py`).

Where the version will stand, `load.c` puts it in when it sends. So the load does the same work whatever the peer.
"""

import json
from collections.abc import Callable

import msgspec

VERSION_TEXT = "#" * 16
VERSION_NUMBER = 2**64 - 1
"""As msgpack: the byte cf and eight bytes ff."""

GATEWAY_PREFIX = "gateway:0:c:"
"""What the channels of clients begin with: `gateway/bus/redis.py`."""
USER_PREFIX = "user:"
PACKET_BYTES = 600


def packet(number: int, size: int = PACKET_BYTES) -> dict[str, object]:
    """The packet of client `c<number>`, which takes `size` bytes as JSON: some videos in transit to it."""
    made: dict[str, object] = {
        "type": "info",
        "client_id": f"c{number}",
        "version": VERSION_NUMBER,
        "outgoing": [],
        "incoming": [_video(place, "sender") for place in range(3)],
    }
    missing = size - len(text(made))
    assert missing >= 0, "three videos do not fit"
    made["incoming"] = [_video(0, "sender" + "x" * missing), _video(1, "sender"), _video(2, "sender")]
    return made


def _video(number: int, sender_id: str) -> dict[str, object]:
    return {
        "video_id": f"01J8ZQ4T9V6W3X{number:06}",
        "sender_id": sender_id,
        "status": "notified",
        "size": 4_194_304,
        "content_type": "video/mp4",
        "at": 1_760_000_000_000,
    }


def text(packet: dict[str, object]) -> str:
    return json.dumps(packet, separators=(",", ":")).replace(str(VERSION_NUMBER), VERSION_TEXT)


Letter = Callable[[int], bytes]
"""From the connection's number."""


# --- Over Redis


def _publish(channel: str, message: bytes) -> bytes:
    name = channel.encode()
    head = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n" % (len(name), name, len(message))
    return head + message + b"\r\n"


def gateway(number: int, *, name: str = "") -> bytes:
    """As `gateway/bus/wire.py` has it: the version, that no acknowledgement is wanted, the packet. For client `name`,
    or the one that is called like its number."""
    message = b"\xff" * 8 + b"\0" + text(packet(number)).encode()
    return _publish(GATEWAY_PREFIX + (name or str(number)), message)


def plain(number: int) -> bytes:
    return _publish(f"{USER_PREFIX}{number}", text(packet(number)).encode())


def socketio(number: int) -> bytes:
    """What @socket.io/redis-emitter makes of io.to(room).emit("info", packet)."""
    room = f"{USER_PREFIX}{number}"
    event = {"type": 2, "data": ["info", packet(number)], "nsp": "/"}
    options = {"rooms": [room], "except": [], "flags": {}}
    return _publish(f"socket.io#/#{room}#", msgspec.msgpack.encode(["emitter", event, options]))


def python_socketio(number: int) -> bytes:
    """What AsyncRedisManager(write_only=True).emit("info", packet, room=...) publishes."""
    message = {
        "method": "emit",
        "event": "info",
        "data": [packet(number)],
        "binary": False,
        "namespace": "/",
        "room": f"{USER_PREFIX}{number}",
        "skip_sid": None,
        "callback": None,
        "host_id": "emitter",
    }
    return _publish("socketio", json.dumps(message).replace(str(VERSION_NUMBER), VERSION_TEXT).encode())


def channels(number: int) -> bytes:
    """What the channel layer's group_send(group, {"type": "info", "text": packet}) publishes."""
    message = msgspec.msgpack.encode({"type": "info", "text": text(packet(number))})
    return _publish(f"asgi__group__user.{number}", message)


# --- Over HTTP


def post(target: str, body: bytes, headers: str = "") -> bytes:
    head = f"POST {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def nchan(number: int) -> bytes:
    return post(f"/publish?c={number}", text(packet(number)).encode(), "Content-Type: application/json\r\n")


def centrifugo(number: int, *, api_key: str) -> bytes:
    body = f'{{"channel":"user:{number}","data":{text(packet(number))}}}'.encode()
    return post("/api/publish", body, f"X-API-Key: {api_key}\r\nContent-Type: application/json\r\n")


# --- Over ZeroMQ

_NULL_READY = b"\x04\x1a\x05READY\x0bSocket-Type\0\0\0\x04PUSH"
ZMTP_GREETING = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0" + b"NULL".ljust(20, b"\0") + b"\0" * 32 + _NULL_READY
"""A PUSH socket's side of the handshake (ZMTP 3.0, no security): its greeting, and that it is ready."""


def pushpin(number: int) -> bytes:
    """An item for Pushpin's PULL socket: a message of one frame."""
    item = {"channel": f"user-{number}", "formats": {"ws-message": {"content": text(packet(number))}}}
    frame = _tnetstring(item)
    return b"\x02" + len(frame).to_bytes(8, "big") + frame


def _tnetstring(value: object) -> bytes:
    if isinstance(value, dict):
        data, kind = b"".join(_tnetstring(part) for pair in value.items() for part in pair), b"}"
    else:
        data, kind = str(value).encode(), b","
    return b"%d:%b%b" % (len(data), data, kind)
