"""Who we are, to APNs: the provider token."""

import json
import math
import time
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from jwt.utils import base64url_encode, der_to_raw_signature

TOKEN_REST_S, TOKEN_LIFE_S, TOKEN_LEAST_S = 2 * 60, 30 * 60, 20 * 60
"""How old a provider token is when it is used first, since clocks differ; after how long the next one is issued; how
long a process uses its first one at least. So none is older than 52 minutes: APNs takes it for 60, and a new one every
20 at most ("Establishing a token-based connection to APNs")."""


class ProviderToken:
    """The JWT that says who we are: one for all connections of all processes. `clock`: seconds since the epoch.

    APNs wants one for a team, and refuses new ones that come too often. So nothing in it is chance: it is issued at
    times that follow from the clock alone, and signed as RFC 6979 says; whoever has the key makes the same bytes. And
    a process that has just begun does not go on to the next one before its time.
    """

    def __init__(
        self, key: EllipticCurvePrivateKey, *, key_id: str, team_id: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._key = key
        self._key_id = key_id
        self._team_id = team_id
        self._clock = clock
        self._issued_s = -1
        self._used_s = -math.inf
        self._header = ""

    @property
    def header(self) -> str:
        """The `authorization` header; another every `TOKEN_LIFE_S`, but for the first."""
        now_s = self._clock()
        issued_s = int((now_s - TOKEN_REST_S) // TOKEN_LIFE_S * TOKEN_LIFE_S)
        if issued_s != self._issued_s and not 0 <= now_s - self._used_s < TOKEN_LEAST_S:
            self._issued_s, self._used_s, self._header = issued_s, now_s, f"bearer {self._signed(issued_s)}"
        return self._header

    def _signed(self, issued_s: int) -> str:
        header = {"alg": "ES256", "kid": self._key_id, "typ": "JWT"}
        claims = {"iss": self._team_id, "iat": issued_s}
        text = b".".join(base64url_encode(json.dumps(part).encode()) for part in (header, claims))
        signature = self._key.sign(text, ECDSA(SHA256(), deterministic_signing=True))
        return (text + b"." + base64url_encode(der_to_raw_signature(signature, self._key.curve))).decode()
