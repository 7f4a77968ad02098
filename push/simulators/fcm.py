"""A simulator of FCM: the v1 REST API (firebase.google.com, its reference and "FCM Error Codes") and the OAuth endpoint
that belongs to it, over TLS with HTTP/2 or HTTP/1.1."""

import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import orjson
from cryptography.hazmat.primitives.asymmetric import rsa

from push.simulators.answers import Answer, Reaction, accepts, html, resolved
from push.simulators.certificates import Authority, private_pem
from push.simulators.fcm_rules import CollapseKeys, Invalid, InvalidToken, Json, Message, message_of
from push.simulators.http1 import Http1Connection
from push.simulators.http2 import Http2Connection
from push.simulators.ledger import Ledger
from push.simulators.oauth import AccessTokens, OauthRefused, TokenRequest, oauth_refusal
from push.simulators.serving import Listener, Peer, Request, listening

ERROR_CODES: Final[Mapping[str, int]] = {
    "UNSPECIFIED_ERROR": 500,  # none is documented for it; this is what stands for UNKNOWN (google.rpc.Code)
    "INVALID_ARGUMENT": 400,
    "UNREGISTERED": 404,
    "SENDER_ID_MISMATCH": 403,
    "QUOTA_EXCEEDED": 429,
    "UNAVAILABLE": 503,
    "INTERNAL": 500,
    "THIRD_PARTY_AUTH_ERROR": 401,
}
"""The status of every error code ("FCM Error Codes")."""

_STATUSES: Final[Mapping[str, tuple[str, str]]] = {
    "UNSPECIFIED_ERROR": ("UNKNOWN", "Unknown error."),
    "INVALID_ARGUMENT": ("INVALID_ARGUMENT", "The registration token is not a valid FCM registration token"),
    "UNREGISTERED": ("NOT_FOUND", "Requested entity was not found."),
    "SENDER_ID_MISMATCH": ("PERMISSION_DENIED", "SenderId mismatch"),
    "QUOTA_EXCEEDED": ("RESOURCE_EXHAUSTED", "Sending quota exceeded."),
    "UNAVAILABLE": ("UNAVAILABLE", "The service is currently unavailable."),
    "INTERNAL": ("INTERNAL", "Internal error encountered."),
    "THIRD_PARTY_AUTH_ERROR": ("UNAUTHENTICATED", "Auth error from APNS or Web Push Service"),
}
"""What stands beside each code as `status`, the canonical one of google.rpc.Code, and as `message`."""

_FCM_ERROR: Final = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
_BAD_REQUEST: Final = "type.googleapis.com/google.rpc.BadRequest"
_QUOTA_FAILURE: Final = "type.googleapis.com/google.rpc.QuotaFailure"
_ERROR_INFO: Final = "type.googleapis.com/google.rpc.ErrorInfo"

_SEND: Final = re.compile(r"/v1/projects/([^/]+)/messages:send")
_JSON: Final = ("content-type", "application/json; charset=UTF-8")


def refusal(error_code: str, *, message: str | None = None, retry_after: int | str | None = None) -> Answer:
    """The answer with this error code, its status, and details of type FcmError. In this form, INVALID_ARGUMENT says
    that the token is none: see `invalid_value` for the other. `retry_after`: seconds, or a date."""
    status, usual = _STATUSES[error_code]
    details: list[Json] = [{"@type": _FCM_ERROR, "errorCode": error_code}]
    if error_code == "QUOTA_EXCEEDED":
        violation = {"subject": "project", "description": "Messages per minute"}
        details.append({"@type": _QUOTA_FAILURE, "violations": [violation]})
    return _error(ERROR_CODES[error_code], status, message or usual, details, retry_after=retry_after)


def invalid_value(where: str, description: str, *, fcm_error: bool = False) -> Answer:
    """INVALID_ARGUMENT for a member of the request: details of type BadRequest ("FCM Error Codes", example 1).

    `fcm_error`: with one of type FcmError beside it, as the servers are seen to answer too.
    """
    violation = ({"field": where} if where else {}) | {"description": description}
    details: list[Json] = [{"@type": _BAD_REQUEST, "fieldViolations": [violation]}]
    if fcm_error:
        details.insert(0, {"@type": _FCM_ERROR, "errorCode": "INVALID_ARGUMENT"})
    return _error(400, "INVALID_ARGUMENT", description, details)


