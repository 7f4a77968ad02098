"""A simulator of APNs: HTTP/2 over TLS, and the rules of developer.apple.com, "Sending notification requests to APNs",
"Establishing a token-based connection to APNs", "Establishing a certificate-based connection to APNs" and "Handling
notification responses from APNs"."""

import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import orjson
from cryptography.hazmat.primitives.asymmetric import ec

from push.simulators.answers import Answer, Late, Reaction, accepts, resolved
from push.simulators.apns_rules import (
    DEFAULT_PRIORITY,
    Refused,
    check_headers,
    check_once,
    check_payload,
    check_topic,
    device_of,
    is_uuid,
    notification_id,
)
from push.simulators.certificates import Authority, private_pem
from push.simulators.http2 import Http2Connection
from push.simulators.ledger import Ledger
from push.simulators.provider_tokens import UPDATE_S, ProviderTokens
from push.simulators.serving import Listener, Peer, Request, listening

REASONS: Final[Mapping[str, int]] = {
    "BadCollapseId": 400,
    "BadDeviceToken": 400,
    "BadExpirationDate": 400,
    "BadMessageId": 400,
    "BadPriority": 400,
    "BadTopic": 400,
    "DeviceTokenNotForTopic": 400,
    "DuplicateHeaders": 400,
    "IdleTimeout": 400,
    "InvalidPushType": 400,
    "MissingDeviceToken": 400,
    "MissingTopic": 400,
    "PayloadEmpty": 400,
    "TopicDisallowed": 400,
    "BadCertificate": 403,
    "BadCertificateEnvironment": 403,
    "ExpiredProviderToken": 403,
    "Forbidden": 403,
    "InvalidProviderToken": 403,
    "MissingProviderToken": 403,
    "UnrelatedKeyIdInToken": 403,
    "BadEnvironmentKeyIdInToken": 403,
    "BadEnvironmentKeyInToken": 403,  # how the one above is spelt by the servers themselves, as many have noted
    "BadPath": 404,
    "MethodNotAllowed": 405,
    "ExpiredToken": 410,
    "Unregistered": 410,
    "PayloadTooLarge": 413,
    "TooManyProviderTokenUpdates": 429,
    "TooManyRequests": 429,
    "InternalServerError": 500,
    "ServiceUnavailable": 503,
    "Shutdown": 503,
}
"""The status of every reason ("Handling notification responses from APNs", "Understand the error codes")."""

UNTIL_AUTHORIZED: Final = 1
AUTHORIZED: Final = 1000
"""How many requests a connection may have under way: one until a push had a valid provider token ("Sending
notification requests to APNs"). Afterwards "the exact number varies"; this is what the servers are seen to say."""


def refusal(reason: str, *, timestamp_ms: int | None = None, retry_after: int | str | None = None) -> Answer:
    """The answer with this reason and its status.

    `timestamp_ms`: since when the token is dead, which APNs says with a 410. `retry_after`: seconds, or a date.
    """
    body = {"reason": reason} | ({} if timestamp_ms is None else {"timestamp": timestamp_ms})
    later = () if retry_after is None else (("retry-after", str(retry_after)),)
    return Answer(REASONS[reason], orjson.dumps(body), (("content-type", "application/json"), *later))


@dataclass(frozen=True, slots=True)
class ApnsPush:
    """One push as it came. `headers`: names in lower case; `apns-id` is among them, made up where none was given.
    `connection`: its number, from 1 on. `came_s`: the loop's time."""

    token: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    payload: bytes = field(repr=False)
    connection: int
    came_s: float

    @property
    def data(self) -> dict[str, Any]:
        """The whole payload."""
        found: dict[str, Any] = orjson.loads(self.payload)
        return found

    @property
    def aps(self) -> dict[str, Any]:
        """What the payload says to the system."""
        found: dict[str, Any] = self.data["aps"]
        return found

    @property
    def push_type(self) -> str:
        return self.headers["apns-push-type"]

    @property
    def priority(self) -> int:
        return int(self.headers.get("apns-priority", DEFAULT_PRIORITY))

    @property
    def collapse_id(self) -> str | None:
        return self.headers.get("apns-collapse-id")

    @property
    def apns_id(self) -> str:
        return self.headers["apns-id"]

    @property
    def expiration(self) -> int | None:
        """Seconds since the epoch; 0: not to be stored."""
        found = self.headers.get("apns-expiration")
        return None if found is None else int(found)


def _accept(push: ApnsPush) -> Reaction | None:  # noqa: ARG001 - what a reaction is asked with
    return None


