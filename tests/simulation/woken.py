"""Who is woken, when, and how often: the part of the oracle that judges pushes.

    woken = Woken(truth)                   `Truth` has one, and hands it what it sees
    woken.hindered(until_s)                the world: until then what a worker has begun may be lost, or wait
    woken.cut_off(until_s)                 the world: until then kicks may be lost
    woken.check_end()                      after the last reminder: whoever is behind was told

What is held to account, each by its name:

    woken late                  a device that is behind has been pushed to in time: see `_by_s`
    reminded late               likewise its next reminder
    not scheduled, not reminded, scheduled for nothing, too many pushes      what its row says of that
    woken before its time       a device that was connected when the news came has its grace
    woken though up to date     nobody is pushed to who had acknowledged all news before the push was claimed
    pushed unclaimed            who pushes has written a claim for that
    sent after its lease        ... and pushes while it holds
    claimed twice               nobody else pushes meanwhile
    pushed again                what a provider took is not sent again, unless something may have lost its word
    pushed though given up      what a provider will never take is not sent again before there is fresh news
    pushed too soon             what a provider could not take is not sent again before it said, or the pause is over
    reminded too soon           reminders keep their distance
    ignored video costs too much      news that nobody acknowledges costs one push and its reminders
    apns-id                     the same for all tries of one push, another for another
    asked while left alone      a provider that fails is asked by each process after the pause of its breaker, once

Where the clocks of processes differ by a lease and more, each takes the other's lease for over, or for not begun: what
counts pushes says nothing then.
"""

from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway import wakeups
from gateway.registry import hash_token
from gateway.transit import policy
from gateway.transit.state import ClientId, ClientState, Device, DeviceId
from push import breaker, guard
from push.sender import Accepted, Outcome, Platform, Rejected, Retry, TokenDead, Wakeup
from tests.simulation.loops import Event
from tests.simulation.process import START_S

if TYPE_CHECKING:
    from tests.simulation.truth import Truth

LEASE_S = policy.LEASE_MS / 1000

AT_ONCE_S = 4.0
"""How long a kick may take until the push leaves: a dozen steps, each of which may take a second."""

FEW_S = 4.0
"""Likewise from the moment at which the due index names a device."""

CALL_S = 10.0
"""How long a worker may be at one document."""

BUS_S = 15.0
"""How long after the bus was in trouble somebody may still wait for it."""

LEAVING_S = 5.0
"""How long after its last socket has ended a client may still count as connected."""

Key = tuple[ClientId, DeviceId]
"""One device."""


@dataclass(eq=False, slots=True)
class _Claim:
    """A worker's word that it pushes: the row before it and the news then, and what the device had acknowledged."""

    at_s: float
    version: int
    epoch: int
    row: Device
    news: int
    known: int
    early: bool
    """Whether that was before the grace of a device that was connected."""


@dataclass(frozen=True, slots=True)
class _News:
    """Something that a device is to be told: since when, whether that is fresh news or its registration, by which time
    its grace is over, and whether the device was up to date and connected then."""

    version: int
    since_s: float
    fresh: bool
    grace_s: float
    connected: bool


