"""The sender for Android: FCM's v1 REST API, through firebase-admin.

What is sent stands in firebase.google.com, the reference's "projects.messages", "Set and manage Android message
priority", "Set the lifespan of a message" and "Non-collapsible and collapsible messages".

firebase-admin 7.7 checks and encodes each message, and reads what FCM answers. The way to FCM is our own: connections
in `http2`, authorization in `fcm_access`, answers in `fcm_answers`, each with what that mends. Besides:

* **firebase-admin's HTTP client** retries 500 and 503 four times over 7 s whatever `Retry-After` says, waits 120 s for
  an answer, cannot be told whom to trust, and takes nine tenths of the CPU of a push: `_Door` takes its place. It can
  go once all that can be said of an App, what the modules above mend is mended, and that price is right.
* **A token in the constructor of a Message** is a DeprecationWarning, in favour of installation ids, which apps do not
  register with the gateway: it is set afterwards. That can go once devices register those.
* **Apps are global, and deleting one in a running loop fails**: there is none, `_Messages` needs none. One can be made
  once `delete_app` awaits.
"""

import logging
import ssl
import time
import traceback
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import firebase_admin
import httpx
import orjson
from firebase_admin import _http_client, messaging

from push.fcm_access import Access, Denied, Token, headers_of, path_of
from push.fcm_account import account_of, https_address
from push.fcm_answers import NoAnswer, denies_access, name_of, outcome_of, refused, said
from push.http2 import Answer, Header, Lost
from push.http2_pool import Pool
from push.sender import Accepted, Content, Outcome, Rejected, Retry, Wakeup, carried

ENDPOINT = "https://fcm.googleapis.com"

MOST_TTL_S = 28 * 24 * 3600
"""How long FCM keeps a message at most."""

CONTENTS = 8
"""For so many contents the data is kept: a client's devices are told the same, one shortly after the other."""

log = logging.getLogger(__name__)


class FcmSender:
    """Sends wakeups to Android devices.

    `credentials_file`: a service account's key, JSON; one that cannot be used raises ValueError, with the second half
    of a sentence about it, which holds nothing secret. `endpoint`: scheme and host, for simulators; `ca_file`: a
    certificate authority to trust besides those of the system, there and where access tokens are issued. `clock`:
    seconds since the epoch.

    Google's servers take PINGs amiss (GOAWAY, "too_many_pings"), so it sends none.
    """

    def __init__(
        self,
        credentials_file: Path,
        *,
        endpoint: str | None = None,
        ca_file: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        address = https_address(endpoint or ENDPOINT)
        if address is None:
            raise ValueError(f"cannot be used with {endpoint}: that is no https:// address")
        account = account_of(credentials_file)
        self._clock = clock
        self._data = lru_cache(maxsize=CONTENTS)(_data)
        context = _trust(ca_file)
        self._pool = Pool(*address, context)
        self._access = Access(account.credentials, context, clock)
        self._messages = _Messages(account.project_id, _Door(self._access, self._pool, clock))

    async def send(self, wakeup: Wakeup) -> Outcome:
        """Hand `wakeup` to FCM and say what became of it. Raises nothing but CancelledError."""
        try:
            batch = await self._messages.send_each_async([self._message(wakeup)], dry_run=False)
        except ValueError as error:
            return Rejected(f"the message cannot be made: {said(str(error))}")
        except Exception as error:
            return _unforeseen(error)
        [sent] = batch.responses
        return Accepted() if sent.success else outcome_of(sent.exception, wakeup.token)

    async def close(self) -> None:
        """Release everything. What is under way is answered with Retry."""
        await self._access.close()
        await self._pool.close()

    def _message(self, wakeup: Wakeup) -> messaging.Message:
        content = wakeup.content
        left_s = wakeup.expires_at / 1000 - self._clock()
        android = messaging.AndroidConfig(
            collapse_key=wakeup.collapse_id,
            priority="normal" if content.alert is None else "high",
            ttl=int(min(max(left_s, 0), MOST_TTL_S)),
        )
        message = messaging.Message(data=self._data(content), android=android)
        message.token = wakeup.token
        return message


def _data(content: Content) -> dict[str, str]:
    return carried(content, orjson.dumps)


def _trust(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:  # ssl.SSLError is one
            raise ValueError(f"cannot be used with {ca_file}: that holds no certificates that can be read") from error
    return context


class Unwritable(Exception):
    """The message is no JSON: half a surrogate pair is in it."""


class _Sent:
    """What firebase-admin reads of a success."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def json(self) -> dict[str, str]:
        """The answer's body."""
        return {"name": self._name}


class _Door:
    """What firebase-admin sends through, in place of its own HTTP client: `request` is all that it calls of it."""

    def __init__(self, access: Access, pool: Pool, clock: Callable[[], float]) -> None:
        self._access = access
        self._pool = pool
        self._clock = clock

    async def request(self, method: str, url: str, *, headers: Mapping[str, str], json: Any) -> _Sent:  # noqa: ARG002
        """Send one message; `method` is always POST. Raises httpx.HTTPStatusError for what FCM refuses, NoAnswer where
        it says nothing, Unwritable."""
        try:
            answer = await self._authorized(path_of(url), [*_OURS, *headers_of(headers)], _written(json))
        except (Denied, Lost) as error:
            raise NoAnswer(said(str(error))) from None
        if answer.status == httpx.codes.OK:
            return _Sent(name_of(answer))
        raise refused(answer, self._clock)

    async def _authorized(self, path: str, headers: list[Header], body: bytes) -> Answer:
        """What FCM answers; where it refuses the access token, what it answers to another, once."""
        token = await self._access.token()
        answer = await self._pool.post(path, _with(token, headers), body)
        if denies_access(answer) and (another := await self._access.renewed(token)) is not None:
            return await self._pool.post(path, _with(another, headers), body)
        return answer


class _Messages(messaging._MessagingService):  # type: ignore[misc]  # noqa: SLF001 - the public functions want an App
    """firebase-admin's own, without the HTTP clients that it would make: they read the environment, and fail at what
    stands there of proxies and certificates. What is set here is all that `send_each_async` uses."""

    def __init__(self, project_id: str, door: _Door) -> None:
        self._fcm_url = self.FCM_URL.format(project_id)
        self._fcm_headers = {
            "X-GOOG-API-FORMAT-VERSION": "2",
            "X-FIREBASE-CLIENT": f"fire-admin-python/{firebase_admin.__version__}",
        }
        self._async_client = door


_OURS: list[Header] = headers_of({"content-type": "application/json"} | _http_client.METRICS_HEADERS)
"""What firebase-admin's own client would add."""


def _with(token: Token, headers: list[Header]) -> list[Header]:
    return [(b"authorization", token.header), *headers]


def _written(json: Any) -> bytes:
    try:
        return orjson.dumps(json)
    except orjson.JSONEncodeError as error:
        raise Unwritable from error


def _unforeseen(error: Exception) -> Outcome:
    """What firebase-admin makes of an exception that is no HTTP client's. Its text may quote anything."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, Unwritable):
        return Rejected("the message cannot be written as JSON")
    log.error(
        "a push to FCM failed in an unforeseen way",
        extra={"error": type(cause).__name__, "where": "".join(traceback.format_tb(cause.__traceback__))},
    )
    return Retry(f"unforeseen: {type(cause).__name__}")
