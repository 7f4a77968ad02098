"""The whole program with many processes on one port: started, killed, frozen, stopped."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.app.program import Program, run, started
from tests.redis_servers import RedisServer, redis_server
from tests.running import until, within

SOON = """
import functools, sys
from gateway import processes
processes.Supervisor = functools.partial(processes.Supervisor, hang_s=3.0)
from gateway.cli import main
sys.exit(main(["serve"]))
"""
"""The program, which notices earlier that one of its processes hangs."""


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@asynccontextmanager
async def together(
    folder: Path, redis: RedisServer, *, processes: int = 2, options: tuple[str, ...] = (), **given: str
) -> AsyncIterator[Program]:
    """The program with so many processes that serve; it keeps its temporary files in a folder of its own."""
    (folder / "tmp").mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder / "tmp"))
        settings = {"WORKERS": str(processes), "BUS_URL": redis.url, "LOG_LEVEL": "info", **given}
        command = settings.pop("COMMAND", "")
        how = ("-c", command) if command else ("-m", "gateway", "serve", *options)
        starting = started(folder / "data", command=how, **settings)
        program = await starting.__aenter__()
    try:
        yield program
    finally:
        await starting.__aexit__(None, None, None)
        for pid in pids(program).values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def lines(program: Program, text: str, child: str = "") -> list[str]:
    """What the parent has logged of that process."""
    return [line for line in program.output if text in line and (not child or f" child={child} " in line)]


def pids(program: Program) -> dict[str, int]:
    """Who serves, or did last, by name."""
    found = (re.search(r" child=(\w+) pid=(\d+)", line) for line in lines(program, "a process serves"))
    return {match[1]: int(match[2]) for match in found if match}


async def replaced(program: Program, child: str, pid: int) -> None:
    """Return once another process serves as this child."""

    async def is_replaced() -> bool:
        return pids(program)[child] != pid

    await until(is_replaced, f"{child} is replaced: {''.join(program.output)}", 20)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def ended(program: Program) -> int:
    """Its exit code, once it has ended: then none of its processes runs, and its temporary files are gone."""
    code = await program.ended()
    assert not [pid for pid in pids(program).values() if runs(pid)]
    return code


async def metric(program: Program, name: str) -> dict[str, float]:
    """The value of a metric in each process; its other labels are left out."""
    text = (await program.http.get("/metrics")).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {sample.labels["process"]: sample.value for sample in samples if sample.name == name}


async def asked_anew(program: Program, path: str) -> httpx.Response:
    """The answer, over a connection of its own: whoever's share it falls to."""
    async with httpx.AsyncClient(base_url=program.http.base_url, timeout=20, trust_env=False) as http:
        return await http.get(path)


# --- Serving


async def test_connections_are_spread_over_the_processes(tmp_path: Path, redis: RedisServer) -> None:
    async with together(tmp_path, redis) as program, contextlib.AsyncExitStack() as stack:
        for number in range(200):
            opened = await stack.enter_async_context(program.app(f"client-{number}").socket())
            await opened.packet()
        sockets = await metric(program, "gateway_sockets")
        assert sum(sockets.values()) == 200
        assert min(sockets["0"], sockets["1"]) >= 40
        assert sockets["worker"] == 0


async def test_it_is_told_once_where_it_is_and_how_many_processes_serve(tmp_path: Path, redis: RedisServer) -> None:
    async with together(tmp_path, redis, processes=3) as program:
        assert set(pids(program)) == {"0", "1", "2", "worker"}
        [greeting] = lines(program, "serving address=")
        assert " processes=3 worker=True" in greeting
        assert (await asked_anew(program, "/readyz")).status_code == 200
        program.stop()
        assert await ended(program) == 0
        assert len(lines(program, "draining child=")) == 3
        assert not list((tmp_path / "tmp").iterdir())


async def test_a_packet_reaches_sockets_in_every_process(tmp_path: Path, redis: RedisServer) -> None:
    async with together(tmp_path, redis) as program, contextlib.AsyncExitStack() as stack:
        alice, bob = program.app("alice"), program.app("bob")
        sockets = [await stack.enter_async_context(bob.socket(f"phone-{number}")) for number in range(16)]
        for opened in sockets:
            await opened.packet()
        held = await metric(program, "gateway_sockets")
        assert held["0"] > 0
        assert held["1"] > 0
        video_id = await alice.send("bob")
        for opened in sockets:
            assert [video["video_id"] for video in (await opened.packet())["incoming"]] == [video_id]


async def test_the_worker_alone_is_told_whom_to_wake_at_once(tmp_path: Path, redis: RedisServer) -> None:
    async with together(tmp_path, redis, ACK_GRACE_S="3600") as program:
        for number in range(8):
            await program.app(f"client-{number}").register("phone", f"push-token-{number}")
            await program.app("alice").send(f"client-{number}")

        async def all_are_woken() -> bool:
            return len(lines(program, "[push] apns to client-")) == 8

        await until(all_are_woken, "all are woken")
        assert await metric(program, "gateway_pushes_total") == {"worker": 8}


