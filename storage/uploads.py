"""Checking the bytes of an upload against what was signed, while they stream."""

import hashlib

from storage.objects import BytesRefused, UploadGrant


class UploadCheck:
    """Counts and hashes the bytes of one upload. All its methods raise BytesRefused, which says what was wrong."""

    def __init__(self, grant: UploadGrant) -> None:
        self._size = grant.size
        self._sha256 = grant.sha256
        self._hash = hashlib.sha256()
        self._counted = 0

    def count(self, size: int) -> None:
        """`size` more bytes have come."""
        self._counted += size
        if self._counted > self._size:
            raise BytesRefused(f"more than the {self._size} bytes that were signed")

    def digest(self, data: bytes) -> None:
        """Hash `data`, where a hash was signed. Apart from `count`, so that a thread can do it."""
        if self._sha256 is not None:
            self._hash.update(data)

    def finish(self) -> None:
        """All bytes that will come were counted and hashed."""
        if self._counted < self._size:
            raise BytesRefused(f"{self._counted} bytes instead of the {self._size} that were signed")
        if self._sha256 is not None and self._hash.hexdigest() != self._sha256:
            raise BytesRefused("the bytes have another SHA-256 than was signed")
