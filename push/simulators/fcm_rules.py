"""What FCM demands of a message: firebase.google.com, the reference of the v1 REST API, "projects.messages", and "FCM
Error Codes". Names may be written in snake case or camel case, and null is the same as nothing, as in all of Google's
JSON (protobuf.dev, "ProtoJSON Format")."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

MAX_DATA_BYTES: Final = 4096
MAX_TTL_S: Final = 28 * 24 * 3600
MAX_COLLAPSE_KEYS: Final = 4

Json = dict[str, Any]

_REQUEST = frozenset({"validate_only", "message"})
_TARGETS = frozenset({"token", "topic", "condition", "fid"})
_MESSAGE = _TARGETS | {"name", "data", "notification", "android", "webpush", "apns", "fcm_options"}
_STRINGS = ("collapse_key", "restricted_package_name")
_FLAGS = ("direct_boot_ok", "bandwidth_constrained_ok", "restricted_satellite_ok")
_ANDROID = frozenset({*_STRINGS, *_FLAGS, "priority", "ttl", "data", "notification", "fcm_options"})

_DEVICE = re.compile(r"[A-Za-z0-9_:-]+")
_SECONDS = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?s")
_CAPITAL = re.compile(r"[A-Z]")


class Invalid(Exception):
    """A request that is refused with INVALID_ARGUMENT: the member that is wrong ("" for the whole), and in what."""

    def __init__(self, where: str, description: str) -> None:
        super().__init__(description)
        self.where = where
        self.description = description


class InvalidToken(Exception):
    """What it is addressed to is no registration token."""


@dataclass(frozen=True, slots=True)
class Message:
    """What a request asks for. `json`: the message as it came."""

    json: Json
    token: str
    data: Mapping[str, str]
    priority: str
    ttl_s: float
    collapse_key: str | None
    dry: bool
    """It is only to be checked."""


def message_of(body: bytes) -> Message:
    """The message in a request's body. Raises Invalid, InvalidToken."""
    request = _members(_decoded(body), _REQUEST, "")
    json = request.get("message", {})
    message = _members(json, _MESSAGE, "message")
    android = _members(message.get("android", {}), _ANDROID, "message.android")
    _check_types(android)
    # The data of `android` replaces the other, but both must be right.
    data = _data(message, "message.data")
    data = _data(android, "message.android.data") or data
    return Message(
        json,
        _token(message),
        data,
        _priority(android, shown="notification" in message or "notification" in android),
        _ttl_s(android),
        android.get("collapse_key"),
        request.get("validate_only") is True,
    )


def _decoded(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Invalid("", "Invalid JSON payload received.") from error


def _members(value: Any, known: frozenset[str], where: str) -> Json:
    """The members of an object by their names in snake case."""
    if not isinstance(value, dict):
        raise Invalid(where, f"Invalid value at '{where}': it is no object.")
    found = {_CAPITAL.sub(lambda match: "_" + match[0].lower(), name): name for name in value}
    for name in found.keys() - known:
        place = f" at '{where}'" if where else ""
        raise Invalid(where, f'Invalid JSON payload received. Unknown name "{found[name]}"{place}: Cannot find field.')
    return {name: value[as_written] for name, as_written in found.items() if value[as_written] is not None}


def _check_types(android: Json) -> None:
    for names, kind, called in ((_STRINGS, str, "TYPE_STRING"), (_FLAGS, bool, "TYPE_BOOL")):
        for name in names:
            if name in android and not isinstance(android[name], kind):
                where = f"message.android.{name}"
                raise Invalid(where, f"Invalid value at '{where}' ({called})")


def _token(message: Json) -> str:
    """The one target; the simulator knows devices by their registration tokens only."""
    targets = sorted(_TARGETS & message.keys())
    if targets != ["token"]:
        what = "it must be a token" if len(targets) == 1 else "there must be exactly one"
        raise Invalid("message", f"Recipient of the message is not set: {what}.")
    token = message["token"]
    if not isinstance(token, str) or not _DEVICE.fullmatch(token):
        raise InvalidToken
    return token


def _data(parent: Json, where: str) -> Mapping[str, str]:
    """Strings by strings, of `MAX_DATA_BYTES` together, under names that FCM does not use itself."""
    data = parent.get("data", {})
    if not isinstance(data, dict):
        raise Invalid(where, f"Invalid value at '{where}': it is no object.")
    for index, (key, value) in enumerate(data.items()):
        if not isinstance(value, str):
            place = f"{where}[{index}].value"
            raise Invalid(place, f"Invalid value at '{place}' (TYPE_STRING)")
        if key in {"from", "message_type"} or key.startswith(("google", "gcm")):
            raise Invalid(where, f"Invalid data payload key: {key}")
    if sum(len(key.encode()) + len(value.encode()) for key, value in data.items()) > MAX_DATA_BYTES:
        raise Invalid(where, "Message is too big")
    return data


def _priority(android: Json, *, shown: bool) -> str:
    """HIGH or NORMAL. What is not said is high for what the user is shown ("Set and manage Android message
    priority")."""
    priority = android.get("priority", "HIGH" if shown else "NORMAL")
    if not isinstance(priority, str) or priority.upper() not in {"HIGH", "NORMAL"}:
        where = "message.android.priority"
        raise Invalid(where, f"Invalid value at '{where}' (AndroidMessagePriority)")
    return priority.upper()


def _ttl_s(android: Json) -> float:
    """How long it is kept for a device that is not there; 28 days where that is not said."""
    ttl = android.get("ttl", f"{MAX_TTL_S}s")
    if not isinstance(ttl, str) or not _SECONDS.fullmatch(ttl) or float(ttl[:-1]) > MAX_TTL_S:
        where = "message.android.ttl"
        raise Invalid(where, f"Invalid value at '{where}': seconds up to {MAX_TTL_S}, such as \"3.5s\"")
    return float(ttl[:-1])


class CollapseKeys:
    """The collapse keys that are in use for each device: those of messages that have not expired.

    Of more than four FCM keeps any four and says nothing ("Non-collapsible and collapsible messages"). Nobody would
    see that, so here the fifth is refused.
    """

    def __init__(self) -> None:
        self._until: dict[str, dict[str, float]] = {}

    def check(self, message: Message, now_s: float) -> None:
        """Raises Invalid for a key that is one too many."""
        used = self._in_use(message.token, now_s)
        if message.collapse_key not in {None, *used} and len(used) == MAX_COLLAPSE_KEYS:
            raise Invalid("message.android.collapse_key", f"More than {MAX_COLLAPSE_KEYS} collapse keys at a time")

    def note(self, message: Message, now_s: float) -> None:
        """A message is kept until it expires."""
        if message.collapse_key is not None:
            until_s = now_s + message.ttl_s
            self._until[message.token] = self._in_use(message.token, now_s) | {message.collapse_key: until_s}

    def _in_use(self, token: str, now_s: float) -> dict[str, float]:
        return {key: until_s for key, until_s in self._until.get(token, {}).items() if until_s > now_s}
