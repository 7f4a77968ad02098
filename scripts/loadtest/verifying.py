"""What is left to be checked when everything has come to rest: does each phone know what the gateway says of it?"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from http import HTTPStatus

from gateway.client import GatewayError, Packet, Synced
from gateway.client.tasks import Sync
from gateway.transit.state import Status
from scripts.loadtest.calls import CALL_S, Call
from scripts.loadtest.connections import Answer
from scripts.loadtest.phone import Phone, World
from scripts.loadtest.tally import Fault

AT_ONCE = 64
"""So many phones are asked about at the same time."""

AGAIN_S = 1.0

GRACE_S = 2.0
"""How long a packet of which a sync told may still be on its way to a socket."""


ASK_S = 60.0
"""How long all of it may take, beside 1 s for each 100 phones."""


async def verify(world: World, phones: Sequence[Phone]) -> None:
    """Ask the gateway about each phone, and note what it does not know, or should not."""
    for video in world.book.left:
        who = f"a video of {video.sender.name}'s to {video.recipient.name} ({video.recipient.kind})"
        if video.upload_s is None:
            world.tally.fault(Fault.WRONG, f"{who} was never announced")
        elif not video.arrived:
            world.tally.fault(Fault.LOST, f"{who} never arrived")
        else:
            world.tally.fault(Fault.WRONG, f"{who} is not viewed at its sender's")
    unasked = 0
    until_s = time.monotonic() + ASK_S + len(phones) / 100
    for some in _batches(phones):
        unasked += len(some) - sum(await asyncio.gather(*(_asked(world, phone, until_s) for phone in some)))
    if unasked:
        world.tally.fault(Fault.WRONG, f"the gateway has not answered what {unasked} phones should know")
    await asyncio.sleep(GRACE_S)
    for phone in phones:
        deliveries = phone.line.deliveries
        if phone.kind.connected and deliveries is None:
            world.tally.fault(Fault.WRONG, f"{phone.name} ({phone.kind}) has no socket in the end")
        elif deliveries is not None:
            for version in deliveries.owed:
                world.tally.fault(Fault.LOST, f"{phone.name} never heard version {version} on its socket")


async def _asked(world: World, phone: Phone, until_s: float) -> bool:
    """Compare one phone's knowledge; whether the gateway has answered."""
    outcome = await _answer(world, phone.caller(Sync((), phone.record.version), phone.record.version), until_s)
    if not isinstance(outcome, Synced):
        return False
    phone.line.owes(outcome.packet.version)
    if unknown := _unknown(world, outcome.packet):
        world.tally.fault(Fault.WRONG, f"the gateway still tells {phone.name} of {unknown} that is over")
    return True


def _unknown(world: World, packet: Packet) -> str | None:
    """What is listed as under way, though nothing here is."""
    for incoming in packet.incoming:
        if world.book.of_id(incoming.video_id) is None:
            return f"a video from {incoming.sender_id}"
    for sent in packet.outgoing:
        if sent.status is not Status.VIEWED and world.book.of_id(sent.video_id) is None:
            return f"a video to {sent.recipient_id}, {sent.status},"
    return None


async def farewells(world: World, phones: Sequence[Phone]) -> None:
    """Switch the phones off, and end their accounts, as far as the gateway lets us."""
    until_s = time.monotonic() + ASK_S
    for phone in phones:
        phone.end()
    for some in _batches(phones):
        calls = [Call("farewell", phone.caller.farewell(), lambda _: None) for phone in some]
        await asyncio.gather(*(_answer(world, call, until_s) for call in calls))


def _batches(phones: Sequence[Phone]) -> Iterable[Sequence[Phone]]:
    return (phones[start : start + AT_ONCE] for start in range(0, len(phones), AT_ONCE))


async def _answer(world: World, call: Call, until_s: float) -> object:
    """What comes of a call, or None. No answer, 429 and 503 are tried again until then."""
    while (left_s := until_s - time.monotonic()) > 0:
        waiting: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        world.pools.gateway.ask(call.request, waiting.set_result, timeout_s=min(left_s, CALL_S))
        try:
            return call.outcome(await waiting)
        except GatewayError as error:
            if error.status not in {None, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
                return None
        await asyncio.sleep(AGAIN_S)
    return None
