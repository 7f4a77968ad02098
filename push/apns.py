"""Pushes through APNs: what they look like, and what its answers mean.

Sources: developer.apple.com, "Sending notification requests to APNs", "Handling notification responses from APNs",
"Generating a remote notification", "Pushing background updates to your App".
"""

import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

import orjson
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID

from push.apns_token import ProviderToken
from push.http2 import Answer, Header, Lost
from push.http2_pool import Pool
from push.retry_after import retry_after_ms
from push.sender import (
    Accepted,
    Alert,
    Content,
    Environment,
    Outcome,
    Rejected,
    Retry,
    TokenDead,
    Wakeup,
    carried,
)

HOSTS = {
    Environment.PRODUCTION: "https://api.push.apple.com",
    Environment.SANDBOX: "https://api.sandbox.push.apple.com",
}

PING_S = 60.0
"""How often a connection is pinged: Apple wants them kept open, and says that this shows whether they are ("Sending
notification requests to APNs", "Follow best practices while sending push notifications with APNs")."""

_TOKEN = re.compile(r"[0-9A-Fa-f]{2,512}\Z")
_REASON = re.compile(r"[A-Za-z0-9]{1,64}\Z")

_OURS = frozenset(
    {
        "BadCertificate",
        "BadCertificateEnvironment",
        "BadEnvironmentKeyIdInToken",
        "BadEnvironmentKeyInToken",  # how the servers spell it
        "BadTopic",
        "ExpiredProviderToken",
        "Forbidden",
        "IdleTimeout",
        "InvalidProviderToken",
        "MissingProviderToken",
        "MissingTopic",
        "TooManyProviderTokenUpdates",
        "TopicDisallowed",
        "UnrelatedKeyIdInToken",
    }
)
"""Reasons that have to do with us, not with this push: nobody's is taken until the operator has mended it."""


@dataclass(frozen=True, slots=True)
class ApnsKey:
    """A signing key for provider tokens. `pem`: the text of Apple's .p8 file."""

    key: EllipticCurvePrivateKey
    key_id: str
    team_id: str
    topic: str

    @classmethod
    def load(cls, file: Path, *, key_id: str, team_id: str, topic: str) -> "ApnsKey":
        """The key in `file`. Raises ValueError with a sentence's second half, and OSError."""
        try:
            key = load_pem_private_key(file.read_bytes(), password=None)
        except (ValueError, TypeError) as error:
            raise ValueError("holds no private key: it must be the .p8 file that Apple gave out") from error
        if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
            raise ValueError("holds a key of another kind: it must be the .p8 file that Apple gave out")
        return cls(key, key_id, team_id, topic)


@dataclass(frozen=True, slots=True)
class ApnsCertificate:
    """A client certificate with its key, both PEM, in `file`."""

    file: Path
    topic: str

    @classmethod
    def load(cls, file: Path, *, topic: str | None = None) -> "ApnsCertificate":
        """The certificate in `file`; the topic is in it (as the subject's user id) unless another is given. Raises
        ValueError with a sentence's second half, and OSError."""
        pem = file.read_bytes()
        try:
            certificate = x509.load_pem_x509_certificate(pem)
            load_pem_private_key(pem, password=None)
        except (ValueError, TypeError) as error:
            raise ValueError("must hold a certificate and its private key, in PEM, without a password") from error
        names = [str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.USER_ID)]
        if topic is None and not names:
            raise ValueError("names no topic")
        return cls(file, topic or names[0])


class ApnsSender:
    """A `Sender`; made within a running loop. `endpoint`: instead of Apple's hosts; `ca_file`: a certificate authority
    to trust besides those of the system; `clock`: seconds since the epoch."""

    def __init__(
        self,
        credentials: ApnsKey | ApnsCertificate,
        *,
        endpoint: str | None = None,
        ca_file: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        context = ssl.create_default_context()
        if ca_file is not None:
            context.load_verify_locations(ca_file)
        self._topic = credentials.topic.encode()
        self._token: ProviderToken | None = None
        if isinstance(credentials, ApnsKey):
            self._token = ProviderToken(
                credentials.key, key_id=credentials.key_id, team_id=credentials.team_id, clock=clock
            )
        else:
            context.load_cert_chain(credentials.file)
        self._pools = {}
        for environment, host in HOSTS.items():
            url = urlsplit(endpoint or host)
            self._pools[environment] = Pool(url.hostname or "", url.port or 443, context, ping_s=PING_S)

    async def send(self, wakeup: Wakeup) -> Outcome:
        """Hand `wakeup` to APNs and say what became of it. Raises nothing but CancelledError."""
        if not _TOKEN.match(wakeup.token):
            return Rejected("the token is none of APNs': it must be hexadecimal")
        headers = [(b"apns-topic", self._topic), *headers_of(wakeup)]
        if self._token is not None:
            headers.append((b"authorization", self._token.header.encode()))
        try:
            answer = await self._pools[wakeup.environment].post(
                f"/3/device/{wakeup.token}", headers, payload(wakeup.content)
            )
        except Lost as lost:
            return Retry(str(lost), outage=True)
        return judge(answer)

    async def close(self) -> None:
        """End the connections."""
        for pool in self._pools.values():
            await pool.close()


def headers_of(wakeup: Wakeup) -> list[Header]:
    """The headers that say how a push is to be treated."""
    alert = wakeup.content.alert is not None
    return [
        (b"apns-id", wakeup.id.encode()),
        (b"apns-push-type", b"alert" if alert else b"background"),
        (b"apns-priority", b"10" if alert else b"5"),
        (b"apns-expiration", str(wakeup.expires_at // 1000).encode()),
        (b"apns-collapse-id", wakeup.collapse_id.encode()),
    ]


@lru_cache(maxsize=32)
def payload(content: Content) -> bytes:
    """The JSON of a push: `aps`, and beside it `version` and, where the whole stays within 4,096 bytes, `packet`."""
    aps = _aps(content.alert)

    def encode(data: dict[str, str]) -> bytes:
        return orjson.dumps({"aps": aps} | data)

    return encode(carried(content, encode))


def _aps(alert: Alert | None) -> dict[str, object]:
    if alert is None:
        return {"content-available": 1}
    aps: dict[str, object] = {
        "alert": {"loc-key": alert.loc_key, "loc-args": alert.loc_args},
        "badge": alert.badge,
        "mutable-content": 1,
        "content-available": 1,
    }
    if alert.sound:
        aps["sound"] = "default"
    return aps


def judge(answer: Answer) -> Outcome:
    """What an answer of APNs means."""
    if answer.status == 200:
        return Accepted()
    reason, timestamp = _said(answer)
    if answer.status == 410:
        return TokenDead(timestamp)
    if answer.status == 429 and reason == "TooManyRequests":  # to this device
        return Retry(reason, _after(answer))
    told = reason or f"status {answer.status}"
    if reason in _OURS or not reason or (answer.status >= 404 and answer.status != 413):
        return Retry(told, _after(answer), outage=True)
    return Rejected(told)


def _said(answer: Answer) -> tuple[str, int | None]:
    """The reason and the timestamp (ms) in an answer's body, as far as it is one of APNs'."""
    try:
        body = orjson.loads(answer.body)
        reason, timestamp = body["reason"], body.get("timestamp")
    except (ValueError, TypeError, LookupError, AttributeError):
        return "", None
    if not isinstance(reason, str) or not _REASON.match(reason):
        return "", None
    return reason, timestamp if isinstance(timestamp, int) and timestamp > 0 else None


def _after(answer: Answer) -> int | None:
    return retry_after_ms(answer.headers.get(b"retry-after", b"").decode("latin-1"))
