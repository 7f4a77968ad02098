"""What the benchmarks of sockets run: the gateway, as its users run it, and the floor beneath all servers."""

import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bench_calls import SECRET, Server
from letters import PACKET_BYTES
from load import compiled, cpu_s

from gateway.api.auth import issue_token

WINDOW = 64
"""Handshakes under way at a time."""
OUTSTANDING = 256
"""Packets under way at a time, where a server is saturated."""


@contextmanager
def gateway(folder: Path, settings: Mapping[str, str], *, processes: int = 1) -> Iterator[Server]:
    """The gateway on what the folder holds, with these settings, once the sweep that begins at its start is done."""
    command = ("-m", "gateway", "serve", "--workers", str(processes))
    running = Server(folder, command, {f"GATEWAY_{name}": text for name, text in settings.items()})
    try:
        wait_until_idle(running.pid)
        yield running
    finally:
        running.stop()


def wait_until_idle(pid: int) -> None:
    """Until a process has next to nothing to do; two minutes at most."""
    before = -1.0
    for _ in range(400):
        now = cpu_s(pid)
        if now - before <= 0.005:
            break
        before = now
        time.sleep(0.3)


def socket_line(client_id: str, bearer: str = "") -> str:
    """What opens a client's socket (`connect` in `load.c`), with this token or a new one."""
    return f"/v1/ws?device_id=phone\tAuthorization: Bearer {bearer or token(client_id)}"


def token(client_id: str) -> str:
    return issue_token(SECRET, client_id, ttl_s=86_400, now=time.time())


def floor_us(folder: Path, sockets: int, packets: int) -> float:
    """µs of CPU that a bare loop of `send` needs for each packet, over so many sockets."""
    words = [sockets, packets, PACKET_BYTES + 4, OUTSTANDING]
    done = subprocess.run([compiled(folder, "floor"), *map(str, words)], check=True, capture_output=True, timeout=120)
    return float(done.stdout)
