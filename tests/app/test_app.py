"""The whole program: started as its users start it, stopped, killed, started again."""

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from gateway import app as program
from gateway.app import open_gateway
from gateway.server import SPARE
from gateway.supervisor import HUNG
from tests.app.program import Program, environment, run, started
from tests.running import SECRET, VIDEO, App, running_gateway, settings, token, until, within


async def held(gateway: Program, polls: int) -> None:
    async def are() -> bool:
        return f"gateway_held_polls {polls}.0\n" in (await gateway.http.get("/metrics")).text

    await until(are, f"{polls} polls are held")


# --- Starting and stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_at_once_though_polls_are_held_and_pushes_listened_for(
    tmp_path: Path, number: signal.Signals
) -> None:
    async with started(tmp_path) as gateway:
        bob = gateway.app("bob")
        await bob.register("phone", "push-token")
        async with bob.pushes("phone") as pushes:
            polls = [asyncio.create_task(bob.poll('"0"', wait=60)) for _ in range(5)]
            await held(gateway, 5)
            begun = time.monotonic()
            gateway.stop(number)
            assert [(await within(poll)).status_code for poll in polls] == [304] * 5
            with pytest.raises(StopAsyncIteration):
                await within(anext(pushes))
        assert await gateway.ended() == 0
        assert time.monotonic() - begun < 5
        assert "Traceback" not in "".join(gateway.output)


async def test_an_upload_on_its_way_is_finished_before_the_end(tmp_path: Path) -> None:
    async with started(tmp_path) as gateway:
        alice = gateway.app("alice")
        data = os.urandom(300_000)
        announced = await alice.announce("bob", data)
        going_on = asyncio.Event()

        async def slowly() -> AsyncIterator[bytes]:
            yield data[:1000]
            await going_on.wait()
            yield data[1000:]

        headers = announced.headers | {"Content-Length": str(len(data))}
        uploading = asyncio.create_task(gateway.http.put(announced.url, content=slowly(), headers=headers))

        async def begun() -> bool:
            return bool(list((tmp_path / "objects" / "incoming").iterdir()))

        await until(begun, "the upload begins")
        gateway.stop()

        async def drains() -> bool:
            return any("draining" in line for line in gateway.output)

        await until(drains, "it drains")
        going_on.set()
        assert (await within(uploading)).status_code == 200
        assert await gateway.ended() == 0
    async with started(tmp_path) as gateway:
        assert (await gateway.app("bob").download(announced.video_id)).content == data


async def test_an_upload_that_does_not_end_is_cut_off_after_the_time_for_it(tmp_path: Path) -> None:
    async with started(tmp_path, DRAIN_S="1") as gateway:
        alice = gateway.app("alice")
        announced = await alice.announce("bob")

        async def never() -> AsyncIterator[bytes]:
            yield VIDEO[:1]
            await asyncio.sleep(60)

        headers = announced.headers | {"Content-Length": str(len(VIDEO))}
        uploading = asyncio.create_task(gateway.http.put(announced.url, content=never(), headers=headers))

        async def begun() -> bool:
            return bool(list((tmp_path / "objects" / "incoming").iterdir()))

        await until(begun, "the upload begins")
        gateway.stop()
        assert await gateway.ended() == 0
        uploading.cancel()
        await asyncio.wait([uploading])
        assert "Traceback" not in "".join(gateway.output)
    assert not list((tmp_path / "objects" / "incoming").iterdir())


async def test_a_restart_keeps_everything(tmp_path: Path) -> None:
    async with started(tmp_path) as gateway:
        alice, bob = gateway.app("alice"), gateway.app("bob")
        video_id = await alice.send("bob")
        announced = await alice.announce("carol")
        await bob.register("phone", "push-token")
        await bob.say(video_id, "downloaded")
        before = [(await app.poll()).content for app in (alice, bob)]
        gateway.stop()
        assert await gateway.ended() == 0
    async with started(tmp_path) as gateway:
        again = App(gateway.http, "alice", alice.token), App(gateway.http, "bob", bob.token)
        assert [(await app.poll()).content for app in again] == before
        assert (await again[1].download(video_id)).content == VIDEO
        async with again[1].pushes("phone"):
            pass
        path = announced.url.split("/", 3)[3]
        assert (await gateway.http.put(f"/{path}", content=VIDEO, headers=announced.headers)).status_code == 200


