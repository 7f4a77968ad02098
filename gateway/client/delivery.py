"""How a video is sent: announced, uploaded and confirmed, going on after a failure where the protocol says."""

from collections.abc import Awaitable, Callable

from gateway.client.failures import GatewayError, Remedy
from gateway.client.messages import Announced, Result


class Delivery:
    """One video on its way to the gateway. Every `advance` goes on where the one before failed."""

    REMEDIES = frozenset({Remedy.RETRY, Remedy.UPLOAD, Remedy.ANNOUNCE})

    def __init__(
        self,
        announce: Callable[[], Awaitable[Announced]],
        upload: Callable[[Announced], Awaitable[None]],
        confirm: Callable[[str, str], Awaitable[Result]],
    ) -> None:
        self._announce = announce
        self._upload = upload
        self._confirm = confirm
        self._announced: Announced | None = None
        self._maybe_stored = False

    async def advance(self) -> Result:
        """Raises GatewayError, after which it can be called again if the remedy is one of `REMEDIES`."""
        if self._announced is None:
            self._announced = await self._announce()
        if not self._maybe_stored:
            await self._put(self._announced)
        try:
            return await self._confirm(self._announced.video_id, self._announced.recipient_id)
        except GatewayError as error:
            if error.remedy is Remedy.UPLOAD:
                self._maybe_stored = False
            raise

    async def _put(self, announced: Announced) -> None:
        # An upload without an answer may have arrived whole; asking that first can save sending it all again.
        self._maybe_stored = True
        try:
            await self._upload(announced)
        except GatewayError as error:
            if error.status is not None:
                self._maybe_stored = False
            if error.remedy is Remedy.ANNOUNCE:
                self._announced = None
            raise
