"""The URL of a Redis server or cluster, and what may stand in it. Nothing of Redis is imported here."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

REDIS_SCHEMES = ("redis", "rediss", "redis+cluster", "rediss+cluster")
"""One server, one server over TLS, a cluster, a cluster over TLS."""

PORT = 6379
PREFIX = "gateway:"
"""What all keys and channels begin with, unless the URL says otherwise."""

_URL = re.compile(
    r"(?P<scheme>[a-z+]+)://(?:(?P<user>[^:@/?#]*)(?::(?P<password>[^@/?#]*))?@)?(?P<hosts>[^@/?#]+)"
    r"(?:/(?P<db>[0-9]{0,4}))?(?:\?(?P<query>[^#]*))?"
)
_HOST = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?")
_PREFIX = re.compile(r"[A-Za-z0-9_.:/-]{1,64}")


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """What a URL says: `redis://user:password@host:port/db?prefix=…`, or `redis+cluster://host:port,host:port?prefix=…`.

    `rediss` instead of `redis` is TLS; `?ca=/path` names the certificate authority in PEM where the system's will not
    do. `prefix`: all keys and channels begin with it, so that several gateways can share a server.
    """

    addresses: tuple[Address, ...]
    cluster: bool = False
    tls: bool = False
    db: int = 0
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    prefix: str = PREFIX
    ca_file: str | None = None

    @classmethod
    def parse(cls, url: str) -> "RedisUrl":
        """Raises ValueError with a sentence; it does not repeat the URL, in which a password may stand."""
        match = _URL.fullmatch(url)
        if match is None or match["scheme"] not in REDIS_SCHEMES:
            raise ValueError("must be redis://host:port/db or redis+cluster://host:port,host:port")
        cluster, db = match["scheme"].endswith("+cluster"), int(match["db"] or 0)
        addresses = tuple(_addresses(match["hosts"].split(",")))
        if cluster and db:
            raise ValueError("must name no database: a cluster has only one")
        if not cluster and len(addresses) > 1:
            raise ValueError("must name one server; several are redis+cluster://host:port,host:port")
        tls = match["scheme"].startswith("rediss")
        given = dict(parse_qsl(match["query"] or "", keep_blank_values=True))
        if unknown := given.keys() - ({"prefix", "ca"} if tls else {"prefix"}):
            raise ValueError(f"has a parameter that means nothing: {min(unknown)}")
        prefix = given.get("prefix", PREFIX)
        if not _PREFIX.fullmatch(prefix):
            raise ValueError("must have a prefix of 1 to 64 letters, digits and _.:/-")
        return cls(
            addresses=addresses,
            cluster=cluster,
            tls=tls,
            db=db,
            user=_said(match["user"]),
            password=_said(match["password"]),
            prefix=prefix,
            ca_file=given.get("ca"),
        )


def _addresses(hosts: Sequence[str]) -> Iterator[Address]:
    for text in hosts:
        match = _HOST.fullmatch(text)
        port = int(match["port"] or PORT) if match else 0
        if match is None or not 0 < port < 65_536:
            raise ValueError("must name a host and a port such as 127.0.0.1:6379")
        yield Address(match["ipv6"] or match["host"], port)


def _said(text: str | None) -> str | None:
    return unquote(text) if text else None
