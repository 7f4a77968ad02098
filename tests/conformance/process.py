"""A client under test: a process that is told what to do by lines of JSON, and answers likewise."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence

import orjson

from tests.conformance.log import Log

LINE_BYTES = 4 << 20

Json = Mapping[str, object]
Told = Callable[[Json], None]


class NotStarted(Exception):
    """There is no such command, or it cannot be run."""


class Mute(Exception):
    """A client that did not answer, for whatever reason; the message says which."""


class Process:
    """One life of a client. `told`: is handed what it says by itself, line by line."""

    def __init__(self, process: asyncio.subprocess.Process, who: str, log: Log, told: Told) -> None:
        self._process = process
        self._who = who
        self._log = log
        self._told = told
        self._asked: dict[int, asyncio.Future[Json]] = {}
        self._listening = [asyncio.create_task(self._listen()), asyncio.create_task(self._overhear())]

    @classmethod
    async def start(
        cls, command: Sequence[str], environment: Mapping[str, str], *, who: str, log: Log, told: Told
    ) -> "Process":
        """Start it, in a session of its own. Raises NotStarted."""
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                env={**os.environ, **environment},
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                limit=LINE_BYTES,
                start_new_session=True,
            )
        except OSError as error:
            raise NotStarted(str(error)) from error
        return cls(process, who, log, told)

    async def ask(self, do: str, *, within_s: float, **members: object) -> Json:
        """Have it do something; its answer. Raises Mute where none comes."""
        id_ = len(self._asked) + 1
        answer: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        self._asked[id_] = answer
        self.say(do, id=id_, **members)
        try:
            async with asyncio.timeout(within_s):
                return await answer
        except TimeoutError:
            raise Mute(f"does not answer to {do!r} within {within_s:.0f} s") from None

    def say(self, do: str, **members: object) -> None:
        """Tell it something that has no answer, or whose answer nobody waits for."""
        assert self._process.stdin is not None
        if not self._process.stdin.is_closing():
            self._process.stdin.write(orjson.dumps({"do": do, **members}) + b"\n")

    async def exit(self, *, within_s: float) -> int:
        """Have it end by itself; its exit code. Raises Mute where it does not."""
        self.say("exit")
        try:
            async with asyncio.timeout(within_s):
                await self._process.wait()
        except TimeoutError:
            raise Mute(f"does not exit within {within_s:.0f} s") from None
        return await self.kill()

    async def kill(self) -> int:
        """Kill it and what it has started; what it said before has been heard then. Its exit code."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await asyncio.gather(*self._listening)
        return await self._process.wait()

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        try:
            async for line in self._process.stdout:
                self._hear(line)
        finally:
            for answer in self._asked.values():
                if not answer.done():
                    answer.set_exception(Mute("ended before it answered"))
                    answer.exception()  # whoever waited may be gone

    def _hear(self, line: bytes) -> None:
        try:
            said = orjson.loads(line)
            id_ = said.get("answer")
        except (ValueError, AttributeError):
            self._log.note(self._who, f"says what is no JSON object: {line[:200]!r}")
            return
        if id_ is None:
            self._told(said)
        elif (answer := self._asked.get(id_)) is not None and not answer.done():
            answer.set_result(said)

    async def _overhear(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            self._log.note(self._who, f"stderr: {line.decode(errors='replace').rstrip()}")
