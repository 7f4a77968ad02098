"""The rule of compare-and-set, apart from where documents are kept."""

from collections.abc import Mapping, Sequence

from storage.documents import Conflict, Document


class Batch:
    """Calls of `DocumentStore.commit`, decided one after the other on what was stored when the batch began.

    `versions`: of the stored documents among those that the calls name. `removed`: at least the highest version that
    any document had when it was removed; a document made anew starts above it, so that a version is not used twice
    for a key even if the clock was set back in between. `now_us`: microseconds since the epoch.

    Afterwards `written` holds the last state of each document that was replaced (an empty body: removed), and
    `removed` covers the removals of the batch too.
    """

    def __init__(self, versions: Mapping[str, int], *, removed: int, now_us: int) -> None:
        self.written: dict[str, Document] = {}
        self.removed = removed
        self._versions = dict(versions)
        self._now_us = now_us

    def apply(self, documents: Sequence[Document]) -> list[Document]:
        """Decide one call: its documents with their new versions. Raises Conflict, which carries the earlier ones."""
        written: list[Document] = []
        for document in documents:
            current = self._versions.get(document.key, 0)
            if document.version != current:
                raise Conflict(document.key, written)
            written.append(self._replace(document, current))
        return written

    def _replace(self, document: Document, current: int) -> Document:
        if document.body:
            version = max((current or self.removed) + 1, self._now_us)
        else:
            version = 0
            self.removed = max(self.removed, current)
        self._versions[document.key] = version
        replaced = Document(document.key, version, document.body, document.due)
        self.written[document.key] = replaced
        return replaced
