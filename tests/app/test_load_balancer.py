"""Two gateways and a worker behind nginx, which sends every connection to whichever it likes."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.app.program import environment, started
from tests.redis_servers import free_port, redis_server
from tests.running import SECRET, until
from tests.test_tour import ROOT, assert_toured, toured

# As docs/configuration.md has it, with two gateways.
CONFIGURATION = """
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
    log_format upstream '$upstream_addr $status';
    access_log {folder}/access.log upstream;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 0;
    map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
    upstream gateways {{
        {servers}
        keepalive 16;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://gateways;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_read_timeout 75s;
            proxy_buffering off;
            proxy_request_buffering off;
        }}
    }}
}}
"""


@contextmanager
def nginx(folder: Path, port: int, ports: list[int]) -> Iterator[str]:
    """nginx before gateways on these ports; its address."""
    folder.mkdir()
    configuration = folder / "nginx.conf"
    servers = "\n        ".join(f"server 127.0.0.1:{each};" for each in ports)
    configuration.write_text(CONFIGURATION.format(folder=folder, servers=servers, port=port))
    command = ["nginx", "-e", str(folder / "error.log"), "-p", str(folder), "-c", str(configuration)]
    process = subprocess.Popen(command)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@asynccontextmanager
async def balanced(tmp_path: Path, **more: str) -> AsyncIterator[tuple[str, list[int]]]:
    """Where nginx is, and the ports of the two gateways behind it, which have a worker. `more`: settings."""
    port, folder = free_port(), tmp_path / "data"
    async with AsyncExitStack() as stack:
        redis = stack.enter_context(redis_server(tmp_path / "redis"))
        given = {"BUS_URL": redis.url, "CACHE_URL": redis.url, "PUBLIC_URL": f"http://127.0.0.1:{port}"}
        given |= {"LOG_LEVEL": "info", "DRAIN_S": "2", **more}
        serve, work = ("-m", "gateway", "serve", "--no-worker"), ("-m", "gateway", "worker")
        ports = [free_port(), free_port()]
        for each in ports:
            await stack.enter_async_context(started(folder, command=serve, PORT=str(each), **given))
        await stack.enter_async_context(started(folder, command=work, WORKER_PORT="0", **given))
        url = stack.enter_context(nginx(tmp_path / "nginx", port, ports))

        async def up() -> bool:
            with contextlib.suppress(httpx.TransportError):
                async with httpx.AsyncClient(trust_env=False) as http:
                    return (await http.get(f"{url}/readyz")).status_code == 200
            return False

        await until(up, "nginx is up")
        yield url, ports


async def test_the_tour_passes_between_two_gateways_and_a_worker(tmp_path: Path) -> None:
    async with balanced(tmp_path) as (url, ports):
        for _ in range(3):
            assert_toured(await toured(url, JWT_SECRET=SECRET))
        served = (tmp_path / "nginx" / "access.log").read_text().splitlines()
        for port in ports:
            assert f"127.0.0.1:{port} 200" in served
            assert f"127.0.0.1:{port} 101" in served, "each had sockets"


async def test_the_procfile_starts_what_works_together(tmp_path: Path) -> None:
    lines = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text().splitlines() if line[:1] != "#")
    assert lines.keys() == {"release", "web", "worker"}
    commands = {name: ("-c", as_sh(line)) for name, line in lines.items()}
    with redis_server(tmp_path / "redis") as redis:
        given = {"BUS_URL": redis.url, "PORT": "", "LOG_LEVEL": "info", "DRAIN_S": "2"}
        release = [sys.executable, *commands["release"]]
        await asyncio.to_thread(subprocess.run, release, env=environment(tmp_path / "data", **given), check=True)
        port = str(free_port())
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PORT", port)
            async with (
                started(tmp_path / "data", command=commands["web"], **given) as web,
                started(tmp_path / "data", command=commands["worker"], WORKER_PORT="0", **given),
            ):
                assert str(web.http.base_url).rstrip("/") == f"http://127.0.0.1:{port}"
                assert_toured(await toured(f"http://127.0.0.1:{port}", JWT_SECRET=SECRET))


def as_sh(line: str) -> str:
    """A program that becomes what a line of the Procfile starts, with this Python's `gateway`."""
    ours = line.replace("gateway", f"exec {sys.executable} -m gateway", 1)
    return f"import os; os.execl('/bin/sh', 'sh', '-c', {ours!r})"
