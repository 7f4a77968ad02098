"""JSON objects, read strictly: a member is what it must be, or the object is refused with a ValueError."""

import json
from typing import Self, TypeVar

import orjson

T = TypeVar("T")

SPACE = " \t\r\n"


class Fields:
    """The members of a JSON object, each read as what it must be. Raises ValueError for what is something else."""

    def __init__(self, value: object) -> None:
        if not isinstance(value, dict):
            raise ValueError("no JSON object")
        self._members: dict[str, object] = value

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Raises ValueError for what is no JSON, or no object."""
        return cls(orjson.loads(body))

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def value(self, name: str) -> object:
        """Whatever it is; None where there is none."""
        return self._members.get(name)

    def text(self, name: str) -> str:
        return self._of(name, str)

    def number(self, name: str) -> int:
        return self._of(name, int)

    def flag(self, name: str) -> bool:
        return self._of(name, bool)

    def entries(self, name: str) -> "list[Fields]":
        return [Fields(entry) for entry in self._of(name, list)]

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(self._of(name, list))

    def fields(self, name: str) -> "Fields":
        return Fields(self._members.get(name))

    def headers(self, name: str) -> dict[str, str]:
        return {key: str(value) for key, value in self._of(name, dict).items()}

    def _of(self, name: str, kind: type[T]) -> T:
        value = self._members.get(name)
        if type(value) is not kind:
            raise ValueError(f"{name}: no {kind.__name__}")
        return value


def verbatim(body: bytes, name: str) -> bytes:
    """The value of a member, its bytes exactly as they came, where `body` is known to be a JSON object.

    Raises ValueError where it has no such member.
    """
    decoder = json.JSONDecoder()
    rest = body.decode()
    while True:
        rest = rest.lstrip(f"{SPACE}{{,")
        found, end = decoder.raw_decode(rest)
        rest = rest[end:].lstrip(f"{SPACE}:")
        _, end = decoder.raw_decode(rest)
        if found == name:
            return rest[:end].encode()
        rest = rest[end:]
