"""Which push senders the settings ask for. What they need is imported only then: it takes a second, and 80 MiB."""

# ruff: noqa: PLC0415

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.config import PREFIX, Settings
from gateway.parsers import ConfigError
from push.sender import Platform, Sender

log = logging.getLogger(__name__)


def platforms_with_provider(settings: Settings) -> list[Platform]:
    """The platforms whose pushes go to a provider, whichever process sends them."""
    configured = {
        Platform.APNS: settings.apns_key_file or settings.apns_cert_file,
        Platform.FCM: settings.fcm_credentials_file,
    }
    return [platform for platform, file in configured.items() if file]


def platforms_on_console(settings: Settings) -> list[Platform]:
    """The platforms whose pushes are shown on the console: all of them, where there is no provider."""
    return [] if platforms_with_provider(settings) else list(Platform)


def open_senders(settings: Settings, console: Sender) -> dict[Platform, Sender]:
    """The senders, by platform; to be closed by the caller. Made within a running loop.

    With no provider configured `console` shows all pushes. Where only one is, the devices of the other are not woken.
    Raises ConfigError with every mistake in the files that the settings name.
    """
    platforms = platforms_with_provider(settings)
    if not platforms:
        return dict.fromkeys(Platform, console)
    openers: dict[Platform, Callable[[Settings], Sender]] = {Platform.APNS: _apns, Platform.FCM: _fcm}
    senders, mistakes = {}, list[str]()
    for platform in platforms:
        try:
            senders[platform] = openers[platform](settings)
        except ConfigError as error:
            mistakes += error.sentences
    if mistakes:
        raise ConfigError(mistakes)
    for platform in [one for one in Platform if one not in senders]:
        log.warning(
            "no push provider is configured for this platform: its devices are not woken", extra={"platform": platform}
        )
    return senders


def _apns(settings: Settings) -> Sender:
    name = "APNS_KEY_FILE" if settings.apns_key_file else "APNS_CERT_FILE"
    with _mistakes(name, settings.apns_key_file or settings.apns_cert_file):
        from push.apns import ApnsCertificate, ApnsKey, ApnsSender

        credentials: ApnsKey | ApnsCertificate
        if settings.apns_key_file:
            credentials = ApnsKey.load(
                settings.apns_key_file,
                key_id=settings.apns_key_id or "",
                team_id=settings.apns_team_id or "",
                topic=settings.apns_topic or "",
            )
        else:
            credentials = ApnsCertificate.load(settings.apns_cert_file or Path(), topic=settings.apns_topic)
    with _mistakes("APNS_CA_FILE", settings.apns_ca_file):
        return ApnsSender(credentials, endpoint=settings.apns_endpoint, ca_file=settings.apns_ca_file)


def _fcm(settings: Settings) -> Sender:
    with _mistakes("FCM_CREDENTIALS_FILE", settings.fcm_credentials_file):
        from push.fcm import FcmSender

        return FcmSender(
            settings.fcm_credentials_file or Path(), endpoint=settings.fcm_endpoint, ca_file=settings.fcm_ca_file
        )


@contextmanager
def _mistakes(name: str, file: Path | None) -> Iterator[None]:
    """Whatever goes wrong is a sentence about this setting."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            [f"{PREFIX}{name} needs more packages: install gateway[push] ({error.name} is missing)."]
        ) from error
    except (ValueError, OSError) as error:
        raise ConfigError([f"{PREFIX}{name}: {file} {error}."]) from error