def unauthenticated() -> Answer:
    """The answer to a request without an access token that counts."""
    details = [{"@type": _ERROR_INFO, "reason": "ACCESS_TOKEN_EXPIRED", "domain": "googleapis.com"}]
    answer = _error(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.", details)
    challenge = ("www-authenticate", 'Bearer realm="https://accounts.google.com/", error="invalid_token"')
    return Answer(answer.status, answer.body, (*answer.headers, challenge))


def permission_denied() -> Answer:
    """The answer to a request for a project that is not the service account's."""
    message = "Permission 'cloudmessaging.messages.create' denied on the project, or it may not exist."
    return _error(403, "PERMISSION_DENIED", message, [])


def _error(
    code: int, status: str, message: str, details: list[Json], *, retry_after: int | str | None = None
) -> Answer:
    error = {"code": code, "message": message, "status": status} | ({"details": details} if details else {})
    headers = () if retry_after is None else (("retry-after", str(retry_after)),)
    return Answer(code, orjson.dumps({"error": error}), (_JSON, *headers))


@dataclass(frozen=True, slots=True)
class FcmPush:
    """One message as it came. `message`: decoded; `data`: what the app is handed; `priority`: HIGH or NORMAL; `ttl_s`:
    28 days where the message does not say. `connection`: its number, from 1 on. `came_s`: the loop's time."""

    token: str = field(repr=False)
    message: Json = field(repr=False)
    data: Mapping[str, str] = field(repr=False)
    priority: str
    ttl_s: float
    collapse_key: str | None
    access_token: str = field(repr=False)
    connection: int
    came_s: float


class _Refused(Exception):
    """A request breaks a rule: what is noted of it, and its answer."""

    def __init__(self, reason: str, answer: Answer) -> None:
        super().__init__(reason)
        self.reason = reason
        self.answer = answer


def _accept(came: FcmPush | TokenRequest) -> Reaction | None:  # noqa: ARG001 - what a reaction is asked with
    return None


class FcmSimulator:
    """FCM at `endpoint`, for one project with one service account.

    `react` is asked about each message that keeps the rules, `oauth_react` about each request for an access token that
    does; what they answer is done, and None accepts. A provider is configured with `credentials_file`, and trusts
    `authority`.
    """

    def __init__(
        self,
        folder: Path,
        authority: Authority,
        *,
        clock: Callable[[], float],
        token_life_s: float,
        ledger: Ledger[FcmPush],
    ) -> None:
        self.authority = authority
        self.project_id = "example-project"
        self.credentials_file = folder / "service-account.json"
        self.react: Callable[[FcmPush], Reaction | None] = _accept
        self.oauth_react: Callable[[TokenRequest], Reaction | None] = _accept
        self.connections = 0
        """How many were opened so far over HTTP/2: those of the OAuth endpoint are as a rule over HTTP/1.1."""
        self.pings = 0
        """PING frames that came."""
        self.listener = Listener(self)
        """What it is served by."""
        self._ledger = ledger
        self._clock = clock
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._account = f"simulator@{self.project_id}.iam.gserviceaccount.com"
        self._tokens = AccessTokens(self._key.public_key(), account=self._account, life_s=token_life_s, clock=clock)
        self._collapse_keys = CollapseKeys()
        self._accepted = 0

    def begin(self) -> None:
        """It listens: write the credentials, which say where."""
        self._tokens.uri = f"{self.endpoint}/token"
        account = {
            "type": "service_account",
            "project_id": self.project_id,
            "private_key_id": "simulated",
            "private_key": private_pem(self._key).decode(),
            "client_email": self._account,
            "client_id": "1",
            "token_uri": self._tokens.uri,
        }
        self.credentials_file.touch(mode=0o600)
        self.credentials_file.write_bytes(orjson.dumps(account, option=orjson.OPT_INDENT_2))

    # --- What happened

    @property
    def endpoint(self) -> str:
        return f"https://127.0.0.1:{self.listener.port}"

    @property
    def received(self) -> list[FcmPush]:
        """The messages that were accepted, in order."""
        return self._ledger.received

    @property
    def refused(self) -> list[str]:
        """Why requests were refused by the rules, in order: an error code, behind a colon the member that is wrong; the
        `error` of OAuth; REFUSED_STREAM for a request beyond the number that its client knew it may have under way."""
        return self._ledger.refused

    @property
    def access_tokens(self) -> list[str]:
        """The access tokens that were issued, in order."""
        return self._tokens.issued

    @property
    def open_connections(self) -> int:
        """How many are open, over whatever protocol."""
        return self.listener.open_connections

    async def receives(self, count: int) -> list[FcmPush]:
        """The messages that were accepted, once they are so many in all."""
        return await self._ledger.receives(count)

    # --- What happens to connections

    def cut(self) -> None:
        """Cut every connection that is open."""
        self.listener.cut()

    def go_away(self, reason: str = "") -> None:
        """Have every connection that is open end once what is under way is answered."""
        self.listener.go_away(reason.encode())

    # --- What is done about requests

    def opened(self, peer: Peer) -> None:
        self.connections += peer.http2

    def pinged(self, peer: Peer) -> None:  # noqa: ARG002 - a service is told whose it is
        self.pings += 1

    def overran(self, peer: Peer) -> None:  # noqa: ARG002
        self._ledger.refuse("REFUSED_STREAM")

    def came(self, request: Request, peer: Peer) -> Reaction:
        """Check a request, and do about it what `react` or `oauth_react` says."""
        try:
            if (request.method, request.path) == ("POST", "/token"):
                return self._token_requested(request)
            return self._message_came(request, peer)
        except _Refused as refused:
            self._ledger.refuse(refused.reason)
            return refused.answer

    def _token_requested(self, request: Request) -> Reaction:
        try:
            checked = self._tokens.checked(request)
        except OauthRefused as refused:
            raise _Refused(refused.error, oauth_refusal(refused.error, refused.description)) from refused
        return resolved(self.oauth_react(checked), self._tokens.issue)

    def _message_came(self, request: Request, peer: Peer) -> Reaction:
        token = self._authorized(request)
        message = self._message(request.body)
        push = FcmPush(
            message.token,
            message.json,
            message.data,
            message.priority,
            message.ttl_s,
            message.collapse_key,
            token,
            peer.number,
            request.came_s,
        )
        if message.dry:
            return _named(f"projects/{self.project_id}/messages/fake_message_id")
        reaction = self.react(push)
        if accepts(reaction):
            self._accepted += 1
            self._collapse_keys.note(message, self._clock())
            self._ledger.accept(push)
        name = f"projects/{self.project_id}/messages/0:{self._accepted:016d}%simulated"
        return resolved(reaction, lambda: _named(name))

    def _authorized(self, request: Request) -> str:
        """The access token of a request to send."""
        found = _SEND.fullmatch(request.path.partition("?")[0])
        if found is None or request.method != "POST":
            raise _Refused("NOT_FOUND", html(404))
        token = self._tokens.bearer(request.header("authorization"))
        if token is None:
            raise _Refused("UNAUTHENTICATED", unauthenticated())
        if found[1] != self.project_id:
            raise _Refused("PERMISSION_DENIED", permission_denied())
        return token

    def _message(self, body: bytes) -> Message:
        try:
            message = message_of(body)
            self._collapse_keys.check(message, self._clock())
        except Invalid as invalid:
            reason = f"INVALID_ARGUMENT: {invalid.where or 'the request'}"
            raise _Refused(reason, invalid_value(invalid.where, invalid.description)) from invalid
        except InvalidToken as invalid:
            raise _Refused("INVALID_ARGUMENT: message.token", refusal("INVALID_ARGUMENT")) from invalid
        return message


def _named(name: str) -> Answer:
    """The answer to a message that is accepted."""
    return Answer(200, orjson.dumps({"name": name}), (_JSON,))


@asynccontextmanager
async def fcm_simulator(
    folder: Path,
    *,
    authority: Authority | None = None,
    clock: Callable[[], float] = time.time,
    token_life_s: float = 3600,
    ledger: Ledger[FcmPush] | None = None,
) -> AsyncIterator[FcmSimulator]:
    """A simulator at a free port of 127.0.0.1, until the block ends; then every connection is cut.

    `folder`: where its credentials and certificates are written. `authority`: whose certificate it has, or one of its
    own. `clock`: seconds since the epoch, by which tokens are judged. `ledger`: where it notes what comes.
    """
    authority = Authority(folder) if authority is None else authority
    ledger = Ledger[FcmPush]() if ledger is None else ledger
    simulator = FcmSimulator(folder, authority, clock=clock, token_life_s=token_life_s, ledger=ledger)
    async with listening(simulator.listener, authority.server_context(), http2=Http2Connection, http1=Http1Connection):
        simulator.begin()
        yield simulator
