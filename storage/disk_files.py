"""The files of `storage.disk`: every function here may wait for the disk, so all of them run in its threads.

Under the root stand `secret`, `incoming/` (what is being uploaded, under random names) and `objects/`, where the object
`a/b/c` is the file `a/b~c` (no key contains a `~`). A file is the object's bytes and after them a footer: so one `link`
publishes bytes and content type together, and nothing else can tell a whole object from a part of one.

Nothing here follows a symbolic link: whatever stands in a folder of objects, a key cannot lead out of it.
"""

import io
import os
import secrets
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from storage.objects import (
    MAX_CONTENT_TYPE_LENGTH,
    AlreadyStored,
    ObjectInfo,
    ObjectsUnavailable,
    UploadGrant,
    check_key,
    check_prefix,
)
from storage.signing import SECRET_BYTES
from storage.uploads import UploadCheck

_MARK = b"object/1"
_FOOTER = struct.Struct(">HQ8s")
"""The end of a file: length of the content type, which stands before it; size of the object; `_MARK`."""
_MAX_FOOTER_BYTES = MAX_CONTENT_TYPE_LENGTH + _FOOTER.size

# Without O_NONBLOCK, a pipe that somebody put there would hold a thread for ever.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_NOT_THERE = (FileNotFoundError, NotADirectoryError)


class IncomingFile:
    """The file of one upload, from `create` to `publish` or `discard`; used by one thread at a time."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / secrets.token_hex(16)
        self._file: io.FileIO | None = None

    def create(self) -> None:
        """Make the file, empty and for the owner only."""
        self._file = io.FileIO(os.open(self.path, _CREATE, 0o600), "wb")

    def write(self, data: bytes) -> None:
        """Append `data`, all of it."""
        if self._file is None:
            raise ValueError("not created")
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]

    def publish(self, folder: int, name: str) -> None:
        """Make the file durable, then have it appear as `name` in `folder`. FileExistsError if something is there."""
        if self._file is None:
            raise ValueError("not created")
        os.fsync(self._file.fileno())
        os.link(self.path, name, dst_dir_fd=folder, follow_symlinks=False)
        try:
            os.fsync(folder)
        except OSError:
            os.unlink(name, dir_fd=folder)  # it would be refused, and yet be there
            raise

    def discard(self) -> None:
        """Remove the file from where uploads are written; published, it stays where it is published."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self.path.unlink(missing_ok=True)


