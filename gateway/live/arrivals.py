"""What the console sender delivers to a device: the stand-in for a phone's notification, in embedded mode."""

from collections.abc import AsyncIterator, Callable, Collection

from gateway.errors import NotFound
from gateway.registry import Registry
from gateway.service import Service
from gateway.transit.state import ClientId, DeviceId


class Arrivals:
    """Listens for the pushes to one device; `listen` is the console sender's, by token, and `shown` has the platforms
    whose pushes it is handed."""

    def __init__(
        self,
        service: Service,
        registry: Registry,
        listen: Callable[[str], AsyncIterator[bytes]],
        shown: Collection[str],
    ) -> None:
        self._service = service
        self._registry = registry
        self._listen = listen
        self._shown = shown

    async def at(self, client_id: ClientId, device_id: DeviceId) -> AsyncIterator[bytes]:
        """The payloads that arrive at this device from now on. Raises NotFound where it is not registered, or where
        its pushes go to a provider."""
        device = (await self._service.changes.load(client_id)).devices.get(device_id)
        if device is not None and device.platform not in self._shown:
            raise NotFound("pushes to this device go to its provider, not to the console")
        owner = await self._registry.owner(device.token_key) if device else None
        if owner is None or owner[:2] != (client_id, device_id):
            raise NotFound("this device is not registered")
        return self._listen(owner.token)