async def test_a_secret_that_was_made_up_outlives_a_restart(tmp_path: Path) -> None:
    given = {"JWT_SECRET": "", "LOG_LEVEL": "error"}
    code, output = await run(tmp_path, "token", "alice", **given)
    assert code == 0
    for _ in range(2):
        async with started(tmp_path, JWT_SECRET="") as gateway:
            assert (await App(gateway.http, "alice", output.strip()).poll()).status_code == 200
            assert (await gateway.app("alice").poll()).status_code == 401


async def test_a_port_in_use_is_a_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, output = await run(tmp_path, "serve", PORT=str(port), LOG_LEVEL="error")
    assert code == 2
    assert output == f"gateway: 127.0.0.1 port {port} is in use: set GATEWAY_PORT or give --port; 0 picks a free one.\n"


async def test_an_address_of_another_machine_is_a_sentence(tmp_path: Path) -> None:
    code, output = await run(tmp_path, "serve", HOST="192.0.2.1", LOG_LEVEL="error")
    assert (code, output.count("\n")) == (2, 1)
    assert "192.0.2.1 port 0: this machine does not have that address" in output


async def test_it_listens_on_ipv6_too(tmp_path: Path) -> None:
    async with started(tmp_path, HOST="::1") as gateway:
        assert (await gateway.http.get("/healthz")).status_code == 200


async def test_two_at_once_on_one_folder_lose_nothing(tmp_path: Path) -> None:
    """Not how it is meant to be run, but how a restart that overlaps looks."""
    async with started(tmp_path) as one, started(tmp_path) as other:
        video_id = await one.app("alice").send("bob")
        bob = other.app("bob")
        assert [video["video_id"] for video in (await bob.packet())["incoming"]] == [video_id]
        assert (await bob.download(video_id)).content == VIDEO
        assert (await bob.say(video_id, "viewed")).json()["result"] == "applied"
        assert (await one.app("alice").packet())["outgoing"][0]["status"] == "viewed"


# --- Killed


async def test_whatever_was_answered_before_a_kill_is_there_after_it(tmp_path: Path) -> None:
    """Each client sends, and has viewed, until the gateway is gone; what it was answered must all have happened."""
    answered: dict[str, list[tuple[str, str]]] = {}

    async def talk(gateway: Program, number: int, enough: asyncio.Event) -> None:
        sender, recipient = gateway.app(f"sender-{number}"), gateway.app(f"recipient-{number}")
        done = answered[sender.client_id] = []
        with contextlib.suppress(httpx.TransportError):
            while True:
                announced = await sender.announce(recipient.client_id)
                if (await sender.upload(announced)).status_code == 200:
                    done.append((announced.video_id, "uploaded"))
                for status in ("downloaded", "viewed"):
                    if (await recipient.say(announced.video_id, status)).status_code == 200:
                        done.append((announced.video_id, status))
                if sum(map(len, answered.values())) > 60:
                    enough.set()

    async with started(tmp_path) as gateway:
        enough = asyncio.Event()
        talking = [asyncio.create_task(talk(gateway, number, enough)) for number in range(4)]
        await within(enough.wait(), 30)
        gateway.stop(signal.SIGKILL)
        await within(asyncio.gather(*talking))
        await gateway.ended()

    order = ["uploaded", "notified", "downloaded", "viewed"]
    async with started(tmp_path) as gateway:
        for sender_id, done in answered.items():
            video_id, status = done[-1]
            sender, recipient = gateway.app(sender_id), gateway.app(sender_id.replace("sender", "recipient"))
            [sent] = (await sender.packet())["outgoing"]
            assert sent["video_id"] >= video_id
            if sent["video_id"] == video_id:
                assert order.index(sent["status"]) >= order.index(status)
            received = (await recipient.packet())["incoming"]
            assert [video["video_id"] for video in received] == (
                [] if sent["status"] == "viewed" else [sent["video_id"]]
            )
            for video in received:
                assert (await recipient.download(video["video_id"])).content == VIDEO
    code, output = await run(tmp_path, "sweep", "--full", LOG_LEVEL="warning")
    assert code == 0
    assert "0 failed" in output


