"""The contract of an object store: bytes under a key, moved by signed URLs, written once.

A store knows nothing of videos. Phones talk to it directly, through URLs that it signs; the gateway itself only asks
what is there and deletes. A store whose bytes this process serves itself (disk, memory) also implements
`ServedObjectStore`; the gateway mounts it under `SERVED_PATH`.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

SERVED_PATH = "/objects/"
"""Where the gateway serves the URLs of a `ServedObjectStore`: the object's key follows."""

MAX_KEY_LENGTH = 200
"""Keys are 2 to 8 segments of `A-Z a-z 0-9 . _ -`, none of them `.` or `..`, joined by `/`; this long at most."""


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


class ObjectsUnavailable(Exception):  # noqa: N818 - named for what the caller answers
    """The object store could not do it now; what was asked may or may not have happened."""


class ObjectStore(Protocol):
    """Where bytes are kept. Every method may raise `ObjectsUnavailable`, and ValueError for an ill-formed key."""

    async def sign_upload(
        self, key: str, *, size: int, content_type: str, sha256: str | None, expires_at: int
    ) -> SignedUpload:
        """A URL that takes exactly `size` bytes of `content_type`, whose SHA-256 is `sha256` (64 hex digits) if given.

        Nothing else can be stored with it, and nothing that is stored already can be replaced (write-once). It dies at
        `expires_at` (ms) or sooner, as the answer says.
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

        Objects stored or deleted meanwhile may or may not be there. `prefix` is the first segment and its slash, or "".
        """
        ...

    async def close(self) -> None:
        """Release everything."""
        ...


@dataclass(frozen=True, slots=True)
class UploadGrant:
    """What a valid upload URL allows: just these bytes under this key."""

    key: str
    size: int
    content_type: str
    sha256: str | None


class SignatureRefused(Exception):  # noqa: N818
    """The URL's signature is missing, wrong or expired; the message says which, and never repeats the URL."""


class AlreadyStored(Exception):  # noqa: N818
    """Something is stored under the key already; it was not touched."""


class BytesRefused(Exception):  # noqa: N818
    """What was sent is not what was signed: too many bytes, too few, or another hash. Nothing was stored."""


class StoredObject(Protocol):
    """An open object: its bytes stay readable until `close`, even if it is deleted meanwhile."""

    info: ObjectInfo

    def read(self, start: int, length: int) -> AsyncIterator[bytes]:
        """The bytes from `start` on, `length` of them, in chunks; both within the object's size."""
        ...

    async def close(self) -> None: ...


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
        visible and nothing is left behind. Of several uploads of one key exactly one succeeds.
        """
        ...

    async def open(self, key: str) -> StoredObject | None:
        """The object for reading, or None."""
        ...

    async def discard_stale(self) -> int:
        """Remove what uploads that died left behind; how many files went."""
        ...
