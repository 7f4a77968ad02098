"""What a push costs its sender: CPU of a process that does nothing else, for our senders and for the libraries that do
the same, used as their documentation says.

Each in a process of its own, with uvloop, against simulators in another. The libraries get what they are to send in
the form that they want it, ours the gateway's `Wakeup`; no two pushes say the same.
"""

import asyncio
import logging
import multiprocessing
import os
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import orjson
import uvloop
from providers import push_token

from push.sender import Accepted, Alert, Content, Environment, Outcome, Platform, Wakeup, carried

# ruff: noqa: PLC0415 - a process imports the sender that it is for, and no other

TTL_S = 28 * 86_400
"""The most that FCM takes."""

WARM_UP = 300

LIBRARIES = ("aioapns==4.0", "pyopenssl==26.4.0")
"""What is measured beside ours and is none of the project's requirements; what they need besides is."""

Send = Callable[[Wakeup], Awaitable[None]]
Sender = Callable[[Mapping[str, str]], AbstractAsyncContextManager[Send]]


class Cost(NamedTuple):
    """µs of CPU of one push, and pushes a second."""

    cpu_us: float
    per_s: float


def install(folder: Path) -> None:
    """Put into `folder` what the project does not need itself. RuntimeError with pip's words."""
    if not (folder / "aioapns").exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *LIBRARIES]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"pip failed: {done.stderr}")


