"""The service account that sends through FCM, from the file that Google issues: firebase.google.com, "Send a message
using FCM HTTP v1 API", "Authorize HTTP v1 send requests".

firebase-admin (`credentials.Certificate`) would ask for the right to everything of the project. Here it is to send.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson
from google.oauth2.service_account import Credentials

SCOPE = "https://www.googleapis.com/auth/firebase.messaging"

_PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:-]{0,99}")


class Account(NamedTuple):
    """A service account, and the Firebase project that it sends for."""

    project_id: str
    credentials: Credentials


def account_of(path: Path) -> Account:
    """The service account in a JSON file as Google issues it.

    Raises ValueError with the second half of a sentence about the file, which holds nothing secret.
    """
    info = _json(path)
    if info.get("type") != "service_account":
        raise ValueError('is no key of a service account: its "type" is not "service_account"')
    project_id, token_uri = info.get("project_id"), info.get("token_uri")
    if not isinstance(project_id, str) or not _PROJECT.fullmatch(project_id):
        raise ValueError('names no Firebase project: "project_id" is missing or wrong')
    if not isinstance(token_uri, str) or https_address(token_uri) is None:
        raise ValueError('does not say where to get access tokens: "token_uri" is no https:// address')
    if not isinstance(info.get("client_email"), str):
        raise ValueError('does not say whose key it is: "client_email" is missing')
    try:
        credentials = Credentials.from_service_account_info(info, scopes=[SCOPE])  # type: ignore[no-untyped-call]
        credentials.sign_bytes(b"")  # what is no RSA key has been taken so far
    except Exception:  # many kinds, and some quote what they could not read
        raise ValueError('has no private key that can be used: "private_key" is no RSA key in PEM') from None
    return Account(project_id, credentials)


def _json(path: Path) -> Mapping[str, Any]:
    try:
        info = orjson.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    except orjson.JSONDecodeError:
        raise ValueError("is no JSON") from None
    if not isinstance(info, dict):
        raise ValueError("is no JSON object")
    return info


def https_address(url: str) -> tuple[str, int] | None:
    """Host and port of an https:// address; None if it is none."""
    try:
        parts = urlsplit(url)
        return (parts.hostname, parts.port or 443) if parts.scheme == "https" and parts.hostname else None
    except ValueError:
        return None
