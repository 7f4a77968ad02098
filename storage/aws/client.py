"""A client for Amazon's services: requests are signed, sent, and tried again within a deadline.

Of our own, because each change of a status asks the store four times, and a call through aiobotocore costs more of the
event loop than all the rest of the change (`docs/decisions/0012-own-aws-client.md`). Everything that is sent here may
be sent twice: whoever calls sees to that.
"""

import asyncio
import email.utils
import logging
import random
import re
import ssl
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from zlib import crc32

import orjson

from storage.aws.connection import Answer, ConnectionFailed, Endpoint, HttpPool
from storage.aws.credentials import Configuration, CredentialsUnavailable
from storage.aws.signing import EMPTY_SHA256, Keys, Signer, sha256_of
from storage.aws.url import AwsMisconfigured, AwsUrl
from storage.usage import Usage

CONNECTIONS = 64
"""How many connections one client has at most."""

PAUSE_S = 0.025
"""The longest pause before the first repeat; it doubles with each, up to `MOST_PAUSE_S`."""
MOST_PAUSE_S = 1.0

REPEATS = 500.0
REPEAT_COST = 5.0
"""Repeats are paid from a budget, which what succeeds fills again: where everything fails, hardly anything is repeated,
and a service that is overloaded is left to recover. The figures are those of Amazon's own clients ("Retry behavior" in
the AWS SDKs and Tools Reference Guide)."""

TELL_S = 60.0
"""How often the log is told of one and the same failure."""

_DAMAGED = "an answer that was damaged"
_REPEATED = frozenset(
    {
        _DAMAGED,
        "LimitExceededException",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
_BAD_KEYS = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidToken",
        "UnrecognizedClientException",
    }
)
_WRONG_TIME = frozenset(
    {"InvalidSignatureException", "RequestExpired", "RequestTimeTooSkewed", "SignatureDoesNotMatch"}
)
_SKEW_S = 60.0
"""A clock that is wrong by less is not what a signature is refused for."""

_CODE_XML = re.compile(rb"<Code>([A-Za-z0-9.]+)</Code>")

log = logging.getLogger(__name__)


class AwsUnavailable(Exception):
    """It could not be done now. Whether it happened is not known."""


class AwsRefusal(Exception):
    """The service understood and refuses. `code`: its word for why; `answer`: what it sent."""

    def __init__(self, code: str, answer: Answer, call: str) -> None:
        super().__init__(f"{call}: {code or answer.status}")
        self.code = code
        self.answer = answer


class Request(NamedTuple):
    """What is asked. `call`: what it is counted as. `query`: as it is signed. `headers`: more than those that every
    request has, in lower case. `sha256`: of the body, where it is signed apart."""

    call: str
    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = {}
    body: bytes = b""
    sha256: str = EMPTY_SHA256


