"""Every commit that was answered survives the death of the process, whenever it comes."""

import random
import signal
import sqlite3
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from storage import open_documents
from tests.storage import children

ROUNDS = 25


@dataclass
class Answered:
    """What the dying processes said: the newest version of each document and the number written with it."""

    newest: dict[str, tuple[int, int]] = field(default_factory=dict)
    commits: int = 0

    def take(self, output: bytes) -> None:
        for line in output[: output.rfind(b"\n") + 1].splitlines():
            key, version, number = line.decode().split()
            assert int(version) > self.newest.get(key, (0, 0))[0]
            self.newest[key] = (int(version), int(number))
            self.commits += 1


def kill_after(child: subprocess.Popen[bytes], size: int) -> bytes:
    """The child's output up to its death, which comes when it has written about `size` bytes."""
    assert child.stdout is not None
    with child.stdout as pipe:
        output = pipe.read(size)
        child.send_signal(signal.SIGKILL)
        output += pipe.read()
    assert child.wait() == -signal.SIGKILL
    return output


async def check(path: Path, answered: Answered) -> int:
    """Everything answered is there, or something newer; the highest number that is stored."""
    async with open_documents(f"sqlite:///{path}") as store:
        keys = sorted(answered.newest)
        for document in await store.load(keys):
            version, number = answered.newest[document.key]
            assert document.version >= version
            assert (int(document.body) == number) if document.version == version else (int(document.body) > number)
            assert document.due == int(document.body)
        stored = (await store.scan(limit=1000)).documents
    return max((int(document.body) for document in stored), default=0)


async def test_every_answered_commit_survives_sigkill_and_no_version_goes_back(tmp_path: Path) -> None:
    path = tmp_path / "documents.db"
    dice = random.Random(7)
    answered = Answered()
    highest = 0
    for _ in range(ROUNDS):
        child = children.start("commit", path, str(highest + 1))
        answered.take(kill_after(child, int(10 ** dice.uniform(0, 5))))
        highest = await check(path, answered)
    assert len(answered.newest) == children.COMMITTERS
    assert answered.commits > 50 * ROUNDS
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
