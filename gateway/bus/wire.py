"""What travels over Redis: a client's packet, or that connections are to end. Pure: bytes to values and back.

8 bytes, big-endian: the packet's version, or the dismissal's rank. Then a byte that says what it is, and the rest: the
packet as it goes to the app, or the device's id. A receiver that does not know the byte leaves the message: processes
of two releases work side by side.
"""

import struct

from gateway.bus.bus import Cause, Dismissal, Kick, Publication
from gateway.transit.state import ClientId, DeviceId

_PACKET, _PACKET_THAT_ASKS, _DISPLACED, _LOGGED_OUT, _SENT_BACK = range(5)
_CAUSES = {_DISPLACED: Cause.DISPLACED, _LOGGED_OUT: Cause.LOGGED_OUT, _SENT_BACK: Cause.SENT_BACK}
_KINDS = {cause: kind for kind, cause in _CAUSES.items()}
_HEAD = struct.Struct("!QB")
_HEAD_BYTES = _HEAD.size


def publication(news: Publication) -> bytes:
    """A packet as it travels."""
    kind = b"\x01" if news.asks else b"\x00"
    return news.version.to_bytes(8) + kind + news.packet


def dismissal(meant: Dismissal) -> bytes:
    """A dismissal as it travels."""
    return meant.rank.to_bytes(8) + bytes((_KINDS[meant.cause],)) + (meant.device_id or "").encode()


def read(client_id: ClientId, message: bytes) -> Publication | Dismissal | None:
    """What came on this client's channel; None where this release does not know it."""
    if len(message) < _HEAD_BYTES:
        return None
    number, kind = _HEAD.unpack_from(message)
    if kind <= _PACKET_THAT_ASKS:
        return Publication(client_id, number, kind == _PACKET_THAT_ASKS, packet=message[_HEAD_BYTES:])
    if kind in _CAUSES:
        device_id = message[_HEAD_BYTES:].decode(errors="replace")
        return Dismissal(client_id, DeviceId(device_id) if device_id else None, _CAUSES[kind], number)
    return None


def kick(meant: Kick) -> bytes:
    """A kick as it waits for a worker."""
    return f"{meant.client_id} {meant.device_id or ''}".encode()


def read_kick(message: bytes) -> Kick:
    """The kick that `kick` wrote."""
    client_id, _, device_id = message.decode().partition(" ")
    return Kick(ClientId(client_id), DeviceId(device_id) if device_id else None)