def cost(name: str, settings: Mapping[str, str], folder: Path, *, count: int, at_once: int) -> Cost:
    """What one of `SENDERS` costs, in a process of its own. `folder`: as for `install`."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(_measure, name, settings, folder, count, at_once).result()


def _measure(name: str, settings: Mapping[str, str], folder: Path, count: int, at_once: int) -> Cost:
    sys.path.append(str(folder))
    return uvloop.run(_measured(name, settings, count, at_once))


async def _measured(name: str, settings: Mapping[str, str], count: int, at_once: int) -> Cost:
    platform, sender = SENDERS[name]
    wakeups = [_wakeup(number, platform) for number in range(count + WARM_UP)]
    async with sender(settings) as send:
        await send(wakeups[0])  # alone: until it is authorized, APNs takes one at a time
        await _send_all(send, wakeups[1:WARM_UP], at_once)
        cpu_s, began_s = time.process_time(), time.perf_counter()
        await _send_all(send, wakeups[WARM_UP:], at_once)
        elapsed_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    return Cost(cpu_s / count * 1e6, count / elapsed_s)


async def _send_all(send: Send, wakeups: Iterable[Wakeup], at_once: int) -> None:
    left = iter(wakeups)

    async def sending() -> None:
        for wakeup in left:
            await send(wakeup)

    await asyncio.gather(*(sending() for _ in range(at_once)))


def _wakeup(number: int, platform: Platform) -> Wakeup:
    """The wakeup for one new video, as the gateway makes it."""
    client_id, now_ms = f"recipient-{number}", int(time.time() * 1000)
    video_id = "01932c07-1d4a-7abc-8def-" + f"{number:012x}"
    video = {
        "video_id": video_id,
        "sender_id": f"sender-{number}",
        "status": "uploaded",
        "url": f"/v1/videos/{video_id}/content",
        "size": 100,
        "content_type": "video/mp4",
        "at": now_ms,
    }
    packet = {"type": "info", "client_id": client_id, "version": now_ms, "outgoing": [], "incoming": [video]}
    return Wakeup(
        id=str(uuid.uuid4()),
        platform=platform,
        environment=Environment.PRODUCTION,
        token=push_token(platform, client_id),
        collapse_id=client_id,
        content=Content(
            now_ms, orjson.dumps(packet), Alert("VIDEOS_WAITING", ("1", f"sender-{number}"), badge=1, sound=True)
        ),
        expires_at=now_ms + TTL_S * 1000,
    )


def _check(outcome: Outcome) -> None:
    if not isinstance(outcome, Accepted):
        raise RuntimeError(f"not accepted: {outcome}")


# --- Ours


@asynccontextmanager
async def _apns_sender(settings: Mapping[str, str]) -> AsyncIterator[Send]:
    from push.apns import ApnsKey, ApnsSender

    key = ApnsKey.load(
        Path(settings["GATEWAY_APNS_KEY_FILE"]),
        key_id=settings["GATEWAY_APNS_KEY_ID"],
        team_id=settings["GATEWAY_APNS_TEAM_ID"],
        topic=settings["GATEWAY_APNS_TOPIC"],
    )
    sender = ApnsSender(key, endpoint=settings["GATEWAY_APNS_ENDPOINT"], ca_file=Path(settings["GATEWAY_APNS_CA_FILE"]))

    async def send(wakeup: Wakeup) -> None:
        _check(await sender.send(wakeup))

    yield send
    await sender.close()


@asynccontextmanager
async def _fcm_sender(settings: Mapping[str, str]) -> AsyncIterator[Send]:
    from push.fcm import FcmSender

    sender = FcmSender(
        Path(settings["GATEWAY_FCM_CREDENTIALS_FILE"]),
        endpoint=settings["GATEWAY_FCM_ENDPOINT"],
        ca_file=Path(settings["GATEWAY_FCM_CA_FILE"]),
    )

    async def send(wakeup: Wakeup) -> None:
        _check(await sender.send(wakeup))

    yield send
    await sender.close()


# --- The libraries

_ALERT = {
    "alert": {"loc-key": "VIDEOS_WAITING", "loc-args": ["1", "sender"]},
    "badge": 1,
    "mutable-content": 1,
    "content-available": 1,
    "sound": "default",
}


@asynccontextmanager
async def _aioapns(settings: Mapping[str, str]) -> AsyncIterator[Send]:
    import aioapns
    from aioapns.connection import APNsTLSClientProtocol

    logging.getLogger("aioapns").setLevel(logging.CRITICAL)
    url = urlsplit(settings["GATEWAY_APNS_ENDPOINT"])

    class Simulated(APNsTLSClientProtocol):
        APNS_SERVER = url.hostname or ""
        APNS_PORT = url.port or 443

    client = aioapns.APNs(
        key=_text(settings["GATEWAY_APNS_KEY_FILE"]),
        key_id=settings["GATEWAY_APNS_KEY_ID"],
        team_id=settings["GATEWAY_APNS_TEAM_ID"],
        topic=settings["GATEWAY_APNS_TOPIC"],
        ssl_context=ssl.create_default_context(cafile=settings["GATEWAY_APNS_CA_FILE"]),
    )
    client.pool.protocol_class = Simulated

    async def send(wakeup: Wakeup) -> None:
        content = wakeup.content
        answer = await client.send_notification(
            aioapns.NotificationRequest(
                device_token=wakeup.token,
                message={"aps": _ALERT, "version": str(content.version), "packet": (content.packet or b"").decode()},
                notification_id=wakeup.id,
                time_to_live=TTL_S,
                priority=10,
                collapse_key=wakeup.collapse_id,
                push_type=aioapns.PushType.ALERT,
            )
        )
        if not answer.is_successful:
            raise RuntimeError(f"not accepted: {answer.description}")

    yield send
    client.pool.close()


def _text(file: str) -> str:
    return Path(file).read_text()


@asynccontextmanager
async def _firebase_admin(settings: Mapping[str, str]) -> AsyncIterator[Send]:
    # What it sends with, and what it gets access tokens with, trust whom these say.
    os.environ["SSL_CERT_FILE"] = os.environ["REQUESTS_CA_BUNDLE"] = settings["GATEWAY_FCM_CA_FILE"]
    import firebase_admin
    from firebase_admin import credentials, messaging

    certificate = credentials.Certificate(settings["GATEWAY_FCM_CREDENTIALS_FILE"])
    app = firebase_admin.initialize_app(certificate)
    service = messaging._get_messaging_service(app)  # noqa: SLF001 - it cannot be told of another host
    service._fcm_url = service._fcm_url.replace("https://fcm.googleapis.com", settings["GATEWAY_FCM_ENDPOINT"])  # noqa: SLF001

    async def send(wakeup: Wakeup) -> None:
        android = messaging.AndroidConfig(collapse_key=wakeup.collapse_id, priority="high", ttl=TTL_S)
        message = messaging.Message(data=carried(wakeup.content, orjson.dumps), android=android)
        message.token = wakeup.token  # in the constructor it costs a warning besides
        [answer] = (await messaging.send_each_async([message], app=app)).responses
        if not answer.success:
            raise RuntimeError(f"not accepted: {answer.exception}")

    yield send
    await service._async_client.aclose()  # noqa: SLF001


SENDERS: Mapping[str, tuple[Platform, Sender]] = {
    "ApnsSender": (Platform.APNS, _apns_sender),
    "aioapns": (Platform.APNS, _aioapns),
    "FcmSender": (Platform.FCM, _fcm_sender),
    "firebase-admin": (Platform.FCM, _firebase_admin),
}
"""All that are measured, a library after the sender of ours for the same."""
