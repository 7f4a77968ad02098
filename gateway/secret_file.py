"""The secret of the clients' tokens that is made up on the first start, where the settings name no key."""

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from gateway.parsers import ConfigError

MIN_SECRET_BYTES = 32
"""An HS256 secret is at least as long as the hash (RFC 7518, section 3.2)."""


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
