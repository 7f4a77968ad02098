"""Real processes and real signals: the supervisor runs in a process of its own, since it forks."""

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from gateway.supervisor import FIRST_PAUSE_S, HUNG
from tests.running import until, within

PROGRAM = """
import asyncio, errno, os, signal, sys, time
from gateway import log, supervisor
from gateway.parsers import ConfigError, LogFormat, LogLevel
from gateway.supervisor import Child, Supervisor

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # in one, whatever others write meanwhile

def serves(pulse):
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(True))
    pulse.serving()
    while not told and pulse.beat():
        time.sleep(0.01)
    return 0

def with_a_loop(pulse):
    async def main():
        told = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
        async with pulse.beating():
            pulse.serving()
            await told.wait()
        say("ends in peace", os.getpid())
    asyncio.run(main())
    return 0

def deaf(pulse):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pulse.serving()
    while pulse.beat():
        time.sleep(0.01)
    return 0

def silent(pulse):
    pulse.serving()
    time.sleep(3600)

def starts_for_ever(pulse):
    pulse.beat()
    time.sleep(3600)

def once(pulse):
    say("begins", time.monotonic())
    try:
        os.close(os.open("was here", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return 3
    return serves(pulse)

def fails(pulse):
    return 3

def ends(pulse):
    return 0

def refuses(pulse):
    raise ConfigError(["This is wrong.", "So is that."])

def crashes(pulse):
    raise KeyError("a bug")

def dies(pulse):
    os.kill(os.getpid(), signal.SIGKILL)

def fork_fails(numbers, fork=os.fork):
    forks = [0]
    def counted():
        forks[0] += 1
        if forks[0] in numbers:
            raise BlockingIOError(errno.EAGAIN, "no room")
        return fork()
    os.fork = counted

stop_s, hang_s, settled_s = map(float, sys.argv[1:4])
fork_fails({int(number) for number in sys.argv[4].split(",") if number})
log.configure(LogFormat.TEXT, LogLevel.INFO)
supervisor.KILL_S = 0.3
children = [Child(f"{name}-{number}", globals()[name]) for number, name in enumerate(sys.argv[5:])]
try:
    code = Supervisor(
        children,
        serving=lambda: say("all serve"),
        stopping=lambda: say("no more"),
        stop_s=stop_s,
        hang_s=hang_s,
        settled_s=settled_s,
    ).run()
except ConfigError as error:
    say("refused:", *error.sentences)
    code = 2
sys.exit(code)
"""


@dataclass
class Family:
    """A parent and its children."""

    process: asyncio.subprocess.Process
    output: list[str]
    reading: asyncio.Task[None]

    def lines(self, text: str, child: str = "") -> list[str]:
        """The lines that say so, of that child."""
        return [line for line in self.output if text in line and (not child or f" child={child} " in line)]

    async def said(self, text: str, child: str = "", *, times: int = 1) -> str:
        """The last of these lines, once there are so many."""

        async def is_said() -> bool:
            return len(self.lines(text, child)) >= times

        await until(is_said, f"{text} {child}: {''.join(self.output)}", 20)
        return self.lines(text, child)[-1]

    async def pid(self, child: str, *, generation: int = 1) -> int:
        """The process that serves as this child."""
        return _pid(await self.said("a process serves", child, times=generation))

    def pids(self) -> set[int]:
        """All that ever served."""
        return {_pid(line) for line in self.lines("a process serves")}

    async def ended(self) -> int:
        """The exit code, once it has ended and all output was read; no child is left then."""
        code = await within(self.process.wait(), 20)
        await within(self.reading)
        assert not [pid for pid in self.pids() if runs(pid)]
        return code

    async def told_to_stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return await self.ended()


def _pid(line: str) -> int:
    found = re.search(r" pid=(\d+)", line)
    assert found is not None
    return int(found[1])


