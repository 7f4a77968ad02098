"""A gateway of the load test's own: started as an operator would, watched through its log, restarted, stopped."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import orjson

from gateway.config import Settings
from scripts.loadtest.options import Refused

START_S = 30.0
"""How long a gateway, or one of its processes, may take to start; to stop, as long as it drains, and this."""

SAID = 20
"""So many lines of its log are shown where it does not start."""

ALONE = "gateway"
PARENT = "gateway parent"


class OwnGateway:
    """One gateway. `environ`: with its settings. `said`: the warnings of its log, with how often each came."""

    def __init__(self, environ: Mapping[str, str], *, workers: int, drain_s: float) -> None:
        self._environ = dict(environ)
        self._workers = workers
        self._patience_s = drain_s + START_S
        self._process: asyncio.subprocess.Process | None = None
        self._log: asyncio.Task[None] | None = None
        self._stirred = asyncio.Event()
        self._lines: list[str] = []
        self._children: dict[str, int] = {}
        self.said: Counter[str] = Counter()
        self.address = ""

    async def start(self) -> None:
        """Start it. Raises Refused where it does not."""
        self.address = ""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", "serve", "--workers", str(self._workers)),
            env=self._environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the load test, which then stops it
        )
        assert self._process.stderr is not None
        self._log = asyncio.create_task(self._listen(self._process.stderr))
        if not await self._until(lambda: bool(self.address) or self._ended, START_S) or self._ended:
            await self.stop()
            raise Refused("the gateway did not start; it said:\n" + "\n".join(self._lines[-SAID:]))
        self._environ["GATEWAY_PORT"] = self.address.rpartition(":")[2]  # where it is to be found again

    @property
    def _ended(self) -> bool:
        return (
            self._process is None
            or self._process.returncode is not None
            or (self._log is not None and self._log.done())
        )

    async def _listen(self, log: asyncio.StreamReader) -> None:
        async for line in log:
            self._lines = [*self._lines[-SAID:], line.decode(errors="replace").rstrip()]
            with contextlib.suppress(ValueError, KeyError, TypeError):
                self._heard(orjson.loads(line))
            self._stirred.set()
        self._stirred.set()

    def _heard(self, entry: Mapping[str, object]) -> None:
        message = str(entry["message"])
        if entry["level"] not in {"info", "debug"}:
            self.said[message] += 1
        if message == "serving":
            self.address = str(entry["address"])
        elif message == "a process serves":
            self._children[str(entry["child"])] = int(str(entry["pid"]))

    async def _until(self, holds: Callable[[], bool], within_s: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not holds():
                    self._stirred.clear()
                    await self._stirred.wait()
        return holds()

    async def restart(self) -> None:
        """One process after the other is told to stop, and replaced by its parent; a gateway of one process is stopped
        and started. Raises Refused where one does not come back."""
        if self._workers == 1:
            await self.stop()
            await self.start()
            return
        for name, pid in sorted(self._children.items()):
            os.kill(pid, signal.SIGTERM)
            if not await self._until(lambda name=name, pid=pid: self._children[name] != pid, self._patience_s):  # type: ignore[misc]
                raise Refused(f"the process {name} of the gateway was told to stop, and did not come back")

    async def stop(self) -> None:
        """Stop it as an operator would, and only if that does not help the hard way."""
        process = self._process
        if process is not None and process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(self._patience_s):
                    await process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if self._log is not None:
            await asyncio.gather(self._log, return_exceptions=True)

    @property
    def pids(self) -> dict[str, int]:
        """Its processes."""
        if self._process is None or self._process.returncode is not None:
            return {}
        if self._workers == 1:
            return {ALONE: self._process.pid}
        return {PARENT: self._process.pid} | {f"gateway {name}": pid for name, pid in self._children.items()}


@asynccontextmanager
async def own_redis(folder: Path) -> AsyncIterator[tuple[str, int]]:
    """A Redis that keeps nothing on the disk, for the bus: its URL, and its process."""
    program = shutil.which("redis-server")
    if program is None:
        raise Refused("several processes of a gateway need a Redis between them: install redis-server")
    port = _free_port()
    options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
    process = await asyncio.create_subprocess_exec(
        *(program, *options), cwd=folder, stdout=asyncio.subprocess.DEVNULL, start_new_session=True
    )
    try:
        if not await _answers(port, process):
            raise Refused("redis-server did not start")
        yield f"redis://127.0.0.1:{port}", process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def _answers(port: int, process: asyncio.subprocess.Process) -> bool:
    ends_s = time.monotonic() + START_S
    while process.returncode is None and time.monotonic() < ends_s:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return True
        await asyncio.sleep(0.05)
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def own_gateway(
    settings: Mapping[str, str], *, workers: int
) -> AsyncIterator[tuple[OwnGateway, dict[str, str], dict[str, int]]]:
    """A gateway on a fresh folder, with these settings (without their prefix); with it its whole environment, and the
    processes that it needs beside its own. All of it is gone at the end."""
    environ = {name: text for name, text in os.environ.items() if not name.startswith("GATEWAY_")}
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-load-")))
        environ |= {"GATEWAY_DATA_DIR": str(folder / "data"), "GATEWAY_PORT": "0", "GATEWAY_LOG_FORMAT": "json"}
        beside: dict[str, int] = {}
        if workers > 1 and "BUS_URL" not in settings:
            environ["GATEWAY_BUS_URL"], beside["redis-server"] = await stack.enter_async_context(own_redis(folder))
        environ |= {f"GATEWAY_{name}": text for name, text in settings.items()}
        gateway = OwnGateway(environ, workers=workers, drain_s=Settings.load(environ).drain_s)
        stack.push_async_callback(gateway.stop)
        await gateway.start()
        yield gateway, environ, beside
