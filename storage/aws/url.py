"""URLs of what Amazon keeps, or somebody whose service speaks like Amazon's."""

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

AWS_SCHEMES = ("dynamodb", "s3", "sqs")

_NAMES = {
    "dynamodb": re.compile(r"[A-Za-z0-9_.-]{3,255}"),
    "s3": re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"),
    "sqs": re.compile(r"[A-Za-z0-9_-]{1,80}"),
}
"""Names of tables, buckets and queues, as the services take them (a FIFO queue cannot take a bucket's events)."""

_WHAT = {"dynamodb": "table", "s3": "bucket", "sqs": "queue"}
_REGION = re.compile(r"[a-z0-9-]{2,30}")
_SEGMENT = r"(?!\.\.?(?:/|$))[A-Za-z0-9._-]+"
_PREFIX = re.compile(f"({_SEGMENT}/)*{_SEGMENT}")
_SHARDS = re.compile(r"[0-9]{1,3}")
_HOST = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*|[0-9a-f.]*:[0-9a-f:.]*")
_PORTS = {"http": 80, "https": 443}
_OPTIONS = {"dynamodb": ("shards",), "s3": ("public_endpoint",), "sqs": ()}

DEFAULT_SHARDS = 8
MOST_SHARDS = 256


class AwsMisconfigured(Exception):
    """What this machine's AWS configuration lacks, in a sentence without its end."""


@dataclass(frozen=True, slots=True)
class AwsUrl:
    """`dynamodb://table`, `s3://bucket/prefix` or `sqs://queue`, with `?region=…&endpoint=…`.

    `prefix`: of the keys in a bucket, without slashes around it; empty where there is none.
    `region`: None where the machine's own configuration says it (`AWS_REGION`, the profile).
    `endpoint`: `http(s)://host[:port]` instead of Amazon's; None where it is Amazon's.
    `public_endpoint`: of a bucket: where phones reach it, if that is not where the gateway does.
    `shards`: of a table: over how many parts of its index the due documents are spread.
    """

    scheme: str
    name: str
    prefix: str = ""
    region: str | None = None
    endpoint: str | None = None
    public_endpoint: str | None = None
    shards: int = DEFAULT_SHARDS

    @classmethod
    def parse(cls, text: str) -> "AwsUrl":
        """The URL of `text`. ValueError where it is none, which says what it must be ("must be …")."""
        parts = _split(text)
        scheme = parts.scheme
        if scheme not in AWS_SCHEMES:
            raise ValueError(f"must be {' or '.join(f'{known}://{_WHAT[known]}' for known in AWS_SCHEMES)}")
        what = _WHAT[scheme]
        if "@" in parts.netloc:
            raise ValueError(f"must be {scheme}://{what} without credentials: they come from the AWS configuration")
        prefix = parts.path.strip("/")
        if not _NAMES[scheme].fullmatch(parts.netloc) or parts.fragment:
            raise ValueError(f"must be {scheme}://{what}, with the name of a {what}")
        if prefix and (scheme != "s3" or not _PREFIX.fullmatch(prefix)):
            raise ValueError(
                "must be s3://bucket/prefix, with a prefix of letters, digits and . _ - / (no part is . or ..)"
                if scheme == "s3"
                else f"must be {scheme}://{what}, without a path"
            )
        options: dict[str, Any] = _options(scheme, parts.query)
        return cls(scheme, parts.netloc, prefix, **options)


def _options(scheme: str, query: str) -> dict[str, str | int]:
    known = ("region", "endpoint", *_OPTIONS[scheme])
    options: dict[str, str | int] = {}
    try:
        given = parse_qsl(query, strict_parsing=True, keep_blank_values=True) if query else []
    except ValueError:
        given = [("", "")]
    for name, value in given:
        if name not in known or name in options:
            raise ValueError(f"must have no parameters but {', '.join(known)}, each once")
        if name == "region" and not _REGION.fullmatch(value):
            raise ValueError("must have a region such as eu-central-1")
        if name == "shards" and not (_SHARDS.fullmatch(value) and 1 <= int(value) <= MOST_SHARDS):
            raise ValueError(f"must have shards from 1 to {MOST_SHARDS}")
        options[name] = _endpoint(name, value) if name.endswith("endpoint") else value
    if "shards" in options:
        return options | {"shards": int(str(options["shards"]))}
    return options


def _endpoint(name: str, value: str) -> str:
    parts = _split(value)
    host = parts.hostname or ""
    try:
        port = parts.port
    except ValueError:
        port = 0
    right = parts.scheme in _PORTS and _HOST.fullmatch(host) and port != 0
    if not right or parts.username is not None or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(f"must have {'a' if name.startswith('p') else 'an'} {name} such as https://host:9000")
    # As clients write it in the header that is signed: in lower case, and without the port that goes without saying.
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}" if port in {None, _PORTS[parts.scheme]} else f"{parts.scheme}://{shown}:{port}"


def _split(text: str) -> SplitResult:
    """The parts of `text`; none where it is no URL, since what the library says then may repeat a password."""
    try:
        return urlsplit(text)
    except ValueError:
        return urlsplit("")
