"""Credentials from this machine's AWS configuration: the environment, profiles, a container's or an instance's role.

Where they come from, and in what order, is botocore's business ("Credentials" in the Boto3 documentation). It asks the
network for some of them and waits for the answer, so that happens in a thread, and ahead of time.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import botocore.session
from botocore.exceptions import BotoCoreError

from storage.aws.signing import Keys
from storage.aws.url import AwsMisconfigured

RENEW_S = 15 * 60
"""So long before they expire credentials are renewed, while they are still used."""

LEAST_S = 5.0
"""Where they are good for less than this, better ones are waited for while they are looked for."""

WAIT_S = 5.0
"""No longer than this: whoever gives them may hang."""

RETRY_S = 30.0
"""How often credentials are looked for at most."""
URGENT_S = 60.0
URGENT_RETRY_S = 1.0
"""That, where those there are end within so long."""

log = logging.getLogger(__name__)


class CredentialsUnavailable(Exception):
    """There are no credentials now that are good."""


class Credentials:
    """The keys to sign with, as `source` gives them; it may block. `clock`: seconds since the epoch."""

    def __init__(self, source: Callable[[], Keys | None], *, clock: Callable[[], float] = time.time) -> None:
        self._source = source
        self._clock = clock
        self._keys: Keys | None = None
        self._refused: Keys | None = None
        self._renewal: asyncio.Task[None] | None = None
        self._looked_at = float("-inf")
        self._hurried_at = float("-inf")
        self._doubted = False
        self._told = ""

    async def keys(self) -> Keys:
        """Keys that are good for a while. Raises CredentialsUnavailable."""
        left_s = 0.0 if self._doubted else self._left_s()
        if left_s < RENEW_S:
            self._renew(URGENT_RETRY_S if self._left_s() < URGENT_S else RETRY_S)
        if left_s < LEAST_S and self._renewal is not None:
            await asyncio.wait([self._renewal], timeout=WAIT_S)
        if self._keys is None or self._left_s() <= 0:
            raise CredentialsUnavailable("there are no AWS credentials now that have not expired")
        return self._keys

    def refuse(self, keys: Keys) -> None:
        """The service does not take these: there may be others by now, so look before they are used again."""
        if keys is self._keys:
            self._doubted = True
            now_s = self._clock()
            # Where each look brings others, which are refused as well, they must not follow one another.
            if keys != self._refused and abs(now_s - self._hurried_at) >= RETRY_S:
                self._looked_at, self._hurried_at = float("-inf"), now_s
            self._refused = keys

    async def close(self) -> None:
        """Wait for nothing more."""
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.wait([self._renewal])

    def _left_s(self) -> float:
        if self._keys is None:
            return 0.0
        return float("inf") if self._keys.expires_at is None else self._keys.expires_at - self._clock()

    def _renew(self, rest_s: float) -> None:
        now_s = self._clock()
        if self._renewal is None and abs(now_s - self._looked_at) >= rest_s:  # the clock may be set back
            self._looked_at = now_s
            self._renewal = asyncio.create_task(self._look())

    async def _look(self) -> None:
        try:
            keys = await asyncio.to_thread(self._source)
        except Exception as error:  # whatever a provider of credentials raises: there may be one installed
            self._tell(logging.WARNING, "the AWS credentials could not be renewed", type(error).__name__)
        else:
            if keys is None:
                self._tell(logging.ERROR, "there are no AWS credentials", "none are configured")
            else:
                self._keys = keys
                self._doubted = False
                self._told = ""
        finally:
            self._renewal = None

    def _tell(self, level: int, message: str, why: str) -> None:
        """Tell the log, unless nothing has changed: it is looked every second where there are none."""
        if why != self._told:
            self._told = why
            log.log(level, message, extra={"error": why})


class Configuration:
    """The AWS configuration of this machine, as botocore reads it."""

    def __init__(self) -> None:
        self._session = _session()

    def region(self, given: str | None) -> str:
        """`given`, or else what is configured. Raises AwsMisconfigured."""
        region = given or self._configured("region")
        if not region:
            raise AwsMisconfigured("no AWS region is configured: add ?region=… to the URL, or set AWS_REGION")
        return region

    def ca_bundle(self) -> str | None:
        """The file of certificate authorities to trust, where one is configured (`AWS_CA_BUNDLE`)."""
        return self._configured("ca_bundle")

    def credentials(self, *, clock: Callable[[], float] = time.time) -> Credentials:
        """Its credentials, looked for when they are first needed."""
        return Credentials(find_keys, clock=clock)

    def _configured(self, name: str) -> str | None:
        try:
            value = self._session.get_config_variable(name)
        except BotoCoreError as error:
            raise AwsMisconfigured(f"the AWS configuration cannot be used: {error}") from error
        return None if value is None else str(value)


def find_keys() -> Keys | None:
    """The keys that the chain of providers gives now, or None. It may ask the network, and waits for the answer.

    A session of its own: what was refused may have been replaced since, in a file for one.
    """
    found = _session().get_credentials()
    if found is None:
        return None
    frozen = found.get_frozen_credentials()
    # Nothing public tells when they end; without it a URL could promise more than it can keep.
    ends = getattr(found, "_expiry_time", None)
    return Keys(frozen.access_key, frozen.secret_key, frozen.token, None if ends is None else ends.timestamp())


def _session() -> Any:
    # botocore alone of Amazon's clients does not know AWS_REGION, which containers and functions are given.
    regions = ["AWS_REGION", "AWS_DEFAULT_REGION"]
    return botocore.session.Session(session_vars={"region": ("region", regions, None, None)})
