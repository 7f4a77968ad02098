"""Signature Version 4: what proves to Amazon's services who sends a request, and what makes a URL one to hand out.

Amazon's words: "Signature Version 4 signing process" in the IAM User Guide, and "Authenticating Requests: Using Query
Parameters" in the Amazon S3 API Reference. Paths here hold only characters that no encoding changes (RFC 3986, section
2.3, and slashes), so none is encoded.
"""

import hashlib
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
"""Of no body."""
UNSIGNED = "UNSIGNED-PAYLOAD"
MAX_URL_LIFE_S = 7 * 24 * 60 * 60
"""No signed URL lives longer."""

_ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, slots=True)
class Keys:
    """Credentials as they are now. `expires_at`: seconds since the epoch, None where they do not end."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)
    expires_at: float | None = None


class Signer:
    """Signs for one service in one region. The key that is derived from the credentials is kept for its day."""

    def __init__(self, service: str, region: str) -> None:
        self._scope = f"{region}/{service}/aws4_request"
        self._parts = (region.encode(), service.encode(), b"aws4_request")
        self._derived: tuple[str, str, bytes] = ("", "", b"")

    def headers(
        self,
        keys: Keys,
        method: str,
        path: str,
        query: str,
        headers: Mapping[str, str],
        *,
        payload_sha256: str,
        now_s: float,
    ) -> dict[str, str]:
        """`headers`, and those that sign them. Their names are in lower case; `host` is among them.

        `query`: as `canonical_query` gives it. `payload_sha256`: in hexadecimal.
        """
        moment = _moment(now_s)
        signed = {**headers, "x-amz-date": moment}
        if keys.token is not None:
            signed["x-amz-security-token"] = keys.token
        names, signature = self._sign(keys, moment, method, path, query, signed, payload_sha256)
        signed["authorization"] = (
            f"{_ALGORITHM} Credential={keys.access_key}/{moment[:8]}/{self._scope}, "
            f"SignedHeaders={names}, Signature={signature}"
        )
        return signed

    def query(
        self, keys: Keys, method: str, path: str, headers: Mapping[str, str], *, lives_s: int, now_s: float
    ) -> str:
        """The query of a URL that is good for `lives_s` seconds, for requests that have just these `headers`."""
        moment = _moment(now_s)
        names = ";".join(sorted(headers))
        parameters = {
            "X-Amz-Algorithm": _ALGORITHM,
            "X-Amz-Credential": f"{keys.access_key}/{moment[:8]}/{self._scope}",
            "X-Amz-Date": moment,
            "X-Amz-Expires": str(lives_s),
            "X-Amz-SignedHeaders": names,
        }
        if keys.token is not None:
            parameters["X-Amz-Security-Token"] = keys.token
        query = canonical_query(parameters)
        _, signature = self._sign(keys, moment, method, path, query, headers, UNSIGNED)
        return f"{query}&X-Amz-Signature={signature}"

    def _sign(
        self,
        keys: Keys,
        moment: str,
        method: str,
        path: str,
        query: str,
        headers: Mapping[str, str],
        payload: str,
    ) -> tuple[str, str]:
        """The names of the headers that are signed, and the signature."""
        ordered = sorted(headers.items())
        names = ";".join([name for name, _ in ordered])
        lines = "".join([f"{name}:{value}\n" for name, value in ordered])
        request = f"{method}\n{path}\n{query}\n{lines}\n{names}\n{payload}"
        digest = hashlib.sha256(request.encode()).hexdigest()
        text = f"{_ALGORITHM}\n{moment}\n{moment[:8]}/{self._scope}\n{digest}"
        return names, hmac.digest(self._key(keys, moment[:8]), text.encode(), "sha256").hex()

    def _key(self, keys: Keys, day: str) -> bytes:
        if self._derived[:2] != (keys.secret_key, day):
            key = hmac.digest(f"AWS4{keys.secret_key}".encode(), day.encode(), "sha256")
            for part in self._parts:
                key = hmac.digest(key, part, "sha256")
            self._derived = (keys.secret_key, day, key)
        return self._derived[2]


def sha256_of(body: bytes) -> str:
    """The SHA-256 of `body`, in hexadecimal."""
    return hashlib.sha256(body).hexdigest()


def canonical_query(parameters: Mapping[str, str]) -> str:
    """The query of `parameters` as it is signed and sent: in order, everything encoded but what is unreserved."""
    encoded = sorted([(quote(name, safe=""), quote(value, safe="")) for name, value in parameters.items()])
    return "&".join([f"{name}={value}" for name, value in encoded])


def _moment(now_s: float) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s))
