"""The values of settings: what text in the environment may be, and what it becomes.

Each parser returns the value, or raises ValueError with what it must be ("must be …").
"""

import ipaddress
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from storage.aws.url import AWS_SCHEMES, AwsUrl
from storage.redis_url import REDIS_SCHEMES, RedisUrl

_HOUR_S = 3600
_WEEK_S = 7 * 86_400
_YEARS_S = 10 * 366 * 86_400
_BYTES = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


class ConfigError(Exception):
    """Settings that cannot work: one sentence for each mistake, which says what would be right."""

    def __init__(self, sentences: Sequence[str]) -> None:
        super().__init__("\n".join(sentences))
        self.sentences = tuple(sentences)


class PushContent(StrEnum):
    """What a push carries: the info packet where it fits, or only its version."""

    PACKET = "packet"
    WAKEUP = "wakeup"


class LogFormat(StrEnum):
    """How a log line is written."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The least that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Rate:
    """So many calls a second in the long run, and `burst` at once."""

    per_s: float
    burst: int


def is_loopback(host: str) -> bool:
    """Whether `host` is reachable from this machine only: `localhost`, 127.0.0.0/8 or ::1."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def host_name(text: str) -> str:
    with suppress(ValueError):
        return str(ipaddress.ip_address(text))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}", text) or re.fullmatch(r"[0-9.]+", text):
        raise ValueError("must be an IP address without brackets, or a host name")
    return text.lower()


def whole(least: int, most: int, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", text) or not least <= int(text) <= most:
        raise ValueError(f"must be a whole number from {least} to {most}")
    return int(text)


def seconds(least: float, most: float, text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", text) or not least <= float(text) <= most:
        raise ValueError(f"must be a number of seconds from {least:g} to {most:.0f}")
    return float(text)


def size(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,12}) ?(KiB|MiB|GiB|)", text)
    size = int(found[1]) * _BYTES[found[2]] if found else 0
    if not 1 <= size <= 5 * _BYTES["GiB"]:  # the most that one signed PUT carries, on every store to come
        raise ValueError("must be a number of bytes from 1 to 5GiB, plain or with KiB, MiB or GiB")
    return size


def one_of(kind: type[StrEnum], text: str) -> StrEnum:
    if text not in list(kind):
        raise ValueError(f"must be {' or '.join(kind)}")
    return kind(text)


def flag(text: str) -> bool:
    if text not in {"true", "false"}:
        raise ValueError("must be true or false")
    return text == "true"


def secret_text(least: int, text: str) -> str:
    if len(text) < least or not re.fullmatch(r"[!-~][ -~]*[!-~]", text) or text.startswith(("{", "[", "-----BEGIN")):
        raise ValueError(f"must be at least {least} printable ASCII characters, white space at neither end, and no key")
    return text


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")] if text else []


def waits(text: str) -> tuple[float, ...]:
    waits: tuple[float, ...] = ()
    for part in _split(text):
        with suppress(ValueError):
            waits += (seconds(0.001, _YEARS_S, part),)
    if len(waits) != len(_split(text)) or len(waits) > 16 or list(waits) != sorted(set(waits)):
        raise ValueError("must be at most 16 numbers of seconds above 0, each larger than the one before, or empty")
    return waits


def content_types(text: str) -> tuple[str, ...]:
    token = r"[a-z0-9!#$%&'^_`|~+.-]+"  # RFC 9110, section 5.6.2, without the wildcard  # noqa: S105
    types = tuple(part.lower() for part in _split(text))
    if not all(re.fullmatch(rf"{token}/({token}|\*)", part) for part in types):
        raise ValueError("must be a comma-separated list of type/subtype or type/*")
    return types


def push_on(text: str) -> frozenset[str]:
    news = frozenset(_split(text))
    if news not in ({"video"}, {"video", "status"}):
        raise ValueError("must be video, or video,status")
    return news


def rate(text: str) -> Rate | None:
    if text == "0":
        return None
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)/([0-9]{1,6})", text)
    if not found or not float(found[1]) or not int(found[2]):
        raise ValueError("must be calls a second and calls at once, both above 0, as in 20/100, or 0 for no limit")
    return Rate(float(found[1]), int(found[2]))


