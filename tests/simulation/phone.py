"""A phone: its disk, its network, the app on it, and its user. The app is the real client's `Device`."""

import asyncio
import contextlib
import hashlib
import random
from typing import TYPE_CHECKING

import httpx

from gateway.api.auth import issue_token
from gateway.client.client import Client
from gateway.client.device import Device
from gateway.client.failures import DownloadError
from gateway.client.messages import Announced
from gateway.client.record import Change, ReceivedStatus, Record
from gateway.client.transfers import Progress
from gateway.transit.state import ClientId, DeviceId, VideoId
from push.sender import Platform, Wakeup
from tests.simulation.calls import ADDRESS, SimulatedCalls
from tests.simulation.loops import MachineLoop
from tests.simulation.network import Line
from tests.simulation.process import SECRET, START_S
from tests.simulation.screen import Screen

if TYPE_CHECKING:
    from tests.simulation.world import World


HELD_S = 6
"""How long such a poll is held, if it is."""

AGAIN_S = 4.0
"""How long after it has asked for the newest an app asks whether there is something newer."""


class Disk:
    """What survives the app: its record and its videos."""

    def __init__(self) -> None:
        self.record: bytes | None = None
        self.videos: dict[VideoId, bytes] = {}
        self.full_until_s = 0.0


class Phone:
    """One phone. `account`: who is logged in on it, if anybody."""

    def __init__(self, world: "World", name: str, account: ClientId) -> None:
        self.name = name
        self.account: ClientId | None = account
        self.disk = Disk()
        self.device: Device | None = None
        self.screen = Screen(world.truth, name, account)
        self.screens = [self.screen]
        self.on_screen = True
        self.wants_push = True
        self.gone = False
        """Whether it never comes back."""
        self._world = world
        self._rng = random.Random(f"{world.plan.seed} {name}")
        self.platform = self._rng.choice(tuple(Platform))
        self.provider = world.providers[self.platform]
        self._installations = 1
        self._push_tokens = 0
        self._sent = 0
        self._held: Wakeup | None = None
        self._knows_offline = False
        self._begun = False
        self._again: dict[str, object] = {}
        self.push_token = self._new_push_token()
        self.loop = MachineLoop(world.scheduler, name)
        self.line: Line = world.network.line(name, self.loop)

    @property
    def device_id(self) -> DeviceId:
        return DeviceId(f"{self.name}.{self._installations}")

    @property
    def runs(self) -> bool:
        """Whether the app is there, and has not just been started."""
        return self.device is not None and not self.loop.dead

    def say(self, text: str) -> None:
        self._world.truth.say(self.name, text)

    # --- The app

    def start(self) -> None:
        """The app is started, where it does not run."""
        if self.loop.dead or not self._begun:
            if self.loop.dead:
                self.loop = MachineLoop(self._world.scheduler, self.name)
                self.line.loop = self.loop
            self._begun = True
            self.say(f"the app starts, {'in the foreground' if self.on_screen else 'in the background'}")
            self.loop.start(self._app())

    async def _app(self) -> None:
        account = self.account
        calls = SimulatedCalls(self.line, lambda: self._token(account))
        client = Client(ADDRESS, "", self.device_id if account else None, client_id=account, calls=calls)
        device = Device(
            client,
            DiskStore(self),
            PhoneVideos(self, client),
            foreground=self.on_screen,
            clock=self._wall_s,
            jitter=self._rng.random,
        )
        async with device:
            self.device = device
            device.foreground(active=self.on_screen)  # it may have changed while the record was read
            if self._knows_offline:
                device.network(online=False)
            if account is None:
                await asyncio.Event().wait()
            if self.wants_push:
                self.loop.start(device.register(self.platform.value, self.push_token))
            async for change in device.changes():
                self._told(change)

    def _told(self, change: Change) -> None:
        self.say(f"shows {change.key[-6:]} {change.status}{f' ({change.reason})' if change.reason else ''}")
        if self._again.pop(change.key, None) != change.status:  # else it was told that when it was killed
            self.screen.told(change)
        if change.status is ReceivedStatus.READY:
            self._check_bytes(VideoId(change.key))

    def _check_bytes(self, video_id: VideoId) -> None:
        clip = self._world.truth.clips[video_id]
        expected = self._world.bytes_of.get(hashlib.sha256(self.disk.videos[video_id]).hexdigest())
        if expected != (clip.ref.sender_id, clip.ref.recipient_id):
            self._world.truth.broken("another's video", f"{self.name} has bytes of {expected} as {clip.ref}")

    def _wall_s(self) -> float:
        return START_S + self._world.scheduler.now_s

    async def _token(self, account: ClientId | None) -> str:
        if not self.line.online:
            raise ConnectionError("whoever issues tokens cannot be reached")
        return issue_token(SECRET, account or "nobody", ttl_s=self._world.plan.setting.token_s, now=self._wall_s())

    # --- What the user does

    def send(self, recipient_id: ClientId) -> None:
        """A video is sent to somebody."""
        if self.device is None or not self.runs or self.account in {None, recipient_id}:
            return
        self._sent += 1
        source = f"{self.name} {self._sent}: {self.account} to {recipient_id}"
        digest = hashlib.sha256(source.encode()).hexdigest()
        self._world.bytes_of[digest] = (self.account, recipient_id)
        self.say(f"sends a video to {recipient_id}")
        self.loop.start(self.device.send(source, recipient_id))

    def view(self, choice: int) -> None:
        """A video that is there is looked at."""
        if self.device is None or not self.runs:
            return
        ready = [video for video in self.device.received if video.here]
        if ready:
            self.loop.start(self._view(self.device, ready[choice % len(ready)].video_id))

    async def _view(self, device: Device, video_id: VideoId) -> None:
        self.say(f"views {video_id[-6:]}")
        screen = self.screen
        await device.viewed(video_id)
        screen.seen.add(video_id)

    def delete(self, choice: int) -> None:
        """A sent video is deleted: most often the newest."""
        if self.device is None or not self.runs or not self.device.sent:
            return
        video = self.device.sent[-1 if choice % 3 else choice % len(self.device.sent)]
        self.screen.deleted.add(video.key)
        self.say(f"deletes {video.key[-6:]}")
        self.loop.start(self.device.delete(video.key))

    def foreground(self, *, active: bool) -> None:
        """The app is opened, or put away."""
        self.on_screen = active
        if active and not self.runs:
            self.start()
        elif self.device is not None and self.runs:
            self.say("opens the app" if active else "puts the app away")
            self.device.foreground(active=active)

    def ask(self, choice: int) -> None:
        """The app asks, beside all else, whether there is anything newer than what it had some versions ago, as one
        does that has been away. Now and then it first asks for the newest."""
        if not self.runs or self.account is None or self.disk.record is None:
            return
        record = Record.decode(self.disk.record)
        if record.client_id == self.account and record.version and not record.logged_out:
            self.loop.start(self._ask(record, choice))

    async def _ask(self, record: Record, choice: int) -> None:
        had = [version for version in self._world.truth.versions(record.client_id) if version <= record.version]
        version = had[-1 - choice // 36 % min(12, len(had))] if had else record.version
        with contextlib.suppress(httpx.HTTPError, OSError):
            query, headers = {}, {"authorization": f"Bearer {await self._token(record.client_id)}"}
            if choice // 6 % 2:
                async with asyncio.timeout(20):
                    await self.line.request("GET", "/v1/poll", headers=headers)
                await asyncio.sleep(AGAIN_S)
            if choice % 3 != 0:
                query["version"] = str(version)
            if choice % 3 != 1:
                headers["if-none-match"] = f'"{version}"'
            if choice % 3 != 1 and choice // 12 % 3:
                query["wait"] = str(HELD_S)
            if choice // 3 % 2 and record.device_id is not None:
                query["device_id"] = record.device_id
            async with asyncio.timeout(20):
                await self.line.request("GET", "/v1/poll", query=query, headers=headers)

    def log_out(self, *, ends_account: bool) -> None:
        """The account leaves this phone, or ends."""
        if self.device is None or not self.runs or self.account is None:
            return
        device, account, ending = self.device, self.account, ends_account

        async def leave() -> None:
            try:
                token = await self._token(account)
            except ConnectionError:
                return  # without one there is no log-out
            self.say("ends the account" if ending else "logs out")
            self.account = None
            self.device = None
            self.screen.left = True
            await (device.end_account(token=token) if ending else device.log_out(token=token))
            self.device = device

        self.loop.start(leave())

    def log_in(self, account: ClientId) -> None:
        """Somebody logs in, who need not be the one before."""
        if self.account is not None or not self.runs:
            return
        self.say(f"{account} logs in")
        self.kill()
        self.account = account
        self.screen = Screen(self._world.truth, self.name, account)
        self.screens.append(self.screen)
        self.start()

    # --- What happens to it

    def kill(self) -> None:
        """The app is gone, without a word."""
        if not self._begun or self.loop.dead:
            return
        self.line.die()
        self.device = None
        self._again = self._untold()
        self.say("the app is killed")

    def _untold(self) -> dict[str, object]:
        """What was told the app last, and was not stored as taken in: it comes again."""
        if self.disk.record is None:
            return {}
        record = Record.decode(self.disk.record)
        told: dict[str, object] = {key: video.told for key, video in record.sent.items()}
        told |= {key: video.told for key, video in record.received.items()}
        return {key: status for key, status in self.screen.shown.items() if key in told and told[key] != status}

    def sleep(self, for_s: float) -> None:
        """The system lets the app do nothing for so long."""
        self.say(f"sleeps for {for_s:.1f} s")
        self.loop.freeze(for_s)

    def offline(self, for_s: float, *, noticed: bool) -> None:
        """There is no network for so long; whether the system says so."""
        self.say(f"is offline for {for_s:.1f} s")
        self.line.go_offline()
        if noticed:
            self._network(online=False)
        self._world.scheduler.after(for_s, lambda: self.online(noticed=noticed))

    def online(self, *, noticed: bool) -> None:
        """There is a network again."""
        if self.gone or self.line.online:
            return
        self.say("is online")
        self.line.go_online()
        if noticed or self._knows_offline:
            self._network(online=True)
        if self._held is not None:
            held, self._held = self._held, None
            self.pushed(held)

    def _network(self, *, online: bool) -> None:
        self._knows_offline = not online
        if self.device is not None and self.runs:
            self.device.network(online=online)

    def reinstall(self, *, same_id: bool) -> None:
        """The app is removed, with all that it kept, and installed anew."""
        self.kill()
        self.say("the app is installed anew")
        self.disk = Disk()
        self._again = {}
        self._held = None
        if not same_id:
            self._installations += 1
        self._kill_push_token()
        self.push_token = self._new_push_token()
        if self.account is None:
            self.account = self._world.accounts[0]
        self.screen = Screen(self._world.truth, self.name, self.account)
        self.screens.append(self.screen)
        self.start()

    def change_push_token(self) -> None:
        """The provider gives the app another token."""
        self._kill_push_token()
        self.push_token = self._new_push_token()
        if self.device is not None and self.runs and self.account is not None and self.wants_push:
            self.loop.start(self.device.register(self.platform.value, self.push_token))

    def _kill_push_token(self) -> None:
        self.provider.dead[self.push_token] = self._world.now_ms

    def _new_push_token(self) -> str:
        self._push_tokens += 1
        return f"{self.name}-{self.platform}-token-{self._push_tokens}"

    def pushed(self, wakeup: Wakeup) -> None:
        """A push arrives. The provider keeps the newest for a phone that is not there."""
        if self.gone:
            return
        if not self.line.online:
            self._held = wakeup
            return
        if self.loop.frozen and self._rng.random() < 0.5:
            self.loop.thaw()
        self.say(f"a push: {wakeup.collapse_id} version {wakeup.content.version % 1_000_000_000}")
        payload: dict[str, object] = {"version": str(wakeup.content.version)}
        if wakeup.content.packet is not None:
            payload["packet"] = wakeup.content.packet.decode()
        if self.device is not None and self.runs:
            self.loop.start(self.device.handle_push(payload))
        elif self._rng.random() < 0.5:  # else its user is shown it, and may open the app
            self.on_screen = False
            self.start()

    # --- The end

    def check(self) -> None:
        """Faults have stopped, and time has passed: everything is said, and the screen shows what is."""
        broken, truth = self._world.truth.broken, self._world.truth
        if self.device is None or not self.runs or self.disk.record is None or self.account is None:
            broken("app does not run", self.name)
            return
        record = Record.decode(self.disk.record)
        who = f"{self.name}, {self.account}"
        waiting = [video.key for video in record.sent.values() if video.delivery is not None]
        unsaid = [*record.reports(), *record.unanswered_deletions(), *record.farewells]
        if waiting or unsaid:
            broken("never said", f"{who}: {waiting} {unsaid}")
        if record.registration is not None and record.registration.answered_s is None:
            broken("never said", f"{who}: its registration")
        if (change := record.untold()) is not None:
            broken("never told", f"{who}: {change}")
        state = truth.state(self.account)
        if record.version != state.version:
            broken("screen behind", f"{who}: version {record.version}, and the gateway has {state.version}")
        sent = {video_id: str(video.status) for _, video_id, video in state.sent()}
        shown = {video.video_id: str(video.status) for video in record.sent.values() if video.listed}
        received = {video_id for _, video_id, video in state.received() if not video.ended}
        listed = {video.video_id for video in record.received.values() if video.listed}
        if sent != shown or received != listed:
            broken("screen is wrong", f"{who}: {shown} and {listed}, the gateway has {sent} and {received}")
        if missing := [video.video_id for video in record.received.values() if video.listed and not video.here]:
            broken("never fetched", f"{who}: {missing}")
        if left := self.screen.seen & received:
            broken("view lost", f"{who} has seen {left}, and the gateway lists them")
        rows, most = state.devices, self._world.plan.setting.policy.max_devices
        registered = record.registration is not None and not self._world.duplicates and not truth.left(self.account)
        alive = self.push_token not in self.provider.dead and not truth.was_told_dead(self.push_token)
        late = truth.logged_out_late((self.account, self.device_id))
        late = late or f"DELETE /v1/devices/{self.device_id}" in self.line.late
        alive = alive and not late
        # A device too many takes the place of another.
        if registered and alive and truth.devices_of(self.account) <= most and self.device_id not in rows:
            broken("registration lost", f"{who}: {self.device_id} is not among {list(rows)}")


class DiskStore:
    """The record on a phone's disk."""

    def __init__(self, phone: Phone) -> None:
        self._phone = phone
        self._disk = phone.disk
        self._screen = phone.screen
        self._rng = random.Random(phone.name)

    async def load(self) -> bytes | None:
        await asyncio.sleep(0.001)
        return self._disk.record

    async def save(self, body: bytes) -> None:
        await asyncio.sleep(0.01 * self._rng.random() ** 2)
        if asyncio.get_running_loop().time() < self._disk.full_until_s:
            raise OSError("the disk is full")
        self._disk.record = body
        self._screen.stored(body)
        await asyncio.sleep(0.005 * self._rng.random())

    async def close(self) -> None:
        return


class PhoneVideos:
    """The videos on a phone. One that is to be sent is its source's name, in bytes."""

    def __init__(self, phone: Phone, client: Client) -> None:
        self._phone = phone
        self._client = client

    async def measure(self, source: str) -> tuple[int, str]:
        data = source.encode()
        return len(data), hashlib.sha256(data).hexdigest()

    async def upload(self, announced: Announced, source: str, progress: Progress) -> None:
        await self._client.upload(announced, source.encode(), progress=progress)

    async def download(self, video_id: VideoId, progress: Progress) -> None:
        url = await self._client._location(video_id)
        status, data = await asyncio.wait_for(self._phone.line.get(url), 60)
        if status != 200:
            raise DownloadError(status, None, "simulated")
        progress(len(data), len(data))
        self._phone.disk.videos[video_id] = data

    async def discard(self, video_id: VideoId) -> None:
        return