class ApnsSimulator:
    """APNs at `endpoint`, for one team with one key and one topic.

    `react` is asked about each push that keeps the rules; what it answers is done, and None accepts the push. Senders
    are configured with `key_file` (PEM), `key_id`, `team_id` and `topic`, and trust `authority`.
    """

    def __init__(
        self,
        folder: Path,
        authority: Authority,
        *,
        topic: str,
        clock: Callable[[], float],
        update_s: float,
        ledger: Ledger[ApnsPush],
    ) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        self.authority = authority
        self.topic = topic
        self.key_id = "SIMULATED1"
        self.team_id = "SIMTEAM001"
        self.key_file = folder / f"AuthKey_{self.key_id}.p8"
        self.key_file.touch(mode=0o600)
        self.key_file.write_bytes(private_pem(key))
        self.react: Callable[[ApnsPush], Reaction | None] = _accept
        self.pings = 0
        """PING frames that came."""
        self._ledger = ledger
        self._tokens = ProviderTokens(
            key.public_key(), key_id=self.key_id, team_id=self.team_id, update_s=update_s, clock=clock
        )
        self.listener = Listener(self)
        """What it is served by."""

    # --- What happened

    @property
    def endpoint(self) -> str:
        return f"https://127.0.0.1:{self.listener.port}"

    @property
    def received(self) -> list[ApnsPush]:
        """The pushes that were accepted, in order."""
        return self._ledger.received

    @property
    def refused(self) -> list[str]:
        """Why requests were refused by the rules, in order: a reason, or REFUSED_STREAM for a request beyond the number
        that its client knew it may have under way."""
        return self._ledger.refused

    @property
    def connections(self) -> int:
        """How many were opened so far."""
        return self.listener.connections

    @property
    def open_connections(self) -> int:
        return self.listener.open_connections

    @property
    def provider_tokens(self) -> set[str]:
        """The different provider tokens that were seen, of those that its key has signed."""
        return self._tokens.seen

    async def receives(self, count: int) -> list[ApnsPush]:
        """The pushes that were accepted, once they are so many in all."""
        return await self._ledger.receives(count)

    # --- What happens to connections

    def allow(self, streams: int) -> None:
        """Let every open connection have so many requests under way, as APNs does to those with many errors
        ("Handling notification responses from APNs"). One is as on a new connection: until the next right token."""
        self.listener.allow(streams)

    def cut(self) -> None:
        """Cut every connection that is open."""
        self.listener.cut()

    def go_away(self, reason: str = "Shutdown") -> None:
        """Have every connection that is open end once what is under way is answered, for this reason."""
        self.listener.go_away(orjson.dumps({"reason": reason}))

    # --- What is done about requests

    def opened(self, peer: Peer) -> None:
        peer.streams = UNTIL_AUTHORIZED if peer.user_id is None else AUTHORIZED

    def pinged(self, peer: Peer) -> None:  # noqa: ARG002 - a service is told whose it is
        self.pings += 1

    def overran(self, peer: Peer) -> None:  # noqa: ARG002
        self._ledger.refuse("REFUSED_STREAM")

    def came(self, request: Request, peer: Peer) -> Reaction:
        """Check a request, and do about it what `react` says."""
        try:
            push = self._checked(request, peer)
        except Refused as refused:
            self._ledger.refuse(refused.reason)
            return _named(refusal(refused.reason), request.header("apns-id"))
        reaction = self.react(push)
        if accepts(reaction):
            self._ledger.accept(push)
        return _named(resolved(reaction, lambda: Answer(200)), push.apns_id)

    def _checked(self, request: Request, peer: Peer) -> ApnsPush:
        token = device_of(request.method, request.path)
        check_once(request.headers)
        headers = dict(request.headers)
        given = notification_id(headers)
        self._check_authority(headers, peer)
        check_topic(headers, allowed=self.topic, certified=peer.user_id is not None)
        check_headers(headers)
        check_payload(request.body, push_type=headers["apns-push-type"])
        headers["apns-id"] = given or str(uuid4()).upper()
        return ApnsPush(token, headers, request.body, peer.number, request.came_s)

    def _check_authority(self, headers: Mapping[str, str], peer: Peer) -> None:
        if peer.user_id is not None:
            # Over a connection with a certificate "APNs ignores this header".
            if peer.user_id != self.topic:
                raise Refused("BadCertificate")
            return
        if reason := self._tokens.fault(headers.get("authorization")):
            raise Refused(reason)
        if peer.streams == UNTIL_AUTHORIZED:
            peer.streams = AUTHORIZED


def _named(reaction: Reaction, apns_id: str | None) -> Reaction:
    """`reaction`, with the `apns-id` that every answer has: a new one in place of one that is none."""
    match reaction:
        case Late(after_s, Answer() | Late() as then):
            return Late(after_s, _named(then, apns_id))
        case Answer(status, body, headers):
            name = apns_id if apns_id is not None and is_uuid(apns_id) else str(uuid4()).upper()
            return Answer(status, body, (("apns-id", name), *headers))
    return reaction


@asynccontextmanager
async def apns_simulator(
    folder: Path,
    *,
    authority: Authority | None = None,
    topic: str = "org.example.app",
    clock: Callable[[], float] = time.time,
    update_s: float = UPDATE_S,
    ledger: Ledger[ApnsPush] | None = None,
) -> AsyncIterator[ApnsSimulator]:
    """A simulator at a free port of 127.0.0.1, until the block ends; then every connection is cut.

    `folder`: where its keys and certificates are written. `authority`: whose certificates it has and trusts, or one of
    its own. `clock`: seconds since the epoch, by which tokens are judged; `update_s`: how often a team may have a new
    one. `ledger`: where it notes what comes.
    """
    authority = Authority(folder) if authority is None else authority
    ledger = Ledger[ApnsPush]() if ledger is None else ledger
    simulator = ApnsSimulator(folder, authority, topic=topic, clock=clock, update_s=update_s, ledger=ledger)
    context = authority.server_context()
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(authority.ca_file)
    async with listening(simulator.listener, context, http2=Http2Connection):
        yield simulator
