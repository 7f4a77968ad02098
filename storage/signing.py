"""Signed URLs of the stores whose bytes the gateway serves itself: pure, but for the clock."""

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from typing import Literal
from urllib.parse import urlencode

from storage.objects import (
    SERVED_PATH,
    SignatureRefused,
    SignedDownload,
    SignedUpload,
    UploadGrant,
    check_key,
    check_upload,
)

SECRET_BYTES = 32

_UPLOAD = "PUT"
_DOWNLOAD = "GET"


class UrlSigner:
    """Signs and checks URLs with `secret`.

    The signature (HMAC-SHA256, hex) covers the key and the whole query, whatever stands in it: a parameter more, less
    or changed makes it another one. `method` is one of the parameters, so an upload's URL downloads nothing and the
    other way round.
    """

    def __init__(self, secret: bytes, *, clock: Callable[[], float]) -> None:
        self._secret = secret
        self._clock = clock

    def sign_upload(
        self, key: str, *, size: int, content_type: str, sha256: str | None, expires_at: int
    ) -> SignedUpload:
        """See `ObjectStore.sign_upload`."""
        check_upload(key, size=size, content_type=content_type, sha256=sha256)
        query = {"method": _UPLOAD, "expires": str(expires_at), "size": str(size), "type": content_type}
        if sha256 is not None:
            query["sha256"] = sha256
        return SignedUpload(self._url(key, query), {"Content-Type": content_type}, expires_at)

    def sign_download(self, key: str, *, expires_at: int) -> SignedDownload:
        """See `ObjectStore.sign_download`."""
        check_key(key)
        return SignedDownload(self._url(key, {"method": _DOWNLOAD, "expires": str(expires_at)}), expires_at)

    def authorize_upload(self, key: str, query: Mapping[str, str]) -> UploadGrant:
        """See `ServedObjectStore.authorize_upload`."""
        self._check(key, query, method=_UPLOAD)
        return UploadGrant(key, int(query["size"]), query["type"], query.get("sha256"))

    def authorize_download(self, key: str, query: Mapping[str, str], *, method: Literal["GET", "HEAD"]) -> None:
        """See `ServedObjectStore.authorize_download`. One URL serves both methods."""
        if method not in {"GET", "HEAD"}:
            raise SignatureRefused("this URL is for downloading")
        self._check(key, query, method=_DOWNLOAD)

    def _url(self, key: str, query: dict[str, str]) -> str:
        return f"{SERVED_PATH}{key}?{urlencode({**query, 'signature': self._signature(key, query)})}"

    def _check(self, key: str, query: Mapping[str, str], *, method: str) -> None:
        given = query.get("signature")
        if given is None:
            raise SignatureRefused("the URL is not signed")
        signed = {name: value for name, value in query.items() if name != "signature"}
        # Compared as bytes: `compare_digest` refuses text that is not ASCII, and this one comes from anybody.
        if not hmac.compare_digest(given.encode(errors="replace"), self._signature(key, signed).encode()):
            raise SignatureRefused("the signature does not fit the URL")
        # What was signed is our own from here on, and so well-formed.
        if signed["method"] != method:
            raise SignatureRefused("the URL is signed for another method")
        if self._clock() * 1000 >= int(signed["expires"]):
            raise SignatureRefused("the URL has expired")

    def _signature(self, key: str, query: Mapping[str, str]) -> str:
        # JSON, so that no two queries read alike however their values are cut.
        message = json.dumps([key, sorted(query.items())]).encode()
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()
