"""A phone in a story: the client under test on it, its user, and the pushes that reach it."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from random import Random

import orjson

from tests.conformance.conditions import Conditions
from tests.conformance.judge import RECEIVED, Book, Change, Sending, State
from tests.conformance.plan import Deed, Happening
from tests.conformance.process import Mute, Process
from tests.conformance.witness import Kind
from tests.running import App, Running, token

ANSWER_S = 30.0
"""How long a client may take to start, to store what it is told, and to exit."""

ASIDE_S = 0.2
"""How often a phone that is not registered yet is tried again: as long as pushes have nowhere to go."""

TOKEN_S = 3600
STRANGER = "a-stranger"

Payload = Mapping[str, str]
"""The data of a push."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What all phones of a story have in common. `address`: where clients find the gateway, which is the front."""

    conditions: Conditions
    gateway: Running
    command: Sequence[str]
    address: str
    folder: Path
    phones: "list[Phone]"

    def sent_to(self, sender: str, recipient: str) -> set[str]:
        """The digests of all that one account was told to send to another."""
        sendings = [sending for phone in self.phones if phone.account == sender for sending in phone.book.sendings]
        return {sending.digest for sending in sendings if sending.recipient == recipient}


class Phone:
    """One device. `name`: `account/device`. `mute`: it has failed to answer, and takes part no more. `awake`: pushes
    reach it."""

    def __init__(self, name: str, scene: Scene) -> None:
        self.name = name
        self.account, self.device = name.split("/")
        self.mute = False
        self.awake = asyncio.Event()
        self.book = Book(self.account, self._found, scene.sent_to)
        self._scene = scene
        self._log = scene.conditions.log
        self._witness = scene.conditions.witness
        self._folder = scene.folder / name
        self._process: Process | None = None
        self._tokens = 0
        self._token = self._new_token()
        self._active, self._online = True, True

    def _found(self, kind: Kind, text: str) -> None:
        self._witness.found(kind, self.name, text)

    # --- Its lives

    async def start(self) -> None:
        """Start the client, which goes on where it was, and have it registered, as an app does. Raises Mute, and
        NotStarted."""
        self._folder.mkdir(parents=True, exist_ok=True)
        environment = {
            "CONFORMANCE_ADDRESS": self._scene.address,
            "CONFORMANCE_CLIENT_ID": self.account,
            "CONFORMANCE_DEVICE_ID": self.device,
            "CONFORMANCE_TOKEN": self._token,
            "CONFORMANCE_STATE": str(self._folder),
        }
        self._log.note(self.name, "starts")
        self._witness.restarted(self.name)
        self._active, self._online = True, True
        self._process = await Process.start(
            self._scene.command, environment, who=self.name, log=self._log, told=self._told
        )
        await self._ask("register", platform="fcm", token=f"push-token-of-{self.name}")

    async def kill(self) -> None:
        """Kill the client, whatever it is at."""
        if self._process is not None:
            process, self._process = self._process, None
            self._log.note(self.name, "is killed")
            await process.kill()
            self.book.killed()

    async def _ask(self, do: str, **members: object) -> Mapping[str, object]:
        if self._process is None or self.mute:
            raise Mute("is not running")
        return await self._process.ask(do, within_s=ANSWER_S, **members)

    def _told(self, said: Mapping[str, object]) -> None:
        match said.get("tell"):
            case "change":
                try:
                    change = Change.parse(said)
                except ValueError as error:
                    self._found(Kind.MUTE, f"breaks the line protocol: {error}")
                    return
                reason = f" ({change.reason})" if change.reason else ""
                named = f"{change.key} ({change.video_id})" if change.video_id not in {None, change.key} else change.key
                way = "from" if change.status in RECEIVED else "to"
                self._log.note(self.name, f"tells: {change.status}{reason}: {named} {way} {change.peer}")
                self.book.tells(change)
            case "token":
                self._token = self._new_token()
                self._log.note(self.name, "asks for a new token")
                if self._process is not None:
                    self._process.say("token", token=self._token)
            case other:
                self._found(Kind.MUTE, f"breaks the line protocol: it tells {other!r}")

    def _new_token(self) -> str:
        self._tokens += 1  # else two of one second would be the same
        return token(self.account, device=self.device, ttl_s=TOKEN_S + self._tokens)

    # --- What its user does

    async def begin(self) -> None:
        """The client is started for the first time. Raises NotStarted."""
        with self._answering():
            await self.start()

    async def live(self, happenings: Sequence[Happening]) -> None:
        """Its user does all this, each thing at its time, up to the first that the client does not answer to."""
        with self._answering():
            for happening in happenings:
                await asyncio.sleep(max(0.0, happening.at_s - self._log.now_s))
                await self._do(happening.deed, self._scene.conditions.plan.chance(happening.seed))

    async def _do(self, deed: Deed, chance: Random) -> None:
        match deed:
            case Deed.SEND:
                await self._send(chance)
            case Deed.VIEW:
                await self._view(chance)
            case Deed.DELETE:
                await self._delete(chance)
            case Deed.GROUND:
                await self._ground(not self._active)
            case Deed.NETWORK:
                await self._network(not self._online)
            case Deed.KILL:
                await self._die(chance)
            case _:
                raise AssertionError(deed)

    async def _send(self, chance: Random) -> None:
        recipient = chance.choice(sorted({phone.account for phone in self._scene.phones} - {self.account}))
        data = chance.randbytes(chance.choice((chance.randrange(1, 5_000), chance.randrange(100_000, 400_000))))
        file = self._folder / f"outbox-{len(self.book.sendings)}.mp4"
        file.write_bytes(data)
        sending = Sending(recipient, hashlib.sha256(data).hexdigest())
        self.book.sendings.append(sending)
        key = (await self._ask("send", file=str(file), to=recipient)).get("key")
        if not isinstance(key, str):
            raise Mute("answers to 'send' without a key")
        sending.key = key
        self._log.note(self.name, f"sends {sending.key} to {recipient}: {len(data):,} bytes")

    async def _view(self, chance: Random) -> None:
        if unseen := sorted(self.book.ready.keys() - self.book.viewed):
            video_id = chance.choice(unseen)
            await self._ask("viewed", video_id=video_id)
            self._log.note(self.name, f"views {video_id}")
            self.book.viewed.add(video_id)

    async def _delete(self, chance: Random) -> None:
        if present := [sending for sending in self.book.sendings if sending.key and not sending.deleted]:
            sending = chance.choice(present[-3:])
            sending.deleted = True
            await self._ask("delete", key=sending.key)
            self._log.note(self.name, f"deletes {sending.key}")

    async def _ground(self, active: bool) -> None:
        self._active = active
        self._log.note(self.name, f"goes to the {'foreground' if active else 'background'}")
        self._witness.nudged(self.name)
        await self._ask("foreground", active=active)

    async def _network(self, online: bool) -> None:
        self._online = online
        self._log.note(self.name, f"has {'a' if online else 'no'} network")
        self._witness.nudged(self.name)
        await self._ask("network", online=online)

    async def _die(self, chance: Random) -> None:
        """It is killed while it does something; some time later it is started anew."""
        deed = chance.choice((Deed.SEND, Deed.VIEW, Deed.DELETE))
        doing = asyncio.create_task(self._do(deed, chance))
        await asyncio.sleep(chance.uniform(0, 0.03))
        await self.kill()
        with contextlib.suppress(Mute):
            await doing
        await asyncio.sleep(chance.uniform(0, 1))
        await self.start()

    # --- What reaches it

    async def hear_pushes(self) -> None:
        """Hand the client its pushes, as a system does: some late, some again, some never. Ends with the task."""
        app = self._scene.gateway.app(self.account, device=self.device)
        chance = self._scene.conditions.plan.chance("pushes", self.name)
        heard: list[Payload] = []
        while True:
            async for push in _pushes(app, self.device, self.awake):
                heard.append(push)
                await self._hand_over(heard, chance)
            await asyncio.sleep(ASIDE_S)

    async def _hand_over(self, heard: Sequence[Payload], chance: Random) -> None:
        what, payload = "a push", heard[-1]
        if not self._scene.conditions.behaving:
            await asyncio.sleep(chance.uniform(0, 0.3))
            what, payload = _fate(heard, chance)
        self._log.note(self.name, f"{what}: version {payload.get('version', heard[-1]['version'])}")
        if self._process is not None and payload:
            packet = orjson.loads(payload.get("packet", "{}"))
            if packet.get("client_id") == self.account:
                self._witness.delivered(self.name, packet["version"])
            self._process.say("push", id=0, payload=payload)

    # --- The end

    async def settle(self) -> None:
        """It is running, in the foreground, and has a network, as new."""
        with self._answering():
            if self._process is None:
                await self.start()
            await self._ground(active=True)
            await self._network(online=True)

    async def state(self) -> State | None:
        """What the client shows now; None where it does not answer."""
        with self._answering():
            try:
                return State.parse(await self._ask("state"))
            except ValueError as error:
                self._found(Kind.MUTE, f"breaks the line protocol: {error}")
        return None

    async def exit(self) -> None:
        """Have the client end."""
        with self._answering():
            if self._process is not None and (code := await self._process.exit(within_s=ANSWER_S)):
                raise Mute(f"exits with the code {code}")
            self._process = None

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """From the first time on that the client does not answer it takes part no more."""
        try:
            yield
        except Mute as mute:
            self.mute = True
            self._found(Kind.MUTE, str(mute))


