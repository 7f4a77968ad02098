"""Sockets that listen: bound before the server has them, since uvicorn, left to do it, would end the process where one
cannot be had."""

import asyncio
import contextlib
import socket
from typing import Any

BACKLOG = 4096
"""How many connections may wait to be accepted."""


async def listening_sockets(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of `host`. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(_bound(*address)) for address in dict.fromkeys(found)]
        stack.pop_all()
    return sockets


def listening_shares(host: str, port: int, *, shares: int) -> list[list[socket.socket]]:
    """The sockets of `shares` processes that serve one port, one for each address of `host`: the kernel spreads
    connections evenly over them. All are listening, so that it does from the first one on. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    split: list[list[socket.socket]] = [[] for _ in range(shares)]
    with contextlib.ExitStack() as stack:
        for family, kind, protocol, name, address in dict.fromkeys(found):
            for number, share in enumerate(split):
                there = (address[0], port, *address[2:])
                # Not the first: it finds out whether somebody else is there, who may have said the same.
                listening = stack.enter_context(_bound(family, kind, protocol, name, there, shared=number > 0))
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                listening.listen(BACKLOG)
                share.append(listening)
                port = port or listening.getsockname()[1]
        stack.pop_all()
    return split


def _bound(
    family: socket.AddressFamily,
    kind: socket.SocketKind,
    protocol: int,
    _: str,
    address: tuple[Any, ...],
    *,
    shared: bool = False,
) -> socket.socket:
    # With its protocol, unlike `socket.create_server`: asyncio switches Nagle's algorithm off only where it stands.
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(address)
    except OSError:
        listening.close()
        raise
    return listening
