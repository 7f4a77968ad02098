"""The way to Amazon that this machine's configuration shows, and what things are called there."""

from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import ProfileNotFound, UnknownRegionError

from storage.aws.credentials import Configuration
from storage.aws.url import AwsMisconfigured, AwsUrl


class Access:
    """One botocore session for all services: it is slow to make, and finds the credentials once."""

    def __init__(self) -> None:
        self._configuration = Configuration()
        self._session: Any = botocore.session.Session()

    def region(self, url: AwsUrl) -> str:
        """The one in `url`, or else what is configured. Raises AwsMisconfigured."""
        return self._configuration.region(url.region)

    def client(self, url: AwsUrl, region: str) -> Any:
        """A client of botocore's for the service that `url` is of. Raises what botocore does."""
        return self._session.create_client(
            url.scheme, region_name=region, endpoint_url=url.endpoint, config=client_config(url)
        )

    def arn(self, url: AwsUrl, kind: str = "") -> str:
        """The ARN of what `url` names, as far as it is known without asking: the account is a `*`. Needs no connection.

        `kind`: what stands before the name.
        """
        try:
            region = self.region(url)
        except AwsMisconfigured:
            region = "*"
        where = ":" if url.scheme == "s3" else f"{region}:*"
        return f"arn:{self._partition(region)}:{url.scheme}:{where}:{kind}{url.name}"

    def _partition(self, region: str) -> str:
        try:
            return str(self._session.get_partition_for_region(region))
        except (ProfileNotFound, UnknownRegionError):
            return "aws"


def client_config(url: AwsUrl) -> Config:
    """Configured endpoints are ignored, as the gateway ignores them: both must mean the same place."""
    return Config(
        connect_timeout=5,
        read_timeout=20,
        retries={"total_max_attempts": 3, "mode": "standard"},
        ignore_configured_endpoint_urls=True,
        s3={"addressing_style": "path" if url.endpoint else "auto"},
        request_checksum_calculation="when_required",
    )
