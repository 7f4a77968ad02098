"""The bucket: that it is private, what pages may ask of it, and that what nobody needs any more goes."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from storage.aws.setup.changes import Change, NotSetUp, Part, added_or_righted
from storage.aws.setup.service import Service
from storage.aws.url import AwsUrl

_BLOCKED = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")

_CORS = {
    "AllowedMethods": ["GET", "PUT"],
    "AllowedHeaders": ["content-type", "if-none-match", "range", "x-amz-checksum-sha256"],
    "ExposeHeaders": ["Accept-Ranges", "Content-Range", "ETag"],
    "MaxAgeSeconds": 3600,
}
"""Whatever a signed upload has as headers, and what a player asks for and reads. Pages may send no other."""

_NO_BUCKET = ("NoSuchBucket", "404")


class Bucket:
    def __init__(self, service: Service, *, arn: str) -> None:
        self.service = service
        self.url = service.url
        self.arn = arn

    def parts(self, *, origins: tuple[str, ...], expire_days: int) -> list[Part]:
        on = self.service.on
        return [
            (on, self._itself),
            (f"{on}, public access", self._privacy),
            (f"{on}, versioning", self._versioning),
            (f"{on}, CORS", lambda: self._cors(origins)),
            (f"{on}, lifecycle", lambda: self._lifecycle(expire_days)),
        ]

    def ask(self, call: str, *, absent: Sequence[str] = (), **arguments: Any) -> dict[str, Any]:
        """The answer; what is not configured, or not there at all in a dry run, is empty."""
        gone = _NO_BUCKET if call.startswith("Get") else ()
        return self.service.ask(call, absent=(*absent, *gone), Bucket=self.url.name, **arguments) or {}

    def mark(self, kind: str) -> str:
        """The ID of our rule of a kind. The prefix is in it: gateways that share a bucket do not undo each other's."""
        under = self.url.prefix
        if len(under) > 200:  # an ID has at most 255 characters
            under = hashlib.sha256(under.encode()).hexdigest()
        return f"gateway-{kind}:{under}" if under else f"gateway-{kind}"

    def _itself(self) -> Iterator[Change]:
        # GetBucketLocation: unlike HeadBucket it says in words why it is refused, and where the bucket is.
        found = self.service.ask("GetBucketLocation", absent=_NO_BUCKET, Bucket=self.url.name)
        if found is None:
            yield Change(f"create it in {self.service.region}", self._create)
            return
        region = found.get("LocationConstraint") or "us-east-1"
        region = "eu-west-1" if region == "EU" else region
        if not self.url.endpoint and region != self.service.region:
            raise NotSetUp(self.service.elsewhere(region))

    def _create(self) -> None:
        region = self.service.region
        where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        self.service.ask("CreateBucket", needed=True, Bucket=self.url.name, **where)

    def _privacy(self) -> Iterator[Change]:
        found = self.ask("GetPublicAccessBlock", absent=("NoSuchPublicAccessBlockConfiguration",))
        is_on = found.get("PublicAccessBlockConfiguration", {})
        missing = [name for name in _BLOCKED if not is_on.get(name)]
        if missing:
            block = dict.fromkeys(_BLOCKED, True)
            yield Change(
                f"block it ({', '.join(missing)})",
                lambda: self.ask("PutPublicAccessBlock", PublicAccessBlockConfiguration=block),
            )

    def _versioning(self) -> Iterator[Change]:
        if self.ask("GetBucketVersioning").get("Status") == "Enabled":
            yield Change(
                "is on, and stays on: videos that are deleted remain as old versions, and are paid for, until "
                "something removes those; suspend it, or have a lifecycle rule of your own remove old versions"
            )

    def _cors(self, origins: tuple[str, ...]) -> Iterator[Change]:
        rules = self.ask("GetBucketCors", absent=("NoSuchCORSConfiguration",)).get("CORSRules", [])
        mark = self.mark("web")
        ours = [rule for rule in rules if rule.get("ID") == mark]
        others = [rule for rule in rules if rule.get("ID") != mark]
        wanted: list[dict[str, Any]] = [{"ID": mark, "AllowedOrigins": list(origins), **_CORS}] if origins else []
        if list(map(_sorted, ours)) == list(map(_sorted, wanted)):
            return
        what = f"let pages of {', '.join(origins)} put and get videos" if origins else "let no pages put and get videos"
        yield Change(added_or_righted(what, ours if wanted else []), lambda: self._put_cors([*others, *wanted]))

    def _put_cors(self, rules: list[dict[str, Any]]) -> None:
        if rules:
            self.ask("PutBucketCors", CORSConfiguration={"CORSRules": rules})
        else:
            self.ask("DeleteBucketCors")

    def _lifecycle(self, days: int) -> Iterator[Change]:
        found = self.ask("GetBucketLifecycleConfiguration", absent=("NoSuchLifecycleConfiguration",))
        mark = self.mark("expire")
        ours = [rule for rule in found.get("Rules", []) if rule.get("ID") == mark]
        others = [rule for rule in found.get("Rules", []) if rule.get("ID") != mark]
        wanted: dict[str, Any] = {
            "ID": mark,
            "Status": "Enabled",
            "Filter": {"Prefix": key_prefix(self.url)},
            "Expiration": {"Days": days},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
        }
        kept = {**wanted}
        if self.url.endpoint and ours and "AbortIncompleteMultipartUpload" not in ours[0]:
            del kept["AbortIncompleteMultipartUpload"]  # MinIO forgets it, and does that by itself
        if [{**rule, "Filter": rule.get("Filter") or {"Prefix": ""}} for rule in ours] == [kept]:
            return
        # What goes unsaid is set back to its default.
        size = {name: found[name] for name in ("TransitionDefaultMinimumObjectSize",) if name in found}
        what = f"delete what is older than {days} days under {key_prefix(self.url) or 'any key'}"
        yield Change(
            added_or_righted(f"{what}, and abort multipart uploads after a day", ours),
            lambda: self.ask(
                "PutBucketLifecycleConfiguration", LifecycleConfiguration={"Rules": [*others, wanted]}, **size
            ),
        )


def _sorted(rule: Mapping[str, Any]) -> dict[str, Any]:
    return {name: sorted(value) if isinstance(value, list) else value for name, value in rule.items()}


def key_prefix(url: AwsUrl) -> str:
    """What the keys of all our objects begin with."""
    return f"{url.prefix}/" if url.prefix else ""
