"""Whom the load is for: a gateway of its own, or one that runs already, and how its pushes are heard of."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx

from gateway.client import Client, GatewayError
from gateway.client.record import Platform
from gateway.config import Settings
from scripts.loadtest.host import OwnGateway, own_gateway
from scripts.loadtest.options import Options, Refused
from scripts.loadtest.process import Tokens
from scripts.loadtest.pushes import Providers, push_token
from scripts.loadtest.usage import Usage, of_metrics, of_process

ANSWER_S = 5.0
"""How long a gateway may take to say that it is one."""

PLATFORMS: tuple[Platform, ...] = ("apns", "fcm")


@dataclass(frozen=True, slots=True)
class Target:
    """The gateway that is loaded. `pushes`: where simulators hand them on; None: the gateway shows them. `own`: it was
    started for this. `beside`: processes that belong to it, by name."""

    address: str
    tokens: Tokens
    pushes: str | None
    platforms: tuple[Platform, ...]
    own: OwnGateway | None = None
    beside: Mapping[str, int] = field(default_factory=dict)
    operator: str | None = field(default=None, repr=False)
    restart_command: str | None = None

    async def usage(self, http: httpx.AsyncClient) -> dict[str, Usage]:
        """What each of its processes has used so far, as far as that can be known."""
        pids = {**self.beside, **(self.own.pids if self.own is not None else {})}
        found = {f"{name} ({pid})": used for name, pid in pids.items() if (used := of_process(pid)) is not None}
        if found or self.own is not None:
            return found
        headers = {} if self.operator is None else {"Authorization": f"Bearer {self.operator}"}
        with contextlib.suppress(httpx.HTTPError, ValueError):
            answer = await http.get(f"{self.address}/metrics", headers=headers)
            if answer.status_code == 200:
                return of_metrics(answer.text)
        return {}

    async def restart(self) -> None:
        """Restart it. Raises Refused where it does not come back."""
        if self.own is not None:
            await self.own.restart()
            return
        assert self.restart_command is not None
        process = await asyncio.create_subprocess_shell(
            self.restart_command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL
        )
        if code := await process.wait():
            raise Refused(f"--restart-command ended with {code}")


@asynccontextmanager
async def target_of(options: Options) -> AsyncIterator[Target]:
    """The gateway that is asked for; one that was started for it is stopped at the end. Raises Refused."""
    if options.address is None:
        async with _started(options) as target:
            yield target
    else:
        yield await _visited(options, options.address)


@asynccontextmanager
async def _started(options: Options) -> AsyncIterator[Target]:
    with Providers() as providers:
        settings = {name.removeprefix("GATEWAY_"): text for name, text in providers.settings.items()}
        settings |= options.settings
        async with own_gateway(settings, workers=options.workers) as (gateway, environ, beside):
            tokens = tokens_of(Settings.load(environ))
            simulators = {"push simulators": providers.pid}
            yield Target(gateway.address, tokens, providers.path, PLATFORMS, gateway, {**beside, **simulators})


async def _visited(options: Options, address: str) -> Target:
    environ = {name: text for name, text in os.environ.items() if name.startswith("GATEWAY_")}
    if options.secret_file is not None:
        try:
            environ["GATEWAY_JWT_SECRET"] = options.secret_file.read_text().strip()
        except OSError as error:
            raise Refused(f"the secret cannot be read: {error}") from None
    settings = Settings.load(environ)
    tokens = tokens_of(settings)
    async with httpx.AsyncClient(timeout=ANSWER_S, trust_env=False) as http:
        await _look(http, address)
        woken = any(kind.woken for kind in options.mix)
        platforms = await _shown(http, address, tokens) if woken else PLATFORMS
    beside = {"gateway": options.pids[0]} if len(options.pids) == 1 else {f"gateway {pid}": pid for pid in options.pids}
    operator = environ.get("GATEWAY_OPERATOR_TOKEN")
    return Target(address, tokens, None, platforms, None, beside, operator, options.restart_command)


async def _look(http: httpx.AsyncClient, address: str) -> None:
    try:
        answer = await http.get(f"{address}/healthz")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Refused(f"there is no gateway at {address}: {type(error).__name__}") from None
    if answer.status_code != 200:
        raise Refused(f"there is no gateway at {address}: it answers {answer.status_code} to /healthz")


def tokens_of(settings: Settings) -> Tokens:
    """What makes tokens as `gateway token` does. Raises Refused where the settings do not have it."""
    if settings.secret_file is not None and not settings.secret_file.exists():
        raise Refused(
            f"tokens need the secret of the gateway, and {settings.secret_file} is not there: say --secret-file, or "
            "run this where the gateway runs, with its GATEWAY_DATA_DIR or GATEWAY_JWT_SECRET"
        )
    secret = settings.signing_secret()
    if secret is None:
        raise Refused("the gateway verifies tokens with a public key, so that none can be made for the phones")
    return Tokens(secret, settings.jwt_audience, settings.jwt_issuer)


async def _shown(http: httpx.AsyncClient, address: str, tokens: Tokens) -> tuple[Platform, ...]:
    """The platforms whose pushes the gateway shows on its console. Raises Refused where that is none."""
    client_id = "load-probe"
    client = Client(address, tokens.issue(client_id, 60), "phone", http, client_id=client_id)
    shown: list[Platform] = []
    for platform in PLATFORMS:
        try:
            await client.register(platform, push_token(platform, 0, client_id))
            async with client.pushes():
                shown.append(platform)
        except GatewayError as error:
            if error.status == 401:
                raise Refused(
                    f"{address} does not accept our tokens: --secret-file says with what it checks them"
                ) from None
            if error.status != 404:
                raise Refused(f"{address} does not let a phone register: {error}") from None
    with contextlib.suppress(GatewayError):
        await client.end()
    if not shown:
        raise Refused(
            "this gateway's pushes go to their providers, where nobody here hears of them: load it with phones that "
            "are not woken (--mix foreground=1), or start it without APNs and FCM, so that its console shows them"
        )
    return tuple(shown)
