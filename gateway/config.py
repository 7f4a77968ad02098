"""The settings: environment variables, read once into a frozen object, every mistake named at once.

Each setting is declared once, as a field of `Settings`; parsing, `gateway config` and the test of the documentation
all read that table. This module never looks at the environment itself: `cli` hands it in.
"""

# ruff: noqa: RUF009 - every default below is a dataclass field

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gateway import parsers
from gateway.bus import BUS_SCHEMES
from gateway.parsers import ConfigError, LogFormat, LogLevel, PushContent, Rate
from gateway.secret_file import MIN_SECRET_BYTES, made_up_secret
from storage import DOCUMENT_SCHEMES, EVENT_SCHEMES, OBJECT_SCHEMES
from storage.redis_url import REDIS_SCHEMES

PREFIX = "GATEWAY_"
IN_PROCESS_BUSES = ("memory",)
"""Buses that reach only the process they are in."""

KEY_SETTINGS = ("JWT_SECRET", "JWT_PUBLIC_KEY", "JWKS_URL")
"""What can verify clients' tokens: one of them, or none for a secret that is made up."""

_DATA_DIR = "<DATA_DIR>"
_HOUR_S, _DAY_S = 3600.0, 86_400.0


class Origin(StrEnum):
    """Where a value came from."""

    DEFAULT = "default"
    ENVIRONMENT = "environment"
    COMMAND_LINE = "command line"


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
        return "(PEM text)" if "-----" in text else re.sub(r"//.*@", "//(hidden)@", text)