class ObjectFiles:
    """The folder of one store. Methods raise OSError; keys are checked before they come here."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._objects = root / "objects"
        self._incoming = root / "incoming"
        self._durable_folders: set[str] = set()
        for folder in (self._objects, self._incoming):
            _make_folders(folder)
            _sync_folder(folder)  # refuses a link: `link` could not publish through it

    def secret(self) -> bytes:
        """The secret of this store, made by whichever process comes first."""
        path = self._root / "secret"
        if not path.exists():
            self._make_secret(path)
        secret = path.read_bytes()
        if len(secret) != SECRET_BYTES:
            raise ObjectsUnavailable(f"{path} is damaged: it must hold {SECRET_BYTES} bytes, not {len(secret)}")
        return secret

    def incoming(self) -> IncomingFile:
        """A file for a new upload, not created yet."""
        return IncomingFile(self._incoming)

    def check_new(self, key: str) -> None:
        """Raise AlreadyStored if something is there under `key`."""
        segment, name = _place(key)
        try:
            os.lstat(self._objects / segment / name)
        except _NOT_THERE:
            return
        raise AlreadyStored(key)

    def publish(self, file: IncomingFile, grant: UploadGrant, check: UploadCheck, chunks: Sequence[bytes]) -> None:
        """Write the last of the bytes and the footer, and make it the object. Raises AlreadyStored, BytesRefused."""
        rest = b"".join(chunks)
        check.digest(rest)
        check.finish()
        content_type = grant.content_type.encode()
        file.write(rest + content_type + _FOOTER.pack(len(content_type), grant.size, _MARK))
        segment, name = _place(grant.key)
        self._make_folder(segment)
        with _open_folder(self._objects / segment) as folder:
            try:
                file.publish(folder, name)
            except FileExistsError:
                raise AlreadyStored(grant.key) from None

    def open(self, key: str) -> tuple[ObjectInfo, io.FileIO] | None:
        """The object and its file, or None where there is none: no file, none of ours, or one that was cut."""
        segment, name = _place(key)
        try:
            with _open_folder(self._objects / segment) as folder:
                descriptor = os.open(name, _READ, dir_fd=folder)
        except _NOT_THERE:
            return None
        except OSError:
            if self._is_foreign(segment, name):
                return None
            raise
        info = None
        try:
            info = _read_info(descriptor, key)
        finally:
            if info is None:
                os.close(descriptor)
        return None if info is None else (info, io.FileIO(descriptor, "rb"))

    def delete(self, key: str) -> None:
        """Remove what is there.

        The folder is not synced: should a power cut bring an object back, the gateway's sweep deletes it again.
        """
        segment, name = _place(key)
        try:
            with _open_folder(self._objects / segment) as folder:
                os.unlink(name, dir_fd=folder)
        except _NOT_THERE:
            return
        except OSError:
            if not self._is_foreign(segment, name):
                raise

    def segments(self) -> list[str]:
        """The first segments under which there may be objects, in the order of the keys."""
        with os.scandir(self._objects) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        return sorted(filter(_is_segment, names), key=lambda name: name + "/")

    def keys(self, segment: str, after: str) -> list[str]:
        """The keys in `segment` that sort after `after`, sorted."""
        try:
            with _open_folder(self._objects / segment) as folder, os.scandir(folder) as entries:
                names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
        except _NOT_THERE:
            return []
        # Sorted as keys: `~` sorts after everything that is in a key, the `/` it stands for before most of it.
        keys = (f"{segment}/{name.replace('~', '/')}" for name in names)
        return sorted(key for key in keys if key > after and _is_key(key))

    def discard_stale(self, older_than_s: float) -> int:
        """Remove uploads whose file was last written before `older_than_s` (seconds since the epoch); how many."""
        gone = 0
        with os.scandir(self._incoming) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # its upload ended meanwhile
                    if entry.is_file(follow_symlinks=False) and entry.stat().st_mtime < older_than_s:
                        Path(entry.path).unlink()
                        gone += 1
        return gone

    def _make_secret(self, path: Path) -> None:
        file = self.incoming()
        try:
            file.create()
            file.write(secrets.token_bytes(SECRET_BYTES))
            with _open_folder(self._root) as root, suppress(FileExistsError):  # another process was faster
                file.publish(root, path.name)
        finally:
            file.discard()

    def _make_folder(self, segment: str) -> None:
        # Once for each process, also where the folder is there: whoever made it may not have synced it yet.
        if segment not in self._durable_folders:
            (self._objects / segment).mkdir(mode=0o700, exist_ok=True)
            _sync_folder(self._objects)
            self._durable_folders.add(segment)

    def _is_foreign(self, segment: str, name: str) -> bool:
        """Whether a path leads to no file, so that what it leads to is none of ours: a link, a folder, a socket."""
        try:
            folder = os.lstat(self._objects / segment).st_mode
            return not stat.S_ISDIR(folder) or not stat.S_ISREG(os.lstat(self._objects / segment / name).st_mode)
        except FileNotFoundError:
            return True


def read_range(file: io.FileIO, start: int, length: int) -> bytes:
    """Exactly `length` bytes of an open object. OSError if it was cut meanwhile."""
    pieces: list[bytes] = []
    while length:
        piece = os.pread(file.fileno(), length, start)
        if not piece:
            raise OSError("the file ends early")
        pieces.append(piece)
        start += len(piece)
        length -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _read_info(file: int, key: str) -> ObjectInfo | None:
    status = os.fstat(file)
    length = min(status.st_size, _MAX_FOOTER_BYTES)
    if not stat.S_ISREG(status.st_mode) or length < _FOOTER.size:
        return None
    tail = os.pread(file, length, status.st_size - length)
    if len(tail) < length:
        return None
    type_length, size, mark = _FOOTER.unpack(tail[-_FOOTER.size :])
    content_type = tail[-_FOOTER.size - type_length : -_FOOTER.size]
    if mark != _MARK or size + type_length + _FOOTER.size != status.st_size or not content_type.isascii():
        return None
    return ObjectInfo(key, size, content_type.decode())


def _place(key: str) -> tuple[str, str]:
    """The folder and the file name of a key; at most 200 bytes, as the key is, and no file system takes less."""
    check_key(key)
    segment, _, rest = key.partition("/")
    return segment, rest.replace("/", "~")


@contextmanager
def _open_folder(path: Path) -> Iterator[int]:
    folder = os.open(path, _FOLDER)
    try:
        yield folder
    finally:
        os.close(folder)


def _make_folders(path: Path) -> None:
    if not path.is_dir():
        _make_folders(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    with _open_folder(path) as folder:
        os.fsync(folder)


def _is_key(key: str) -> bool:
    try:
        check_key(key)
    except ValueError:
        return False
    return True


def _is_segment(name: str) -> bool:
    try:
        check_prefix(name + "/")
    except ValueError:
        return False
    return True
