"""Who may use the demo: everybody who reaches it, under ids that are its own."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import orjson

from gateway.api import bodies
from gateway.api.auth import issue_token
from gateway.api.http import Reply, Request, decode
from gateway.errors import Forbidden
from gateway.transit.state import ClientId

PREFIX = "demo."
"""What the ids of its clients begin with."""

TOKEN_S = 900.0
"""How long a token of the demo lasts: so short that whoever plays with it sees it renewed."""

_BODY_BYTES = 1024


class _Wanted(msgspec.Struct):
    client_id: bodies.Id

    def __post_init__(self) -> None:
        bodies.check_id("client_id", self.client_id)


_wanted = msgspec.json.Decoder(_Wanted)


@dataclass(frozen=True, slots=True)
class Demo:
    """Hands out tokens, signed with the gateway's own `secret`. `clock`: seconds since the epoch."""

    secret: str = field(repr=False)
    audience: str | None = None
    issuer: str | None = None
    clock: Callable[[], float] = time.time

    async def token(self, request: Request) -> Reply:
        """A token of the client that the body names: `{"token", "expires_at"}`, the latter in ms since the epoch.

        Raises Forbidden for a client that is not the demo's, and Invalid for a body that names none.
        """
        client_id = decode(_wanted, await request.body(_BODY_BYTES)).client_id
        if not is_demo(client_id):
            raise Forbidden(f"the demo has tokens only for clients whose ids begin with {PREFIX}")
        now = self.clock()
        token = issue_token(self.secret, client_id, ttl_s=TOKEN_S, now=now, audience=self.audience, issuer=self.issuer)
        answer = {"token": token, "expires_at": int(now + TOKEN_S) * 1000}
        return Reply(200, orjson.dumps(answer), headers=((b"cache-control", b"no-store"),))


def is_demo(client_id: str) -> bool:
    """Whether this is one of the demo's clients."""
    return client_id.startswith(PREFIX)


def keep_apart(sender_id: ClientId, recipient_id: ClientId) -> None:
    """Raise Forbidden where only one of the two is the demo's: strangers must not reach the app's users."""
    if is_demo(sender_id) != is_demo(recipient_id):
        raise Forbidden("recipient_id: clients of the demo, and they alone, send to one another")