async def test_without_the_worker_there_is_none(tmp_path: Path, redis: RedisServer) -> None:
    async with together(tmp_path, redis, options=("--no-worker",)) as program:
        assert set(pids(program)) == {"0", "1"}
        assert " processes=2 worker=False" in lines(program, "serving address=")[0]
        assert set(await metric(program, "gateway_packets_total")) == {"0", "1"}


# --- Processes that end


async def test_one_that_is_killed_is_replaced_and_its_share_of_the_port_goes_on(
    tmp_path: Path, redis: RedisServer
) -> None:
    async with together(tmp_path, redis) as program:
        killed = pids(program)["0"]
        os.kill(killed, signal.SIGKILL)
        answers = await within(asyncio.gather(*(asked_anew(program, "/healthz") for _ in range(60))), 20)
        assert Counter(answer.status_code for answer in answers) == {200: 60}
        await replaced(program, "0", killed)
        [line] = lines(program, "a process ended", "0")
        assert f" pid={killed} signal=SIGKILL peak_mib=" in line
        assert len(await metric(program, "gateway_packets_total")) == 3
        program.stop()
        assert await ended(program) == 0


async def test_one_that_hangs_is_killed_and_replaced_and_who_waits_for_it_is_served_then(
    tmp_path: Path, redis: RedisServer
) -> None:
    async with together(tmp_path, redis, COMMAND=SOON) as program:
        stopped = pids(program)["1"]
        os.kill(stopped, signal.SIGSTOP)
        answers = await within(asyncio.gather(*(asked_anew(program, "/healthz") for _ in range(40))), 20)
        assert Counter(answer.status_code for answer in answers) == {200: 40}
        await replaced(program, "1", stopped)
        assert lines(program, "hangs, and is killed", "1")
        assert len(lines(program, "hangs, and is killed")) == 1
        program.stop()
        assert await ended(program) == 0


async def test_one_that_is_told_to_stop_is_drained_and_replaced(tmp_path: Path, redis: RedisServer) -> None:
    async with together(tmp_path, redis) as program:
        told = pids(program)["1"]
        os.kill(told, signal.SIGTERM)
        await replaced(program, "1", told)
        assert " code=0 " in lines(program, "a process ended", "1")[0]
        assert len(await metric(program, "gateway_packets_total")) == 3


async def test_a_worker_that_is_killed_is_replaced(tmp_path: Path, redis: RedisServer) -> None:
    async with together(tmp_path, redis) as program:
        killed = pids(program)["worker"]
        os.kill(killed, signal.SIGKILL)
        await replaced(program, "worker", killed)
        await program.app("bob").register("phone", "push-token")
        await program.app("alice").send("bob")

        async def is_woken() -> bool:
            return bool(lines(program, "[push] apns to bob"))

        await until(is_woken, "bob is woken")


# --- The end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_all_and_leaves_nothing_running(
    tmp_path: Path, redis: RedisServer, number: signal.Signals
) -> None:
    async with together(tmp_path, redis) as program, contextlib.AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(program.app(f"client-{n}").socket()) for n in range(60)]
        for opened in sockets:
            await opened.packet()
        begun = time.monotonic()
        program.stop(number)
        for opened in sockets:
            code, reason = await opened.ended()
            assert code == 1012
            assert json.loads(reason)["retry_ms"] >= 0
        assert await ended(program) == 0
        assert time.monotonic() - begun < 8
        assert "Traceback" not in "".join(program.output)
        assert not list((tmp_path / "tmp").iterdir())


async def test_a_manager_that_tells_every_process_to_stop_does_no_harm(tmp_path: Path, redis: RedisServer) -> None:
    async with together(tmp_path, redis) as program, program.app("bob").socket() as opened:
        await opened.packet()
        program.stop()
        for pid in pids(program).values():
            with contextlib.suppress(ProcessLookupError):  # the parent has told it too
                os.kill(pid, signal.SIGTERM)
        assert (await opened.ended())[0] == 1012
        assert await ended(program) == 0
        assert [" code=0 " in line for line in lines(program, "a process ended")] == [True] * 3
        assert not lines(program, "takes the place")


async def test_nobody_is_let_in_while_one_process_still_drains(tmp_path: Path, redis: RedisServer) -> None:
    async with together(tmp_path, redis, DRAIN_S="5") as program, program.app("bob").socket() as opened:
        await opened.packet()
        opened.connection.transport.pause_reading()
        program.stop()

        async def one_is_left() -> bool:
            return len(lines(program, "a process ended")) == 2

        await until(one_is_left, "the others end")
        for _ in range(20):
            with pytest.raises(httpx.ConnectError):
                await asked_anew(program, "/healthz")
        assert len(lines(program, "a process ended")) == 2
        opened.connection.transport.abort()
        assert await ended(program) == 0