class AwsClient:
    """Requests to one service at one endpoint.

    `host`: from the region, where it is not the service's own. `timeout_s`: how long one try may take; `deadline_s`:
    all tries together. `clock`: seconds since the epoch. Raises AwsMisconfigured where the machine's AWS configuration
    will not do.
    """

    def __init__(
        self,
        url: AwsUrl,
        *,
        host: Callable[[str], str] | None = None,
        usage: Usage,
        timeout_s: float,
        deadline_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.service = url.scheme
        configuration = Configuration()
        self.region = configuration.region(url.region)
        self.endpoint = (
            url.endpoint or f"https://{host(self.region) if host else amazon_host(self.service, self.region)}"
        )
        self.host = urlsplit(self.endpoint).netloc
        self.signer = Signer(self.service, self.region)
        self._pool = HttpPool(_endpoint(self.endpoint, configuration), most=CONNECTIONS)
        self._credentials = configuration.credentials()
        self._usage = usage.requests
        self._timeout_s = timeout_s
        self._deadline_s = deadline_s
        self._clock = clock
        self._skew_s = 0.0
        self._budget = REPEATS
        self._told = ("", 0.0)
        self._closed = False

    def now_s(self) -> float:
        """The time, as the service has it."""
        return self._clock() + self._skew_s

    async def keys(self) -> Keys:
        """The credentials that are used now. Raises AwsUnavailable."""
        try:
            return await self._credentials.keys()
        except CredentialsUnavailable as error:
            raise AwsUnavailable(f"{self.service}: {error}") from error

    def tell(self, error: Exception) -> None:
        """Tell the log of a failure, unless it was told of the same within a minute."""
        now = time.monotonic()
        if str(error) != self._told[0] or now - self._told[1] > TELL_S:
            self._told = (str(error), now)
            log.error("a call of AWS fails", extra={"error": str(error)})

    async def close(self) -> None:
        """Give up what is under way."""
        self._closed = True
        self._pool.close()
        await self._credentials.close()

    async def send(self, request: Request) -> Answer:
        """The answer, if its status is below 300. Raises AwsRefusal, and AwsUnavailable when time is over.

        What could not be sent, was throttled or failed over there is tried again after a random pause, the longer the
        more tries there were ("Exponential Backoff And Jitter", AWS Architecture Blog). When the credentials or the
        clock were wrong, it is tried once more with better ones.
        """
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self._deadline_s
        tries = mended = 0
        while True:
            keys = await self.keys()
            self._usage[self.service, request.call] += 1
            left_s = ends_at - loop.time()
            try:
                answer = await self._pool.ask(
                    self._signed(request, keys), head=request.method == "HEAD", timeout_s=min(self._timeout_s, left_s)
                )
            except ConnectionFailed as error:
                if self._closed:
                    raise AwsUnavailable(f"{self.service} {request.call}: the client is closed") from error
                if error.unused:
                    continue
                why = str(error)
            else:
                if answer.status < 300 and whole(answer):
                    self._budget = min(REPEATS, self._budget + 1)
                    return answer
                code = error_code(answer) if whole(answer) else _DAMAGED
                if mended < 2 and self._mend(code, keys, answer):
                    mended += 1
                    continue
                if answer.status < 500 and answer.status != 429 and code not in _REPEATED:
                    raise AwsRefusal(code, answer, f"{self.service} {request.call}")
                why = code or str(answer.status)
            pause_s = jitter_s(tries)
            tries += 1
            if loop.time() + pause_s >= ends_at or self._budget < REPEAT_COST:
                raise AwsUnavailable(f"{self.service} {request.call}: {why}")
            self._budget -= REPEAT_COST
            await asyncio.sleep(pause_s)

    def _signed(self, request: Request, keys: Keys) -> bytes:
        headers = self.signer.headers(
            keys,
            request.method,
            request.path,
            request.query,
            {"host": self.host, **request.headers},
            payload_sha256=request.sha256,
            now_s=self.now_s(),
        )
        target = f"{request.path}?{request.query}" if request.query else request.path
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        length = f"content-length: {len(request.body)}\r\n" if request.body or request.method == "POST" else ""
        return f"{request.method} {target} HTTP/1.1\r\n{lines}{length}\r\n".encode() + request.body

    def _mend(self, code: str, keys: Keys, answer: Answer) -> bool:
        """Whether something can be done about a request that was refused."""
        if code in _BAD_KEYS:
            self._credentials.refuse(keys)
            return True
        if code in _WRONG_TIME and (date_s := _date(answer.headers.get("date", ""))):
            skew_s = date_s - self._clock()
            if abs(skew_s - self._skew_s) > _SKEW_S:
                log.warning("this machine's clock is wrong", extra={"by_s": round(-skew_s)})
                self._skew_s = skew_s
                return True
        return False


class AwsJson:
    """Calls in the form of AWS JSON 1.0: a POST whose header names the call (Smithy, "AWS JSON 1.0 protocol").

    `target`: what stands before the call's name there.
    """

    def __init__(self, client: AwsClient, *, target: str) -> None:
        self._client = client
        self._target = target

    async def call(self, name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to the call `name`. Raises AwsRefusal and AwsUnavailable."""
        body = orjson.dumps(parameters)
        headers = {"content-type": "application/x-amz-json-1.0", "x-amz-target": f"{self._target}.{name}"}
        answer = await self._client.send(Request(name, "POST", "/", "", headers, body, sha256_of(body)))
        try:
            found = orjson.loads(answer.body)
        except orjson.JSONDecodeError:
            found = None
        if not isinstance(found, dict):
            raise AwsUnavailable(f"{self._client.service} {name}: an answer that is no object of JSON")
        return found


def jitter_s(tries: int) -> float:
    """How long to wait after so many tries and one that failed."""
    return random.uniform(0, min(PAUSE_S * 2**tries, MOST_PAUSE_S))


def whole(answer: Answer) -> bool:
    """Whether an answer came as it was sent, where it says what it was: DynamoDB's do, by CRC-32."""
    said = answer.headers.get("x-amz-crc32")
    return said is None or said == str(crc32(answer.body))


def parsed(answer: Answer) -> dict[str, Any]:
    """The JSON object of an error; empty where it is none."""
    try:
        body = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        return {}
    return body if isinstance(body, dict) else {}


def error_code(answer: Answer) -> str:
    """What went wrong, in the service's word; empty where it says none (the answer to a HEAD cannot)."""
    if found := _CODE_XML.search(answer.body[:4096]):
        return found[1].decode("latin-1")
    kind = str(parsed(answer).get("__type", ""))
    return kind.rpartition("#")[2]


def amazon_host(service: str, region: str) -> str:
    """Where Amazon has a service ("Service endpoints" in the AWS General Reference)."""
    return f"{service}.{region}.amazonaws.com{'.cn' if region.startswith('cn-') else ''}"


def _endpoint(url: str, configuration: Configuration) -> Endpoint:
    parts = urlsplit(url)
    plain = parts.scheme == "http"
    tls = None if plain else _tls(configuration.ca_bundle())
    return Endpoint(parts.hostname or "", parts.port or (80 if plain else 443), tls)


@cache
def _tls(ca_file: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise AwsMisconfigured(f"the certificate authorities in {ca_file} cannot be used") from error


def _date(text: str) -> float | None:
    """Seconds since the epoch of a header's date (RFC 9110, section 5.6.7)."""
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None
