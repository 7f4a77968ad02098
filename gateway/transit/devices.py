"""The rules of attention: which device has learnt what, and when to wake one that has not. Pure.

A device is *behind* while there is news that it has not acknowledged: an incoming video that is not over, and, where
the policy says so, a new status of an outgoing one. Whoever is not registered is never behind. The rules keep this
invariant: a device has a time to be woken (`next_at`) only while it is behind.
"""

from collections.abc import Container, Mapping
from types import MappingProxyType
from typing import NamedTuple

from gateway.transit.policy import (
    BACKGROUND_SPACING_MS,
    HEARD_STEP_MS,
    LEASE_MS,
    RETRY_FIRST_MS,
    RETRY_MOST_MS,
    Policy,
)
from gateway.transit.state import ClientId, ClientState, Device, DeviceId, Status

NEVER = 1 << 62


class Waiting(NamedTuple):
    """The incoming videos that are not over: how many, and who sent the one that came last, in which version."""

    videos: int
    newest_sender: ClientId | None
    newest_version: int


def waiting(state: ClientState) -> Waiting:
    """What an alert tells its reader."""
    count, newest, version = 0, None, 0
    for sender_id, _, video in state.received():
        if not video.ended:
            count += 1
            if video.came >= version:
                newest, version = sender_id, video.came
    return Waiting(count, newest, version)


def news(state: ClientState, policy: Policy) -> int:
    """The version that a device must have acknowledged to be up to date (0: there is no news)."""
    version = waiting(state).newest_version
    if policy.push_on_status:
        return max(version, state.status_news)
    return version


def asks(state: ClientState, policy: Policy) -> bool:
    """Whether an acknowledgement of this packet would change anything: else it costs no write."""
    if any(video.status is Status.UPLOADED for _, _, video in state.received()):
        return True
    if not state.devices:
        return False
    newest = news(state, policy)
    return any(device.acked < newest for device in state.devices.values())


def wakes_soon(state: ClientState, now: int, policy: Policy) -> bool:
    """Whether some device would be woken if nobody were connected: no need to wait for an acknowledgement then."""
    return any(0 < device.next_at <= now + policy.ack_grace_ms for device in state.devices.values())


# --- What devices and apps do ---------------------------------------------------------------------------------------


def register(
    state: ClientState,
    device_id: DeviceId,
    *,
    platform: str,
    environment: str,
    token_key: str,
    now: int,
    policy: Policy,
) -> ClientState:
    """The device takes pushes with this token from now on; at once if there is news.

    Registering again with the same token only says that it is still good, unless the device is behind and was given
    up. A device too many replaces the one that was heard of longest ago.
    """
    known = state.devices.get(device_id)
    behind = news(state, policy) > (known.acked if known else 0)
    same = known is not None and known[:3] == (platform, environment, token_key)
    if known is not None and same and not (behind and not known.next_at):
        return _with(state, device_id, known._replace(registered_at=max(now, known.registered_at), heard_at=now))
    device = Device(
        platform,
        environment,
        token_key,
        registered_at=now,
        heard_at=now,
        acked=known.acked if known else 0,
        next_at=now if behind else 0,
        background_at=known.background_at if known else 0,
    )
    devices = {**state.devices, device_id: device}
    if len(devices) > policy.max_devices:
        others = (other for other in devices if other != device_id)
        devices.pop(min(others, key=lambda other: devices[other].heard_at))
    return state._replace(devices=devices)


def unregister(state: ClientState, device_id: DeviceId, *, token_key: str | None = None) -> ClientState:
    """The device takes no more pushes; with `token_key` only if that is still the token it has."""
    known = state.devices.get(device_id)
    if known is None or token_key not in (None, known.token_key):
        return state
    return state._replace(devices={other: row for other, row in state.devices.items() if other != device_id})


def heard(state: ClientState, device_id: DeviceId, now: int) -> ClientState:
    """The device was heard of; remembered once a week, or a poll that asks nothing would cost a write."""
    known = state.devices.get(device_id)
    if known is None or now - known.heard_at < HEARD_STEP_MS:
        return state
    return _with(state, device_id, known._replace(heard_at=now))


def applied(state: ClientState, device_id: DeviceId, version: int, *, now: int, policy: Policy) -> ClientState:
    """The device has applied `version`: it is not behind any more if that covers the news."""
    known = state.devices.get(device_id)
    if known is None:
        return state
    acked = min(version, state.version)
    if known.acked >= min(acked, news(state, policy)):
        return heard(state, device_id, now)
    return _with(state, device_id, known._replace(acked=acked, heard_at=now))


# --- What follows from every change ---------------------------------------------------------------------------------


def rescheduled(state: ClientState, *, fresh: bool, now: int, policy: Policy) -> ClientState:
    """Every device that is behind has its time, and no other; `fresh` news starts the attempts anew."""
    if not state.devices:
        return state
    video_news = waiting(state).newest_version
    newest = max(video_news, state.status_news) if policy.push_on_status else video_news
    devices = {
        device_id: _reschedule(device, newest, video_news, fresh=fresh, now=now, policy=policy)
        for device_id, device in state.devices.items()
    }
    return state if devices == state.devices else state._replace(devices=devices)


