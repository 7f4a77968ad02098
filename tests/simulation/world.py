"""One story from beginning to end: processes, phones, users, faults; then peace, and the last judgment."""

import contextlib
import random
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from gateway import wakeups
from gateway.transit.state import ClientId
from push.sender import Platform, Wakeup
from storage.cache import ENTRY_S
from tests.simulation.backends import BusState, DocumentsState, Kind, ObjectsState, Troubles
from tests.simulation.cache import LATE_S, CacheState
from tests.simulation.loops import Scheduler, dispose, quiet
from tests.simulation.network import Network
from tests.simulation.phone import Phone
from tests.simulation.plan import ACCOUNTS, DURATION_S, Happening, Plan
from tests.simulation.process import CHECK_S, DRAIN_S, START_S, Backends, Config, Process, errors_noted, scaled, steady
from tests.simulation.providers import Stage, providers_of
from tests.simulation.truth import Truth

LOOK_S = 5.0
"""How often sockets are looked at."""

SHAKY_S = 15.0
"""How long after a fault packets may still be late: a call takes 10 s at most, the bus is there again within 3."""

RETURNS = 6
"""How often each phone asks for news, beside all else, while the cache still has what it had when faults stopped."""

MOST_STEPS = 2_000_000
"""A story that has not come to its end by then never will."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a story: what went wrong, by its name, if anything did."""

    violation: str | None
    steps: int
    story: Callable[[], list[str]]


class Over(Exception):
    """Something has gone wrong: nothing that follows matters."""


