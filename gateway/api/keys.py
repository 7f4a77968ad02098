"""The keys that verify tokens: one that is known from the start, or those that are published behind a URL.

Which algorithm may verify is fixed by the kind of key, never by the token (RFC 8725, section 3.1).
"""

import asyncio
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Literal, Protocol

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from gateway.errors import Unauthorized, Unavailable

_PUBLIC = ("RS256", "ES256", "EdDSA")
_FIRST_S, _UNKNOWN_S, _REFRESH_S = 2, 30, 600
_FETCH_S = 5
_MAX_SET = 256 * 1024
_JWS = jwt.PyJWS()

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Key:
    """What verifies a signature, and the one algorithm it does that with."""

    algorithm: str
    material: Any


class KeySource(Protocol):
    """Where verification keys come from."""

    @property
    def only(self) -> Key | None:
        """The key of all tokens, where there is but one: what a token's header names need not be looked at before."""
        ...

    def generation(self) -> int:
        """A number that grows when a key that verified tokens may do so no longer. Begins a refresh if one is due."""
        ...

    async def find(self, algorithm: str, kid: str | None) -> Key:
        """The key for a token whose header says this.

        Raises Unauthorized where there is none, Unavailable while that cannot be known.
        """
        ...

    async def close(self) -> None:
        """End whatever runs in the background."""
        ...


class FixedKey:
    """A key that is known from the start and never changes."""

    def __init__(self, key: Key) -> None:
        self._key = key

    @property
    def only(self) -> Key:
        """The key."""
        return self._key

    @classmethod
    def from_secret(cls, secret: str) -> "FixedKey":
        """An HS256 secret, which should have 32 bytes or more. ValueError where it is a key of another kind."""
        try:
            return cls(Key("HS256", _JWS.get_algorithm_by_name("HS256").prepare_key(secret)))
        except jwt.PyJWTError:
            raise ValueError("this is a key or a key set, which cannot be a secret for HS256") from None

    @classmethod
    def from_pem(cls, pem: str) -> "FixedKey":
        """A public key in PEM form: RSA of 2,048 bits or more, P-256 or Ed25519. ValueError where it will not do."""
        try:
            material = load_pem_public_key(pem.encode())
        except (ValueError, UnsupportedAlgorithm):
            raise ValueError("this is no public key in PEM form") from None
        algorithm = _algorithm_of(material)
        if algorithm is None:
            raise ValueError("a public key must be RSA (2048 bits or more), P-256 or Ed25519")
        return cls(Key(algorithm, material))

    def generation(self) -> int:
        """Always the same."""
        return 0

    async def find(self, algorithm: str, kid: str | None) -> Key:  # noqa: ARG002 - one key, whatever its name
        """The key, for its own algorithm. Raises Unauthorized for any other."""
        if algorithm != self._key.algorithm:
            raise Unauthorized("the token is signed with an algorithm that is not accepted")
        return self._key

    async def close(self) -> None:
        """Nothing runs."""


def _algorithm_of(material: object) -> str | None:
    """The one algorithm that a public key verifies here, or None where it verifies nothing."""
    match material:
        case rsa.RSAPublicKey() if material.key_size >= 2048:
            return "RS256"
        case ec.EllipticCurvePublicKey() if isinstance(material.curve, ec.SECP256R1):
            return "ES256"
        case ed25519.Ed25519PublicKey():
            return "EdDSA"
        case _:
            return None