def _reschedule(device: Device, newest: int, video_news: int, *, fresh: bool, now: int, policy: Policy) -> Device:
    if device.acked >= newest:
        return device._replace(attempts=0, failures=0, next_at=0)
    due = device.next_at
    if fresh:
        device = device._replace(attempts=0)
        if not device.failures:  # else it waits as long as the provider or the pause between tries has it wait
            due = min(due or NEVER, now + policy.ack_grace_ms)  # a stream of news must not put it off for ever
    if due and device.acked >= video_news:
        due = max(due, device.background_at + BACKGROUND_SPACING_MS)
    return device._replace(next_at=due)


# --- What the worker does ---------------------------------------------------------------------------------------------


class Push(NamedTuple):
    """A push to one device, as the state at its claim says: an alert while videos wait, else in the background.
    `until`: when the claim is over (ms)."""

    device_id: DeviceId
    device: Device
    alert: bool
    sound: bool
    until: int


def claim(
    state: ClientState,
    *,
    now: int,
    policy: Policy,
    absent: Container[DeviceId] = (),
    pauses: Mapping[str, int] = MappingProxyType({}),
) -> tuple[ClientState, list[Push]]:
    """The devices to push to now, and the state in which nobody else does for as long as that may take.

    Whoever commits that state sends. If it dies before it has written down what came of it, the device is due again
    after `LEASE_MS`. `absent`: devices that are certainly not connected, whose acknowledgement is not waited for.
    `pauses`: how long (ms) a platform takes nothing; its devices are put off by that.
    """
    video_news = waiting(state).newest_version
    newest = news(state, policy)
    devices, pushes = dict(state.devices), []
    for device_id, device in state.devices.items():
        early_ms = policy.ack_grace_ms if device_id in absent and not device.failures else 0
        if not 0 < device.next_at <= now + early_ms:
            continue
        if pause_ms := pauses.get(device.platform, 0):
            devices[device_id] = device._replace(next_at=now + pause_ms)
            continue
        alert = device.acked < video_news
        loud = alert and device.attempts == 0 and video_news == newest
        pushes.append(Push(device_id, device, alert, loud, now + LEASE_MS))
        devices[device_id] = device._replace(
            next_at=now + LEASE_MS,
            # Not only once it is answered: fresh news in between must not send the next one at once.
            background_at=device.background_at if alert else now,
        )
    return (state if devices == state.devices else state._replace(devices=devices)), pushes


def tried(state: ClientState, push: Push, carried: int, *, now: int, policy: Policy) -> ClientState:
    """The push, which told of version `carried`, counts: a reminder is next, unless newer news has come."""
    known = _still(state, push)
    if known is None:
        return state
    known = known._replace(failures=0)
    if known.next_at and news(state, policy) <= carried:
        gap_ms = _reminder_gap(known.attempts, policy) if push.alert else None
        known = known._replace(attempts=known.attempts + 1, next_at=0 if gap_ms is None else now + gap_ms)
    return _with(state, push.device_id, known)


def given_up(state: ClientState, push: Push, carried: int, *, policy: Policy) -> ClientState:
    """The provider will never take this push to this device: there is no other before newer news than `carried`, or a
    new registration."""
    known = _still(state, push)
    if known is None or not known.next_at or news(state, policy) > carried:
        return state
    return _with(state, push.device_id, known._replace(failures=0, next_at=0))


def postponed(state: ClientState, push: Push, after_ms: int | None, *, now: int, jitter: float) -> ClientState:
    """The provider could not: try again after `after_ms`, or after a doubling time that `jitter` (0 to 1) shortens.
    Newer news waits as well: it would meet the same."""
    known = _still(state, push)
    if known is None or not 0 < known.next_at <= push.until:
        return state  # nothing is left to tell, or another push has been claimed since
    if after_ms is None:
        after_ms = round(min(RETRY_MOST_MS, RETRY_FIRST_MS << min(known.failures, 20)) * (1 - jitter / 2))
    return _with(
        state,
        push.device_id,
        known._replace(
            failures=known.failures + 1,
            next_at=now + after_ms,
            background_at=known.background_at if push.alert else push.device.background_at,  # it was not sent
        ),
    )


def token_died(state: ClientState, push: Push, since: int) -> ClientState:
    """The provider knows no such token, since `since` (ms): forget it, unless it was registered then or later, or
    replaced."""
    known = state.devices.get(push.device_id)
    if known is None or known.registered_at >= since:
        return state
    return unregister(state, push.device_id, token_key=push.device.token_key)


def _still(state: ClientState, push: Push) -> Device | None:
    """The device, if it still has the token that was pushed to."""
    known = state.devices.get(push.device_id)
    return known if known is not None and known.token_key == push.device.token_key else None


def _reminder_gap(attempts: int, policy: Policy) -> int | None:
    """How long after the push that follows `attempts` others the next one comes; None after the last."""
    times = (0, *policy.remind_after_ms)
    return times[attempts + 1] - times[attempts] if attempts + 1 < len(times) else None


def _with(state: ClientState, device_id: DeviceId, device: Device) -> ClientState:
    devices: Mapping[DeviceId, Device] = {**state.devices, device_id: device}
    return state._replace(devices=devices)