def _fate(heard: Sequence[Payload], chance: Random) -> tuple[str, Payload]:
    """What becomes of the newest push: a word for that, and what reaches the client, which may be nothing."""
    newest = heard[-1]
    packet = orjson.loads(newest.get("packet", "{}"))
    another = orjson.dumps({**packet, "client_id": STRANGER}).decode()
    fates: list[tuple[str, Payload]] = [
        ("a push", newest),
        ("a push is lost", {}),
        ("an old push", chance.choice(heard)),
        ("a push without its packet", {"version": newest["version"]}),
        ("somebody else's push", {**newest, "packet": another}),
    ]
    return chance.choices(fates, (8, 6, 3, 3, 1))[0]


async def _pushes(app: App, device: str, awake: asyncio.Event) -> AsyncIterator[Payload]:
    """The data of each push to a device, until the gateway ends; nothing where it is not registered."""
    path, headers = f"/v1/devices/{device}/pushes", {"Authorization": f"Bearer {app.token}"}
    async with app.http.stream("GET", path, headers=headers, timeout=None) as stream:
        if stream.status_code != HTTPStatus.OK:
            return
        async for line in stream.aiter_lines():
            awake.set()
            if line.startswith("data: "):
                found = orjson.loads(line.removeprefix("data: "))
                yield {name: found[name] for name in ("version", "packet") if name in found}