# --- The worker beside it


WORKER = ("-m", "gateway", "worker")


async def test_a_worker_answers_the_operator_where_a_port_is_set_and_nobody_else(tmp_path: Path) -> None:
    token = {"Authorization": "Bearer the-token-of-the-operator"}
    async with started(tmp_path, command=WORKER, WORKER_PORT="0", OPERATOR_TOKEN="the-token-of-the-operator") as worker:
        assert (await worker.http.get("/healthz")).json() == {"status": "alive", "faults": []}
        assert (await worker.http.get("/readyz")).json() == {"status": "ready", "faults": []}
        assert (await worker.http.get("/metrics")).status_code == 401
        text = (await worker.http.get("/metrics", headers=token)).text
        assert "\ngateway_due_age_seconds 0.0\n" in text
        assert "process=" not in text
        for path in ("/openapi.json", "/v1/poll"):
            assert (await worker.app("alice").call("GET", path)).status_code == 404
        with pytest.raises(InvalidStatus, match="404"):
            async with worker.app("bob").socket():
                pass
        worker.stop()
        assert await worker.ended() == 0
    assert "Traceback" not in "".join(worker.output)


async def test_a_worker_whose_port_is_in_use_says_so(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, output = await run(tmp_path, "worker", WORKER_PORT=str(port), LOG_LEVEL="error")
    assert (code, output) == (
        2,
        f"gateway: 127.0.0.1 port {port} is in use: set GATEWAY_WORKER_PORT; 0 picks a free one.\n",
    )


async def test_a_worker_without_a_port_listens_nowhere_and_ends_when_told(tmp_path: Path) -> None:
    worker = await asyncio.create_subprocess_exec(
        sys.executable, *WORKER, env=environment(tmp_path), stderr=asyncio.subprocess.PIPE
    )
    assert worker.stderr is not None
    while b"working" not in await within(worker.stderr.readline(), 20):
        pass
    assert not sockets_of(worker.pid) & listening_sockets()
    worker.terminate()
    assert b"Traceback" not in await within(worker.stderr.read())
    assert await within(worker.wait()) == 0


def sockets_of(pid: int) -> set[str]:
    """The inodes of the sockets that a process has open."""
    names = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
    return {name[8:-1] for name in names if name.startswith("socket:[")}


def listening_sockets() -> set[str]:
    """The inodes of the TCP sockets that listen."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return {row[9] for row in rows if row[3] == "0A"}


async def test_one_process_tells_its_memory_and_no_name_of_a_process(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gw:
        private = await gw.metric("gateway_private_memory_bytes")
        assert 1 << 20 < private <= await gw.metric("process_resident_memory_bytes")
        assert "process=" not in (await gw.http.get("/metrics")).text


# --- The other commands


async def test_setup_and_sweep_may_be_repeated(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    first, second = await run(folder, "setup"), await run(folder, "setup")
    assert first[0] == second[0] == 0
    assert f"made the folder {folder}\n" in first[1]
    assert "made" not in second[1]
    assert str(folder / "state.db") in second[1]
    for arguments in (("sweep",), ("sweep", "--full"), ("sweep", "--full")):
        code, output = await run(folder, *arguments, LOG_LEVEL="warning")
        assert code == 0
        assert output.splitlines()[0].endswith(" 0 failed")  # and what it cost


async def test_a_sweep_completes_an_upload_that_nobody_confirmed(tmp_path: Path) -> None:
    async def hangs(*_: object) -> None:
        await asyncio.sleep(60)

    async with running_gateway(tmp_path, worker=False) as gw:
        alice = gw.app("alice")
        announced = await alice.announce("bob")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gateway.changes.CALL_DEADLINE_S", 0.02)
            patch.setattr(gw.gateway.service.changes.documents, "load", hangs)
            await alice.upload(announced)
    code, output = await run(tmp_path, "sweep", LOG_LEVEL="warning")
    assert code == 0
    assert "1 uploads completed" in output
    async with running_gateway(tmp_path) as gw:
        assert [video["video_id"] for video in (await gw.app("bob").packet())["incoming"]] == [announced.video_id]


# --- What is logged


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_a_whole_story_at_debug_level_logs_no_secret(tmp_path: Path, log_format: str) -> None:
    async with started(tmp_path, LOG_FORMAT=log_format) as gateway:
        alice, bob = gateway.app("alice"), gateway.app("bob")
        secrets = [alice.token, bob.token, "the-push-token", SECRET]
        await bob.register("phone", "the-push-token")
        async with bob.pushes("phone") as pushes:
            announced = await alice.announce("bob")
            secrets.append(announced.url.partition("signature=")[2])
            await alice.upload(announced)
            await alice.upload(announced)
            await alice.say(announced.video_id, "uploaded", "bob")
            await within(anext(pushes))
        secrets.append((await bob.content_url(announced.video_id)).partition("signature=")[2])
        await bob.download(announced.video_id)
        await bob.sync({"video_id": announced.video_id, "status": "viewed"}, device_id="phone", version=1)
        await gateway.http.get("/v1/poll", params={"token": alice.token})
        await gateway.http.get("/v1/poll", headers={"Authorization": f"Bearer {alice.token}x"})
        await alice.delete(announced.video_id, "bob")
        await bob.call("DELETE", "/v1/client")
        gateway.stop()
        assert await gateway.ended() == 0
    output = "".join(gateway.output)
    assert "[push] apns to bob" in output
    assert "Traceback" not in output
    for secret in secrets:
        assert len(secret) > 10
        assert secret not in output
        assert secret.rpartition(".")[2] not in output


# --- In this process


async def test_whatever_is_opened_is_closed(tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    async with open_gateway(settings(tmp_path)):
        pass
    async with running_gateway(tmp_path) as gw:
        await gw.app("alice").send("bob")
    assert asyncio.all_tasks() <= before
    assert not [name for name in open_files() if str(tmp_path) in name]


def open_files() -> list[str]:
    """The names of the files that this process has open."""
    names = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            names.append(str(path.readlink()))
    return names


async def test_a_loop_that_fails_goes_on_and_calls_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(program, "RESTART_PAUSE_S", 0.0)
    monkeypatch.setattr("gateway.wakeups.POLL_S", 0.01)
    async with running_gateway(tmp_path) as gw:
        due = gw.gateway.service.changes.documents.due

        async def fails(*_: object) -> None:
            monkeypatch.setattr(gw.gateway.service.changes.documents, "due", due)
            raise KeyError("a bug")

        alice, bob = gw.app("alice"), gw.app("bob")
        await bob.register("phone", "push-token")
        async with bob.pushes("phone") as pushes:
            monkeypatch.setattr(gw.gateway.service.changes.documents, "due", fails)

            async def failed() -> bool:
                return "a loop in the background failed" in caplog.text

            await until(failed, "the loop fails")
            video_id = await alice.send("bob")
            assert video_id in (await within(anext(pushes)))["packet"]


HANGING = """
import asyncio, logging, sys, time
from gateway.config import Settings
from gateway import log, processes
import os, storage.sqlite, storage.disk

async def waits(*_):
    await asyncio.sleep(3600)

async def keeps_the_log(*_):
    logging.getLogger().handlers[0].acquire()
    time.sleep(3600)

async def blocks(*_):
    time.sleep(3600)

hang = {"waits": waits, "blocks": blocks, "keeps the log": keeps_the_log}[sys.argv[1]]
getattr(sys.modules[sys.argv[2]], sys.argv[3]).close = hang
settings = Settings.load(os.environ)
log.configure(settings.log_format, settings.log_level)
sys.exit(processes.serve(settings, worker=True))
"""


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("waits", "storage.sqlite SqliteDocuments"),
        ("blocks", "storage.disk DiskObjects"),
        ("waits", "push.console ConsoleSender"),
        ("keeps the log", "storage.disk DiskObjects"),
    ],
)
async def test_a_part_that_hangs_holds_the_end_up_for_no_longer_than_the_drain(
    tmp_path: Path, how: str, what: str
) -> None:
    async with started(tmp_path, command=("-c", HANGING, how, *what.split()), DRAIN_S="2") as gateway:
        alice = gateway.app("alice")
        await alice.send("bob")
        begun = time.monotonic()
        gateway.stop()
        assert await gateway.ended() == HUNG
        assert time.monotonic() - begun < 4
    assert ("something hangs" in "".join(gateway.output)) == (how != "keeps the log")
    async with started(tmp_path) as gateway:
        assert len((await App(gateway.http, "bob", token("bob")).packet())["incoming"]) == 1


INFINITE = resource.RLIM_INFINITY
NEEDED = 1000 + SPARE + program.OTHER_FILES


@pytest.mark.parametrize(
    ("limits", "raised_to", "room"),
    [
        ((256, 100_000), 100_000, 1000),
        ((100_000, 100_000), None, 1000),
        ((256, INFINITE), 2 * NEEDED, 1000),
        ((INFINITE, INFINITE), None, 1000),
        ((256, NEEDED - 100), NEEDED - 100, 900),
        ((100, 100), None, 1),
    ],
)
def test_a_process_takes_as_many_connections_as_it_has_files_for(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], raised_to: int | None, room: int
) -> None:
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: set_to.append(pair))
    assert program._room_for(1000) == room
    assert set_to == ([] if raised_to is None else [(raised_to, limits[1])])


# --- Sockets at the end


@asynccontextmanager
async def socket_of(gateway: Program, client_id: str) -> AsyncIterator[ClientConnection]:
    """A socket of that client's phone, its first packet read."""
    url = str(gateway.http.base_url).replace("http", "ws").rstrip("/") + "/v1/ws?device_id=phone"
    headers = {"Authorization": f"Bearer {token(client_id)}"}
    async with connect(url, additional_headers=headers, compression=None, proxy=None) as opened:
        await within(opened.recv())
        yield opened


async def test_a_signal_closes_all_sockets_and_says_when_to_come_back(tmp_path: Path) -> None:
    async with started(tmp_path) as gateway, contextlib.AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(socket_of(gateway, f"client-{n}")) for n in range(120)]
        begun = time.monotonic()
        gateway.stop()
        for opened in sockets:
            await within(opened.wait_closed())
            assert opened.close_code == 1012
            assert 0 <= json.loads(opened.close_reason or "")["retry_ms"] <= program.MOST_RETRY_MS
        assert await gateway.ended() == 0
        assert time.monotonic() - begun < 5
    assert "Traceback" not in "".join(gateway.output)


