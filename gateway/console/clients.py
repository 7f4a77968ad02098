"""A client, looked up for the operator: its document, and what all processes know of it."""

from gateway import packet
from gateway.changes import Changes
from gateway.console.consoles import Consoles
from gateway.console.waits import behind, waits
from gateway.console.watched import MOST_EVENTS
from gateway.live.hub import Hub
from gateway.transit.policy import Policy
from gateway.transit.state import ClientId, ClientState, DeviceId

_ELSEWHERE = ("process", "remembers_since", "sockets", "polls")


class Clients:
    """What an operator can ask and do about one client."""

    def __init__(self, changes: Changes, hub: Hub, consoles: Consoles) -> None:
        self._changes = changes
        self._hub = hub
        self._consoles = consoles

    async def look_up(self, client_id: ClientId) -> dict[str, object]:
        """Everything that is known of the client: see `docs/console.md`. No push token is among it. Raises
        Unavailable."""
        answers = await self._consoles.ask_for(client_id)
        state = await self._changes.load(client_id)
        events = [event for answer in answers.known.values() for event in answer["events"]]
        events.sort(key=lambda event: -event["at"])
        return {
            "client_id": client_id,
            "at": self._changes.now(),
            "packet": packet.encode(state).decode(),
            "devices": _devices(state, self._changes.policy),
            "waits": [wait._asdict() for wait in waits(state, self._changes.policy)],
            "processes": [{name: answer[name] for name in _ELSEWHERE} for answer in answers.known.values()],
            "silent": answers.silent,
            "events": events[:MOST_EVENTS],
        }

    async def send_back(self, client_id: ClientId, device_id: DeviceId | None) -> None:
        """Its connections end, or those of one device, wherever they are, and its apps come back within seconds."""
        await self._hub.send_back(client_id, device_id)


def _devices(state: ClientState, policy: Policy) -> list[dict[str, object]]:
    return [
        {
            "device_id": device_id,
            "platform": device.platform,
            "environment": device.environment,
            "registered_at": device.registered_at,
            "heard_at": device.heard_at,
            "acked": device.acked,
            "behind": behind(state, device, policy),
            "pushes": device.attempts,
            "failures": device.failures,
            "next_push_at": device.next_at or None,
        }
        for device_id, device in state.devices.items()
    ]
