"""The round of work: part by part, each change said before it is made."""

from collections.abc import Iterator

from storage.aws.setup.access import Access
from storage.aws.setup.bucket import Bucket
from storage.aws.setup.changes import Part, UnknownCall
from storage.aws.setup.queue import Queue
from storage.aws.setup.rights import policy
from storage.aws.setup.service import Service
from storage.aws.setup.table import Table
from storage.aws.setup.wanted import Wanted


class Setup:
    """The one round of work that makes things as they are `wanted`. Raises NotSetUp."""

    def __init__(self, wanted: Wanted) -> None:
        self._parts: list[Part] = []
        self._wanted = wanted
        self._access = access = Access()
        self._table = Table(Service(wanted.documents, access)) if wanted.documents else None
        bucket = Bucket(Service(wanted.objects, access), arn=access.arn(wanted.objects)) if wanted.objects else None
        self._queue = Queue(Service(wanted.events, access), bucket) if bucket and wanted.events else None
        if self._table:
            self._parts += self._table.parts()
        if bucket:
            self._parts += bucket.parts(origins=wanted.origins, expire_days=wanted.expire_days)
        if self._queue:
            self._parts += self._queue.parts()

    def run(self, *, dry: bool) -> Iterator[str]:
        """Do it, or only say what would be done: a line for each thing that is looked at, and for each change before it
        is made."""
        for on, part in self._parts:
            said = False
            try:
                for change in part():
                    said = True
                    would = "would " if dry and change.apply else ""
                    yield f"{on}: {would}{change.what}"
                    if change.apply and not dry:
                        change.apply()
            except UnknownCall as error:
                said = True
                yield f"{on}: skipped: {error}"
            if not said:
                yield f"{on}: as it should be"

    def policy(self) -> str:
        """As `policy`, with the account where it is known by now."""
        table = self._table.arn if self._table else None
        queue = self._queue.arn if self._queue else None
        return policy(self._wanted, table=table, queue=queue, access=self._access)
