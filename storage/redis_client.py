"""Commands for Redis, one server or a cluster of them.

redis-py's own cluster client is not used: its pipeline answers the trouble of one node by closing the connections to
all, and sends what was redirected one by one (redis-py 8.1, `PipelineStrategy.execute`).
"""

import asyncio
import hashlib
import logging
from binascii import crc_hqx
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, NamedTuple

from storage.redis_connection import Command, RedisRefusal, RedisUnavailable, tls_context
from storage.redis_node import RedisNode
from storage.redis_url import Address, RedisUrl

SLOTS = 16_384

REDIRECTIONS = 8
"""How often one command is sent on, without a wait."""

TRY_AGAIN_S = 0.02
"""How long to wait where half of the keys have moved."""

REFRESH_S = 0.5
"""How often the map of a cluster is asked for, at most, while there is trouble."""

log = logging.getLogger(__name__)


class Script(NamedTuple):
    """A Lua script, and its SHA-1, by which servers know it."""

    text: str
    sha: str

    @classmethod
    def of(cls, text: str) -> "Script":
        """The script of this text."""
        return cls(text, hashlib.sha1(text.encode()).hexdigest())  # noqa: S324 - it is what EVALSHA takes


class RedisClient:
    """The server or cluster at a URL. Nothing is connected before it is needed, and all reconnects by itself.

    `timeout_s`: how long a server may take to answer; where a cluster sends a command on, each server. Everything
    raises RedisUnavailable where one does not, or refuses (RedisRefusal); what it was asked may be done nevertheless,
    and may be done twice. ValueError where the URL's certificate authority cannot be read.
    """

    def __init__(self, url: RedisUrl, *, timeout_s: float) -> None:
        self.prefix = url.prefix
        self.cluster = url.cluster
        """Whether keys may be on different servers: a script's must then be in one slot."""
        self.moved: Callable[[], None] = _nobody
        """Called when slots have moved to other servers."""
        self._url = url
        self._tls = tls_context(url)
        self._timeout_s = timeout_s
        self._nodes: dict[Address, RedisNode] = {}
        self._slots: list[Address] = [] if url.cluster else [url.addresses[0]] * SLOTS
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed_s = 0.0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def run(self, key: bytes, *command: bytes | str | int) -> Any:
        """What the server that has `key` answers to `command`."""
        slot = _slot(key)
        if not self._slots:
            await self._refresh()
        address = self._slots[slot]
        future = self._node(address).send(command)
        try:
            return await future
        except RedisUnavailable:
            return await self._follow(slot, command, address, future)

    async def run_all(self, commands: Iterable[tuple[bytes, Command]]) -> list[Any]:
        """What the servers that have the keys answer, each for itself: an answer or RedisUnavailable."""
        if not self._slots:
            await self._refresh()
        sent = []
        for key, command in commands:
            address = self._slots[slot := _slot(key)]
            sent.append((slot, command, address, self._node(address).send(command)))
        answers: list[Any] = []
        for slot, command, address, future in sent:
            try:
                answers.append(await future)
            except RedisUnavailable:
                try:
                    answers.append(await self._follow(slot, command, address, future))
                except RedisUnavailable as error:
                    answers.append(error)
        return answers

    async def run_script(self, script: Script, keys: Sequence[bytes], *arguments: bytes | str | int) -> Any:
        """What `script` returns; in a cluster its keys are in one slot. A server that does not know it is taught."""
        try:
            return await self.run(keys[0], "EVALSHA", script.sha, len(keys), *keys, *arguments)
        except RedisRefusal as refusal:
            if refusal.kind != "NOSCRIPT":
                raise
            return await self.run(keys[0], "EVAL", script.text, len(keys), *keys, *arguments)

    def post(self, key: bytes, *command: bytes | str | int) -> None:
        """Have `command` done by the server that has `key`, or not: nobody is told."""
        self._post(key, command, lambda: self.run(key, *command))

    def post_script(
        self,
        script: Script,
        keys: Sequence[bytes],
        *arguments: bytes | str | int,
        returned: Callable[[Any], None] | None = None,
    ) -> None:
        """Have `script` run, or not: nobody is told. `returned`: called with what it returns, if that comes."""
        command = ("EVALSHA", script.sha, len(keys), *keys, *arguments)
        self._post(keys[0], command, lambda: self.run_script(script, keys, *arguments), returned)

    async def servers(self) -> list[Address]:
        """The servers that have slots, in a fixed order."""
        if not self._slots:
            await self._refresh()
        return sorted(set(self._slots))

    async def run_at(self, address: Address, *command: bytes | str | int) -> Any:
        """What this server answers."""
        return await self._node(address).send(command)

    def home(self, key: bytes) -> Address | None:
        """The server that has `key`, as far as is known; None while the map of a cluster could not be had."""
        return self._slots[_slot(key)] if self._slots else None

    async def refresh(self) -> None:
        """Ask for the map of the cluster, unless that was done just now. Never raises."""
        try:
            await self._refresh()
        except RedisUnavailable as error:
            log.warning("the map of the cluster cannot be had", extra={"error": str(error)})

    async def close(self) -> None:
        """Wait for what is under way, and close all connections."""
        self._closed = True
        nodes, self._nodes = self._nodes, {}
        await asyncio.gather(*(node.close() for node in nodes.values()))
        under_way = [*self._tasks, *([self._refreshing] if self._refreshing else [])]
        await asyncio.gather(*under_way, return_exceptions=True)

    def _node(self, address: Address) -> RedisNode:
        node = self._nodes.get(address)
        if node is None:
            if self._closed:
                raise RedisUnavailable("closed")
            node = RedisNode(address, self._url, timeout_s=self._timeout_s, tls=self._tls)
            self._nodes[address] = node
        return node

    def _own(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_retrieve)

    def _post(
        self,
        key: bytes,
        command: Command,
        again: Callable[[], Coroutine[Any, Any, Any]],
        returned: Callable[[Any], None] | None = None,
    ) -> None:
        """Only what a server refuses, as one that has not got the slot or the script, takes a task."""

        def look(sent: "asyncio.Future[Any]") -> None:
            error = sent.exception()
            if error is None:
                if returned is not None:
                    returned(sent.result())
            elif isinstance(error, RedisRefusal) and not self._closed:
                self._own(again())

        if not self._slots:
            self._start_refresh()
        elif not self._closed:
            self._node(self._slots[_slot(key)]).send(command).add_done_callback(look)

    # --- Clusters

    async def _follow(self, slot: int, command: Command, address: Address, future: "asyncio.Future[Any]") -> Any:
        """The answer in the end, where `address` may be the wrong server."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self._timeout_s
        redirections = 0
        while True:
            asking = False
            try:
                return await future
            except RedisRefusal as refusal:
                if not self._url.cluster:
                    if refusal.kind == "MOVED":
                        raise RedisUnavailable("the server is one of a cluster: redis+cluster://host:port") from refusal
                    raise
                match refusal.kind:
                    case "MOVED":
                        address = _named(refusal, address)
                        self._learn(slot, address)
                    case "ASK":
                        address, asking = _named(refusal, address), True
                    case "TRYAGAIN" if loop.time() < until_s:
                        await asyncio.sleep(TRY_AGAIN_S)
                        address, redirections = self._slots[slot], 0
                    case "CLUSTERDOWN":
                        address = await self._other_home(slot, address, refusal)
                    case _:
                        raise
            except RedisUnavailable as error:
                if not self._url.cluster:
                    raise
                address = await self._other_home(slot, address, error)
            redirections += 1
            if redirections > REDIRECTIONS:
                raise RedisUnavailable("the cluster sends us from server to server")
            future = self._node(address).send(command, asking=asking)

    async def _other_home(self, slot: int, address: Address, error: RedisUnavailable) -> Address:
        """Who has `slot` instead of the server at `address`, which failed with `error`: that is raised if it has."""
        await self._refresh()
        if self._slots[slot] == address:
            raise error
        return self._slots[slot]

    async def _refresh(self) -> None:
        self._start_refresh()
        if self._refreshing is not None:
            await asyncio.shield(self._refreshing)

    def _start_refresh(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if self._closed or not self._url.cluster or (self._slots and now_s - self._refreshed_s < REFRESH_S):
            return
        if self._refreshing is None or self._refreshing.done():
            self._refreshed_s = now_s
            self._refreshing = asyncio.create_task(self._ask_for_slots())
            self._refreshing.add_done_callback(_retrieve)

    async def _ask_for_slots(self) -> None:
        fault: Exception = RedisUnavailable("no server of the cluster answers")
        for address in dict.fromkeys([*self._nodes, *self._url.addresses]):  # one that rests says so at once
            try:
                found = _slots(await self._node(address).send(("CLUSTER", "SLOTS")), address)
            except RedisUnavailable as error:
                fault = error
                continue
            self._take(found)
            return
        raise fault

    def _take(self, slots: list[Address]) -> None:
        changed, self._slots = slots != self._slots, slots
        for address in self._nodes.keys() - set(slots):
            self._own(self._nodes.pop(address).close())
        if changed:
            self.moved()

    def _learn(self, slot: int, address: Address) -> None:
        """One slot has moved; others may have."""
        if self._slots[slot] != address:
            self._slots[slot] = address
            self.moved()
        self._start_refresh()


def _slot(key: bytes) -> int:
    """The slot of a key: by what stands in its first braces, if anything does."""
    start = key.find(b"{")
    if start >= 0 and (end := key.find(b"}", start + 1)) > start + 1:
        key = key[start + 1 : end]
    return crc_hqx(key, 0) % SLOTS


def _named(redirection: RedisRefusal, asked: Address) -> Address:
    """Where `MOVED 7000 host:port` leads; with no host it is another port of the one that was asked."""
    host, _, port = str(redirection).rpartition(" ")[2].rpartition(":")
    return Address(host or asked.host, int(port))


def _slots(answer: Sequence[Any], asked: Address) -> list[Address]:
    """Which server has each slot, from CLUSTER SLOTS: rows of the first slot, the last, the primary, replicas.

    Raises RedisUnavailable where some slot is nobody's, as while a cluster is being made.
    """
    slots: list[Address | None] = [None] * SLOTS
    for first, last, primary, *_ in answer:
        host = (primary[0] or b"").decode()
        address = Address(host or asked.host, primary[1])
        slots[first : last + 1] = [address] * (last + 1 - first)
    owned = [address for address in slots if address is not None]
    if len(owned) != SLOTS:
        raise RedisUnavailable("the cluster does not cover all slots")
    return owned


def _retrieve(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


def _nobody() -> None:
    return