async def test_what_a_socket_was_answered_before_the_end_stands(tmp_path: Path) -> None:
    async with started(tmp_path) as gateway:
        video_id = await gateway.app("alice").send("bob")
        async with socket_of(gateway, "bob") as opened:
            answers = []
            for status in ("notified", "downloaded", "viewed"):
                await opened.send(json.dumps({"type": "status", "id": status, "video_id": video_id, "status": status}))
            gateway.stop()
            with contextlib.suppress(ConnectionClosed):
                while True:
                    answer = json.loads(await within(opened.recv()))
                    answers += [answer] if answer["type"] == "result" else []
            assert opened.close_code == 1012
        assert await gateway.ended() == 0
    assert [answer["id"] for answer in answers] == ["notified", "downloaded", "viewed"][: len(answers)]
    async with started(tmp_path) as gateway:
        [video] = (await App(gateway.http, "alice", token("alice")).packet())["outgoing"]
        reached = ["uploaded", "notified", "downloaded", "viewed"].index(video["status"])
        assert reached >= len(answers), "what was answered is not there"


async def test_sockets_that_do_not_answer_hold_the_end_up_until_they_are_cut_and_a_second_signal_for_no_longer(
    tmp_path: Path,
) -> None:
    for signals, least_s, most_s in ((1, 1.0, 4.0), (2, 0.0, 1.5)):
        async with started(tmp_path, DRAIN_S="3") as gateway, contextlib.AsyncExitStack() as stack:
            for n in range(20):
                opened = await stack.enter_async_context(socket_of(gateway, f"client-{n}"))
                opened.transport.pause_reading()
                stack.callback(opened.transport.abort)
            begun = time.monotonic()
            for _ in range(signals):
                gateway.stop(signal.SIGINT)
                await asyncio.sleep(0.3)  # two signals at once are one
            assert await gateway.ended() == 0
            assert least_s < time.monotonic() - begun < most_s
        assert "Traceback" not in "".join(gateway.output)
