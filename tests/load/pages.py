"""Whether a page is one that a browser reads as it was meant, and that asks for nothing."""

import re
from html.parser import HTMLParser

_VOID = {"meta"}
"""Of the elements that have no end, those that the report has."""


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        assert not {"src", "href", "srcset", "action"} & set(names), (tag, names)
        assert not [name for name in names if name.startswith("on")], (tag, names)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag


def check_page(page: str) -> list[str]:
    """All its elements; AssertionError where one is not closed, or it leads or reaches anywhere."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert not reader.open
    assert not re.search(r"@import|url\(|<script|<link|<iframe|<img", page)
    assert "default-src 'none'" in page
    return reader.tags
