"""The command, and the clients that it starts: what is said to them, how they end, and what is left of them."""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.conformance import __main__ as program
from tests.conformance.log import Log
from tests.conformance.process import Mute, NotStarted, Process
from tests.running import until

ECHO = """
import json, sys
print("not JSON", flush=True)
for line in sys.stdin:
    said = json.loads(line)
    if said["do"] == "exit":
        sys.exit(said.get("code", 0))
    print(json.dumps({"tell": said["do"]}), flush=True)
    print(json.dumps({"answer": said.get("id"), "heard": said}), flush=True)
"""
DEAF = """
import os, pathlib, sys
pathlib.Path(os.environ["CONFORMANCE_STATE"], "..", "..", "..", f"pid-{os.getpid()}").touch()
for line in sys.stdin:
    pass
"""


async def started(code: str, told: list[Mapping[str, object]], log: Log) -> Process:
    return await Process.start((sys.executable, "-c", code), {}, who="ann/phone", log=log, told=told.append)


async def test_a_client_is_asked_and_answers_and_tells() -> None:
    told: list[Mapping[str, object]] = []
    log = Log()
    client = await started(ECHO, told, log)
    answer = await client.ask("send", within_s=10, to="bob")
    assert answer["heard"] == {"do": "send", "id": 1, "to": "bob"}
    assert told == [{"tell": "send"}]
    assert await client.exit(within_s=10) == 0
    assert any("no JSON" in line for line in log.lines)


async def test_a_client_that_does_not_answer_is_mute() -> None:
    client = await started(DEAF.replace("pathlib.Path", "#"), [], Log())
    with pytest.raises(Mute, match="does not answer"):
        await client.ask("state", within_s=0.05)
    await client.kill()


async def test_a_client_that_ends_by_itself_is_mute() -> None:
    client = await started("", [], Log())
    with pytest.raises(Mute, match="ended before it answered"):
        await client.ask("state", within_s=10)
    await client.kill()


async def test_a_client_that_cannot_be_started_is_an_error() -> None:
    with pytest.raises(NotStarted):
        await Process.start(("/nowhere/at/all",), {}, who="ann/phone", log=Log(), told=lambda _: None)


def test_a_command_that_cannot_be_run_is_said_to_be_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--seeds", "1", "--", "/nowhere/at/all"]) == 2
    assert "the client cannot be started" in capsys.readouterr().err


def test_a_client_that_ends_at_once_goes_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--seeds", "1", "--seconds", "0.1", "--", sys.executable, "-c", ""]) == 1
    shown = capsys.readouterr()
    assert "seed 0: mute" in shown.out
    assert "1 went wrong: [0]" in shown.out
    assert "FINDING: mute" in shown.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_leaves_nothing_running_and_no_files(tmp_path: Path, number: signal.Signals) -> None:
    aside = tmp_path / "aside"
    aside.mkdir()
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.conformance", "--seeds", "1", "--", sys.executable, "-c", DEAF),
        env={**os.environ, "TMPDIR": str(aside)},
        stdout=asyncio.subprocess.DEVNULL,
    )

    def clients() -> Iterator[int]:
        return (int(path.name.removeprefix("pid-")) for path in aside.glob("pid-*"))

    async def there() -> bool:
        return len(list(clients())) == 3

    try:
        await until(there, "three clients are running", seconds=30)
        running.send_signal(number)
        assert await running.wait() == 128 + number
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()
    for pid in clients():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert [path.name for path in aside.iterdir() if not path.name.startswith("pid-")] == []
