"""What APNs demands of a push: developer.apple.com, "Sending notification requests to APNs" and "Pushing background
updates to your App". Which reason it gives where several fit is not documented."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson

MAX_PAYLOAD_BYTES: Final = 4096
MAX_COLLAPSE_ID_BYTES: Final = 64
DEFAULT_PRIORITY: Final = "10"

_PATH = re.compile(r"/3/device/([^/?]*)")
_DEVICE = re.compile(r"(?:[0-9a-fA-F]{2}){32,100}")
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_SECONDS = re.compile(r"[0-9]{1,19}")
_TOPIC = re.compile(r"[A-Za-z0-9.-]+")


class Refused(Exception):
    """A request breaks a rule: the reason that APNs gives."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def device_of(method: str, path: str) -> str:
    """The device token that a request is for: hexadecimal, of 32 bytes or more, since its size may change."""
    if method != "POST":
        raise Refused("MethodNotAllowed")
    found = _PATH.fullmatch(path)
    if found is None:
        raise Refused("BadPath")
    if not found[1]:
        raise Refused("MissingDeviceToken")
    if not _DEVICE.fullmatch(found[1]):
        raise Refused("BadDeviceToken")
    return found[1]


def check_once(headers: Iterable[tuple[str, str]]) -> None:
    """No header may be there twice; cookies are split by HTTP/2 itself (RFC 9113, section 8.2.3)."""
    times = Counter(name for name, _ in headers)
    if any(count > 1 for name, count in times.items() if name != "cookie"):
        raise Refused("DuplicateHeaders")


def notification_id(headers: Mapping[str, str]) -> str | None:
    """The `apns-id`: a UUID in its canonical form, or None where APNs is to make one."""
    given = headers.get("apns-id")
    if given is not None and not is_uuid(given):
        raise Refused("BadMessageId")
    return given


def is_uuid(text: str) -> bool:
    """Whether it is a UUID in its canonical form, in letters of either case."""
    return _UUID.fullmatch(text) is not None


def check_topic(headers: Mapping[str, str], *, allowed: str, certified: bool) -> None:
    """The topic must be `allowed`. It may be left out where a certificate says it."""
    topic = headers.get("apns-topic")
    if topic is None and not certified:
        raise Refused("MissingTopic")
    if topic is not None and not _TOPIC.fullmatch(topic):
        raise Refused("BadTopic")
    if topic not in {None, allowed}:
        raise Refused("TopicDisallowed")


def check_headers(headers: Mapping[str, str]) -> None:
    """Type, priority, expiry and collapse id. Only the types that do not need a topic of their own are taken, and the
    type is required, although iOS only recommends it."""
    push_type, priority = headers.get("apns-push-type"), headers.get("apns-priority", DEFAULT_PRIORITY)
    if push_type not in {"alert", "background"}:
        raise Refused("InvalidPushType")
    if priority not in ({"5"} if push_type == "background" else {"1", "5", "10"}):
        raise Refused("BadPriority")
    if not _SECONDS.fullmatch(headers.get("apns-expiration", "0")):
        raise Refused("BadExpirationDate")
    if len(headers.get("apns-collapse-id", "").encode()) > MAX_COLLAPSE_ID_BYTES:
        raise Refused("BadCollapseId")


def check_payload(payload: bytes, *, push_type: str) -> None:
    """A JSON object with `aps`, that says what its type says: an alert push has an alert, a badge or a sound, and a
    background push has none of them, and `content-available`."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise Refused("PayloadTooLarge")
    aps = _aps(payload)
    seen = aps.keys() & {"alert", "badge", "sound"}
    if push_type == "alert" and not seen:
        raise Refused("InvalidPushType")
    if push_type == "background" and (seen or aps.get("content-available") != 1):
        raise Refused("InvalidPushType")


def _aps(payload: bytes) -> dict[str, Any]:
    """What is said to the system. Of what is no object with `aps`, no reason says more than that it is empty."""
    try:
        content = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise Refused("PayloadEmpty") from error
    aps = content.get("aps") if isinstance(content, dict) else None
    if not isinstance(aps, dict):
        raise Refused("PayloadEmpty")
    return aps