@dataclass(eq=False, slots=True)
class _Watched:
    """A registered device with one token.

    `epoch`: counts fresh news and new registrations: attempts begin anew with each. `pending`: what it is to be told,
    in order. `told`: the version that a provider took for it. `left_alone_s`: when its socket ended while something was
    pending. `known`: what it has acknowledged by calls that were answered. `given_up`: the version with which a
    provider refused it for good. `before`: the same device with the same token, before it was registered anew.
    """

    key: Key
    token_key: str
    platform: Platform
    began_s: float
    row: Device
    known: int = 0
    epoch: int = 0
    epoch_s: float = 0.0
    news: int = 0
    behind: bool = False
    silent: bool = False
    told: int = 0
    given_up: int = 0
    pending: list[_News] = field(default_factory=list)
    left_alone_s: float | None = None
    remind_s: float | None = None
    failed_s: float = 0.0
    retry_from_s: float = 0.0
    retry_by_s: float = 0.0
    silent_s: float = float("-inf")
    claims: dict[str, deque[_Claim]] = field(default_factory=dict)
    flights: "list[_Flight]" = field(default_factory=list)
    taken: Counter[int] = field(default_factory=Counter)
    """How many pushes a provider took, for each epoch, but for those whose word was lost."""
    alarm: Event | None = None
    before: "_Watched | None" = None

    def settle(self) -> None:
        """Forget what need not be told any more."""
        done = max(self.told, self.given_up, self.row.acked)
        self.pending = [news for news in self.pending if done < news.version <= self.news]
        if not self.pending:
            self.left_alone_s = None

    def claim_of(self, machine: str, version: int) -> tuple["_Watched", _Claim] | None:
        """The newest claim by that process to push that version."""
        for claim in reversed(self.claims.get(machine, ())):
            if claim.version == version:
                return self, claim
        return None if self.before is None else self.before.claim_of(machine, version)

    def begin_epoch(self, now_s: float) -> None:
        """Attempts begin anew."""
        self.epoch, self.epoch_s = self.epoch + 1, now_s


@dataclass(eq=False, slots=True)
class _Flight:
    """A push that has left a process. `taken_s`: when the provider took it. `heard`: what the process heard of that."""

    machine: str
    watched: _Watched
    wakeup: Wakeup
    claim: _Claim
    left_s: float
    opened: int
    silent_s: float
    """When the last silent push to the device had left, before this one."""
    taken_s: float | None = None
    heard_s: float | None = None
    heard: Outcome | None = None

    @property
    def slot(self) -> tuple[int, int]:
        """Which push it is, of those to its device."""
        return self.claim.epoch, self.claim.row.attempts


@dataclass(eq=False, slots=True)
class _Provider:
    """A provider, as one process has come to know it: its breaker and its doubts, reckoned from outside."""

    failures: int = 0
    pause_s: float = 0.0
    until_s: float = 0.0
    opened: int = 0
    probe: _Flight | None = None
    answers: deque[tuple[float, bool]] = field(default_factory=lambda: deque(maxlen=guard.WINDOW))

    def wait_s(self, now_s: float) -> tuple[float, float]:
        """How long a push has to wait that fails now, at least and at most; nothing where the breaker is closed."""
        left_s = max(self.until_s - now_s, 0.0)
        return (left_s + self.pause_s / 2, left_s + self.pause_s) if self.pause_s else (0.0, 0.0)

    def doubted(self, now_s: float) -> bool:
        """Whether too many tokens are dead at once."""
        last = [dead for at_s, dead in self.answers if at_s > now_s - guard.WINDOW_S]
        return sum(last) >= guard.LEAST_DEAD and 2 * sum(last) >= len(last)


