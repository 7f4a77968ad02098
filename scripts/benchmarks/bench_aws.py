"""What Amazon's services cost the gateway in CPU: a call of the store, a signed URL, a status change on DynamoDB.

What answers is no DynamoDB but a program that answers at once (scripts/benchmarks/amazon.py), over TLS as Amazon does:
the figures are the gateway's own. Beside ours, what aiobotocore takes for the same calls, in a process of its own with
its own packages; rounds in turns. Calls of the store: this process's CPU. Status changes: as in scripts/bench.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvloop
from bench_calls import ROOT, Calls, Server, World, drive

from storage import open_documents, open_objects
from storage.documents import Document

NAMES = {"load": "load a document", "commit": "commit one", "head": "HEAD of an object", "sign": "sign an upload"}


@contextmanager
def stand_in() -> Iterator[str]:
    """Where what stands in for Amazon answers."""
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder:
        command = [sys.executable, str(ROOT / "scripts" / "benchmarks" / "amazon.py"), folder]
        os.environ["AWS_CA_BUNDLE"] = f"{folder}/ca.pem"
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                yield f"https://127.0.0.1:{process.stdout.readline().strip()}"
            finally:
                process.kill()


async def ours(endpoint: str, count: int, at_once: int) -> dict[str, float]:
    """µs of CPU for each kind of call, so many at a time."""
    at = f"endpoint={endpoint}"
    async with open_documents(f"dynamodb://documents?{at}") as documents, open_objects(f"s3://bucket?{at}") as objects:
        [held] = await documents.commit([Document("client:a", 0, b"x" * 900)])

        async def load() -> None:
            await documents.load(["client:a"])

        async def commit() -> None:
            nonlocal held
            [held] = await documents.commit([Document(f"client:{next(numbers)}", 0, b"x" * 900)])

        async def head() -> None:
            await objects.head("7/video")

        async def sign() -> None:
            expires_at = int(time.time() * 1000) + 3_600_000
            await objects.sign_upload("7/video", size=100, content_type="video/mp4", sha256=None, expires_at=expires_at)

        numbers = iter(range(10**9))
        return {call.__name__: await _measured(call, count, at_once) for call in (load, commit, head, sign)}


async def _measured(call: Callable[[], Awaitable[None]], count: int, at_once: int) -> float:
    async def some() -> None:
        for _ in range(count // at_once):
            await call()

    await call()
    began = time.process_time()
    await asyncio.gather(*(some() for _ in range(at_once)))
    return (time.process_time() - began) / (count // at_once * at_once) * 1e6


def peers(python: str, endpoint: str, count: int, at_once: int) -> dict[str, float]:
    """The same of aiobotocore."""
    program = ROOT / "scripts" / "benchmarks" / "peer_aiobotocore.py"
    command = [python, str(program), endpoint, str(count), str(at_once)]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name: float(us) for name, us in (line.split() for line in found.splitlines())}


def status_changes(endpoint: str | None, arguments: argparse.Namespace) -> tuple[list[float], list[float]]:
    """µs of the gateway's CPU for a status change, each round, and changes a second; on SQLite without an endpoint."""
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as name:
        data, settings = Path(name), dict[str, str]()
        if endpoint is not None:
            settings["GATEWAY_STATE_URL"] = f"dynamodb://documents?endpoint={endpoint}"
        world = World(data, settings.get("GATEWAY_STATE_URL"))
        uvloop.run(world.seed(arguments.rounds * (arguments.calls // 8) + 400))
        server = Server(data, settings=settings)
        try:
            server.wait_until_idle()
            calls = Calls(world, server, arguments.calls)
            rounds = [drive(server, iter(list(calls.status())), 64, b"200") for _ in range(arguments.rounds)]
        finally:
            server.stop()
    return [one.cpu_us for one in rounds], [one.per_s for one in rounds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=6400)
    parser.add_argument("--peer", metavar="PYTHON", help="a Python that has aiobotocore and uvloop")
    arguments = parser.parse_args()
    keys = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_REGION": "eu-central-1"}
    os.environ.update(keys | {"AWS_EC2_METADATA_DISABLED": "true"})
    print(__doc__)
    figures: dict[tuple[str, int, str], list[float]] = {}
    for _ in range(arguments.rounds):
        for at_once in (1, 64):
            with stand_in() as endpoint:
                for name, us in uvloop.run(ours(endpoint, arguments.calls, at_once)).items():
                    figures.setdefault((name, at_once, "ours"), []).append(us)
                if arguments.peer:
                    for name, us in peers(arguments.peer, endpoint, arguments.calls // 4, at_once).items():
                        figures.setdefault((name, at_once, "peer"), []).append(us)
    print("| µs of CPU | at a time | ours | aiobotocore |")
    print("| --- | ---: | ---: | ---: |")
    for name, at_once in dict.fromkeys(key[:2] for key in figures):
        mine, theirs = (figures.get((name, at_once, whose)) for whose in ("ours", "peer"))
        told = f"{statistics.median(theirs):.0f}" if theirs else ""
        print(f"| {NAMES[name]} | {at_once} | {statistics.median(mine or [0]):.0f} | {told} |")
    print("\n| status change over HTTP, 64 at a time | CPU µs | a second |\n| --- | ---: | ---: |")
    with stand_in() as endpoint:
        for told, where in (("SQLite", None), ("DynamoDB", endpoint)):
            cpu, per_s = status_changes(where, arguments)
            print(f"| {told} | {statistics.median(cpu):.0f} | {statistics.median(per_s):,.0f} |")


if __name__ == "__main__":
    main()
