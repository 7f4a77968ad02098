"""The endpoint where a service account gets access tokens: developers.google.com, "Using OAuth 2.0 for Server to Server
Applications"; RFC 7523, RFC 6749."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from secrets import token_urlsafe
from typing import Any, Final
from urllib.parse import parse_qs

import jwt
import orjson
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from push.simulators.answers import Answer
from push.simulators.serving import Request

GRANT_TYPE: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
AUDIENCE: Final = "https://oauth2.googleapis.com/token"
"""What Google asks for as `aud`. Its own library says this wherever it sends the request."""
SCOPES: Final = frozenset(
    {
        "https://www.googleapis.com/auth/firebase.messaging",
        "https://www.googleapis.com/auth/cloud-platform",
    }
)
"""Either one allows to send messages."""
MAX_LIFE_S: Final = 3600


class OauthRefused(Exception):
    """A token request breaks a rule: the `error` of RFC 6749, section 5.2."""

    def __init__(self, error: str, description: str) -> None:
        super().__init__(description)
        self.error = error
        self.description = description


def oauth_refusal(error: str, description: str = "", *, status: int = 400) -> Answer:
    """The answer to a token request that is refused (RFC 6749, section 5.2)."""
    body = {"error": error} | ({"error_description": description} if description else {})
    return Answer(status, orjson.dumps(body), (("content-type", "application/json; charset=utf-8"),))


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """A request for an access token that keeps the rules: the claims of its assertion. `came_s`: the loop's time."""

    claims: Mapping[str, Any] = field(repr=False)
    came_s: float


class AccessTokens:
    """The access tokens of one service account. `clock` answers seconds since the epoch; `uri` is where they are asked
    for."""

    def __init__(self, key: RSAPublicKey, *, account: str, life_s: float, clock: Callable[[], float]) -> None:
        self.uri = ""
        self.issued: list[str] = []
        self._key = key
        self._account = account
        self._life_s = life_s
        self._clock = clock
        self._until: dict[str, float] = {}

    def checked(self, request: Request) -> TokenRequest:
        """The request, if a token may be issued for it. Raises OauthRefused."""
        form = {name: values[0] for name, values in parse_qs(request.body.decode("latin-1")).items()}
        if form.get("grant_type") != GRANT_TYPE:
            raise OauthRefused("unsupported_grant_type", "Invalid grant_type")
        claims = self._claims(form.get("assertion", ""))
        self._check_times(claims)
        if not SCOPES & set(str(claims.get("scope", "")).split()):
            raise OauthRefused("invalid_scope", "No scope that allows to send messages")
        return TokenRequest(claims, request.came_s)

    def _claims(self, assertion: str) -> dict[str, Any]:
        try:
            claims: dict[str, Any] = jwt.decode(
                assertion, self._key, algorithms=["RS256"], audience=[self.uri, AUDIENCE], options=_BY_OUR_CLOCK
            )
        except jwt.InvalidAudienceError as error:
            raise OauthRefused("invalid_grant", "Invalid JWT: the audience is another") from error
        except jwt.InvalidTokenError as error:
            raise OauthRefused("invalid_grant", "Invalid JWT Signature.") from error
        if claims.get("iss") != self._account:
            raise OauthRefused("invalid_grant", "Invalid grant: account not found")
        return claims

    def _check_times(self, claims: Mapping[str, Any]) -> None:
        issued_s, expires_s, now_s = claims.get("iat"), claims.get("exp"), self._clock()
        if not isinstance(issued_s, int | float) or not isinstance(expires_s, int | float):
            raise OauthRefused("invalid_grant", "Invalid JWT: iat and exp are required")
        if not issued_s <= now_s < expires_s or expires_s - issued_s > MAX_LIFE_S:
            raise OauthRefused("invalid_grant", "Invalid JWT: iat and exp must be around now, an hour apart at most")

    def issue(self) -> Answer:
        """An answer with a new token."""
        token = f"ya29.{token_urlsafe(24)}"
        self._until = {known: until_s for known, until_s in self._until.items() if until_s > self._clock()}
        self._until[token] = self._clock() + self._life_s
        self.issued.append(token)
        body = {"access_token": token, "expires_in": int(self._life_s), "token_type": "Bearer"}
        return Answer(200, orjson.dumps(body), (("content-type", "application/json; charset=utf-8"),))

    def bearer(self, authorization: str | None) -> str | None:
        """The token in this header, if it is one that was issued and has not expired."""
        scheme, _, token = (authorization or "").partition(" ")
        valid = scheme.lower() == "bearer" and self._until.get(token, 0) > self._clock()
        return token if valid else None


_BY_OUR_CLOCK: Final[jwt.types.Options] = {"verify_iat": False, "verify_exp": False, "verify_nbf": False}