class PublishedKeys:
    """The public keys of a JWK set (RFC 7517) behind a URL; belongs to one event loop.

    They are fetched when first needed, every 10 minutes after that while tokens come, and when a token names a key
    that is not known, though at most every 30 s; all who wait share one fetch. While the URL does not answer, the
    keys that are known go on. `monotonic`: seconds of a clock that never goes back.
    """

    def __init__(self, url: str, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._monotonic = monotonic
        self._keys: dict[tuple[str | None, str], Key] = {}
        self._generation = 0
        self._tried_at = float("-inf")
        self._reached = False
        self._fetching: asyncio.Task[None] | None = None

    @property
    def only(self) -> None:
        """There may be several, and others later."""

    def generation(self) -> int:
        """Grows when a key was withdrawn or replaced. Begins a refresh in the background if one is due."""
        if self._keys and self._fetching is None and self._monotonic() - self._tried_at >= _REFRESH_S:
            self._fetching = asyncio.create_task(self._refresh())
        return self._generation

    async def find(self, algorithm: str, kid: str | None) -> Key:
        """The published key, fetched if need be.

        A token without `kid` gets the only key of its algorithm. Raises Unauthorized where there is no such key,
        Unavailable where the URL that would have to tell did not answer.
        """
        if algorithm not in _PUBLIC:  # so that it takes more than a made-up header to cause a fetch
            raise Unauthorized("the token is signed with an algorithm that is not accepted")
        key = self._known(algorithm, kid)
        if key is None:
            await self._fetched()
            key = self._known(algorithm, kid)
        if key is None and not self._reached:
            raise Unavailable("the keys that verify tokens cannot be fetched now")
        if key is None:
            raise Unauthorized("the token is signed with a key that is not published")
        return key

    async def close(self) -> None:
        """Give up a fetch that is on its way; its thread ends by its own deadline."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait([self._fetching])

    def _known(self, algorithm: str, kid: str | None) -> Key | None:
        if kid is not None:
            return self._keys.get((kid, algorithm))
        keys = [key for (_, of), key in self._keys.items() if of == algorithm]
        return keys[0] if len(keys) == 1 else None

    async def _fetched(self) -> None:
        if self._fetching is None:
            if self._monotonic() - self._tried_at < (_UNKNOWN_S if self._keys else _FIRST_S):
                return
            self._fetching = asyncio.create_task(self._refresh())
        await asyncio.shield(self._fetching)  # the others wait for it too

    async def _refresh(self) -> None:
        try:
            keys = await asyncio.to_thread(_fetch_keys, self._url)
        except (OSError, HTTPException, ValueError) as error:
            self._reached = False
            log.warning("the keys that verify tokens could not be fetched", extra={"reason": str(error)})
        else:
            self._reached = True
            if any(keys.get(name) != key for name, key in self._keys.items()):
                self._generation += 1
            self._keys = keys
        finally:
            self._tried_at = self._monotonic()
            self._fetching = None


class _Nowhere(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: it could lead from https to http, or to a host that nobody configured."""

    def redirect_request(self, *_: object) -> None:
        return None


def _fetch_keys(url: str) -> dict[tuple[str | None, str], Key]:
    """The usable keys behind `url`, by `kid` and algorithm. Raises OSError, HTTPException and ValueError."""
    body = b""
    until = time.monotonic() + _FETCH_S
    with urllib.request.build_opener(_Nowhere).open(url, timeout=_FETCH_S) as response:
        while chunk := response.read1(_MAX_SET):
            body += chunk
            if len(body) > _MAX_SET or time.monotonic() > until:
                raise ValueError(f"the JWK set takes more than {_MAX_SET} bytes or {_FETCH_S} s")
    try:
        published = msgspec.json.decode(body, type=_KeySet).keys
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"no JWK set: {error}") from error
    keys: dict[tuple[str | None, str], Key] = {}
    for kid, key in filter(None, map(_published_key, published)):
        keys.setdefault((kid, key.algorithm), key)
    if not keys:
        raise ValueError("the JWK set has no key for RS256, ES256 or EdDSA")
    return keys


class _KeySet(msgspec.Struct):
    keys: list[msgspec.Raw]


class _PublishedKey(msgspec.Struct, omit_defaults=True):
    """The members of a JWK (RFC 7517, section 4; RFC 7518, section 6) that matter here; private ones are not read."""

    kty: Literal["RSA", "EC", "OKP"]
    kid: str | None = None
    use: Literal["sig"] | None = None
    key_ops: list[str] | None = None
    alg: str | None = None
    crv: str | None = None
    x: str | None = None
    y: str | None = None
    n: str | None = None
    e: str | None = None


def _published_key(entry: msgspec.Raw) -> tuple[str | None, Key] | None:
    """One key of the set, or None where it is of no use here; such are left out (RFC 7517, section 5)."""
    try:
        jwk = msgspec.json.decode(entry, type=_PublishedKey)
        members = {name: value for name, value in msgspec.to_builtins(jwk).items() if name != "alg"}
        material = jwt.PyJWK(members).key
    except (msgspec.DecodeError, jwt.PyJWTError, UnsupportedAlgorithm):
        return None
    algorithm = _algorithm_of(material)
    if algorithm is None or jwk.alg not in {None, algorithm} or "verify" not in (jwk.key_ops or ["verify"]):
        return None
    return jwk.kid, Key(algorithm, material)
