"""What processes say to each other for the sake of consoles. Pure: bytes to values and back.

A word, a space, and JSON. A receiver that does not know the word leaves the message: processes of two releases work
side by side.
"""

from enum import StrEnum

import orjson

ASKED, TOLD = "console.asked", "console.told"
"""The topics: what consoles ask of all processes, and what those tell. The latter is heard only by who serves one."""


class Ask(StrEnum):
    """What is asked of every process."""

    WATCH = "watch"
    """Somebody looks: go on telling. Said again and again."""
    HOUR = "hour"
    """The same, and tell the last hour first: somebody has begun to look."""
    CLIENT = "client"
    """What do you know of this client? `ask`: a mark for the answer; `client_id`."""


class Tell(StrEnum):
    """What a process tells. `process`: its name."""

    PROCESS = "process"
    """Who it is, and its last hour."""
    SAMPLE = "sample"
    """What it counts, as it stands."""
    FACTS = "facts"
    """How its backends do, and what it has counted that has a price."""
    CLIENT = "client"
    """What it knows of a client."""


def message(word: StrEnum, members: dict[str, object] | None = None) -> bytes:
    """A message as it travels."""
    return word.encode() + b" " + orjson.dumps(members or {})


def split(text: bytes) -> tuple[str, bytes]:
    """A message's word and its JSON."""
    word, _, members = text.partition(b" ")
    return word.decode(errors="replace"), members
