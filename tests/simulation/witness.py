"""What the edges of the simulation tell of what really happens. `truth.Truth` is the one that judges it."""

from collections.abc import Callable

from gateway.bus.bus import Publication
from push.sender import Outcome, Wakeup
from storage.documents import Document

Line = str | Callable[[], str]
"""A line of the story, or what makes it once it is printed."""


class Witness:
    """Is told everything, and makes nothing of it."""

    def say(self, machine: str, line: Line) -> None:
        """Something happened on that machine."""

    def broken(self, name: str, text: str) -> None:
        """Something was seen that must not be. `name`: short, and always the same for the same kind."""
        raise AssertionError(f"{name}: {text}")

    # --- Backends

    def wrote(self, machine: str, before: Document, after: Document) -> None:
        """A document was replaced, by a write that this machine began."""

    def object_stored(self, key: str) -> None:
        """Bytes were stored."""

    def object_deleted(self, key: str) -> None:
        """Bytes were deleted, if there were any."""

    def published(self, machine: str, publication: Publication) -> None:
        """A machine hands a publication to the bus."""

    # --- Pushes: `push` is a number of its own for each

    def push_left(self, push: int, machine: str, wakeup: Wakeup) -> None:
        """A push leaves a process."""

    def pushed(self, push: int, outcome: Outcome) -> None:
        """It has reached its provider, which will answer that."""

    def push_heard(self, push: int, outcome: Outcome | None) -> None:
        """The process has the answer, or (None) waits for it no longer."""

    # --- HTTP: `call` is a number of its own for each request that reached a process, copies included

    def request_came(
        self,
        call: int,
        machine: str,
        method: str,
        path: str,
        *,
        query: dict[str, str],
        headers: dict[str, str],
        body: bytes,
    ) -> None:
        """A request reached a process. The headers' names are in lower case."""

    def answer_left(self, call: int, status: int, body: bytes) -> None:
        """Its answer left the process, whatever becomes of it."""

    def call_ended(self, call: int) -> None:
        """The process does nothing more for it: it is done, or dead."""

    # --- Sockets: `socket` is a number of its own for each that was asked for

    def socket_asked(self, socket: int, machine: str, token: str, query: dict[str, str]) -> None:
        """The request for a socket reached a process."""

    def socket_opened(self, socket: int) -> None:
        """The handshake was answered with 101."""

    def frame_came(self, socket: int, text: bytes) -> None:
        """A text frame reached the process."""

    def frame_left(self, socket: int, text: bytes) -> None:
        """A text frame left the process, or waits for a peer that does not read."""

    def socket_closed(self, socket: int, code: int) -> None:
        """The process has sent a close frame with that code: nothing more will come of it."""

    def socket_stalled(self, socket: int, *, stalled: bool) -> None:
        """What the process sends is not read any more, or is again."""

    def socket_ended(self, socket: int) -> None:
        """The process's end of it is gone, or the process is."""