def runs(pid: int) -> bool:
    """Whether this process does anything: one whose end nobody has asked for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@asynccontextmanager
async def family(
    folder: Path, *children: str, stop_s: float = 5, hang_s: float = 60, settled_s: float = 60, no_forks: str = ""
) -> AsyncIterator[Family]:
    """A supervisor and what it runs; all of it is killed at the end."""
    arguments = [str(stop_s), str(hang_s), str(settled_s), no_forks, *children]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, *arguments),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    output: list[str] = []

    async def read() -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            output.append(line.decode())

    reading = asyncio.create_task(read())
    try:
        yield Family(process, output, reading)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        await reading
        process._transport.close()  # type: ignore[attr-defined]


# --- Stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_all_in_peace(tmp_path: Path, number: signal.Signals) -> None:
    async with family(tmp_path, "serves", "with_a_loop", "serves") as those:
        await those.said("all serve")
        those.process.send_signal(number)
        assert await those.ended() == 0
    assert len(those.lines("no more")) == len(those.lines("all serve")) == 1
    ends = those.lines("a process ended")
    assert len(ends) == 3
    for line in ends:
        assert " code=0 " in line
        assert re.search(r" peak_mib=\d+$", line.strip())


async def test_an_interrupt_from_the_terminal_reaches_all_of_them_and_ends_each_once(tmp_path: Path) -> None:
    async with family(tmp_path, "serves", "with_a_loop") as those:
        await those.said("all serve")
        os.killpg(those.process.pid, signal.SIGINT)
        assert await those.ended() == 0
    assert [line.count(" code=0 ") for line in those.lines("a process ended")] == [1, 1]
    assert len(those.lines("ends in peace")) == 1
    assert not those.lines("Traceback")


async def test_who_has_not_begun_yet_ends_too_and_that_is_no_failure(tmp_path: Path) -> None:
    async with family(tmp_path, "serves", "starts_for_ever") as those:
        await those.pid("serves-0")
        assert await those.told_to_stop() == 0
    assert not those.lines("all serve")
    assert " signal=SIGTERM " in those.lines("a process ended", "starts_for_ever-1")[0]


async def test_who_does_not_end_in_time_is_killed_and_the_exit_code_says_so(tmp_path: Path) -> None:
    async with family(tmp_path, "deaf", "serves", stop_s=0.2) as those:
        await those.said("all serve")
        assert await those.told_to_stop() == HUNG
    assert those.lines("is killed at the end", "deaf-0")
    assert not those.lines("is killed at the end", "serves-1")


async def test_a_second_interrupt_kills_all_at_once(tmp_path: Path) -> None:
    async with family(tmp_path, "deaf", "deaf", stop_s=3600) as those:
        await those.said("all serve")
        those.process.send_signal(signal.SIGINT)
        await those.said("no more")
        those.process.send_signal(signal.SIGINT)
        assert await those.ended() == HUNG


async def test_a_parent_that_is_gone_takes_its_children_with_it(tmp_path: Path) -> None:
    async with family(tmp_path, "with_a_loop", "serves", "with_a_loop", "silent") as those:
        await those.said("all serve")
        hangs = await those.pid("silent-3")
        those.process.kill()
        assert await those.process.wait() == -signal.SIGKILL

        async def all_end() -> bool:
            return [pid for pid in those.pids() if runs(pid)] == [hangs]

        await until(all_end, "the children end, but for one that hangs")
    assert len(those.lines("ends in peace")) == 2
    assert len(those.lines("the parent is gone")) == 2


# --- Replacing


async def test_who_is_killed_is_replaced_at_once_and_the_others_do_not_notice(tmp_path: Path) -> None:
    async with family(tmp_path, "serves", "serves") as those:
        await those.said("all serve")
        killed, other = await those.pid("serves-0"), await those.pid("serves-1")
        os.kill(killed, signal.SIGKILL)
        assert f" pid={killed} signal=SIGKILL peak_mib=" in await those.said("a process ended", "serves-0")
        assert await those.pid("serves-0", generation=2) != killed
        assert len(those.lines("takes the place", "serves-0")) == 1
        assert await those.told_to_stop() == 0
    assert {other} == {_pid(line) for line in those.lines("a process serves", "serves-1")}
    assert len(those.lines("all serve")) == 1


async def test_who_is_silent_is_killed_and_replaced(tmp_path: Path) -> None:
    async with family(tmp_path, "serves", "serves", hang_s=2) as those:
        await those.said("all serve")
        stopped = await those.pid("serves-0")
        os.kill(stopped, signal.SIGSTOP)
        assert f" pid={stopped} " in await those.said("hangs, and is killed", "serves-0")
        await those.pid("serves-0", generation=2)
        assert await those.told_to_stop() == 0
    assert not those.lines("hangs, and is killed", "serves-1")


async def test_who_does_not_serve_yet_may_be_silent(tmp_path: Path) -> None:
    async with family(tmp_path, "starts_for_ever", "silent", hang_s=0.3) as those:
        await those.said("hangs, and is killed", "silent-1", times=3)
        assert not those.lines("hangs, and is killed", "starts_for_ever-0")
        assert await those.told_to_stop() == 0


async def test_a_parent_that_was_held_up_itself_does_not_call_that_silence(tmp_path: Path) -> None:
    async with family(tmp_path, "serves", "serves", hang_s=2) as those:
        await those.said("all serve")
        stopped, killed = await those.pid("serves-0"), await those.pid("serves-1")
        for pid in (those.process.pid, stopped):
            os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(2.2)  # that time passes is what this is about
        os.kill(killed, signal.SIGKILL)
        os.kill(those.process.pid, signal.SIGCONT)
        await those.said("a process ended", "serves-1")
        os.kill(stopped, signal.SIGCONT)
        await those.pid("serves-1", generation=2)
        assert await those.told_to_stop() == 0
    assert not those.lines("hangs, and is killed")


async def test_a_replacement_that_fails_comes_again_after_longer_and_longer_pauses(tmp_path: Path) -> None:
    async with family(tmp_path, "once", "serves") as those:
        await those.said("all serve")
        os.kill(await those.pid("once-0"), signal.SIGKILL)
        await those.said("begins", times=6)
        assert await those.told_to_stop() == 0
    begun = [float(line.split()[1]) for line in those.lines("begins")]
    pauses = [later - earlier for earlier, later in pairwise(begun[1:])]
    for number, pause_s in enumerate(pauses[:4]):
        assert pause_s >= FIRST_PAUSE_S * 2**number
    assert " code=3 " in those.lines("a process ended", "once-0")[1]


async def test_after_it_has_lived_for_long_the_next_comes_at_once_again(tmp_path: Path) -> None:
    async with family(tmp_path, "serves", settled_s=0) as those:
        begun = time.monotonic()
        for generation in range(1, 9):
            os.kill(await those.pid("serves-0", generation=generation), signal.SIGKILL)
        await those.pid("serves-0", generation=9)
        assert time.monotonic() - begun < FIRST_PAUSE_S * 2**6
        assert await those.told_to_stop() == 0


async def test_a_system_without_room_for_another_process_is_asked_again(tmp_path: Path) -> None:
    async with family(tmp_path, "serves", "serves", no_forks="3,4") as those:
        await those.said("all serve")
        os.kill(await those.pid("serves-1"), signal.SIGKILL)
        await those.pid("serves-1", generation=2)
        assert await those.told_to_stop() == 0
    assert len(those.lines("no process can be made")) == 2
    assert len(those.lines("a process serves", "serves-0")) == 1


# --- The first generation


@pytest.mark.parametrize(
    ("child", "code"), [("fails", 3), ("ends", 1), ("crashes", 1), ("dies", 128 + signal.SIGKILL), ("refuses", 2)]
)
async def test_who_ends_before_it_served_ends_all_with_its_exit_code(tmp_path: Path, child: str, code: int) -> None:
    async with family(tmp_path, "serves", child, "starts_for_ever") as those:
        assert await those.ended() == code
    assert len(those.lines("a process ended", f"{child}-1")) == 1
    assert not those.lines("takes the place")
    assert bool(those.lines("a bug")) == (child == "crashes")


async def test_what_is_refused_is_said_once_by_the_parent_however_many_refuse_it(tmp_path: Path) -> None:
    async with family(tmp_path, "refuses", "refuses", "refuses") as those:
        assert await those.ended() == 2
    assert those.lines("refused:") == ["refused: This is wrong. So is that.\n"]
    assert '"This is wrong. So is that."' in those.lines("a process ended")[0]


async def test_who_served_once_is_replaced_though_others_have_not_served_yet(tmp_path: Path) -> None:
    async with family(tmp_path, "serves", "starts_for_ever") as those:
        os.kill(await those.pid("serves-0"), signal.SIGKILL)
        await those.pid("serves-0", generation=2)
        assert await those.told_to_stop() == 0
    assert not those.lines("all serve")
