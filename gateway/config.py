"""The settings: environment variables, read once into a frozen object, every mistake named at once.

Each setting is declared once, as a field of `Settings`; parsing, `gateway config` and the test of the documentation
all read that table. This module never looks at the environment itself: `cli` hands it in.
"""

# ruff: noqa: RUF009 - every default below is a dataclass field

import difflib
import ipaddress
import os
import re
import secrets
import stat
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

from storage import DOCUMENT_SCHEMES, OBJECT_SCHEMES

PREFIX = "GATEWAY_"
BUS_SCHEMES = ("memory",)
IN_PROCESS_BUSES = ("memory",)
"""Buses that reach only the process they are in."""

KEY_SETTINGS = ("JWT_SECRET", "JWT_PUBLIC_KEY", "JWKS_URL")
"""What can verify clients' tokens: one of them, or none for a secret that is made up."""

MIN_SECRET_BYTES = 32
"""An HS256 secret is at least as long as the hash (RFC 7518, section 3.2)."""

_DATA_DIR = "<DATA_DIR>"
_HOUR_S = 3600
_WEEK_S = 7 * 86_400
_YEARS_S = 10 * 366 * 86_400
_BYTES = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


class ConfigError(Exception):
    """Settings that cannot work: one sentence for each mistake, which says what would be right."""

    def __init__(self, sentences: Sequence[str]) -> None:
        super().__init__("\n".join(sentences))
        self.sentences = tuple(sentences)


class Origin(StrEnum):
    """Where a value came from."""

    DEFAULT = "default"
    ENVIRONMENT = "environment"
    COMMAND_LINE = "command line"


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


@dataclass(frozen=True, slots=True)
class Given:
    """One setting as `gateway config` shows it; a secret's value is hidden already."""

    variable: str
    shown: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting's declaration.

    `default`: as it would be written in the environment, `<DATA_DIR>` standing for that setting's value; None: not set.
    `parse` turns text into the value, or raises ValueError with what the value must be ("must be …"). `bare`: empty
    text is a value. Elsewhere it is a mistake, since `TOKEN=$(cat missing)` must not switch a protection off.
    """

    name: str
    parse: Callable[[str], object]
    default: str | None
    doc: str
    secret: bool
    bare: bool

    @property
    def variable(self) -> str:
        """The environment variable."""
        return PREFIX + self.name

    @property
    def unit(self) -> str:
        """What a number counts, or nothing."""
        return "seconds" if self.name.endswith("_S") else "bytes" if self.name.endswith("_BYTES") else ""

    def read(self, text: str, *, origin: Origin) -> object:
        """The value of `text`, which came from `origin`. Raises ValueError with a whole sentence."""
        spelling = f"--{self.name.lower()}" if origin is Origin.COMMAND_LINE else self.variable
        if not text and not self.bare:
            raise ValueError(f"{spelling} is empty: give it a value, or leave it out.")
        try:
            return self.parse(text)
        except ValueError as error:
            instead = "" if self.secret else f", not {self.shown(text)!r}"
            raise ValueError(f"{spelling} {error}{instead}.") from None

    def shown(self, text: str | None) -> str:
        """`text` as it may be shown: no secret, no key, no password in a URL."""
        if text is None:
            return "(not set)"
        if self.secret:
            return "(hidden)"
        return "(PEM text)" if "-----" in text else re.sub(r"//[^/@]*@", "//(hidden)@", text)


def is_loopback(host: str) -> bool:
    """Whether `host` is reachable from this machine only: `localhost`, 127.0.0.0/8 or ::1."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _host(text: str) -> str:
    with suppress(ValueError):
        return str(ipaddress.ip_address(text))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}", text) or re.fullmatch(r"[0-9.]+", text):
        raise ValueError("must be an IP address without brackets, or a host name")
    return text.lower()


