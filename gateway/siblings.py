"""The metrics of all processes of one program, whichever of them is asked.

Each hands its own out at a socket in a folder that only their owner enters. Whoever is asked asks the others, and puts
together what they say, with a label that says whose it is.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

from gateway.metrics import Metrics

ANSWER_S = 1.0
"""How long another process may take to hand out its metrics, before it is left out."""


class Siblings:
    """The processes called `names`, as the one called `name` sees them. `folder` is theirs alone."""

    def __init__(self, folder: Path, name: str, names: Sequence[str]) -> None:
        self._folder = folder
        self._name = name
        self._names = names

    @asynccontextmanager
    async def listening(self, exposition: Callable[[], bytes]) -> AsyncIterator[None]:
        """Hand out to the others what `exposition` gives, until the block ends."""
        path = self._folder / self._name
        # It takes the place of a socket that one who was killed has left there.
        server = await asyncio.get_running_loop().create_unix_server(lambda: _Handing(exposition), str(path))
        try:
            yield
        finally:
            server.close()
            path.unlink(missing_ok=True)

    def tidy_up(self) -> None:
        """Remove the folder, if the others are gone too: for where whoever made it cannot."""
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    async def exposition(self, own: Metrics) -> bytes:
        """The metrics of all. A process that does not answer is left out, and counted in `own`."""
        others = [name for name in self._names if name != self._name]
        told = dict(zip(others, await asyncio.gather(*map(self._ask, others)), strict=True))
        own.siblings_silent.inc(sum(text is None for text in told.values()))
        told[self._name] = own.exposition()
        return merged({name: text for name in self._names if (text := told[name]) is not None})

    async def _ask(self, name: str) -> bytes | None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                reader, writer = await asyncio.open_unix_connection(str(self._folder / name))
                try:
                    return await reader.read() or None
                finally:
                    writer.transport.abort()
        return None


class _Handing(asyncio.Protocol):
    """Whoever connects is handed the metrics."""

    def __init__(self, exposition: Callable[[], bytes]) -> None:
        self._exposition = exposition

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        writing = cast("asyncio.Transport", transport)
        try:
            writing.write(self._exposition())
        finally:
            writing.close()


def merged(expositions: Mapping[str, bytes]) -> bytes:
    """One exposition of several, by process: each family once, its samples with the label `process`.

    They are texts of `Metrics.exposition`, so each line is a family's `# HELP`, its `# TYPE`, or a sample. Parsing them
    into the library's objects and writing those again takes thirty times as long, in which no packet goes out.
    """
    families: dict[bytes, list[bytes]] = {}
    for process, text in expositions.items():
        label = b'process="%b"' % process.encode()
        lines: list[bytes] = []
        headed = False
        for line in text.removesuffix(b"\n").split(b"\n"):
            if not line.startswith(b"# "):
                lines.append(_labelled(line, label))
                continue
            _, what, family, _ = line.split(b" ", 3)
            if what == b"HELP":
                headed = family in families
                lines = families.setdefault(family, [])
            if not headed:
                lines.append(line)
    return b"".join(b"%b\n" % line for lines in families.values() for line in lines)


def _labelled(sample: bytes, label: bytes) -> bytes:
    name, brace, rest = sample.partition(b"{")
    if brace:
        return b"%b{%b,%b" % (name, label, rest)
    name, _, value = sample.partition(b" ")
    return b"%b{%b} %b" % (name, label, value)