async def test_where_the_parent_is_killed_its_processes_drain_and_end(tmp_path: Path, redis: RedisServer) -> None:
    async with together(tmp_path, redis) as program, program.app("bob").socket() as opened:
        await opened.packet()
        assert len(list((tmp_path / "tmp").iterdir())) == 1
        program.stop(signal.SIGKILL)
        assert (await opened.ended())[0] == 1012

        async def all_end() -> bool:
            return not any(map(runs, pids(program).values()))

        await until(all_end, "all processes end", 20)
        assert not list((tmp_path / "tmp").iterdir())
        with pytest.raises(httpx.ConnectError):
            await asked_anew(program, "/healthz")


# --- Mistakes


async def test_a_port_in_use_is_a_sentence(tmp_path: Path, redis: RedisServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, output = await run(tmp_path, "serve", PORT=str(port), WORKERS="2", BUS_URL=redis.url)
    assert code == 2
    assert output == f"gateway: 127.0.0.1 port {port} is in use: set GATEWAY_PORT or give --port; 0 picks a free one.\n"


async def test_a_second_program_does_not_get_a_share_of_the_port(tmp_path: Path, redis: RedisServer) -> None:
    async with together(tmp_path, redis) as program:
        port = str(program.http.base_url.port)
        code, output = await run(tmp_path / "other", "serve", PORT=port, WORKERS="2", BUS_URL=redis.url)
    assert code == 2
    assert "is in use" in output


async def test_what_a_process_cannot_begin_with_ends_the_program_and_is_told_once(
    tmp_path: Path, redis: RedisServer
) -> None:
    (tmp_path / "state.db").write_text("no database, but long enough to be looked at as one" * 20)
    code, output = await run(tmp_path, "serve", WORKERS="2", BUS_URL=redis.url)
    assert code == 2
    [sentence] = [line for line in output.splitlines() if line.startswith("gateway: ")]
    assert str(tmp_path / "state.db") in sentence
    assert "Traceback" not in output


async def test_what_the_worker_cannot_begin_with_ends_the_program(tmp_path: Path, redis: RedisServer) -> None:
    file = tmp_path / "account.json"
    file.write_text("nonsense")
    given = {"WORKERS": "2", "BUS_URL": redis.url, "FCM_CREDENTIALS_FILE": str(file)}
    code, output = await run(tmp_path, "serve", **given)
    assert code == 2
    assert [line.split(": ")[1] for line in output.splitlines() if line.startswith("gateway: ")] == [
        "GATEWAY_FCM_CREDENTIALS_FILE"
    ]


# --- What it takes


async def test_the_metrics_tell_of_all_processes_whichever_is_asked(tmp_path: Path, redis: RedisServer) -> None:
    async with together(tmp_path, redis) as program:
        for _ in range(20):
            text = (await asked_anew(program, "/metrics")).text
            families = list(text_string_to_metric_families(text))
            assert len({family.name for family in families}) == len(families)
            for family in families:
                assert {sample.labels["process"] for sample in family.samples} <= {"0", "1", "worker"}
        resident = await metric(program, "process_resident_memory_bytes")
        private = await metric(program, "gateway_private_memory_bytes")
        assert set(resident) == set(private) == {"0", "1", "worker"}
        for name, shared_too in resident.items():
            assert 1 << 20 < private[name] < shared_too * 3 / 4
        assert set(await metric(program, "process_cpu_seconds_total")) == set(resident)
        assert set(await metric(program, "process_open_fds")) == set(resident)


async def test_the_parent_runs_no_thread(tmp_path: Path, redis: RedisServer) -> None:
    async with together(tmp_path, redis) as program:
        assert len(threads(program.process.pid)) == 1
        assert len(threads(pids(program)["0"])) > 1


def threads(pid: int) -> list[str]:
    return [path.name for path in Path(f"/proc/{pid}/task").iterdir()]


async def test_only_the_owner_enters_the_folder_in_which_they_meet(tmp_path: Path, redis: RedisServer) -> None:
    async with together(tmp_path, redis) as program:
        [folder] = (tmp_path / "tmp").iterdir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {path.name for path in folder.iterdir()} == set(pids(program))


def test_only_the_worker_needs_the_push_senders(tmp_path: Path) -> None:
    code = f"""
import asyncio, sys
from gateway.app import open_gateway
from gateway.config import Settings
settings = Settings.load({{"GATEWAY_DATA_DIR": {str(tmp_path)!r}, "GATEWAY_FCM_CREDENTIALS_FILE": __file__}})
async def main():
    async with open_gateway(settings, worker=False):
        print([name for name in sys.modules if name in {{"push.fcm", "push.apns", "firebase_admin", "h2"}}])
asyncio.run(main())
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    environ = {name: text for name, text in os.environ.items() if not name.startswith("GATEWAY_")}
    environ["PYTHONPATH"] = str(Path(__file__).parent.parent.parent)
    told = subprocess.run([sys.executable, script], env=environ, capture_output=True, text=True, check=True, timeout=30)
    assert told.stdout.strip() == "[]"