def _whole(least: int, most: int, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", text) or not least <= int(text) <= most:
        raise ValueError(f"must be a whole number from {least} to {most}")
    return int(text)


def _seconds(least: float, most: float, text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", text) or not least <= float(text) <= most:
        raise ValueError(f"must be a number of seconds from {least:g} to {most:.0f}")
    return float(text)


def _size(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,12}) ?(KiB|MiB|GiB|)", text)
    size = int(found[1]) * _BYTES[found[2]] if found else 0
    if not 1 <= size <= 5 * _BYTES["GiB"]:  # the most that one signed PUT carries, on every store to come
        raise ValueError("must be a number of bytes from 1 to 5GiB, plain or with KiB, MiB or GiB")
    return size


def _one_of(kind: type[StrEnum], text: str) -> StrEnum:
    if text not in list(kind):
        raise ValueError(f"must be {' or '.join(kind)}")
    return kind(text)


def _secret(least: int, text: str) -> str:
    if len(text) < least or not re.fullmatch(r"[!-~][ -~]*[!-~]", text) or text.startswith(("{", "[", "-----BEGIN")):
        raise ValueError(f"must be at least {least} printable ASCII characters, white space at neither end, and no key")
    return text


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")] if text else []


def _waits(text: str) -> tuple[float, ...]:
    waits: tuple[float, ...] = ()
    for part in _split(text):
        with suppress(ValueError):
            waits += (_seconds(0.001, _YEARS_S, part),)
    if len(waits) != len(_split(text)) or len(waits) > 16 or list(waits) != sorted(set(waits)):
        raise ValueError("must be at most 16 numbers of seconds above 0, each larger than the one before, or empty")
    return waits


def _content_types(text: str) -> tuple[str, ...]:
    token = r"[a-z0-9!#$%&'^_`|~+.-]+"  # RFC 9110, section 5.6.2, without the wildcard  # noqa: S105
    types = tuple(part.lower() for part in _split(text))
    if not all(re.fullmatch(rf"{token}/({token}|\*)", part) for part in types):
        raise ValueError("must be a comma-separated list of type/subtype or type/*")
    return types


def _push_on(text: str) -> frozenset[str]:
    news = frozenset(_split(text))
    if news not in ({"video"}, {"video", "status"}):
        raise ValueError("must be video, or video,status")
    return news


def _rate(text: str) -> Rate | None:
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


def _public_url(text: str) -> str:
    if not _web_url(text) or "?" in text:
        raise ValueError("must be an absolute http(s) URL without user, query and fragment")
    return text.rstrip("/")


def _jwks_url(text: str) -> str:
    url = _web_url(text)
    if not url or (url.scheme == "http" and not is_loopback(url.hostname or "")):
        raise ValueError("must be an https URL without user and fragment (http to this very machine only)")
    return text


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(part.lower() for part in _split(text))
    urls = [_web_url(origin) for origin in origins]
    if origins != ("*",) and not all(url and url.geturl() == f"{url.scheme}://{url.netloc}" for url in urls):
        raise ValueError("must be * alone, or a comma-separated list of origins such as https://app.example.com")
    return origins


def _public_key(text: str) -> str:
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


def _scheme(url: str) -> str:
    return url.partition(":")[0]


def _folder(text: str) -> Path:
    if not text.isprintable():
        raise ValueError("must be the path of a folder, in printable characters")
    return Path(text)


def _url(known: Sequence[str], text: str) -> str:
    shape = r"memory:|sqlite:///[^?#]+|file:(?:///|(?!//))[^?#]+"  # what `storage` opens
    if not re.fullmatch(shape, text) or _scheme(text) not in known:
        kinds = {"memory": "memory:", "sqlite": "sqlite:///path", "file": "file:path"}
        raise ValueError(f"must be {' or '.join(kinds.get(scheme, scheme) for scheme in known)}")
    return text


_span = partial(_seconds, 0.001, _YEARS_S)
_keep = partial(_seconds, 0, _YEARS_S)
_url_life = partial(_seconds, 0.001, _WEEK_S)
_pause = partial(_seconds, 0, _HOUR_S)


def _setting(
    parse: Callable[[str], object], default: str | None, doc: str, *, secret: bool = False, bare: bool = False
) -> Any:
    return field(
        repr=not secret,
        metadata={"parse": parse, "default": default, "doc": doc, "secret": secret, "bare": bare},
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of one process. None means: not set. What ends in `_s` is in seconds.

    `given`: each of them as it may be shown, in the order in which they are declared.
    """

    given: tuple[Given, ...] = field(repr=False)
    host: str = _setting(_host, "127.0.0.1", "The address to listen on.")
    port: int = _setting(partial(_whole, 0, 65_535), "8000", "The port to listen on; 0 picks a free one.")
    public_url: str | None = _setting(_public_url, None, "Where apps reach the gateway, if it is elsewhere.")
    data_dir: Path = _setting(_folder, "./data", "The folder of everything that is kept on this machine.")
    state_url: str = _setting(
        partial(_url, DOCUMENT_SCHEMES), f"sqlite:///{_DATA_DIR}/state.db", "Where the clients' documents are kept."
    )
    objects_url: str = _setting(
        partial(_url, OBJECT_SCHEMES), f"file:{_DATA_DIR}/objects", "Where the videos' bytes are kept."
    )
    bus_url: str = _setting(partial(_url, BUS_SCHEMES), "memory:", "What carries packets between processes.")
    jwt_secret: str | None = _setting(
        partial(_secret, MIN_SECRET_BYTES),
        None,
        f"The HS256 secret of clients' tokens; with no key set, one is made up in `{_DATA_DIR}/jwt.secret`.",
        secret=True,
    )
    jwt_public_key: str | None = _setting(
        _public_key, None, "The public key of clients' tokens (RS256, ES256 or EdDSA): PEM text, or a file's path."
    )
    jwks_url: str | None = _setting(_jwks_url, None, "Where the public keys of clients' tokens are published.")
    jwt_audience: str | None = _setting(str, None, "The `aud` that tokens must have; not set: any or none.")
    jwt_issuer: str | None = _setting(str, None, "The `iss` that tokens must have; not set: any or none.")
    videos_per_pair: int = _setting(
        partial(_whole, 1, 16), "1", "How many videos one sender has in transit to one recipient: the newest."
    )
    max_video_bytes: int = _setting(_size, "100MiB", "The largest video; plain, or with KiB, MiB or GiB.")
    content_types: tuple[str, ...] = _setting(
        _content_types, "video/*", "What a video may be: type/subtype or type/*, separated by commas."
    )
    video_ttl_s: float = _setting(_span, "2592000", "After this long a video that nobody viewed expires.")
    ended_keep_s: float = _setting(_keep, "604800", "How long viewed and expired entries stay listed.")
    viewed_keep_s: float = _setting(_keep, "0", "How long a video's bytes are kept once it is viewed.")
    upload_ttl_s: float = _setting(_url_life, "21600", "How long an upload URL lives.")
    download_ttl_s: float = _setting(_url_life, "900", "How long a download URL lives.")
    ack_grace_s: float = _setting(
        _pause, "5", "How long a connected device may take to acknowledge before a push wakes it."
    )
    remind_after_s: tuple[float, ...] = _setting(
        _waits, "3600,28800,86400", "When a device that stays silent is reminded of news; empty: never.", bare=True
    )
    push_content: PushContent = _setting(
        partial(_one_of, PushContent), "packet", "What a push carries: packet, or wakeup for its version alone."
    )
    push_on: frozenset[str] = _setting(
        _push_on, "video", "What wakes a device: video, or video,status for status changes too."
    )
    cors_origins: tuple[str, ...] = _setting(
        _origins, "", "The web origins that may call the gateway, separated by commas, or *.", bare=True
    )
    rate_calls: Rate | None = _setting(
        _rate, "20/100", "How many calls a client may make a second, and how many at once; 0: no limit."
    )
    drain_s: float = _setting(_pause, "30", "How long a process that is told to stop may take for it.")
    workers: int = _setting(partial(_whole, 1, 256), "1", "How many processes serve.")
    operator_token: str | None = _setting(
        partial(_secret, 16), None, "The bearer token `/metrics` asks for; not set: it is open.", secret=True
    )
    sweep_s: float = _setting(_span, "300", "How often what was left half done is looked for.")
    log_format: LogFormat = _setting(partial(_one_of, LogFormat), "text", "A log line's form: text or json.")
    log_level: LogLevel = _setting(
        partial(_one_of, LogLevel), "info", "The least that is logged: debug, info, warning or error."
    )

    @classmethod
    def load(cls, environ: Mapping[str, str], *, arguments: Mapping[str, str] | None = None) -> "Settings":
        """The settings that `environ` gives; `arguments`, by name without prefix, go before it.

        Raises ConfigError with every mistake there is, a `GATEWAY_` variable that means nothing among them.
        """
        arguments = arguments or {}
        ours = {name.removeprefix(PREFIX): text for name, text in environ.items() if name.startswith(PREFIX)}
        problems = list(_unknown(ours))
        texts = {**ours, **arguments}
        data_dir = quote(str(texts.get("DATA_DIR", DECLARED["DATA_DIR"].default)), errors="replace")
        origins = dict.fromkeys(ours, Origin.ENVIRONMENT) | dict.fromkeys(arguments, Origin.COMMAND_LINE)
        values: dict[str, Any] = {}
        given = []
        for setting in SETTINGS:
            default = setting.default and setting.default.replace(_DATA_DIR, data_dir)
            text = texts.get(setting.name, default)
            origin = origins.get(setting.name, Origin.DEFAULT)
            given.append(Given(setting.variable, setting.shown(text), origin))
            try:
                values[setting.name.lower()] = None if text is None else setting.read(text, origin=origin)
            except ValueError as error:
                problems.append(str(error))
        problems += _contradictions(values, texts.keys())
        if problems:
            raise ConfigError(problems)
        return cls(tuple(given), **values)

    @property
    def secret_file(self) -> Path | None:
        """Where the made-up secret of the clients' tokens is, or None where the settings name a key."""
        key = self.jwt_secret or self.jwt_public_key or self.jwks_url
        return None if key else self.data_dir / "jwt.secret"

    def signing_secret(self) -> str | None:
        """The HS256 secret of the clients' tokens, made up now if need be; None where a public key verifies them.

        Raises ConfigError where the file of a made-up secret cannot be used.
        """
        return made_up_secret(self.secret_file) if self.secret_file else self.jwt_secret

    @property
    def bus_is_in_process(self) -> bool:
        """Whether packets reach only the process that publishes them."""
        return _scheme(self.bus_url) in IN_PROCESS_BUSES


SETTINGS = tuple(Setting(entry.name.upper(), **entry.metadata) for entry in fields(Settings) if entry.metadata)
"""Every setting there is, in the order in which they are shown."""

DECLARED = {setting.name: setting for setting in SETTINGS}


def _unknown(ours: Mapping[str, str]) -> Iterator[str]:
    linked = "SERVICE_HOST" in ours
    if linked:  # done to every pod beside a Service named gateway; it overwrites GATEWAY_PORT
        yield "GATEWAY_SERVICE_HOST was set by Kubernetes: set enableServiceLinks: false in the pod's specification."
    for name in ours:
        if name not in DECLARED and not (linked and re.match(r"SERVICE_|PORT_\d", name)):
            near = difflib.get_close_matches(name, DECLARED, n=1)
            hint = f": did you mean {PREFIX}{near[0]}?" if near else "; `gateway config` lists those there are."
            yield f"{PREFIX}{name} is no setting{hint}"


def _contradictions(values: Mapping[str, Any], named: Collection[str]) -> Iterator[str]:
    """What no value shows alone. A rule about a value that is wrong itself is left out."""
    for rule in (_one_key, _made_up_secret, _in_process_bus, _upload_and_video, _viewed_and_ended):
        with suppress(KeyError):
            yield from rule(values, named)


def _one_key(_values: Mapping[str, Any], named: Collection[str]) -> Iterator[str]:
    keys = [PREFIX + name for name in KEY_SETTINGS if name in named]
    if len(keys) > 1:
        yield f"{' and '.join(keys)} are set: set only the one that verifies your clients' tokens."


def _made_up_secret(values: Mapping[str, Any], named: Collection[str]) -> Iterator[str]:
    if not is_loopback(values["host"]) and not any(name in named for name in KEY_SETTINGS):
        keys = " or ".join(PREFIX + name for name in KEY_SETTINGS)
        yield f"GATEWAY_HOST {values['host']} is open to others, where a made-up secret will not do: set {keys}."


def _in_process_bus(values: Mapping[str, Any], _named: Collection[str]) -> Iterator[str]:
    if values["workers"] > 1 and _scheme(values["bus_url"]) in IN_PROCESS_BUSES:
        yield (
            f"GATEWAY_WORKERS is {values['workers']}, but with GATEWAY_BUS_URL {values['bus_url']} no process hears "
            "of another's packets: set GATEWAY_WORKERS to 1."
        )


def _upload_and_video(values: Mapping[str, Any], _named: Collection[str]) -> Iterator[str]:
    if values["upload_ttl_s"] > values["video_ttl_s"]:
        yield "GATEWAY_UPLOAD_TTL_S must not be above GATEWAY_VIDEO_TTL_S: a video would expire while it is uploaded."


def _viewed_and_ended(values: Mapping[str, Any], _named: Collection[str]) -> Iterator[str]:
    if values["viewed_keep_s"] > values["ended_keep_s"]:
        yield "GATEWAY_VIEWED_KEEP_S must not be above GATEWAY_ENDED_KEEP_S: what deletes the bytes would be gone."


def made_up_secret(path: Path) -> str:
    """The secret in `path`, which is made, with its folder, if it is not there; only the owner can read it.

    However many processes do this at once, all get the same one. Raises ConfigError.
    """
    try:
        if not path.exists():
            _make_secret(path)
        mode = path.stat().st_mode
        secret = path.read_text("ascii").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError([f"{path} cannot be used: {reason}. Set GATEWAY_JWT_SECRET or GATEWAY_DATA_DIR."]) from error
    if mode & (stat.S_IROTH | stat.S_IWOTH):  # a group may: volumes that many processes share need it
        raise ConfigError([f"{path} is open to everybody on this machine: run `chmod 600 {path}`."])
    if len(secret) < MIN_SECRET_BYTES:
        raise ConfigError([f"{path} holds no whole secret: remove it, and a new one is made."])
    return secret


def _make_secret(path: Path) -> None:
    """Appears whole or not at all: written beside its place, then linked there; who comes second keeps the first's."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(48))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            path.hardlink_to(draft)
    finally:
        draft.unlink(missing_ok=True)