def _setting(
    parse: Callable[[str], object],
    default: str | None,
    doc: str,
    *,
    secret: bool = False,
    bare: bool = False,
    in_repr: bool = True,
) -> Any:
    return field(
        repr=in_repr and not secret,
        metadata={"parse": parse, "default": default, "doc": doc, "secret": secret, "bare": bare},
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of one process. None means: not set. What ends in `_s` is in seconds.

    `given`: each of them as it may be shown, in the order in which they are declared.
    """

    given: tuple[Given, ...] = field(repr=False)
    host: str = _setting(parsers.host_name, "127.0.0.1", "The address to listen on.")
    port: int = _setting(partial(parsers.whole, 0, 65_535), "8000", "The port to listen on; 0 picks a free one.")
    public_url: str | None = _setting(parsers.public_url, None, "Where apps reach the gateway, if it is elsewhere.")
    data_dir: Path = _setting(parsers.folder, "./data", "The folder of everything that is kept on this machine.")
    state_url: str = _setting(
        partial(parsers.store_url, DOCUMENT_SCHEMES),
        f"sqlite:///{_DATA_DIR}/state.db",
        "Where the clients' documents are kept.",
        in_repr=False,  # a password may be in it
    )
    objects_url: str = _setting(
        partial(parsers.store_url, OBJECT_SCHEMES), f"file:{_DATA_DIR}/objects", "Where the videos' bytes are kept."
    )
    bus_url: str = _setting(
        partial(parsers.store_url, BUS_SCHEMES), "memory:", "What carries packets between processes.", in_repr=False
    )
    cache_url: str | None = _setting(
        partial(parsers.store_url, REDIS_SCHEMES),
        None,
        "Where documents are cached for some seconds: Redis, or nowhere.",
        in_repr=False,
    )
    jwt_secret: str | None = _setting(
        partial(parsers.secret_text, MIN_SECRET_BYTES),
        None,
        f"The HS256 secret of clients' tokens; with no key set, one is made up in `{_DATA_DIR}/jwt.secret`.",
        secret=True,
    )
    jwt_public_key: str | None = _setting(
        parsers.public_key,
        None,
        "The public key of clients' tokens (RS256, ES256 or EdDSA): PEM text, or a file's path.",
    )
    jwks_url: str | None = _setting(parsers.jwks_url, None, "Where the public keys of clients' tokens are published.")
    jwt_audience: str | None = _setting(str, None, "The `aud` that tokens must have; not set: any or none.")
    jwt_issuer: str | None = _setting(str, None, "The `iss` that tokens must have; not set: any or none.")
    videos_per_pair: int = _setting(
        partial(parsers.whole, 1, 16), "1", "How many videos one sender has in transit to one recipient: the newest."
    )
    max_video_bytes: int = _setting(parsers.size, "100MiB", "The largest video; plain, or with KiB, MiB or GiB.")
    content_types: tuple[str, ...] = _setting(
        parsers.content_types, "video/*", "What a video may be: type/subtype or type/*, separated by commas."
    )
    video_ttl_s: float = _setting(parsers.span, "2592000", "After this long a video that nobody viewed expires.")
    ended_keep_s: float = _setting(parsers.keep, "604800", "How long viewed and expired entries stay listed.")
    viewed_keep_s: float = _setting(parsers.keep, "0", "How long a video's bytes are kept once it is viewed.")
    upload_ttl_s: float = _setting(parsers.url_life, "21600", "How long an upload URL lives.")
    download_ttl_s: float = _setting(parsers.url_life, "900", "How long a download URL lives.")
    ack_grace_s: float = _setting(
        parsers.pause, "5", "How long a connected device may take to acknowledge before a push wakes it."
    )
    remind_after_s: tuple[float, ...] = _setting(
        parsers.waits,
        "3600,28800,86400",
        "When a device that stays silent is reminded of news; empty: never.",
        bare=True,
    )
    push_content: PushContent = _setting(
        partial(parsers.one_of, PushContent), "packet", "What a push carries: packet, or wakeup for its version alone."
    )
    push_on: frozenset[str] = _setting(
        parsers.push_on, "video", "What wakes a device: video, or video,status for status changes too."
    )
    apns_key_file: Path | None = _setting(parsers.file, None, "Apple's .p8 key, which signs for pushes through APNs.")
    apns_key_id: str | None = _setting(parsers.apple_id, None, "The ID of that key.")
    apns_team_id: str | None = _setting(parsers.apple_id, None, "The ID of the team that has it.")
    apns_cert_file: Path | None = _setting(
        parsers.file, None, "A certificate and its private key in PEM, instead of a key."
    )
    apns_topic: str | None = _setting(parsers.topic, None, "The app's bundle ID; a certificate names it itself.")
    apns_endpoint: str | None = _setting(parsers.provider_url, None, "Instead of Apple's hosts: a simulator.")
    apns_ca_file: Path | None = _setting(parsers.file, None, "The certificate authority of that, in PEM.")
    fcm_credentials_file: Path | None = _setting(
        parsers.file, None, "The JSON key of the service account that sends through FCM."
    )
    fcm_endpoint: str | None = _setting(parsers.provider_url, None, "Instead of Google's host: a simulator.")
    fcm_ca_file: Path | None = _setting(parsers.file, None, "The certificate authority of that, in PEM.")
    cors_origins: tuple[str, ...] = _setting(
        parsers.origins, "", "The web origins that may call the gateway, separated by commas, or *.", bare=True
    )
    rate_calls: Rate | None = _setting(
        parsers.rate, "20/100", "How many calls a client may make a second, and how many at once; 0: no limit."
    )
    rate_frames: Rate | None = _setting(
        parsers.rate,
        "20/100",
        "How many frames a client may send a second, and how many at once; 0: no limit.",
    )
    max_connections: int = _setting(
        partial(parsers.whole, 1, 1_000_000), "15000", "How many connections a process takes, sockets and others."
    )
    ping_s: float = _setting(parsers.span, "25", "How often a socket is pinged.")
    pong_s: float = _setting(parsers.span, "20", "How long a socket may take to answer a ping before it is closed.")
    drain_s: float = _setting(parsers.pause, "30", "How long a process that is told to stop may take for it.")
    workers: int = _setting(partial(parsers.whole, 1, 256), "1", "How many processes serve.")
    operator_token: str | None = _setting(
        partial(parsers.secret_text, 16),
        None,
        "The bearer token `/metrics` and the console ask for; not set: the former is open, the latter is not there.",
        secret=True,
    )
    demo: bool | None = _setting(
        parsers.flag,
        None,
        "Whether there is a demo page, for everybody: true or false; not set: where embedded, for this machine alone.",
    )
    worker_port: int | None = _setting(
        partial(parsers.whole, 0, 65_535), None, "The port of the operator's pages of `gateway worker`; not set: none."
    )
    sweep_s: float = _setting(parsers.span, "300", "How often recent uploads that nobody confirmed are looked for.")
    sweep_full_s: float | None = _setting(
        parsers.span,
        None,
        "How often everything that is kept is looked at; not set: every hour, or once a day where reading is paid for.",
    )
    sweep_rate: int = _setting(
        partial(parsers.whole, 0, 1_000_000),
        "500",
        "How many objects, and how many documents, that takes a second; 0: as fast as it can.",
    )
    upload_events_url: str | None = _setting(
        partial(parsers.store_url, EVENT_SCHEMES), None, "Where the object store says what was uploaded: a queue."
    )
    log_format: LogFormat = _setting(partial(parsers.one_of, LogFormat), "text", "A log line's form: text or json.")
    log_level: LogLevel = _setting(
        partial(parsers.one_of, LogLevel), "info", "The least that is logged: debug, info, warning or error."
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

    def shown(self, name: str) -> str:
        """The value of the setting called `name`, without prefix, as it may be shown: a URL without its password."""
        return next(given.shown for given in self.given if given.variable == PREFIX + name)

    @property
    def shows_demo(self) -> bool:
        """Whether there is a demo page: where it is asked for, or where nobody but this machine's own users reach a
        gateway that runs with a made-up secret, as on the first start."""
        if self.demo is not None:
            return self.demo
        return self.secret_file is not None and self.public_url is None and parsers.is_loopback(self.host)

    @property
    def full_sweep_s(self) -> float:
        """How often everything that is kept is looked at."""
        paid = parsers.scheme_of(self.state_url) == "dynamodb"
        return self.sweep_full_s or (_DAY_S if paid else _HOUR_S)

    @property
    def bus_is_in_process(self) -> bool:
        """Whether packets reach only the process that publishes them."""
        return parsers.scheme_of(self.bus_url) in IN_PROCESS_BUSES


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
    rules = (
        _one_key,
        _made_up_secret,
        _in_process_bus,
        _in_process_stores,
        _events_of_s3,
        _upload_and_video,
        _viewed_and_ended,
        _ping_and_pong,
        _apns_key,
        _apns_credentials,
        _fcm_credentials,
        _demo,
    )
    for rule in rules:
        with suppress(KeyError):
            yield from rule(values, named)


def _one_key(_values: Mapping[str, Any], named: Collection[str]) -> Iterator[str]:
    keys = [PREFIX + name for name in KEY_SETTINGS if name in named]
    if len(keys) > 1:
        yield f"{' and '.join(keys)} are set: set only the one that verifies your clients' tokens."


def _made_up_secret(values: Mapping[str, Any], named: Collection[str]) -> Iterator[str]:
    if not parsers.is_loopback(values["host"]) and not any(name in named for name in KEY_SETTINGS):
        keys = " or ".join(PREFIX + name for name in KEY_SETTINGS)
        yield f"GATEWAY_HOST {values['host']} is open to others, where a made-up secret will not do: set {keys}."


def _in_process_bus(values: Mapping[str, Any], _named: Collection[str]) -> Iterator[str]:
    if values["workers"] > 1 and parsers.scheme_of(values["bus_url"]) in IN_PROCESS_BUSES:
        yield (
            f"GATEWAY_WORKERS is {values['workers']}, but with GATEWAY_BUS_URL {values['bus_url']} no process hears "
            "of another's packets: set GATEWAY_BUS_URL to redis://host:port, or GATEWAY_WORKERS to 1."
        )


def _in_process_stores(values: Mapping[str, Any], _named: Collection[str]) -> Iterator[str]:
    for name in ("STATE_URL", "OBJECTS_URL"):
        if values["workers"] > 1 and parsers.scheme_of(values[name.lower()]) == "memory":
            yield (
                f"GATEWAY_WORKERS is {values['workers']}, but with GATEWAY_{name} memory: each process keeps its own: "
                "set another, or GATEWAY_WORKERS to 1."
            )


def _events_of_s3(values: Mapping[str, Any], _named: Collection[str]) -> Iterator[str]:
    if values["upload_events_url"] is not None and parsers.scheme_of(values["objects_url"]) != "s3":
        yield (
            "GATEWAY_UPLOAD_EVENTS_URL means nothing without GATEWAY_OBJECTS_URL s3://bucket: set that too, or leave "
            "it out."
        )


def _upload_and_video(values: Mapping[str, Any], _named: Collection[str]) -> Iterator[str]:
    if values["upload_ttl_s"] > values["video_ttl_s"]:
        yield "GATEWAY_UPLOAD_TTL_S must not be above GATEWAY_VIDEO_TTL_S: a video would expire while it is uploaded."


def _viewed_and_ended(values: Mapping[str, Any], _named: Collection[str]) -> Iterator[str]:
    if values["viewed_keep_s"] > values["ended_keep_s"]:
        yield "GATEWAY_VIEWED_KEEP_S must not be above GATEWAY_ENDED_KEEP_S: what deletes the bytes would be gone."


def _ping_and_pong(values: Mapping[str, Any], _named: Collection[str]) -> Iterator[str]:
    if values["pong_s"] > values["ping_s"]:
        yield "GATEWAY_PONG_S must not be above GATEWAY_PING_S: a ping would go out before the one before was given up."


def _apns_key(_values: Mapping[str, Any], named: Collection[str]) -> Iterator[str]:
    if "APNS_KEY_FILE" in named:
        for name in ("APNS_KEY_ID", "APNS_TEAM_ID", "APNS_TOPIC"):
            if name not in named:
                yield f"GATEWAY_APNS_KEY_FILE needs GATEWAY_{name}: set it too."
        if "APNS_CERT_FILE" in named:
            yield "GATEWAY_APNS_KEY_FILE and GATEWAY_APNS_CERT_FILE are set: set only one of them."
        return
    for name in ("APNS_KEY_ID", "APNS_TEAM_ID"):
        if name in named:
            yield f"GATEWAY_{name} means nothing without GATEWAY_APNS_KEY_FILE: set that, or leave it out."


def _apns_credentials(_values: Mapping[str, Any], named: Collection[str]) -> Iterator[str]:
    if "APNS_KEY_FILE" not in named and "APNS_CERT_FILE" not in named:
        for name in ("APNS_TOPIC", "APNS_ENDPOINT", "APNS_CA_FILE"):
            if name in named:
                yield f"GATEWAY_{name} means nothing without GATEWAY_APNS_KEY_FILE or GATEWAY_APNS_CERT_FILE: set one."


def _fcm_credentials(_values: Mapping[str, Any], named: Collection[str]) -> Iterator[str]:
    if "FCM_CREDENTIALS_FILE" not in named:
        for name in ("FCM_ENDPOINT", "FCM_CA_FILE"):
            if name in named:
                yield f"GATEWAY_{name} means nothing without GATEWAY_FCM_CREDENTIALS_FILE: set it."


def _demo(values: Mapping[str, Any], named: Collection[str]) -> Iterator[str]:
    if not values["demo"]:
        return
    for name in ("JWT_PUBLIC_KEY", "JWKS_URL"):
        if name in named:
            yield f"GATEWAY_DEMO is true, but with GATEWAY_{name} nothing here can sign its tokens: set it to false."
    for name in ("APNS_KEY_FILE", "APNS_CERT_FILE", "FCM_CREDENTIALS_FILE"):
        if name in named:
            yield f"GATEWAY_DEMO is true, but with GATEWAY_{name} pushes do not come to its phones: set it to false."
