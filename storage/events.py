"""The contract of upload events: word from an object store that something was stored, whoever stored it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from storage.objects import ObjectsUnavailable

__all__ = ["ObjectsUnavailable", "UploadEvent", "UploadEvents"]


@dataclass(frozen=True, slots=True)
class UploadEvent:
    """Word that objects were stored. `keys`: as `ObjectStore` has them; none where it was about something else."""

    keys: tuple[str, ...]
    receipt: str = field(repr=False)


class UploadEvents(Protocol):
    """Events of uploads: each at least once, maybe late, in no order. Methods may raise `ObjectsUnavailable`."""

    async def receive(self) -> Sequence[UploadEvent]:
        """The next events; waits for some, but no longer than 20 s, and then gives none.

        One that is not `done` within a minute or so comes again.
        """
        ...

    async def done(self, events: Sequence[UploadEvent]) -> None:
        """What they said has been seen to: they come no more. May be in vain; then they come again."""
        ...

    async def close(self) -> None:
        """Release everything. Further calls raise `ObjectsUnavailable`."""
        ...
