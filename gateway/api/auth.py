"""Who is calling: bearer tokens (RFC 6750) that are JWTs (RFC 7519).

PyJWT is used for the signature alone. The claims are read into a typed structure and judged here, by the injected
clock and by nothing but what the protocol says; PyJWT would also judge `iat` and `jti`, and refuse an `aud` that
nobody asked about. Which algorithm may verify is fixed by the kind of key, never by the token (RFC 8725, section 3.1).
"""

import base64
import binascii
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import jwt
import msgspec

from gateway.api.keys import Key, KeySource
from gateway.errors import Unauthorized
from gateway.transit.state import ClientId, DeviceId, valid_id

LEEWAY_S = 30
"""By so much clocks may differ, for `exp` and for `nbf`."""

MAX_TOKEN = 8192
"""Characters of the longest token that is looked at."""

_REMEMBERED = 8192
_MOST_HEADERS = 64
_JWS = jwt.PyJWS()


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose token it was. `device_id`: the one device it is bound to, or None. `expires_at`: `exp`, in seconds."""

    client_id: ClientId
    device_id: DeviceId | None
    expires_at: float


class _Claims(msgspec.Struct, frozen=True):
    sub: str
    exp: float
    nbf: float = 0
    iss: str | None = None
    aud: str | list[str] = []
    device: str | msgspec.UnsetType = msgspec.UNSET


class Authorizer:
    """Verifies bearer tokens; belongs to one event loop.

    `audience`, `issuer`: what `aud` must contain and `iss` must be, or None for no such demand. `clock`: seconds since
    the epoch. A token that was verified is remembered, by its SHA-256 so that memory holds no credentials, until it
    expires, is pushed out by newer ones (8,192 are kept), or a key is withdrawn.
    """

    def __init__(
        self,
        keys: KeySource,
        *,
        audience: str | None = None,
        issuer: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._audience = audience
        self._issuer = issuer
        self._clock = clock
        self._verified: dict[bytes, Identity] = {}
        self._headers: set[tuple[str, str]] = set()
        """First parts of tokens that were verified as a whole, with the algorithm of the key that did: all but one in a
        million tokens have the same."""
        self._generation = keys.generation()

    async def authorize(self, authorization: str | None) -> Identity:
        """The caller whose `Authorization` header this is. Raises Unauthorized and Unavailable."""
        if not authorization:
            raise Unauthorized("an Authorization header with a bearer token is required")
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":  # its case does not matter (RFC 9110, section 11.1)
            raise Unauthorized("the Authorization header must have the scheme Bearer")
        return await self.verify(token.strip(" "))

    async def verify(self, token: str) -> Identity:
        """The caller whose token this is. Raises Unauthorized and Unavailable."""
        if len(token) > MAX_TOKEN or not token.isascii():
            raise Unauthorized("the token is no JWT that is read here")
        digest = hashlib.sha256(token.encode("ascii")).digest()
        self._forget_withdrawn()
        identity = self._verified.get(digest)
        if identity is None:
            # To read the header costs as much as to verify the signature.
            key = self._keys.only or await self._keys.find(*_header(token))
            identity = self._judged(_claims(self._payload(token, key)))
            self._remember(digest, identity)
        elif self._clock() >= identity.expires_at + LEEWAY_S:
            del self._verified[digest]
            raise Unauthorized("the token has expired")
        return identity

    async def close(self) -> None:
        """End what fetches keys."""
        await self._keys.close()

    def _payload(self, token: str, key: Key) -> bytes:
        """The payload of a token whose signature is right. Where the same header was looked at before, only the
        signature is: the rest of what PyJWT does takes ten times as long."""
        signed, _, signature = token.rpartition(".")
        header, _, payload = signed.partition(".")
        seen = (header, key.algorithm)
        if seen not in self._headers or "." in payload:
            found = _decoded(token, key)
            if len(self._headers) < _MOST_HEADERS:
                self._headers.add(seen)
            return found
        try:
            right = _JWS.get_algorithm_by_name(key.algorithm).verify(signed.encode(), key.material, _bytes(signature))
            found = _bytes(payload)
        except (binascii.Error, jwt.PyJWTError):
            raise Unauthorized("the token is no JWT that is read here") from None
        if not right:
            raise Unauthorized("the token's signature is wrong")
        return found

    def _judged(self, claims: _Claims) -> Identity:
        now = self._clock()
        if now >= claims.exp + LEEWAY_S:
            raise Unauthorized("the token has expired")
        if now < claims.nbf - LEEWAY_S:
            raise Unauthorized("the token is not valid yet")
        if self._issuer is not None and claims.iss != self._issuer:
            raise Unauthorized("the token is of another issuer")
        audiences = [claims.aud] if isinstance(claims.aud, str) else claims.aud
        if self._audience is not None and self._audience not in audiences:
            raise Unauthorized("the token is for another audience")
        if not valid_id(claims.sub):
            raise Unauthorized("the token's sub is no client_id")
        if claims.device is msgspec.UNSET:
            return Identity(ClientId(claims.sub), None, claims.exp)
        if not valid_id(claims.device):
            raise Unauthorized("the token's device is no device_id")
        return Identity(ClientId(claims.sub), DeviceId(claims.device), claims.exp)

    def _forget_withdrawn(self) -> None:
        if self._generation != (generation := self._keys.generation()):
            self._generation = generation
            self._verified.clear()
            self._headers.clear()

    def _remember(self, digest: bytes, identity: Identity) -> None:
        self._forget_withdrawn()  # keys may have changed while this one was waited for
        if len(self._verified) >= _REMEMBERED:
            del self._verified[next(iter(self._verified))]
        self._verified[digest] = identity


def _header(token: str) -> tuple[str, str | None]:
    """The algorithm and the key that an unverified token claims to be signed with."""
    try:
        header = _JWS.get_unverified_header(token)
    except jwt.PyJWTError:
        raise Unauthorized("the token is no JWT that is read here") from None
    return str(header.get("alg")), header.get("kid")


def _bytes(part: str) -> bytes:
    """What a part of a token says (RFC 7515, section 2). Raises binascii.Error."""
    return base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)


def _decoded(token: str, key: Key) -> bytes:
    # Without the causes: PyJWT's and msgspec's errors may quote what they were given.
    try:
        payload: bytes = _JWS.decode_complete(token, key.material, algorithms=[key.algorithm])["payload"]
        return payload
    except jwt.InvalidAlgorithmError:
        raise Unauthorized("the token is signed with an algorithm that is not accepted") from None
    except jwt.InvalidSignatureError:
        raise Unauthorized("the token's signature is wrong") from None
    except jwt.DecodeError:
        raise Unauthorized("the token is no JWT that is read here") from None
    except jwt.PyJWTError:
        raise Unauthorized("the token's signature is wrong") from None


def _claims(payload: bytes) -> _Claims:
    try:
        return msgspec.json.decode(payload, type=_Claims)
    except (msgspec.DecodeError, RecursionError) as error:
        reason = str(error) if isinstance(error, msgspec.ValidationError) else "no JSON object"
        raise Unauthorized(f"the token's claims are ill-formed: {reason}") from None


def issue_token(
    secret: str,
    client_id: str,
    *,
    device_id: str | None = None,
    ttl_s: float,
    now: float,
    audience: str | None = None,
    issuer: str | None = None,
) -> str:
    """An HS256 token of `client_id`, good from `now` (seconds since the epoch) for `ttl_s`. ValueError for a bad id."""
    for what, value in (("client_id", client_id), ("device_id", device_id)):
        if value is not None and not valid_id(value):
            raise ValueError(f"{value!r} is no {what}: that is 1 to 64 of A-Z a-z 0-9 . _ - (but not . or .. alone)")
    claims = {"sub": client_id, "device": device_id, "aud": audience, "iss": issuer}
    present = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode({**present, "iat": int(now), "exp": int(now + ttl_s)}, secret, "HS256")