class Woken:
    """Holds the workers to what they promise."""

    def __init__(self, truth: "Truth", *, spread_s: float) -> None:
        self.seen: Counter[str] = Counter()
        """How often was met what is judged here."""
        self._truth = truth
        self._policy = truth.policy
        self._spread_s = spread_s
        self._lax = spread_s > LEASE_S / 2
        self._hindered_s = float("-inf")
        self._bus_s = float("-inf")
        self._watched: dict[Key, _Watched] = {}
        self._by_token: dict[tuple[ClientId, str], _Watched] = {}
        self._flights: dict[int, _Flight] = {}
        self._providers: defaultdict[tuple[str, Platform], _Provider] = defaultdict(_Provider)
        self._left_alone_s: defaultdict[Platform, float] = defaultdict(lambda: float("-inf"))
        self._ids: dict[tuple[ClientId, str, int, int], str] = {}
        self._pushes: dict[str, tuple[ClientId, str, int, int]] = {}
        self._parted_s: defaultdict[ClientId | Key, float] = defaultdict(lambda: float("-inf"))

    @property
    def _now_s(self) -> float:
        return self._truth.now_s

    def _broken(self, name: str, watched: _Watched, text: str) -> None:
        self._truth.broken(name, f"{watched.key[1]} of {watched.key[0]}: {text}")

    # --- What the world knows

    def hindered(self, until_s: float) -> None:
        """A process dies or stands still, or the store fails, until then: what was claimed may be lost, what was heard
        not written down."""
        self._hindered_s = max(self._hindered_s, until_s)

    def cut_off(self, until_s: float) -> None:
        """The bus is in trouble until then."""
        self._bus_s = max(self._bus_s, until_s)

    # --- What is written

    def written(self, machine: str, old: ClientState, new: ClientState) -> None:
        """A client's document was replaced."""
        videos, newest = self._news(new)
        before_newest = self._news(old)[1]
        for device_id, row in new.devices.items():
            before = old.devices.get(device_id)
            key = (new.client_id, device_id)
            watched = self._watched.get(key)
            if watched is None or before is None or before[:3] != row[:3]:
                watched = self._begin(key, before, row)
            elif newest > before_newest:
                watched.begin_epoch(self._now_s)
            elif row.registered_at != before.registered_at and row.next_at and not before.next_at:
                watched.begin_epoch(self._now_s)
                watched.told = watched.given_up = 0
            elif newest == before_newest and _may_be_claim(before, row):
                self._claimed(machine, watched, before, new.version, newest)
            self._mind(watched, before, row, videos=videos, newest=newest, before_newest=before_newest)
            self._check_row(watched)
        for device_id in old.devices.keys() - new.devices.keys():
            self._watched.pop((new.client_id, device_id), None)

    def _news(self, state: ClientState) -> tuple[int, int]:
        """The versions of the newest video that is not over, and of the newest news."""
        videos = max((video.came for _, _, video in state.received() if not video.ended), default=0)
        return videos, max(videos, state.status_news) if self._policy.push_on_status else videos

    def _begin(self, key: Key, before: Device | None, row: Device) -> _Watched:
        old = self._watched.get(key)
        watched = _Watched(key, row.token_key, Platform(row.platform), self._now_s, row, epoch_s=self._now_s)
        if before is not None and old is not None:
            watched.known, watched.silent_s = old.known, old.silent_s
        watched.before = self._by_token.get((key[0], row.token_key))
        self._watched[key] = self._by_token[key[0], row.token_key] = watched
        return watched

    def _claimed(self, machine: str, watched: _Watched, before: Device, version: int, newest: int) -> None:
        known = max(watched.known, before.acked)
        claim = _Claim(self._now_s, version, watched.epoch, before, newest, known, self._is_early(watched))
        watched.claims.setdefault(machine, deque(maxlen=20)).append(claim)

    def _mind(
        self,
        watched: _Watched,
        before: Device | None,
        row: Device,
        *,
        videos: int,
        newest: int,
        before_newest: int,
    ) -> None:
        """Note whether the device has to be told, and since when."""
        watched.row, watched.news = row, newest
        watched.behind = row.acked < newest
        was_silent, watched.silent = watched.silent, watched.behind and row.acked >= videos
        if was_silent and not watched.silent:
            watched.pending.clear()  # it kept its distance; from now on it has a video's time
        if not watched.behind:
            watched.retry_from_s = 0.0
        if not watched.behind or watched.told < newest or watched.given_up >= newest:
            watched.remind_s = None
        watched.settle()
        fresh = before is not None and newest > before_newest
        if watched.behind and max(watched.told, watched.given_up) < newest and (fresh or not watched.pending):
            was_current = before is not None and before.acked >= before_newest
            # The grace is counted from when its call looked: one that hangs at the bytes of a video takes that off.
            grace_s = min(self._now_s, newest / 1000 - START_S) + self._policy.ack_grace_ms / 1000
            if newest - 1 in self._truth.versions(watched.key[0]):  # it had to be higher than that, and says no time
                grace_s = min(grace_s, row.next_at / 1000 - START_S)
            connected = fresh and was_current and self._truth.connected_before(watched.key, 1.0)
            watched.pending.append(_News(newest, self._now_s, fresh, grace_s, connected))
            self._set_alarm(watched)

    def _check_row(self, watched: _Watched) -> None:
        row, most = watched.row, 1 + len(self._policy.remind_after_ms)
        if row.next_at and not watched.behind:
            self._broken("scheduled for nothing", watched, "up to date, and scheduled")
        given_up = watched.given_up >= watched.news
        if not row.next_at and watched.behind and not row.attempts and not given_up:
            self._broken("not scheduled", watched, "behind, and not scheduled")
        waiting = watched.behind and not watched.silent
        if not row.next_at and waiting and row.attempts < most and not given_up:
            self._broken("not reminded", watched, f"behind, and was pushed to {row.attempts} times only")
        if row.attempts > most:
            self._broken("too many pushes", watched, f"pushed to {row.attempts} times")

    # --- In time

    def _by_s(self, watched: _Watched) -> float:
        """When the device must have been pushed to at the latest.

        At once where nobody is connected, or where its socket has ended; else when its grace is over and the due index
        was asked. Later by what may hold it up: the time between silent pushes; a failure, by what the provider said or
        the pause after so many; a breaker that is open, until it is tried again, and once more where somebody else was
        the one to try; a push under way, by its deadline; a process or a store that fails, by the lease.
        """
        due_s = wakeups.POLL_S + FEW_S + self._spread_s
        if not watched.pending:
            assert watched.remind_s is not None
            by_s = watched.remind_s + due_s
        elif not watched.pending[0].fresh:
            by_s = watched.pending[0].since_s + due_s
        elif self._is_alone(watched, watched.pending[0].since_s):
            by_s = watched.pending[0].since_s + AT_ONCE_S
        else:
            by_s = watched.pending[0].since_s + self._policy.ack_grace_ms / 1000 + due_s
        lost_s = watched.left_alone_s
        if watched.pending and lost_s is not None and watched.pending[0].since_s > lost_s:
            lost_s = None  # the news came after that: another device of the client's is connected, so there is a grace
        if lost_s is not None and not self._spread_s and self._bus_s + LEAVING_S < lost_s:
            by_s = min(by_s, lost_s + AT_ONCE_S)
        if watched.silent:
            by_s = max(by_s, watched.silent_s + policy.BACKGROUND_SPACING_MS / 1000 + due_s)
        for flight in watched.flights:
            covers = not watched.pending or flight.wakeup.content.version >= watched.pending[0].version
            if flight.heard_s is None and (covers or watched.row.failures):
                by_s = max(by_s, flight.left_s + guard.DEADLINE_S + FEW_S)
        return max(
            by_s,
            watched.retry_by_s + due_s,
            self._left_alone_s[watched.platform] + due_s,
            self._hindered_s + LEASE_S + CALL_S + due_s,
            self._bus_s + BUS_S + due_s,
        )

    def _is_alone(self, watched: _Watched, since_s: float) -> bool:
        """Whether nobody of this client's is connected, or was about then, so that it is kicked."""
        client_id = watched.key[0]
        if self._spread_s or self._bus_s + LEAVING_S > since_s:
            return False
        return not self._truth.is_connected(client_id) and self._parted_s[client_id] + LEAVING_S < since_s

    def _set_alarm(self, watched: _Watched) -> None:
        if watched.alarm is not None:
            watched.alarm.cancel()
        watched.alarm = self._truth.scheduler.at(self._by_s(watched), lambda: self._look(watched))

    def _look(self, watched: _Watched) -> None:
        """It may be too late for this device."""
        watched.alarm = None
        if self._watched.get(watched.key) is not watched or not (watched.pending or watched.remind_s is not None):
            return
        by_s = self._by_s(watched)
        if by_s > self._now_s:
            self._set_alarm(watched)
        elif watched.pending:
            self._broken("woken late", watched, f"behind for {self._now_s - watched.pending[0].since_s:.1f} s")
        else:
            self._broken("reminded late", watched, f"after {watched.row.attempts} pushes")

    # --- What devices do

    def acknowledged(self, key: Key, version: int, came_s: float) -> None:
        """A call that came then, and acknowledges that version, was answered."""
        watched = self._watched.get(key)
        if watched is not None and watched.began_s < came_s:
            watched.known = max(watched.known, min(version, self._truth.state(key[0]).version))

    def parted(self, key: Key, version: int, *, alone: bool) -> None:
        """A device's socket has ended, which had that version. `alone`: neither displaced nor asked to come back, and
        no other is there."""
        self._parted_s[key] = self._parted_s[key[0]] = self._now_s
        watched = self._watched.get(key)
        if watched is None or not watched.pending or not (alone and version >= watched.news):
            return
        self.seen["a socket ended with news"] += 1
        watched.left_alone_s = self._now_s
        self._set_alarm(watched)

    def _is_early(self, watched: _Watched) -> bool:
        """Whether it is too early to push: the device was up to date and connected when the news came."""
        if not watched.pending or not watched.pending[0].connected or self._spread_s:
            return False
        news = watched.pending[0]
        if self._parted_s[watched.key] > news.since_s - 1 or self._bus_s + BUS_S > news.since_s:
            return False
        return self._now_s < news.grace_s - 0.1

    # --- Pushes

    def left(self, push: int, machine: str, wakeup: Wakeup) -> None:
        """A push leaves a process."""
        client_id, token_key = ClientId(wakeup.collapse_id), hash_token(wakeup.token)
        watched = self._by_token.get((client_id, token_key))
        if watched is None:
            self._truth.broken("pushed unclaimed", f"{client_id} has no device with the token {wakeup.token}")
            return
        found = watched.claim_of(machine, wakeup.content.version)
        if found is None:
            self._broken("pushed unclaimed", watched, f"nobody said that it pushes version {wakeup.content.version}")
            return
        watched, claim = found
        provider = self._providers[machine, wakeup.platform]
        flight = _Flight(machine, watched, wakeup, claim, self._now_s, provider.opened, watched.silent_s)
        self._check_claim(flight)
        self._check_id(flight)
        self._check_provider(provider, flight)
        if not self._lax:
            self._check_slot(flight)
            self._check_soon(flight)
        self._flights[push] = flight
        watched.flights.append(flight)
        watched.remind_s = None
        if wakeup.content.alert is None:
            watched.silent_s = self._now_s

    def _check_claim(self, flight: _Flight) -> None:
        claim, watched = flight.claim, flight.watched
        if claim.known >= claim.news:
            text = f"it acknowledged {claim.known}, and the news was {claim.news}"
            self._broken("woken though up to date", watched, text)
        if claim.early:
            self._broken("woken before its time", watched, "connected, and its grace is not over")
        if flight.left_s > claim.at_s + LEASE_S and self._hindered_s < claim.at_s:
            self._broken("sent after its lease", watched, f"after {flight.left_s - claim.at_s:.1f} s")

    def _check_id(self, flight: _Flight) -> None:
        claim, wakeup = flight.claim, flight.wakeup
        push = (flight.watched.key[0], flight.watched.token_key, claim.news, claim.row.attempts)
        if self._ids.setdefault(push, wakeup.id) != wakeup.id:
            self._broken("apns-id", flight.watched, f"another for another try: {wakeup.id}")
        if self._pushes.setdefault(wakeup.id, push) != push:
            self._broken("apns-id", flight.watched, f"the same for another push: {wakeup.id}")

    def _check_provider(self, provider: _Provider, flight: _Flight) -> None:
        if not provider.pause_s:
            return
        if self._now_s < provider.until_s - 1e-6:
            text = f"{flight.wakeup.platform} by {flight.machine}, {provider.until_s - self._now_s:.1f} s early"
            self._broken("asked while left alone", flight.watched, text)
        elif provider.probe is not None:
            self._broken("asked while left alone", flight.watched, f"twice at once by {flight.machine}")
        provider.probe = flight
        self._leave_alone(flight.wakeup.platform, self._now_s + guard.DEADLINE_S + 2 * provider.pause_s)

    def _check_slot(self, flight: _Flight) -> None:
        """The same push is tried again only where nobody took it, or nobody can have learnt that."""
        watched, claim = flight.watched, flight.claim
        before = next((other for other in reversed(watched.flights) if other.slot == flight.slot), None)
        if before is None:
            return
        if self._hindered_s >= before.claim.at_s:
            self.seen["a push again after a fault"] += 1
            return
        heard_s = before.heard_s
        if heard_s is None or heard_s > claim.at_s:
            gap_s = claim.at_s - before.claim.at_s
            if gap_s < LEASE_S - self._spread_s - self._policy.ack_grace_ms / 1000:
                self._broken("claimed twice", watched, f"after {gap_s:.1f} s, while a push is under way")
            return
        match before.heard:
            case Accepted():
                self._broken("pushed again", watched, f"{claim.at_s - heard_s:.1f} s after it was taken")
            case Rejected():
                self._broken("pushed though given up", watched, f"{claim.at_s - heard_s:.1f} s after that")
            case TokenDead(_, True):
                self._broken("pushed though given up", watched, "its token is not believed to be dead")
            case _:
                pass

    def _check_soon(self, flight: _Flight) -> None:
        watched, claim = flight.watched, flight.claim
        now_s, slack_s = claim.at_s, 0.5 + self._spread_s
        if watched.failed_s + 1 < now_s < watched.retry_from_s - slack_s and self._hindered_s < watched.failed_s:
            self._broken("pushed too soon", watched, f"{watched.retry_from_s - now_s:.1f} s before its time")
        attempts = claim.row.attempts
        if not attempts:
            return
        times = (0, *self._policy.remind_after_ms)
        gap_s = (times[attempts] - times[attempts - 1]) / 1000
        slot = (claim.epoch, attempts - 1)
        last = next((other for other in reversed(watched.flights) if other.slot == slot and other.taken_s), None)
        slack_s += self._policy.ack_grace_ms / 1000  # by so much a kick brings it forward
        if last is not None and last.taken_s is not None and now_s < last.taken_s + gap_s - slack_s:
            self._broken("reminded too soon", watched, f"{now_s - last.taken_s:.1f} s after the push before")

    def pushed(self, push: int, outcome: Outcome) -> Wakeup | None:
        """A provider was asked, and will answer that; what for."""
        flight = self._flights.get(push)
        if flight is None:
            return None
        watched, version = flight.watched, flight.wakeup.content.version
        if isinstance(outcome, Accepted):
            flight.taken_s = self._now_s
            watched.told = max(watched.told, version)
            watched.settle()
        return flight.wakeup

    def heard(self, push: int, outcome: Outcome | None) -> tuple[Wakeup | None, Outcome | None]:
        """A process has its answer, or (None) has given it up. For what, and what it has to make of that."""
        flight = self._flights.pop(push, None)
        if flight is None:
            return None, outcome
        provider = self._providers[flight.machine, flight.wakeup.platform]
        outcome = self._judged(provider, flight, outcome)
        flight.heard_s, flight.heard = self._now_s, outcome
        watched, version = flight.watched, flight.wakeup.content.version
        self.seen[f"heard {type(outcome).__name__}"] += 1
        match outcome:
            case Accepted():
                watched.retry_from_s = 0.0
                self._took(flight)
            case Rejected() | TokenDead(_, True):
                watched.given_up = max(watched.given_up, version)
                watched.retry_from_s = 0.0
                watched.settle()
                if watched.given_up >= watched.news:
                    watched.remind_s = None
            case TokenDead():
                watched.retry_by_s = self._now_s + LEASE_S  # where it is kept: it was registered since
            case _:
                self._failed(provider, flight, outcome)
        if watched.pending:
            self._set_alarm(watched)
        return flight.wakeup, outcome

    def _judged(self, provider: _Provider, flight: _Flight, outcome: Outcome | None) -> Outcome | None:
        """What the answer says of the provider."""
        outage = outcome is None or (isinstance(outcome, Retry) and outcome.outage)
        after_ms = outcome.after_ms if isinstance(outcome, Retry) else None
        if flight.opened == provider.opened:
            provider.probe = None
            if outage:
                provider.failures += 1
            else:
                if provider.pause_s:
                    self.seen["a breaker closed"] += 1
                provider.failures, provider.pause_s = 0, 0.0
            if provider.failures >= breaker.MOST_FAILURES:
                provider.pause_s = min(provider.pause_s * 2 or breaker.FIRST_PAUSE_S, breaker.MOST_PAUSE_S)
                word_s = min((after_ms or 0) / 1000, breaker.LONGEST_WORD_S)
                provider.until_s = self._now_s + max(provider.pause_s, word_s)
                provider.opened += 1
                self._leave_alone(flight.wakeup.platform, provider.until_s + 2 * provider.pause_s)
                self.seen["a breaker opened"] += 1
        if isinstance(outcome, Accepted | TokenDead):
            provider.answers.append((self._now_s, isinstance(outcome, TokenDead)))
        if isinstance(outcome, TokenDead) and provider.doubted(self._now_s):
            self.seen["a dead token doubted"] += 1
            return TokenDead(outcome.since, doubtful=True)
        return outcome

    def _leave_alone(self, platform: Platform, until_s: float) -> None:
        """Until then a device of that platform may be put off by somebody's breaker."""
        self._left_alone_s[platform] = max(self._left_alone_s[platform], until_s)

    def _took(self, flight: _Flight) -> None:
        """The process knows that the push was taken: a reminder is next, unless it was the last, or silent."""
        watched, claim = flight.watched, flight.claim
        watched.taken[claim.epoch] += 1
        most = 1 + len(self._policy.remind_after_ms)
        if watched.taken[watched.epoch] > most and self._hindered_s < watched.epoch_s and not self._lax:
            self._broken("ignored video costs too much", watched, f"{watched.taken[watched.epoch]} pushes were taken")
        times = (0, *self._policy.remind_after_ms)
        attempts = claim.row.attempts
        if claim.epoch != watched.epoch or not watched.behind or watched.told < watched.news:
            return
        if flight.wakeup.content.alert is not None and attempts + 1 < len(times):
            watched.remind_s = self._now_s + (times[attempts + 1] - times[attempts]) / 1000
            self._set_alarm(watched)

    def _failed(self, provider: _Provider, flight: _Flight, outcome: Outcome | None) -> None:
        """The device is pushed to again: when the provider said, or when its breaker is tried again, or after a pause
        that doubles."""
        watched, now_s = flight.watched, self._now_s
        if not watched.row.next_at:
            return  # it has acknowledged meanwhile: that it failed is not written down, which would cost a write
        if watched.silent_s == flight.left_s:
            watched.silent_s = flight.silent_s  # it was not sent
        if watched.row.attempts > flight.claim.row.attempts:
            return  # another was taken meanwhile
        after_ms = outcome.after_ms if isinstance(outcome, Retry) else None
        outage = outcome is None or (isinstance(outcome, Retry) and outcome.outage)
        doubled_ms = policy.RETRY_FIRST_MS << min(watched.row.failures, 20)
        most_s = min(policy.RETRY_MOST_MS, doubled_ms) / 1000
        least_s = most_s / 2
        if after_ms is not None:
            least_s = most_s = after_ms / 1000
        elif outage and provider.pause_s:
            least, most = provider.wait_s(now_s)
            # A breaker whose pause is over has nobody wait, unless it is being tried: this push began before it opened.
            over = provider.until_s <= now_s
            least_s, most_s = (min(least, least_s), max(most, most_s)) if over else (least, most)
        watched.failed_s, watched.retry_from_s, watched.retry_by_s = now_s, now_s + least_s, now_s + most_s

    # --- The end

    def check_end(self) -> None:
        """After the last reminder: whoever is behind was told of the news."""
        for key in sorted(self._watched):
            watched = self._watched[key]
            if watched.row.next_at:
                self._broken("scheduled for ever", watched, "scheduled after the last reminder")
            if watched.pending:
                self._broken("not woken", watched, "behind, and was not woken")


def _may_be_claim(before: Device, row: Device) -> bool:
    """Whether only the time moved on at which a device is to be woken."""
    moved = before._replace(next_at=row.next_at, background_at=row.background_at)
    return row == moved and row.next_at > before.next_at > 0