def _web_url(text: str) -> SplitResult | None:
    """The parts of an absolute http(s) URL without user and fragment; None where `text` is none."""
    try:
        url = urlsplit(text)
        named = url.port != 0 and re.fullmatch(r"[a-z0-9.:_-]+", url.hostname or "")
        usable = named and "@" not in url.netloc and not url.fragment
    except ValueError:  # a broken port or IPv6 address
        return None
    return url if usable and url.scheme in {"http", "https"} and re.fullmatch(r"[!-~]+", text) else None


def public_url(text: str) -> str:
    url = _web_url(text)
    if not url or "?" in text or url.path not in {"", "/"}:  # the addresses in packets begin at the root
        raise ValueError("must be an absolute http(s) URL without user, path, query and fragment")
    return text.rstrip("/")


def jwks_url(text: str) -> str:
    url = _web_url(text)
    if not url or (url.scheme == "http" and not is_loopback(url.hostname or "")):
        raise ValueError("must be an https URL without user and fragment (http to this very machine only)")
    return text


def provider_url(text: str) -> str:
    url = _web_url(text)
    if not url or url.scheme != "https" or "?" in text or url.path not in {"", "/"}:
        raise ValueError("must be an https URL without user, path, query and fragment")
    return text.rstrip("/")


def apple_id(text: str) -> str:
    if not re.fullmatch(r"[A-Z0-9]{10}", text):
        raise ValueError("must be ten capital letters and digits, as Apple gave it out")
    return text


def topic(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.-]{1,255}", text):
        raise ValueError("must be the app's bundle ID, as in org.example.app")
    return text


def origins(text: str) -> tuple[str, ...]:
    origins = tuple(part.lower() for part in _split(text))
    urls = [_web_url(origin) for origin in origins]
    if origins != ("*",) and not all(url and url.geturl() == f"{url.scheme}://{url.netloc}" for url in urls):
        raise ValueError("must be * alone, or a comma-separated list of origins such as https://app.example.com")
    return origins


def public_key(text: str) -> str:
    """The PEM text itself, or that of the file it names; in it a newline may be written as backslash and n."""
    pem = text.replace("\\n", "\n")
    if "-----BEGIN" not in pem:
        try:
            pem = Path(text).read_text("ascii")
        except (OSError, ValueError) as error:
            raise ValueError("must be a public key in PEM form, or the path of a readable file with one") from error
    if not re.search(r"-----BEGIN (RSA )?PUBLIC KEY-----", pem) or "PRIVATE KEY" in pem:
        raise ValueError("must be a PEM public key (BEGIN PUBLIC KEY), neither private key nor certificate")
    return pem


def scheme_of(url: str) -> str:
    return url.partition(":")[0]


def folder(text: str) -> Path:
    if not text.isprintable():
        raise ValueError("must be the path of a folder, in printable characters")
    return Path(text)


def file(text: str) -> Path:
    path = Path(text)
    try:
        with path.open("rb"):
            return path
    except (OSError, ValueError) as error:
        raise ValueError("must be the path of a file that can be read") from error


def store_url(known: Sequence[str], text: str) -> str:
    if scheme_of(text) in REDIS_SCHEMES and scheme_of(text) in known:
        RedisUrl.parse(text)
        return text
    if scheme_of(text) in AWS_SCHEMES and scheme_of(text) in known:
        AwsUrl.parse(text)
        return text
    shape = r"memory:|sqlite:///[^?#]+|file:(?:///|(?!//))[^?#]+"  # what `storage` opens
    if not re.fullmatch(shape, text) or scheme_of(text) not in known:
        kinds = {"memory": "memory:", "sqlite": "sqlite:///path", "file": "file:path"}
        kinds |= {"redis": "redis://host:port", "redis+cluster": "redis+cluster://host:port,host:port"}
        kinds |= {"dynamodb": "dynamodb://table", "s3": "s3://bucket", "sqs": "sqs://queue"}
        named = [kinds[scheme] for scheme in known if scheme in kinds]
        raise ValueError(f"must be {' or '.join(named)}")
    return text


span = partial(seconds, 0.001, _YEARS_S)
keep = partial(seconds, 0, _YEARS_S)
url_life = partial(seconds, 0.001, _WEEK_S)
pause = partial(seconds, 0, _HOUR_S)
