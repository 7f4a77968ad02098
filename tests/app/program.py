"""The program in a process of its own."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.running import SECRET, App, token, within


@dataclass
class Program:
    """A gateway in a process of its own."""

    process: asyncio.subprocess.Process
    http: httpx.AsyncClient
    output: list[str]
    reading: asyncio.Task[None]

    def app(self, client_id: str, **options: str) -> App:
        return App(self.http, client_id, token(client_id, **options))  # type: ignore[arg-type]

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Its exit code, once it has ended and all its output was read."""
        code = await within(self.process.wait(), 20)
        await within(self.reading)
        return code


def environment(folder: Path, **given: str) -> dict[str, str]:
    """The environment of a gateway in `folder`; an empty setting is left out."""
    ours = {"DATA_DIR": str(folder), "PORT": "0", "JWT_SECRET": SECRET, "RATE_CALLS": "0", "LOG_LEVEL": "debug"} | given
    others = {name: text for name, text in os.environ.items() if not name.startswith("GATEWAY_")}
    return others | {f"GATEWAY_{name}": text for name, text in ours.items() if text} | {"PYTHONUNBUFFERED": "1"}


@asynccontextmanager
async def started(
    folder: Path, *, command: Sequence[str] = ("-m", "gateway", "serve"), **given: str
) -> AsyncIterator[Program]:
    """The program, once it serves; killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *command),
        env=environment(folder, **given),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output: list[str] = []
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def read() -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            output.append(line.decode())
            found = re.search(r'(?:serving|answering).*?(http://[^\s",}]+)', output[-1])
            if found and not address.done():
                address.set_result(found[1])
        if not address.done():
            address.set_exception(AssertionError("".join(output)))

    reading = asyncio.create_task(read())
    try:
        limits = httpx.Limits(max_connections=None)
        url = await within(address, 20)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=20, trust_env=False) as http:
            yield Program(process, http, output, reading)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await reading
        process._transport.close()  # type: ignore[attr-defined]


async def run(folder: Path, *arguments: str, **given: str) -> tuple[int, str]:
    """Run the program to its end: exit code and output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", *arguments),
        env=environment(folder, **given),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await within(process.communicate(), 20)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    return process.returncode or 0, output.decode()
