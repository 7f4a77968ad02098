"""What a client waits for, in words: read off its document. Pure."""

from collections.abc import Iterator
from typing import NamedTuple

from gateway.transit import devices
from gateway.transit.policy import Policy
from gateway.transit.state import ClientState, Device, DeviceId, Status


class Wait(NamedTuple):
    """Something that has not happened yet, since when (ms since the epoch), and when the gateway does something about
    it by itself; None where nobody knows, or it does not."""

    text: str
    since: int | None
    next_at: int | None


def waits(state: ClientState, policy: Policy) -> list[Wait]:
    """Everything that the gateway waits for on this client's account: first its devices, then its videos."""
    return [*_devices(state, policy), *_received(state, policy), *_sent(state, policy)]


def behind(state: ClientState, device: Device, policy: Policy) -> bool:
    """Whether there is news that this device has not acknowledged."""
    return device.acked < devices.news(state, policy)


def _devices(state: ClientState, policy: Policy) -> Iterator[Wait]:
    news = devices.news(state, policy)
    if news and not state.devices:
        yield Wait("there is news, and no device is registered that a push could wake", news, None)
    for device_id, device in state.devices.items():
        if behind(state, device, policy):
            yield Wait(_of_device(device_id, device, news), news, device.next_at or None)


def _of_device(device_id: DeviceId, device: Device, news: int) -> str:
    text = f"device {device_id} has not acknowledged version {news}"
    if device.failures:
        text += f"; pushes in a row that failed: {device.failures}"
    elif device.attempts:
        text += f"; pushes so far: {device.attempts}"
    return text if device.next_at else f"{text}, and is not pushed to again before there is newer news"


def _received(state: ClientState, policy: Policy) -> Iterator[Wait]:
    does = {Status.UPLOADED: "told of", Status.NOTIFIED: "downloaded", Status.DOWNLOADED: "viewed"}
    for sender_id, video_id, video in state.received():
        if not video.ended:
            text = f"video {video_id} from {sender_id} is {video.status}, and waits to be {does[video.status]}"
            yield Wait(text, video.at, video.uploaded_at + policy.video_ttl_ms)


def _sent(state: ClientState, policy: Policy) -> Iterator[Wait]:
    for recipient_id, video_id, video in state.sent():
        if not video.ended:
            text = f"video {video_id} to {recipient_id} is {video.status}, and waits for {recipient_id}"
            yield Wait(text, video.at, video.uploaded_at + policy.video_ttl_ms)