def run(plan: Plan) -> Outcome:
    """Let a story happen."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet())
        stack.enter_context(steady(plan.seed))
        stack.enter_context(scaled())
        world = World(plan)
        stack.callback(dispose, world.scheduler)
        stack.enter_context(errors_noted(world.truth))
        try:
            world.live()
            world.end()
        except Over:
            pass
        except Exception:  # a fault of the simulation itself is found like any other
            world.truth.broken("exception", traceback.format_exc())
        violation = world.truth.violation
        return Outcome(violation[0] if violation else None, world.scheduler.steps, world.truth.story)


class World:
    """Everything there is in a story."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        setting = plan.setting
        self.scheduler = scheduler = Scheduler(plan.seed)
        self.truth = truth = Truth(scheduler, setting.policy, skews_s=setting.skews_s, cached=setting.cached)
        truth.troubled_until_s = 0.0
        scheduler.noted = truth.broken
        self.rng = random.Random(f"world {plan.seed}")
        self.accounts = [ClientId(name) for name in ACCOUNTS]
        self.bytes_of: dict[str, tuple[ClientId | None, ClientId]] = {}
        """From whom to whom each video is, by the SHA-256 of its bytes."""
        self.documents = DocumentsState(scheduler, self._seed(), truth, clock=self._clock)
        self.objects = ObjectsState(scheduler, self._seed(), truth, clock=self._clock)
        self.bus = BusState(scheduler, self._seed(), truth)
        self.providers = providers_of(scheduler, self.rng, truth, self._deliver)
        self.network = Network(scheduler, self._seed(), truth, self.objects)
        self.network.uploads = setting.uploads
        self._config = Config(setting.policy, with_packet=setting.with_packet)
        self.cache = CacheState(scheduler, plan.seed, truth)
        cache = self.cache if setting.cached else None
        self._backends = Backends(self.documents, self.objects, self.bus, self.providers, cache)
        self._started = 0
        self.processes = [self._process(index) for index in range(len(setting.skews_s))]
        self.network.processes = self.processes
        self.phones = [Phone(self, f"phone{number}", ClientId(owner)) for number, owner in enumerate(setting.owners, 1)]
        self.duplicates = any(it.what in LATE for it in plan.happenings)
        """Whether a call may do what it does long after it was given up."""

    def _seed(self) -> int:
        return self.rng.getrandbits(32)

    def _clock(self) -> float:
        return START_S + self.scheduler.now_s

    @property
    def now_ms(self) -> int:
        """The time, in ms since the epoch."""
        return round(self._clock() * 1000)

    def _process(self, index: int) -> Process:
        self._started += 1
        name = f"process{index}.{self._started}"
        process = Process(
            name, self.scheduler, self._config, self._backends, self.network, skew_s=self.plan.setting.skews_s[index]
        )
        process.start()
        return process

    def _deliver(self, wakeup: Wakeup) -> None:
        for phone in self.phones:
            if phone.push_token == wakeup.token:
                phone.pushed(wakeup)

    # --- While things happen

    def live(self) -> None:
        """All that is planned happens."""
        for phone in self.phones:
            self.scheduler.after(self.rng.uniform(0, 3), phone.start)
        for happening in self.plan.happenings:
            self.scheduler.at(happening.at_s, lambda happening=happening: self._happen(happening))  # type: ignore[misc]
        self.scheduler.after(LOOK_S, self._look)
        self._pass(DURATION_S)

    def _look(self) -> None:
        """Where nothing is wrong and nothing has changed for a moment, every open socket has the newest packet."""
        now_s = self.scheduler.now_s
        if now_s > max(self.truth.shaky_until_s, self.truth.changed_s + LOOK_S):
            self.truth.check_delivered(within_s=LOOK_S)
        self.scheduler.after(LOOK_S, self._look)

    def _shaky(self, for_s: float) -> None:
        """For so long, and a while after it, packets may be late."""
        self.truth.shaky_until_s = max(self.truth.shaky_until_s, self.scheduler.now_s + for_s + SHAKY_S)

    def _pass(self, seconds: float) -> None:
        if not self.scheduler.run_for(seconds, MOST_STEPS - self.scheduler.steps) and not self.scheduler.stopped:
            self.truth.broken("never ends", f"{self.scheduler.steps} steps")
        if self.scheduler.stopped:
            raise Over

    def _happen(self, happening: Happening) -> None:
        if happening.what in SHAKING:
            # What was written may not have been published: a hub finds that when it compares versions.
            self._shaky(happening.for_s + (CHECK_S if happening.what in UNPUBLISHED else 0.0))
        if happening.what in TROUBLING:
            until_s = self.scheduler.now_s + happening.for_s + SHAKY_S
            self.truth.troubled_until_s = max(self.truth.troubled_until_s, until_s)
        HAPPENINGS[happening.what](self, happening)

    def phone(self, happening: Happening) -> Phone:
        """The phone that it happens to."""
        return self.phones[happening.a % len(self.phones)]

    def send(self, it: Happening) -> None:
        phone = self.phone(it)
        others = [account for account in self.accounts if account != phone.account]
        # Mostly among those who have a phone.
        there = [other.account for other in self.phones if other.account in others]
        if there and it.b % 5:
            recipient = there[it.b % len(there)]
            assert recipient is not None
            phone.send(recipient)
        else:
            phone.send(others[it.b % len(others)])

    def view(self, it: Happening) -> None:
        self.phone(it).view(it.b)

    def delete(self, it: Happening) -> None:
        self.phone(it).delete(it.b)

    def open(self, it: Happening) -> None:
        self.phone(it).foreground(active=True)

    def background(self, it: Happening) -> None:
        self.phone(it).foreground(active=False)

    def come_back(self, it: Happening) -> None:
        self.phone(it).ask(it.b)

    def kill(self, it: Happening) -> None:
        phone = self.phone(it)
        phone.kill()
        if it.b % 2:
            self.scheduler.after(0.001 * it.b, phone.start)

    def sleep(self, it: Happening) -> None:
        self.phone(it).sleep(it.for_s)

    def offline(self, it: Happening) -> None:
        self.phone(it).offline(it.for_s, noticed=it.b % 3 != 0)

    def reinstall(self, it: Happening) -> None:
        self.phone(it).reinstall(same_id=it.b % 2 == 0)

    def log_out(self, it: Happening) -> None:
        """Now and then by mistake: the same account is back within moments."""
        phone = self.phone(it)
        account = phone.account
        phone.log_out(ends_account=False)
        if account is not None and it.b % 3 == 0:
            self.scheduler.after(0.02 + 0.0002 * it.b, lambda: phone.log_in(account))

    def end_account(self, it: Happening) -> None:
        self.phone(it).log_out(ends_account=True)

    def log_in(self, it: Happening) -> None:
        """Now and then a process dies between the writes of the registration that follows."""
        self.phone(it).log_in(self.accounts[it.b % 3])
        if it.b % 4 == 0:
            for index, process in enumerate(self.processes):
                crashed = replace(it, a=index, for_s=1.0)
                self.documents.trap(process.loop, 1 + it.b // 4 % 2, partial(self._restart, crashed, process.crash))

    def new_push_token(self, it: Happening) -> None:
        """At this moment, or when the next push to the old one is under way."""
        phone = self.phone(it)
        if it.b % 2:
            phone.provider.dying[phone.push_token] = phone.change_push_token
        else:
            phone.change_push_token()

    def full_disk(self, it: Happening) -> None:
        self.phone(it).disk.full_until_s = self.scheduler.now_s + it.for_s

    # --- What breaks

    def crash(self, it: Happening) -> None:
        """At this moment, or between two of the writes that come next: those of one change, as often as not; or at a
        step of the next push."""
        process = self.processes[it.a % len(self.processes)]
        spring = partial(self._restart, it, process.crash)
        match it.b % 6:
            case 0 | 3:
                spring()
            case 1:
                for provider in self.providers.values():
                    provider.at_stage(process.loop, tuple(Stage)[it.b // 6 % len(Stage)], spring)
            case _:
                self.documents.trap(process.loop, it.b % 4, spring)

    def drain(self, it: Happening) -> None:
        self._restart(it, self.processes[it.a % len(self.processes)].drain)
        self.truth.woken.hindered(self.scheduler.now_s + DRAIN_S)

    def _restart(self, it: Happening, end: Callable[[], None]) -> None:
        index = it.a % len(self.processes)
        end()
        self._shaky(it.for_s + CHECK_S)
        self._idle(it.for_s)
        self.scheduler.after(it.for_s, lambda: self._replace(index))

    def _idle(self, for_s: float) -> None:
        """A process does nothing for so long: where that is the only one, nobody looks after what is due."""
        working = any(not process.loop.dead and not process.loop.frozen for process in self.processes)
        self.truth.woken.hindered(self.scheduler.now_s + (0.0 if working else for_s))

    def _replace(self, index: int) -> None:
        """Start another process in the place of one that has ended, or is about to."""
        process = self.processes[index]
        if process.loop.dead or process.out_s <= self.scheduler.now_s:
            self.processes[index] = self._process(index)

    def freeze(self, it: Happening) -> None:
        self.processes[it.a % len(self.processes)].freeze(it.for_s)
        self._idle(it.for_s)

    def trouble_documents(self, it: Happening) -> None:
        self.truth.woken.hindered(self.scheduler.now_s + it.for_s)
        kinds = (Kind.THROTTLE, Kind.LOST_ANSWER, Kind.LOST_ANSWER, Kind.SLOW, Kind.CUT, Kind.STALE)
        self._open(self.documents.troubles, kinds[it.a % len(kinds)], it)

    def trouble_objects(self, it: Happening) -> None:
        kinds = (Kind.THROTTLE, Kind.LOST_ANSWER, Kind.SLOW, Kind.CUT)
        self._open(self.objects.troubles, kinds[it.a % len(kinds)], it)

    def _open(self, troubles: Troubles, kind: Kind, it: Happening) -> None:
        """Open a window of trouble, for all processes or for one."""
        machine = self.processes[it.b % len(self.processes)].name if it.b % 3 == 0 else None
        troubles.open(kind, it.for_s, probability=(0.2, 0.6, 1.0)[it.b // 3 % 3], machine=machine)

    def trouble_bus(self, it: Happening) -> None:
        self.truth.woken.cut_off(self.scheduler.now_s + it.for_s)
        match it.a % 4:
            case 0:
                self.bus.freeze(it.for_s)
            case 1:
                self.bus.flush()
            case 2:
                self.bus.cut(self.processes[it.b % len(self.processes)].loop, it.for_s)
            case _:
                self.bus.troubles.open(Kind.LOSSY, it.for_s, probability=(0.2, 0.6, 1.0)[it.b % 3])
                self._shaky(it.for_s + CHECK_S)

    def trouble_cache(self, it: Happening) -> None:
        """Whatever becomes of the cache, no packet is late for that."""
        kinds = (Kind.LOSSY, Kind.LOSSY, Kind.LOSSY, Kind.LOSSY, Kind.SLOW, Kind.REPEATING, Kind.CUT)
        if it.a % 8 == 7:
            self.cache.flush()
            return
        kind = kinds[it.a % 8]
        late_s = LATE_S if kind in {Kind.SLOW, Kind.REPEATING} else 0.0
        self.truth.forgetful_until_s = max(self.truth.forgetful_until_s, self.scheduler.now_s + it.for_s + late_s)
        self.cache.troubles.open(kind, it.for_s, probability=(0.6, 1.0, 1.0)[it.b % 3])

    def provider_down(self, it: Happening) -> None:
        self._open_providers(Kind.DOWN, it)

    def provider_hanging(self, it: Happening) -> None:
        self._open_providers(Kind.HANGING, it)

    def trouble_provider(self, it: Happening) -> None:
        kinds = (Kind.SLOW, Kind.REFUSING, Kind.REJECTING, Kind.LOSING, Kind.REPEATING)
        self._open_providers(kinds[it.a % len(kinds)], it)

    def tokens_disowned(self, it: Happening) -> None:
        self._open_providers(Kind.DISOWNING, it)

    def _open_providers(self, kind: Kind, it: Happening) -> None:
        """Open a window of trouble, for one provider or for both."""
        one = (Platform.APNS, Platform.FCM, None)[it.b % 3]
        for platform in Platform if one is None else (one,):
            self.providers[platform].troubles.open(kind, it.for_s, probability=(0.5, 1.0, 1.0)[it.b // 3 % 3])

    def trouble_network(self, it: Happening) -> None:
        lines = [phone.line for phone in self.phones] if it.b % 2 else [self.phone(it).line]
        share = (0.1, 0.3, 0.6)[it.b // 2 % 3]
        what = ("lose_request", "lose_answer", "lose_answer", "duplicate", "duplicate", "slow")[it.b // 6 % 6]
        for line in lines:
            setattr(line, what, share)
            self.scheduler.after(it.for_s, lambda line=line: setattr(line, what, 0.0))  # type: ignore[misc]

    def break_socket(self, it: Happening) -> None:
        """At this moment, or when the next packet is under way to the phone."""
        if it.b % 2:
            self.phone(it).line.fragile = True
        else:
            self.phone(it).line.break_sockets()

    def half_open_socket(self, it: Happening) -> None:
        self.phone(it).line.silence_sockets()

    def stall(self, it: Happening) -> None:
        self.phone(it).line.stall(it.for_s)

    # --- The end

    def end(self) -> None:
        """Faults stop, some phones are gone for good, time passes: everything is as it should be."""
        lag_s = 60 + max(map(abs, self.plan.setting.skews_s))
        self._calm_down()
        for _ in range(RETURNS):
            for phone in self.phones:
                self.scheduler.after(self.rng.uniform(0, ENTRY_S), partial(phone.ask, self.rng.randrange(1_000)))
        self._pass(100)
        self._settle()
        self.truth.check_agreement(lag_s=lag_s)
        self._check_phones(lambda phone: phone.on_screen)
        for phone in self.phones:
            if not phone.gone:
                phone.foreground(active=True)
        self._pass(30)
        self._settle()
        self._check_phones()
        wakeups.POLL_S = 12.0  # what is left to see takes long, and need not be seen to the second
        self._pass(450)
        self._settle()
        self.truth.check_agreement(lag_s=lag_s)
        self.truth.check_woken()
        self.truth.check_tokens()
        before = self.truth.pushes
        self._pass(400)
        if self.truth.pushes != before:
            self.truth.broken("woken for nothing", f"{self.truth.pushes - before} pushes after the last reminder")
        self._pass(400)
        self.truth.check_empty()
        self._check_phones()

    def _calm_down(self) -> None:
        self.truth.say("world", "--- faults stop")
        self.truth.forgetful_until_s = min(self.truth.forgetful_until_s, self.scheduler.now_s + LATE_S)
        for troubles in (self.documents.troubles, self.objects.troubles, self.cache.troubles):
            troubles.end()
        for provider in self.providers.values():
            provider.calm_down()
        self.bus.calm()
        self.documents.traps.clear()
        for index, process in enumerate(self.processes):
            process.loop.thaw()
            self._replace(index)
        for phone in self.phones:
            self._calm_phone(phone)

    def _calm_phone(self, phone: Phone) -> None:
        line = phone.line
        line.lose_request = line.lose_answer = line.duplicate = line.slow = 0.0
        line.fragile = False
        phone.loop.thaw()
        phone.disk.full_until_s = 0.0
        if self.rng.random() < 0.25:
            phone.say("is gone for good")
            phone.gone = True
            line.go_offline()
            phone.kill()
            return
        phone.online(noticed=True)
        phone.on_screen = self.rng.random() < 0.7
        phone.start()
        phone.foreground(active=phone.on_screen)

    def _settle(self) -> None:
        """Wait until nothing has changed for a while: what has just been written is still on its way."""
        for _ in range(10):
            before = [state.version for state in self.truth.states.values()]
            self._pass(10)
            if before == [state.version for state in self.truth.states.values()]:
                return

    def _check_phones(self, chosen: Callable[[Phone], bool] = lambda _: True) -> None:
        for phone in self.phones:
            if not phone.gone and phone.account is not None and chosen(phone):
                phone.check()


LATE = frozenset({"network", "freeze", "documents"})
"""What may have a call take effect after the app has said other things."""

SHAKING = frozenset({"crash", "drain", "freeze", "documents", "bus"})
"""What may keep packets from those who are connected, for as long as it lasts."""

TROUBLING = SHAKING | {"objects"}
"""What may have calls answered that a backend is not there."""

UNPUBLISHED = frozenset({"crash", "documents"})
"""What may keep a process from publishing what it has written."""

HAPPENINGS: dict[str, Callable[[World, Happening], None]] = {
    "send": World.send,
    "view": World.view,
    "delete": World.delete,
    "open": World.open,
    "background": World.background,
    "return": World.come_back,
    "kill": World.kill,
    "sleep": World.sleep,
    "offline": World.offline,
    "reinstall": World.reinstall,
    "log out": World.log_out,
    "end account": World.end_account,
    "log in": World.log_in,
    "new push token": World.new_push_token,
    "full disk": World.full_disk,
    "crash": World.crash,
    "drain": World.drain,
    "freeze": World.freeze,
    "documents": World.trouble_documents,
    "objects": World.trouble_objects,
    "bus": World.trouble_bus,
    "cache": World.trouble_cache,
    "provider down": World.provider_down,
    "provider hanging": World.provider_hanging,
    "provider": World.trouble_provider,
    "tokens disowned": World.tokens_disowned,
    "network": World.trouble_network,
    "break socket": World.break_socket,
    "half-open socket": World.half_open_socket,
    "stall": World.stall,
}
