"""Texts for the test vectors, and what is read in them: what a gateway says, what stands between, what is stored."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import orjson

from gateway.client import GatewayError, Outcome, Packet, Push, Record, Report, Result, SocketClosed, Synced
from gateway.client.failures import Backoff, problem
from gateway.client.fields import Fields
from gateway.client.messages import Announced
from gateway.transit.state import ClientId, DeviceId, Status
from tests.client.replay import ERRORS, Members, as_json, short
from tests.client.stories import announced, came, out, packet, received, record, refusal, result, some_received, synced

T = TypeVar("T")

EMPTY = packet(5)


def texts() -> dict[str, Members]:
    """The files, by their names."""
    return {
        "packets": {
            "name": "An info packet is what the protocol says, and what it has besides is ignored",
            "cases": [*map(_packet, PACKETS), *_refused(_packet, NO_PACKETS)],
        },
        "syncs": {
            "name": "The answer to a sync has a result for each report, and the packet exactly as it came",
            "cases": [*map(_sync, SYNCS), *_refused(_sync, NO_SYNCS)],
        },
        "results": {
            "name": "The answer to a status says what became of it",
            "cases": [*map(_result, RESULTS), *_refused(_result, NO_RESULTS)],
        },
        "announcements": {
            "name": "The answer to an announcement says how to upload",
            "cases": [*map(_announcement, ANNOUNCEMENTS), *_refused(_announcement, NO_ANNOUNCEMENTS)],
        },
        "pushes": {
            "name": "A push has a version in decimal digits, and a packet where there was room",
            "cases": [*map(_push, PUSHES), *_refused(_push, NO_PUSHES)],
        },
        "problems": {
            "name": "Only a problem document with a code and a detail is repeated, and how long to wait is in seconds",
            "cases": [_problem(*case) for case in PROBLEMS],
        },
        "remedies": {
            "name": "Each error has the remedy of the protocol",
            "cases": [_remedy(*case) for case in itertools.product(ERRORS, STATUSES, CODES)],
        },
        "closings": {
            "name": "After a close code an app connects again, with a new token, later, or not at all",
            "cases": [_closing(*case) for case in CLOSINGS],
        },
        "pauses": {
            "name": "Pauses double up to a cap with full jitter, and none is shorter than the gateway asked for",
            "cases": [_pause(*case) for case in PAUSES],
        },
        "records": {
            "name": "A record is written as it was read, and what is none is refused",
            "cases": [*map(_record, RECORDS), *_refused(_record, NO_RECORDS)],
        },
    }


def _refused(case_of: Callable[[T], Members], found: Iterable[T]) -> Iterable[Members]:
    """Cases of which nothing may be read."""
    for text in found:
        case = case_of(text)
        assert case["read"] is None, text
        yield case


def _read(read: Callable[[], Members]) -> Members | None:
    try:
        return read()
    except ValueError:
        return None


# --- Packets

ENTRIES = (
    out("video-1", "viewed"),
    out("video-2", "expired"),
    out("video-3", "notified"),
    came("video-4"),
    came("video-5", "downloaded"),
)
SPACED = '{ "type" : "info",\t"client_id":"b\\u006fb","version":5,\n"outgoing":[ ],"incoming":[]}'
PACKETS = (
    EMPTY,
    packet(0, client_id=""),
    packet(2**53 - 1, *ENTRIES),
    SPACED,
    EMPTY.replace("alice", 'Älice, \\"😀\\"'),
    EMPTY.replace(
        '"outgoing":[]',
        '"new":{"outgoing":7},"outgoing":[{"video_id":"v","recipient_id":"b","status":"viewed","at":1,"new":[]}]',
    ),
    EMPTY.replace('"version":5', '"version":-5'),
    EMPTY.replace("alice", "__proto__").replace('"type"', '"__proto__":{"type":1},"type"'),
)
NO_PACKETS = (
    "",
    "no JSON",
    "[]",
    "{}",
    "null",
    '"info"',
    f"{EMPTY}}}",
    EMPTY[:-1],
    EMPTY.replace('"info"', '"result"'),
    EMPTY.replace('"type":"info",', ""),
    EMPTY.replace('"version":5', '"version":"5"'),
    EMPTY.replace('"version":5', '"version":5.5'),
    EMPTY.replace('"version":5', '"version":true'),
    EMPTY.replace('"version":5', '"version":null'),
    EMPTY.replace('"version":5', '"version":NaN'),
    EMPTY.replace('"version":5,', ""),
    EMPTY.replace('"version":5', '"constructor":5'),
    EMPTY.replace('"alice"', "7"),
    EMPTY.replace('"alice"', "null"),
    EMPTY.replace("alice", "\\ud83d"),
    EMPTY.replace('"outgoing":[]', '"outgoing":{}'),
    EMPTY.replace('"outgoing":[]', '"outgoing":null'),
    EMPTY.replace(',"incoming":[]', ""),
    EMPTY.replace('"incoming":[]', '"incoming":[1]'),
    EMPTY.replace('"incoming":[]', '"incoming":[[]]'),
    EMPTY.replace('"incoming":[]', '"incoming":[null]'),
    *(
        packet(5, {**entry, name: value})
        for entry in (out("video-1"), came("video-1"))
        for name, value in (*((name, None) for name in entry), ("status", "seen"), ("status", "Viewed"), ("at", "1"))
        if name not in {"recipient_id", "sender_id"}
    ),
    packet(5, {**out("video-1"), "recipient_id": 7}),
    packet(5, {**came("video-1"), "sender_id": 7}),
)


def _packet(text: str) -> Members:
    return {"text": text, "read": _read(lambda: _packet_members(Packet.parse(text.encode())))}


def _packet_members(found: Packet) -> Members:
    lists = {"outgoing": as_json(found.outgoing), "incoming": as_json(found.incoming)}
    return {"client_id": found.client_id, "version": found.version, **lists, "text": found.body.decode()}


# --- Answers

REPORTS = (
    Report("video-1", Status.VIEWED),
    Report("video-2", Status.UPLOADED, "carol"),
    Report("video-3", Status.DOWNLOADED),
)
ANSWERS = (result(5), refusal("not_stored"), result(5, "ignored", "unknown_video"))
SYNCS = (
    synced(EMPTY, *ANSWERS),
    f' {{"new":{{"packet":1}}, "old_packet":{{}}, "packet" : {SPACED} ,"results":[{",".join(ANSWERS)}]}} ',
    f'{{"results":[{",".join(ANSWERS)}],"pa\\u0063ket":{packet(5, *ENTRIES)},"new":"}},\\"packet\\":{{"}}',
    synced(EMPTY, result(5, "duplicate"), refusal("brand_new"), refusal("unavailable")),
)
NO_SYNCS = (
    "",
    "[]",
    "{",
    '{"results":[]}',
    synced(EMPTY),
    synced(EMPTY, *ANSWERS, result(5)),
    f'{{"results":[{",".join(ANSWERS)}]}}',
    synced("{}", *ANSWERS),
    synced("null", *ANSWERS),
    synced(EMPTY, *ANSWERS)[:-1],
    synced(EMPTY, *ANSWERS[:2], "1"),
    synced(EMPTY, *ANSWERS[:2], '{"result":"failed"}'),
    f'{{"results":5,"packet":{EMPTY}}}',
)


def _sync(text: str) -> Members:
    def read() -> Members:
        found = Synced.parse(text.encode(), REPORTS)
        return {"results": [_result_members(each) for each in found.results], "packet": _packet_members(found.packet)}

    return {"reports": as_json(REPORTS), "text": text, "read": _read(read)}


RESULTS = (
    result(5),
    result(0, "duplicate"),
    result(7, "ignored", "superseded"),
    '{"result":"applied","version":5,"id":1,"type":"result"}',
    refusal("not_stored"),
    refusal("rate_limited"),
    refusal("brand_new"),
    refusal("constructor"),
    '{"result":"failed","code":"invalid","detail":"","version":"seven","reason":7}',
)
NO_RESULTS = (
    "",
    "{}",
    '{"result":"done","version":5}',
    '{"result":"applied"}',
    '{"result":"applied","version":"5"}',
    '{"result":"ignored","version":5,"reason":null}',
    '{"result":"ignored","version":5,"reason":7}',
    '{"result":"failed","code":"invalid"}',
    '{"result":"failed","detail":"so it is"}',
    '{"result":"failed","code":7,"detail":"so it is"}',
)


def _result(text: str) -> Members:
    found = _read(lambda: _result_members(Result.parse(text.encode(), "video-1")))
    return {"video_id": "video-1", "text": text, "read": found}


def _result_members(found: Result) -> Members:
    assert (found.error is not None) == (found.outcome is Outcome.FAILED)
    members = {"video_id": found.video_id, "outcome": found.outcome, "version": found.version, "reason": found.reason}
    return {**members, "error": None if found.error is None else _error_members(found.error)}


def _error_members(error: GatewayError) -> Members:
    return {
        "status": error.status,
        "code": error.code,
        "detail": error.detail,
        "retry_after_s": None if error.retry_after_s is None else short(error.retry_after_s),
        "remedy": error.remedy,
        "retryable": error.retryable,
    }


ANNOUNCEMENTS = (announced(), announced().replace('{"content-type":"video/mp4"}', "{}"))
NO_ANNOUNCEMENTS = (
    "",
    "{}",
    announced().replace('"video-1"', "7"),
    announced().replace('"PUT"', "null"),
    announced().replace('"expires_at":99', '"expires_at":"99"'),
    announced().replace('{"content-type":"video/mp4"}', "[]"),
    announced().replace('"headers":{"content-type":"video/mp4"},', ""),
    '{"video_id":"video-1","upload":"https://store.test/"}',
)


def _announcement(text: str) -> Members:
    def read() -> Members:
        found: Members = as_json(Announced.parse(text.encode(), "bob", 9))
        return found

    return {"recipient_id": "bob", "size": 9, "text": text, "read": _read(read)}


# --- Pushes

ALERT = {"loc-key": "VIDEOS_WAITING", "loc-args": ["1", "alice"], "badge": 1, "sound": True}
PUSHES: tuple[object, ...] = (
    {"version": "6"},
    {"version": "5", "packet": EMPTY, "aps": {"alert": "new"}},
    {"version": "5", "packet": EMPTY, "alert": ALERT},
    {"version": "5", "alert": {**ALERT, "sound": False}},
)
NO_PUSHES: tuple[object, ...] = (
    [],
    {},
    {"version": 6},
    {"version": "six"},
    {"version": ""},
    {"version": "6.5"},
    {"version": "6", "packet": "{}"},
    {"version": "6", "packet": {}},
    {"version": "6", "packet": None},
    {"version": "6", "alert": None},
    {"version": "6", "alert": {**ALERT, "badge": "1"}},
    {"version": "6", "alert": {**ALERT, "sound": 1}},
    {"version": "6", "alert": {**ALERT, "loc-args": "1"}},
    {"version": "6", "alert": {**ALERT, "loc-key": 1}},
)


def _push(members: object) -> Members:
    def read() -> Members:
        found = Push.read(Fields(members))
        found_packet = None if found.packet is None else _packet_members(found.packet)
        return {"version": found.version, "packet": found_packet, "alert": as_json(found.alert)}

    return {"members": members, "read": _read(read)}


# --- Failures

DOCUMENT = '{"type":"about:blank","status":503,"code":"unavailable","detail":"so it is"}'
PROBLEMS = (
    ("gateway", 503, DOCUMENT, "2"),
    ("gateway", 503, DOCUMENT, None),
    ("gateway", 503, DOCUMENT, "1234567890123"),
    ("gateway", 503, DOCUMENT, "soon"),
    ("gateway", 503, DOCUMENT, ""),
    ("gateway", 503, DOCUMENT, "-1"),
    ("gateway", 503, DOCUMENT, "1.5"),
    ("gateway", 503, DOCUMENT, "٣"),
    ("gateway", 503, DOCUMENT, "Thu, 01 Jan 1970 00:00:00 GMT"),
    ("gateway", 503, "<html>busy</html>", "7"),
    ("gateway", 404, '{"detail":"Not Found"}', None),
    ("gateway", 422, '{"code":"invalid"}', None),
    ("gateway", 422, '{"code":7,"detail":"so it is"}', None),
    ("gateway", 422, '["invalid"]', None),
    ("gateway", 422, '{"code":"invalid","detail":"so it is"', None),
    ("upload", 403, "<Error><SignatureProvided>5ec4e7</SignatureProvided></Error>", None),
    ("upload", 400, '{"code":"invalid","detail":"so it is"}', None),
    ("download", 404, '{"code":"not_tracked","detail":"so it is"}', None),
)
STATUSES = (None, 200, 302, 400, 401, 403, 404, 408, 409, 412, 413, 416, 422, 425, 426, 429, 499, 500, 502, 503)
CODES = (None, "not_stored", "rate_limited", "too_many_in_transit", "brand_new")
CLOSINGS = (
    *((code, "", False) for code in (1000, 1001, 1002, 1003, 1006, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000)),
    *((code, "so it is", False) for code in (4400, 4401, 4403, 4408, 4409, 4429, 4999)),
    *((code, "", True) for code in (1006, 1012, 4401)),
    *(
        (1012, reason, False)
        for reason in (
            '{"retry_ms":7250}',
            '{"retry_ms":0}',
            '{"retry_ms":-1}',
            '{"retry_ms":"7250"}',
            '{"retry_ms":1.5}',
            '{"retry_ms":null}',
            "{}",
            "[7250]",
            "soon",
        )
    ),
    (1013, '{"retry_ms":7250}', False),
)
PAUSES = (
    *((tries, None, 1) for tries in (1, 2, 3, 6, 7, 8, 61, 62, 10_000)),
    (5, None, 0),
    (5, None, 0.25),
    (1, 7, 0),
    (1, 7, 0.5),
    (9, 7.5, 1),
)


def _problem(kind: str, status: int, body: str, retry_after: str | None) -> Members:
    error = problem(status, body.encode(), retry_after, ERRORS[kind])
    case = {"kind": kind, "status": status, "body": body, "retry_after": retry_after}
    return {**case, "read": _error_members(error)}


def _remedy(kind: str, status: int | None, code: str | None) -> Members:
    error = ERRORS[kind](status, code, "so it is")
    return {"kind": kind, "status": status, "code": code, "remedy": error.remedy, "retryable": error.retryable}


def _closing(code: int, reason: str, logged_out: bool) -> Members:
    closed = SocketClosed(code, reason, logged_out=logged_out)
    retry_s = None if closed.retry_s is None else short(closed.retry_s)
    case = {"code": code, "reason": reason, "logged_out": logged_out}
    return {**case, "remedy": closed.remedy, "retry_s": retry_s}


def _pause(tries: int, retry_after_s: float | None, jitter: float) -> Members:
    pause_s = Backoff(base_s=0.5, cap_s=30).pause_s(tries, retry_after_s, jitter=jitter)
    return {"tries": tries, "retry_after_s": retry_after_s, "jitter": jitter, "pause_s": short(pause_s)}


# --- Records


def _text(members: Mapping[str, object]) -> str:
    return orjson.dumps(members).decode()


UPLOAD = {"method": "PUT", "url": "https://store.test/1", "headers": {"x": "y"}, "expires_at": 9}
DELIVERY = {
    "source": "/videos/1",
    "size": 9,
    "content_type": "video/mp4",
    "sha256": "5a",
    "step": "confirm",
    "upload": UPLOAD,
    "late": True,
}
SENT = {
    "key": "key-1",
    "recipient_id": "bob",
    "status": "queued",
    "video_id": "video-1",
    "at": 0,
    "reason": None,
    "delivery": DELIVERY,
    "listed": False,
    "silence": None,
    "over_at": 0,
    "told": "queued",
}
FAREWELL = {
    "client_id": "bob",
    "device_id": "phone",
    "token": "the-token",
    "ends_account": True,
    "reports": [
        {"video_id": "video-1", "status": "viewed", "recipient_id": None},
        {"video_id": "video-2", "status": "uploaded", "recipient_id": "carol"},
    ],
    "deletions": [["video-3", "carol"]],
}
REGISTRATION = {"platform": "apns", "token": "push-token", "environment": "sandbox", "answered_s": 7.5}
DELETIONS = {"v2": {"recipient_id": "bob", "over_at": None}, "__proto__": {"recipient_id": "carol", "over_at": 9}}
FULL: Members = record(
    2**53 - 1,
    sent=[SENT, {**SENT, "key": "key-2", "status": "failed", "reason": "invalid", "delivery": None, "told": None}],
    received=[{**received("video-1"), "known_at": 2**53, "told": None}],
    deletions=DELETIONS,
    registration=REGISTRATION,
    farewells=[FAREWELL],
    logged_out=True,
)
RECORDS = (Record(ClientId("alice"), DeviceId("phone")).encode().decode(), _text(FULL), _text(some_received(2)))
SMALL = record()
RECEIVED = received("video-1")


def _sent(**members: object) -> str:
    return _text({**SMALL, "sent": [{**SENT, **members}]})


NO_RECORDS = (
    "",
    "[]",
    "{}",
    "null",
    _text(SMALL)[:-1],
    _text({**SMALL, "format": 2}),
    _text({**SMALL, "version": "7"}),
    *(_text({name: value for name, value in SMALL.items() if name != missing}) for missing in SMALL),
    _text({**SMALL, "sent": [7]}),
    _sent(status="seen"),
    _sent(told="seen"),
    _sent(new=1),
    _sent(delivery=7),
    _sent(delivery={}),
    _sent(delivery={**DELIVERY, "step": "?"}),
    _sent(delivery={**DELIVERY, "new": 1}),
    _text({**SMALL, "received": [{**RECEIVED, "known": "seen"}]}),
    _text({**SMALL, "received": [{**RECEIVED, "told": "viewed"}]}),
    _text({**SMALL, "deletions": []}),
    _text({**SMALL, "deletions": {"v": {}}}),
    _text({**SMALL, "deletions": {"v": {"recipient_id": "bob", "new": 1}}}),
    _text({**SMALL, "registration": {}}),
    _text({**SMALL, "registration": {**REGISTRATION, "new": 1}}),
    _text({**SMALL, "farewells": [{**FAREWELL, "reports": [{"video_id": "video-1", "status": "seen"}]}]}),
    _text({**SMALL, "farewells": [{**FAREWELL, "deletions": [["video-3"]]}]}),
)


def _record(text: str) -> Members:
    try:
        return {"text": text, "read": Record.decode(text.encode()).encode().decode()}
    except ValueError:
        return {"text": text, "read": None}
