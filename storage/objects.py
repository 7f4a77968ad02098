"""The contract of an object store: bytes under a key, moved by signed URLs, written once.

A store knows nothing of videos. Phones talk to it directly, through URLs that it signs; the gateway itself only asks
what is there and deletes. A store whose bytes this process serves itself (disk, memory) also implements
`ServedObjectStore`; the gateway mounts it under `SERVED_PATH`.
"""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

SERVED_PATH = "/objects/"
"""Where the gateway serves the URLs of a `ServedObjectStore`: the object's key follows."""

MAX_KEY_LENGTH = 200
"""Keys are 2 to 8 segments of `A-Z a-z 0-9 . _ -`, none of them `.` or `..`, joined by `/`; this long at most."""
MAX_CONTENT_TYPE_LENGTH = 127
"""Content types are `type/subtype`, without parameters; this long at most."""

_SEGMENT = re.compile(r"(?!\.\.?$)[A-Za-z0-9._-]+", re.ASCII)
_TOKEN = r"[A-Za-z0-9!#$&^_.+-]+"  # noqa: S105 - a token of RFC 6838, nothing secret
_CONTENT_TYPE = re.compile(f"{_TOKEN}/{_TOKEN}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What is stored under a key: `size` in bytes, `content_type` as it was signed into the upload."""

    key: str
    size: int
    content_type: str


@dataclass(frozen=True, slots=True)
class SignedUpload:
    """How to upload one object: PUT to `url` with `headers`, before `expires_at` (ms since the epoch).

    `url` may be relative to the gateway's address. It is a secret: whoever has it can upload.
    """

    url: str = field(repr=False)
    headers: dict[str, str]
    expires_at: int


@dataclass(frozen=True, slots=True)
class SignedDownload:
    """Where to download one object, until `expires_at` (ms since the epoch). `url` is a secret, maybe relative."""

    url: str = field(repr=False)
    expires_at: int


class ObjectsUnavailable(Exception):
    """The object store could not do it now; what was asked may or may not have happened."""


class ObjectStore(Protocol):
    """Where bytes are kept. Every method may raise `ObjectsUnavailable`, and ValueError for an ill-formed key."""

    async def sign_upload(
        self, key: str, *, size: int, content_type: str, sha256: str | None, expires_at: int
    ) -> SignedUpload:
        """A URL that takes exactly `size` bytes of `content_type`, whose SHA-256 is `sha256` if given.

        `size`: from 1. `content_type`: as `MAX_CONTENT_TYPE_LENGTH` says. `sha256`: 64 lower-case hex digits. Others
        are a ValueError. Nothing else can be stored with the URL, and nothing that is stored already can be replaced
        (write-once). It dies at `expires_at` (ms) or sooner, as the answer says.
        """
        ...

    async def sign_download(self, key: str, *, expires_at: int) -> SignedDownload:
        """A URL that reads the object, `Range` included, until `expires_at` (ms) or sooner, as the answer says.

        Signed whether or not the object exists.
        """
        ...

    async def head(self, key: str) -> ObjectInfo | None:
        """What is stored under `key`, or None. Authoritative: sees every upload that was answered."""
        ...

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove the objects; missing ones are no error. Afterwards `head` finds none of them."""
        ...

    def list(self, prefix: str, *, after: str = "") -> AsyncIterator[str]:
        """The keys that begin with `prefix` and sort after `after`, in order.

        Objects stored or deleted meanwhile may or may not be there. `prefix` is the first segment and its slash, or ""
        (ValueError otherwise). What a store cannot read as an object (a damaged file) may be listed, so that it can be
        deleted.
        """
        ...

    async def close(self) -> None:
        """Release everything. Further calls that need what is stored raise `ObjectsUnavailable`."""
        ...


@dataclass(frozen=True, slots=True)
class UploadGrant:
    """What a valid upload URL allows: just these bytes under this key."""

    key: str
    size: int
    content_type: str
    sha256: str | None


class SignatureRefused(Exception):
    """The URL's signature is missing, wrong or expired; the message says which, and never repeats the URL."""


class AlreadyStored(Exception):
    """Something is stored under the key already; it was not touched."""


class BytesRefused(Exception):
    """What was sent is not what was signed: too many bytes, too few, or another hash. Nothing was stored."""


class StoredObject(Protocol):
    """An open object: its bytes stay readable until `close`, even if it is deleted meanwhile."""

    info: ObjectInfo

    def read(self, start: int, length: int) -> AsyncIterator[bytes]:
        """The bytes from `start` on, `length` of them, in chunks; both within the object's size (else ValueError).

        Raises ObjectsUnavailable if they cannot be read.
        """
        ...

    async def close(self) -> None:
        """Release it. To be done before the store is closed; a second time it does nothing."""
        ...


@runtime_checkable
class ServedObjectStore(ObjectStore, Protocol):
    """An object store whose URLs the gateway answers itself."""

    def authorize_upload(self, key: str, query: Mapping[str, str]) -> UploadGrant:
        """What the query of a signed upload URL for `key` allows. Raises SignatureRefused."""
        ...

    def authorize_download(self, key: str, query: Mapping[str, str], *, method: Literal["GET", "HEAD"]) -> None:
        """Return if the query of a signed download URL for `key` is valid. Raises SignatureRefused."""
        ...

    async def receive(self, grant: UploadGrant, chunks: AsyncIterator[bytes]) -> None:
        """Store the bytes, checking them while they stream.

        When it returns, the object is durable and visible, whole. Raises AlreadyStored (before the first chunk is
        taken, where it can be known then), BytesRefused as soon as the bytes cannot be right, ObjectsUnavailable
        (no space, for one), and whatever `chunks` raises (a connection that breaks); after any of them nothing is
        visible and nothing is left behind, nor when it is cancelled (unless that comes after the last byte: then the
        object is whole or not there). Of several uploads of one key exactly one succeeds.
        """
        ...

    async def open(self, key: str) -> StoredObject | None:
        """The object for reading, or None."""
        ...

    async def discard_stale(self) -> int:
        """Remove what uploads that died left behind; how many files went."""
        ...


def is_key(key: str) -> bool:
    """Whether `key` is one, as `MAX_KEY_LENGTH` says."""
    segments = key.split("/")
    return len(key) <= MAX_KEY_LENGTH and 2 <= len(segments) <= 8 and all(map(_SEGMENT.fullmatch, segments))


def check_key(key: str) -> None:
    """Raise ValueError where `key` is none."""
    if not is_key(key):
        raise ValueError(f"not a key of an object: {key!r}")


def check_prefix(prefix: str) -> None:
    """Raise ValueError where `prefix` is none that `ObjectStore.list` takes."""
    if prefix and not (prefix.endswith("/") and _SEGMENT.fullmatch(prefix[:-1])):
        raise ValueError(f"not a prefix: {prefix!r}")


def check_upload(key: str, *, size: int, content_type: str, sha256: str | None) -> None:
    """Raise ValueError where these break the contract of `ObjectStore.sign_upload`."""
    check_key(key)
    if size < 1:
        raise ValueError(f"{key}: an object has at least one byte, not {size}")
    if len(content_type) > MAX_CONTENT_TYPE_LENGTH or not _CONTENT_TYPE.fullmatch(content_type):
        raise ValueError(f"{key}: not a content type: {content_type!r}")
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise ValueError(f"{key}: not 64 lower-case hex digits: {sha256!r}")
