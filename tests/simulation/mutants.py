"""The product broken on purpose, one rule at a time: what the simulation has to find.

A mutant that survives is a hole in the invariants, not a harmless change: those that would be are not in the list.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = ("gateway", "storage", "push", "tests")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One rule broken: in the file `path`, where `old` stands exactly once, there is `new`."""

    name: str
    path: str
    old: str
    new: str

    def apply(self, root: Path) -> None:
        """Break the copy of the project in `root`. ValueError where the code is not as it was."""
        file = root / self.path
        text = file.read_text()
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: in {self.path} that stands {text.count(self.old)} times")
        file.write_text(text.replace(self.old, self.new))


MUTANTS = (
    # --- Two writes
    Mutant(
        "the second write first",
        "gateway/changes.py",
        """            states = {owner_id: decision.state} | self._agreeing(settled, entries, decision.state, now)
""",
        """            states = self._agreeing(settled, entries, decision.state, now) | {owner_id: decision.state}
""",
    ),
    Mutant(
        "published before the commit",
        "gateway/changes.py",
        """            try:
                changed = await self._write(entries, states)
            except Conflict as conflict:
                written = {document.key for document in conflict.written}
                if entries[owner_id]""",
        """            await self._publish([state for key, state in states.items() if state != entries[key].state])
            try:
                changed = await self._write(entries, states)
            except Conflict as conflict:
                written = {document.key for document in conflict.written}
                if entries[owner_id]""",
    ),
    Mutant(
        "not published",
        "gateway/changes.py",
        "            await self._publish(changed, repeated)\n",
        "",
    ),
    Mutant(
        "after a conflict at the second write that half is left undone",
        "gateway/changes.py",
        "                states |= await self._settle(owner_id, unsettled)\n",
        "",
    ),
    Mutant(
        "bytes deleted before the commit",
        "gateway/changes.py",
        "            states = {owner_id: decision.state} | self._agreeing",
        "            self._removals.add(ref.object_key for ref in decision.gone)\n"
        "            states = {owner_id: decision.state} | self._agreeing",
    ),
    Mutant(
        "a repeated call completes nothing",
        "gateway/transit/receiving.py",
        "        self.senders.add(sender_id)\n        if video.status is Status.EXPIRED:",
        "        if video.moves_to(status):\n            self.senders.add(sender_id)\n"
        "        if video.status is Status.EXPIRED:",
    ),
    # --- Pairs
    Mutant(
        "the recipient's copy is taken whatever its version",
        "gateway/transit/pairs.py",
        "    if theirs is None or theirs.version <= (mine.version if mine else 0):\n",
        "    if theirs is None or theirs.version == (mine.version if mine else 0):\n",
    ),
    Mutant(
        "the recipient's own statuses are overwritten",
        "gateway/transit/pairs.py",
        "    return known.moved(video.status, video.at) if video.ended and not known.ended else known\n",
        "    return known._replace(status=video.status, at=video.at)\n",
    ),
    Mutant(
        "statuses go back",
        "gateway/transit/state.py",
        "        return status in _NEXT[self.status]\n",
        "        return status is not self.status\n",
    ),
    Mutant(
        "ended ids are forgotten",
        "gateway/transit/sealing.py",
        "    return tuple(sorted({*ended, *more}))\n",
        "    return ()\n",
    ),
    Mutant(
        "the sender's document decides that a video has expired",
        "gateway/service.py",
        """            return expiry.expire(states[recipient_id], states[sender_id], now=now, policy=self.changes.policy)

        await self.changes.run(recipient_id, rule, beside=(sender_id,))
""",
        """            sender = states[sender_id]
            pair = sender.outgoing[recipient_id]
            late = {
                key: video if video.ended else video.moved(Status.EXPIRED, now) for key, video in pair.videos.items()
            }
            outgoing = {**sender.outgoing, recipient_id: pair._replace(version=now, videos=late)}
            state = sender._replace(version=max(now, sender.version + 1), outgoing=outgoing)
            return Decision(sealing.sealed(state, now=now, policy=self.changes.policy), settle=frozenset({recipient_id}))

        await self.changes.run(sender_id, rule, beside=(recipient_id,))
""",
    ),
    Mutant(
        "the packet changes and its version does not",
        "gateway/transit/receiving.py",
        "        version = next_version(self.client, now) if self.visible else self.client.version\n",
        "        version = self.client.version\n",
    ),
    Mutant(
        "an upload is confirmed whether or not it is stored",
        "gateway/service.py",
        '            raise NotStored("nothing is stored for this video: upload it while its URL lives, or announce it anew")\n',
        '            return Stored(1, "video/mp4")\n',
    ),
    Mutant(
        "more videos than there may be",
        "gateway/service.py",
        "                if full := room.full:\n",
        "                if full := False:\n",
    ),
    # --- Acknowledgements and wakeups
    Mutant(
        "a poll's answer counts as an acknowledgement",
        "gateway/api/calls.py",
        """    state = await caller.backends.service.poll(caller.client_id, seen, known=max(version or 0, known or 0))
    if known is None""",
        """    state = await caller.backends.service.poll(caller.client_id, seen)
    device = caller.device(caller.request.query.get("device_id"))
    if device is not None and state.version:
        state = await caller.backends.service.poll(caller.client_id, Acknowledgement(device, state.version))
    if known is None""",
    ),
    Mutant(
        "an acknowledgement covers what came after it",
        "gateway/transit/receiving.py",
        "    version = min(seen.version, changes.client.version)\n",
        "    version = changes.client.version\n",
    ),
    Mutant(
        "an acknowledgement does not cover the very version that it names",
        "gateway/transit/receiving.py",
        "        if video.status is Status.UPLOADED and video.came <= version:\n",
        "        if video.status is Status.UPLOADED and video.came < version:\n",
    ),
    Mutant(
        "one device's acknowledgement is everybody's",
        "gateway/transit/devices.py",
        "    return _with(state, device_id, known._replace(acked=acked, heard_at=now))\n",
        "    return state._replace(\n"
        "        devices={key: device._replace(acked=acked) for key, device in state.devices.items()}\n"
        "    )\n",
    ),
    Mutant(
        "a push that was taken ends the reminders",
        "gateway/transit/devices.py",
        "        gap_ms = _reminder_gap(known.attempts, policy) if push.alert else None\n",
        "        gap_ms = None\n",
    ),
    Mutant(
        "reminders never end",
        "gateway/transit/devices.py",
        "    return times[attempts + 1] - times[attempts] if attempts + 1 < len(times) else None\n",
        "    return times[1]\n",
    ),
    Mutant(
        "a push that was taken counts for newer news",
        "gateway/transit/devices.py",
        "    if known.next_at and news(state, policy) <= carried:\n",
        "    if known.next_at:\n",
    ),
    Mutant(
        "a push that was taken is not counted",
        "gateway/transit/devices.py",
        "        known = known._replace(attempts=known.attempts + 1, next_at",
        "        known = known._replace(attempts=max(known.attempts, 1), next_at",
    ),
    Mutant(
        "every change begins the reminders anew",
        "gateway/transit/devices.py",
        "    if fresh:\n        device = device._replace(attempts=0)\n",
        "    device = device._replace(attempts=0)\n    if fresh:\n",
    ),
    Mutant(
        "news has no time at which to wake anybody",
        "gateway/transit/devices.py",
        "    return device._replace(next_at=due)\n",
        "    return device\n",
    ),
    Mutant(
        "who is up to date stays due",
        "gateway/transit/devices.py",
        "        return device._replace(attempts=0, failures=0, next_at=0)\n",
        "        return device\n",
    ),
    Mutant(
        "who is up to date is woken",
        "gateway/transit/devices.py",
        "        if not 0 < device.next_at <= now",
        "        if not device.next_at <= now",
    ),
    Mutant(
        "whoever is connected has no grace",
        "gateway/wakeups.py",
        "            absent = before.devices if call.absent is None else call.absent\n",
        "            absent = before.devices\n",
    ),
    Mutant(
        "a socket that ends with news wakes nobody",
        "gateway/api/session.py",
        "        self._desk.start(self._desk.hub.lost(self.client_id, self.device_id))\n",
        "",
    ),
    Mutant(
        "a socket that ends with news wakes all of its client's devices",
        "gateway/live/hub.py",
        "            await self._bus.kick(Kick(client_id, device_id))\n",
        "            await self._bus.kick(Kick(client_id))\n",
    ),
    Mutant(
        "a push is sent before it is claimed",
        "gateway/transit/devices.py",
        "            next_at=now + LEASE_MS,\n",
        "",
    ),
    Mutant(
        "a claim lasts until the reminder",
        "gateway/transit/devices.py",
        "            next_at=now + LEASE_MS,\n",
        "            next_at=now + (_reminder_gap(device.attempts, policy) or LEASE_MS),\n",
    ),
    Mutant(
        "the worker waits for its pushes",
        "gateway/wakeups.py",
        "                group.create_task(self._push(claimed, push))\n",
        "                await self._push(claimed, push)\n",
    ),
    Mutant(
        "a provider has no deadline",
        "push/guard.py",
        "            async with asyncio.timeout(DEADLINE_S):\n",
        "            async with asyncio.timeout(None):\n",
    ),
    Mutant(
        "a provider that fails is not left alone",
        "push/breaker.py",
        "        if self._failures >= MOST_FAILURES:\n",
        "        if False:\n",
    ),
    Mutant(
        "a provider that may work again is asked by everybody at once",
        "push/breaker.py",
        "        self._probing = not self.closed\n",
        "        self._probing = False\n",
    ),
    Mutant(
        "one provider's outage holds up the other",
        "gateway/wakeups.py",
        "        pauses: dict[str, int] = {platform: sender.pause_ms() for platform, sender in self._senders.items()}\n",
        "        pauses: dict[str, int] = dict.fromkeys(self._senders, max(one.pause_ms() for one in self._senders.values()))\n",
    ),
    Mutant(
        "a provider's word on when to come back is not heard",
        "gateway/transit/devices.py",
        "    if after_ms is None:\n",
        "    if True:\n",
    ),
    Mutant(
        "fresh news cuts the pause after a failure short",
        "gateway/transit/devices.py",
        "        if not device.failures:",
        "        if True:",
    ),
    Mutant(
        "failures are never forgotten",
        "gateway/transit/devices.py",
        "    known = known._replace(failures=0)\n",
        "",
    ),
    Mutant(
        "whom a provider refused for good is pushed to again",
        "gateway/transit/devices.py",
        "    return _with(state, push.device_id, known._replace(failures=0, next_at=0))\n",
        "    return _with(state, push.device_id, known._replace(failures=0))\n",
    ),
    Mutant(
        "who was refused for good is not told of fresh news",
        "gateway/transit/devices.py",
        "    if known is None or not known.next_at or news(state, policy) > carried:\n",
        "    if known is None or not known.next_at:\n",
    ),
    Mutant(
        "a second try takes another id",
        "gateway/wakeups.py",
        "{news} {push.device.attempts}",
        "{news} {push.device.attempts} {push.device.failures}",
    ),
    Mutant(
        "a reminder takes the id of the push before",
        "gateway/wakeups.py",
        "{news} {push.device.attempts}",
        "{news}",
    ),
    Mutant(
        "silent pushes follow each other at once",
        "gateway/transit/devices.py",
        "            background_at=device.background_at if alert else now,\n",
        "",
    ),
    Mutant(
        "what has become silent keeps no distance",
        "gateway/transit/devices.py",
        "    if due and device.acked >= video_news:\n",
        "    if fresh and due and device.acked >= video_news:\n",
    ),
    Mutant(
        "a silent push that failed counts as sent",
        "gateway/transit/devices.py",
        "            background_at=known.background_at if push.alert else push.device.background_at,  # it was not sent\n",
        "",
    ),
    Mutant(
        "a push to a token that is another's now",
        "gateway/wakeups.py",
        "            if owner is None or owner[:2] != (state.client_id, push.device_id):\n",
        "            if owner is None:\n",
    ),
    Mutant(
        "a dead token takes the new one with it",
        "gateway/transit/devices.py",
        "    return unregister(state, push.device_id, token_key=push.device.token_key)\n",
        "    return unregister(state, push.device_id)\n",
    ),
    Mutant(
        "a token that was registered again is dead all the same",
        "gateway/transit/devices.py",
        "    if known is None or known.registered_at >= since:\n",
        "    if known is None:\n",
    ),
    Mutant(
        "nobody doubts that everybody's token is dead",
        "push/guard.py",
        "        if isinstance(outcome, TokenDead) and self._doubtful():\n",
        "        if False:\n",
    ),
    Mutant(
        "tokens in doubt are removed",
        "gateway/wakeups.py",
        "                case TokenDead(since, False):\n",
        "                case TokenDead(since, _):\n",
    ),
    # --- The cache
    Mutant(
        "what is decided stands on what was only peeked at",
        "gateway/changes.py",
        "            if aged and decision.state == entries[owner_id].state and not _will_do(decision, least):\n",
        "            if False:\n",
    ),
    Mutant(
        "who is settled stands on what was only peeked at",
        "gateway/changes.py",
        "            if aged and (idle := [peer for peer in aged if states[peer] == entries[peer].state]):\n",
        "            if idle := []:\n",
    ),
    Mutant(
        "who stands beside the owner is only peeked at",
        "gateway/changes.py",
        """        tries, recalls = 0, not beside
        begin = self._recall if least is None else self._peek  # what is remembered is of any age
        while True:
            now = self.now()
            first, recalls = recalls, False
            entries, aged = await begin((owner_id,)) if first""",
        """        tries, recalls = 0, True
        begin = self._recall if least is None else self._peek  # what is remembered is of any age
        while True:
            now = self.now()
            first, recalls = recalls, False
            entries, aged = await begin((owner_id, *beside)) if first""",
    ),
    Mutant(
        "a poll is answered from what is remembered",
        "gateway/changes.py",
        "        begin = self._recall if least is None else self._peek",
        "        begin = self._recall",
    ),
    Mutant(
        "after a conflict it peeks again",
        "gateway/changes.py",
        "                    tries = await self._pause(tries)  # nothing of this decision stands\n",
        "                    tries, recalls = await self._pause(tries), not beside\n",
    ),
    Mutant(
        "a poll is answered with less than it has",
        "gateway/changes.py",
        "    return least is not None and least <= decision.state.version and not decision.settle\n",
        "    return least is not None and not decision.settle\n",
    ),
    Mutant(
        "a poll that acknowledges nothing is answered with less than it has",
        "gateway/changes.py",
        "            if aged and entries[client_id].state.version < least:\n",
        "            if False:\n",
    ),
    Mutant(
        "a poll without a version is answered from the cache",
        "gateway/service.py",
        "        return await (self.changes.peek(client_id, least=known) if known else self.changes.load(client_id))\n",
        "        return await self.changes.peek(client_id, least=known)\n",
    ),
    Mutant(
        "a report is answered from the cache where it changes nothing",
        "gateway/service.py",
        "        decision = await self.changes.run(client_id, rule, least=least)\n",
        "        decision = await self.changes.run(client_id, rule, least=least or 0)\n",
    ),
    Mutant(
        "a socket begins with what the cache has",
        "gateway/api/socket.py",
        "            state = await self._desk.service.poll(client_id, seen)\n",
        "            state = await self._desk.service.poll(client_id, seen, known=seen.version if seen else 0)\n",
    ),
    Mutant(
        "a poll that is held looks into the cache only",
        "gateway/live/hub.py",
        "            state = await self._changes.load(client_id)\n",
        "            state = await self._changes.peek(client_id)\n",
    ),
    Mutant(
        "ids are minted from what the cache has",
        "gateway/service.py",
        "        sender, recipient = await self.changes.load_both(sender_id, recipient_id)\n",
        "        sender, recipient = await self.changes.peek(sender_id), await self.changes.load(recipient_id)\n",
    ),
    Mutant(
        "what is loaded is not put into the cache",
        "storage/cache.py",
        "        self._remember(loaded, began_s)\n",
        "",
    ),
    Mutant(
        "what is written is not put into the cache",
        "storage/cache.py",
        "        self._remember(written, began_s)\n",
        "",
    ),
    Mutant(
        "entries live for ever",
        "storage/cache.py",
        "ENTRY_S = 30.0\n",
        "ENTRY_S = 30_000.0\n",
    ),
    Mutant(
        "an older document replaces a newer entry",
        "tests/simulation/cache.py",
        "        if there is None or there.version <= document.version:\n",
        "        if True:\n",
    ),
    # --- Live delivery
    Mutant(
        "loaded before subscribed",
        "gateway/api/socket.py",
        """            await hub.join(client_id, session)
            state = await self._desk.service.poll(client_id, seen)
""",
        """            state = await self._desk.service.poll(client_id, seen)
            await hub.join(client_id, session)
""",
    ),
    Mutant(
        "versions are compared with >= the wrong way round",
        "gateway/live/connection.py",
        "        if version <= self.version:\n            return False\n        self.version = version\n",
        "        if version >= self.version >= 0:\n            return False\n        self.version = version\n",
    ),
    Mutant(
        "nobody compares versions with the store's",
        "gateway/live/hub.py",
        "        self._doubted[client_id] = None\n        self._doubts.set()\n",
        "",
    ),
    Mutant(
        "a socket that is logged out stays",
        "gateway/live/hub.py",
        "            if dismissal.device_id in {None, socket.device_id} and (not displaced or socket.rank < dismissal.rank):\n",
        "            if displaced and socket.device_id == dismissal.device_id and socket.rank < dismissal.rank:\n",
    ),
    # --- The sweep
    Mutant(
        "no sweep completes what was uploaded and not confirmed, nor deletes what is nobody's",
        "gateway/uploads.py",
        "        settled = await asyncio.gather(*map(one, keys))\n",
        "        settled: list[Settled] = []\n",
    ),
    # --- The client
    Mutant(
        "the record is stored after what follows from it",
        "gateway/client/device.py",
        """            try:
                await self._keep()
            except BaseException:
                self._stored += stored  # it ends: they are looked after there
                raise
            for action in actions:
                self._begin(action)
""",
        """            for action in actions:
                self._begin(action)
            self._client.remembers(self._record.version)
            await asyncio.sleep(0.05)
            await self._keep()
""",
    ),
    Mutant(
        "what a packet does not list is complete",
        "gateway/client/record.py",
        "        return unlisted.moved(SentStatus.COMPLETE) if self.silence is not None and version >= self.silence"
        " else unlisted\n",
        "        return unlisted.moved(SentStatus.COMPLETE) if self.video_id is not None else unlisted\n",
    ),
    Mutant(
        "older packets are applied",
        "gateway/client/record.py",
        "        if packet.client_id != self.client_id or packet.version < self.version or self.logged_out:\n",
        "        if packet.client_id != self.client_id or self.logged_out:\n",
    ),
    Mutant(
        "a message that had no answer is done",
        "gateway/client/core.py",
        "            case Tell():\n                self._not_told(task.report, known)\n",
        '            case Tell():\n                self.record.refused(task.report, "lost")\n',
    ),
    Mutant(
        "a version is acknowledged that was not applied",
        "gateway/client/core.py",
        "        self._has_acked(version)\n        return [Acknowledge(version)]\n",
        "        self._has_acked(version)\n        return [Acknowledge(version + 600_000)]\n",
    ),
    Mutant(
        "the log-out comes after the next log-in",
        "gateway/client/core.py",
        """            if any(farewell.client_id == record.client_id for farewell in record.farewells):
                return  # what this client said when it left comes before what it says now
""",
        "",
    ),
    Mutant(
        "another account's record is kept",
        "gateway/client/record.py",
        "            self._forget()\n            self.client_id, self.device_id = client_id or",
        "            self.client_id, self.device_id = client_id or",
    ),
    Mutant(
        "a deleted video is shown again",
        "gateway/client/record.py",
        "        shown = [entry for entry in packet.outgoing if entry.video_id not in self.deletions]\n",
        "        shown = packet.outgoing\n",
    ),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a mutant: after how many seeds it was found and by what, or that it survived so many."""

    mutant: Mutant
    found: bool
    seeds: int
    by: str
    took_s: float

    def __str__(self) -> str:
        what = f"found after {self.seeds:4} seeds by: {self.by}" if self.found else f"SURVIVED {self.seeds} seeds"
        return f"{self.mutant.name:70} {what} ({self.took_s:.0f} s)"


def tried(mutant: Mutant, seeds: int) -> Verdict:
    """Run the simulation over a copy of the project that is broken like this, up to the first seed that finds it."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        root = Path(folder)
        for part in PARTS:
            shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
        mutant.apply(root)
        command = [sys.executable, "-m", "tests.simulation", "--seeds", str(seeds), "--jobs", "1", "--whole"]
        run = subprocess.run(
            command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, check=False
        )
    took_s = time.monotonic() - began
    if run.returncode == 0:
        return Verdict(mutant, found=False, seeds=seeds, by="", took_s=took_s)
    seed = re.search(r"^seed (\d+) goes wrong: (.*)$", run.stdout, re.MULTILINE)
    if seed is None:
        raise RuntimeError(f"{mutant.name}: the simulation failed\n{run.stdout}\n{run.stderr}")
    return Verdict(mutant, found=True, seeds=int(seed[1]) + 1, by=seed[2], took_s=took_s)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 where all were found."""
    parser = argparse.ArgumentParser(prog="scripts/mutate", description=__doc__)
    parser.add_argument(
        "--seeds", type=int, default=1_000, metavar="N", help="at most so many for each (default: 1000)"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="J", help="mutants at a time")
    parser.add_argument("names", nargs="*", help="only mutants whose name contains one of these")
    given = parser.parse_args(arguments)
    chosen = [one for one in MUTANTS if not given.names or any(name in one.name for name in given.names)]
    survived = 0
    with ThreadPoolExecutor(given.jobs) as pool:
        for verdict in pool.map(lambda one: tried(one, given.seeds), chosen):
            print(verdict, flush=True)
            survived += not verdict.found
    print(f"{len(chosen) - survived} of {len(chosen)} found")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
