"""Which provider tokens APNs takes: developer.apple.com, "Establishing a token-based connection to APNs"."""

from collections.abc import Callable
from typing import Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

LIFE_S: Final = 3600
"""A token that was issued longer ago is rejected."""

UPDATE_S: Final = 20 * 60
"""A team may have a new token at most this often."""

Reason = str


class ProviderTokens:
    """The tokens of one team with one key. `update_s`: how often it may have a new one. `clock` answers seconds since
    the epoch."""

    def __init__(
        self,
        key: EllipticCurvePublicKey,
        *,
        key_id: str,
        team_id: str,
        update_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.seen: set[str] = set()
        """All that the team has signed, whether they were accepted or not."""
        self._key = key
        self._key_id = key_id
        self._team_id = team_id
        self._update_s = update_s
        self._clock = clock
        self._issued: dict[str, float] = {}
        self._updated_s: float | None = None

    def fault(self, authorization: str | None) -> Reason | None:
        """Why a request with this `authorization` is refused; None if it is not. A new token is the team's next one."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            return "MissingProviderToken"
        issued_s = self._issued.get(token) or self._issued_s(token)
        if issued_s is None:
            return "InvalidProviderToken"
        self.seen.add(token)
        # "Not within the last hour" covers the future too: "Communicating with APNs" of the documentation archive.
        if not 0 <= self._clock() - issued_s <= LIFE_S:
            return "ExpiredProviderToken"
        return None if token in self._issued else self._update(token, issued_s)

    def _update(self, token: str, issued_s: float) -> Reason | None:
        if self._updated_s is not None and self._clock() - self._updated_s < self._update_s:
            return "TooManyProviderTokenUpdates"
        self._updated_s = self._clock()
        self._issued[token] = issued_s
        return None

    def _issued_s(self, token: str) -> float | None:
        """When a token was issued; None if it is none of this team's."""
        try:
            if jwt.get_unverified_header(token).get("kid") != self._key_id:
                return None
            claims = jwt.decode(token, self._key, algorithms=["ES256"], options=_BY_OUR_CLOCK)
        except jwt.InvalidTokenError:
            return None
        issued_s = claims.get("iat")
        if claims.get("iss") != self._team_id or isinstance(issued_s, bool) or not isinstance(issued_s, int | float):
            return None
        return issued_s


_BY_OUR_CLOCK: Final[jwt.types.Options] = {
    "verify_iat": False,
    "verify_exp": False,
    "verify_nbf": False,
    "verify_aud": False,
}
