"""One Redis server: what is asked for in one turn of the event loop goes to it together, in one write."""

import asyncio
import logging
import ssl
from typing import Any

from storage.redis_connection import Call, Command, RedisConnection, RedisRefusal, RedisUnavailable, refuse
from storage.redis_url import Address, RedisUrl

__all__ = ["Command", "RedisNode", "RedisRefusal", "RedisUnavailable"]

MOST_WAITING = 20_000
"""Commands that may be under way; beyond them the server counts as gone."""

MOST_WAITING_BYTES = 64 * 1024 * 1024
"""Their bytes that may be."""

REST_S = 0.5
"""So long a server that failed is asked nothing: whoever does ask is told at once."""

GRACE_S = 0.01
"""An answer that is late may be here already, unread: the loop itself may have been late."""

log = logging.getLogger(__name__)


class RedisNode:
    """One server, of a `RedisUrl` or of its cluster. `timeout_s`: how long a command may take, connecting included.

    It has one connection, which is made when it is needed. One that broke is replaced and its commands are repeated,
    once, so they must bear that. A server that is silent is not asked again.
    """

    def __init__(self, address: Address, url: RedisUrl, *, timeout_s: float, tls: ssl.SSLContext | None = None) -> None:
        self.address = address
        self._url = url
        self._tls = tls
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._connection: RedisConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._waiting: list[Call] = []
        self._waiting_bytes = 0
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._rests_until_s = 0.0
        self._fault = ""
        self._closed = False
        self._emptied = asyncio.Event()

    def send(self, command: Command, *, asking: bool = False) -> "asyncio.Future[Any]":
        """What the server answers. RedisRefusal where that is an error, RedisUnavailable where there is no answer.

        `asking`: the slot is on its way to this server (https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/).
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        if self._closed or self._rests() or self._is_full():
            refuse(future, RedisUnavailable(f"{self.address}: {self._why_not()}"))
            return future
        if asking:
            self._put(Call(("ASKING",), self._loop.create_future(), self._loop.time()))
        self._put(Call(command, future, self._loop.time()))
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)
        return future

    async def close(self) -> None:
        """Wait for what is under way, and disconnect."""
        self._closed = True
        self._emptied.clear()
        if self._oldest() is not None:
            await self._emptied.wait()  # each has its time
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        if self._timer is not None:
            self._timer.cancel()
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    def _put(self, call: Call) -> None:
        self._waiting.append(call)
        self._waiting_bytes += len(call.data)

    def _is_full(self) -> bool:
        under_way = len(self._connection.calls) if self._connection else 0
        return under_way + len(self._waiting) >= MOST_WAITING or self._waiting_bytes >= MOST_WAITING_BYTES

    def _why_not(self) -> str:
        return "closed" if self._closed else self._fault if self._rests() else "too many commands are under way"

    def _rests(self) -> bool:
        """Whether it failed just now."""
        return self._loop.time() < self._rests_until_s

    def _oldest(self) -> Call | None:
        for calls in (self._connection.calls if self._connection else (), self._waiting):
            if calls:
                return calls[0]
        return None

    # --- The connection

    def _flush(self) -> None:
        self._scheduled = False
        self._watch()
        if self._connection is None:
            if self._waiting and self._connecting is None:
                self._connecting = self._loop.create_task(self._connect())
        elif self._waiting and not self._connection.paused:
            calls, self._waiting, self._waiting_bytes = self._waiting, [], 0
            self._connection.send(calls)

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                self._connection = await RedisConnection.open(
                    self.address,
                    self._url,
                    tls=self._tls,
                    answered=self._answered,
                    resumed=self._flush,
                    lost=self._lost,
                )
        except TimeoutError:
            self._give_up(f"no connection within {self._timeout_s:g} s")
        except (OSError, RedisUnavailable) as error:
            self._give_up(str(error))
        finally:
            self._connecting = None
        if self._connection is not None:
            self._flush()

    def _answered(self) -> None:
        if self._connection is not None and self._connection.read_only:
            # Another is the primary now. Its name may lead there: only a new connection looks it up.
            self._give_up("it has become a replica")
        elif self._fault:
            log.info("Redis answers again", extra={"address": str(self.address)})
            self._fault = ""
        if self._closed and self._oldest() is None:
            self._emptied.set()

    def _lost(self, calls: list[Call], error: Exception) -> None:
        self._connection = None
        if any(call.repeated for call in calls):
            self._waiting = [*calls, *self._waiting]
            self._give_up(str(error))
            return
        for call in calls:
            call.repeated = True
            self._waiting_bytes += len(call.data)
        self._waiting = [*calls, *self._waiting]
        self._flush()

    # --- What is late

    def _watch(self) -> None:
        """One timer for all: it is set for the oldest, and then for the oldest of that time."""
        if self._timer is None and (oldest := self._oldest()) is not None:
            self._timer = self._loop.call_at(oldest.since_s + self._timeout_s, self._check, None)

    def _check(self, suspect: Call | None) -> None:
        self._timer = None
        oldest = self._oldest()
        if oldest is not None and oldest is suspect:
            self._give_up(f"no answer within {self._timeout_s:g} s")
        elif oldest is not None and oldest.since_s + self._timeout_s <= self._loop.time():
            self._timer = self._loop.call_later(GRACE_S, self._check, oldest)
        else:
            self._watch()

    def _give_up(self, fault: str) -> None:
        """What waits is told too: it would only find out the same."""
        if fault != self._fault:
            log.warning("Redis does not answer", extra={"address": str(self.address), "error": fault})
            self._fault = fault
        self._rests_until_s = self._loop.time() + REST_S
        calls, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if self._connection is not None:
            calls = [*self._connection.abort(), *calls]
            self._connection = None
        if self._connecting is not None and self._connecting is not asyncio.current_task():
            self._connecting.cancel()
        for call in calls:
            refuse(call.future, RedisUnavailable(f"{self.address}: {fault}"))
        self._emptied.set()
