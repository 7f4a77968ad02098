"""Objects in an S3 bucket, or one of a service that speaks like S3: phones move the bytes, the gateway signs."""

import asyncio
import base64
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from storage.aws.client import AwsClient, AwsRefusal, AwsUnavailable, Request, amazon_host
from storage.aws.connection import Answer
from storage.aws.signing import EMPTY_SHA256, MAX_URL_LIFE_S, canonical_query, sha256_of
from storage.aws.url import AwsUrl
from storage.objects import (
    ObjectInfo,
    ObjectStore,
    ObjectsUnavailable,
    SignedDownload,
    SignedUpload,
    check_key,
    check_prefix,
    check_upload,
    is_key,
)
from storage.usage import Usage

TIMEOUT_S = 3.0
"""How long S3 may take to answer one try."""
DEADLINE_S = 8.0
"""How long a call may take, its repeats included."""

MOST_DELETED = 1000
"""Objects that one DeleteObjects takes."""

NO_LIST_S = 300.0
"""How long it is believed that the gateway may not list."""

_NAMESPACE = "{*}"


class S3Objects(ObjectStore):
    """Objects in the bucket at `url`, their keys behind its prefix.

    An upload URL is for exactly what was announced, because the length, the content type, the SHA-256 (if there is
    one) and `If-None-Match: *` are signed with it: S3 refuses whatever differs, and a second upload ("Conditional
    writes" and "Checking object integrity" in the Amazon S3 User Guide). A URL ends with the credentials that signed
    it, so its `expires_at` may be sooner than what was asked for.

    The prefix, or the bucket where there is none, is the gateway's alone: what looks like an object of its and is none
    may be deleted.

    What it is asked is counted in `usage`. `clock` gives seconds since the epoch. Raises AwsMisconfigured where the
    machine's AWS configuration will not do.
    """

    def __init__(self, url: AwsUrl, *, usage: Usage, clock: Callable[[], float] = time.time) -> None:
        # A name with a dot is no name in the certificate of Amazon's hosts; other services know paths at least.
        by_path = url.endpoint is not None or "." in url.name
        self._client = AwsClient(
            url,
            host=_bucket_host(url.name, by_path=by_path),
            usage=usage,
            timeout_s=TIMEOUT_S,
            deadline_s=DEADLINE_S,
            clock=clock,
        )
        self._bucket = f"/{url.name}" if by_path else ""
        self._prefix = f"{url.prefix}/" if url.prefix else ""
        self._public = url.public_endpoint or self._client.endpoint
        self._public_host = urlsplit(self._public).netloc
        self._no_list_until = 0.0
        self._closed = False

    async def sign_upload(
        self, key: str, *, size: int, content_type: str, sha256: str | None, expires_at: int
    ) -> SignedUpload:
        check_upload(key, size=size, content_type=content_type, sha256=sha256)
        headers = {"content-type": content_type, "if-none-match": "*"}
        if sha256 is not None:
            headers["x-amz-checksum-sha256"] = base64.b64encode(bytes.fromhex(sha256)).decode()
        # Whoever uploads says the length anyway, and browsers let nobody else say it.
        signed = {"content-length": str(size), "host": self._public_host, **headers}
        url, expires_at = await self._sign("PUT", key, signed, expires_at)
        return SignedUpload(url, {_SPELLED[name]: value for name, value in headers.items()}, expires_at)

    async def sign_download(self, key: str, *, expires_at: int) -> SignedDownload:
        check_key(key)
        return SignedDownload(*await self._sign("GET", key, {"host": self._public_host}, expires_at))

    async def head(self, key: str) -> ObjectInfo | None:
        check_key(key)
        with self._call():
            try:
                answer = await self._send("HeadObject", "HEAD", key)
            except AwsRefusal as error:
                if error.answer.status == 404:
                    return None
                if error.answer.status == 403:
                    return await self._look(key)
                raise
            return ObjectInfo(key, int(answer.headers["content-length"]), answer.headers.get("content-type", ""))

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            check_key(key)
        with self._call():
            if len(keys) == 1:
                await self._send("DeleteObject", "DELETE", keys[0])
                return
            for start in range(0, len(keys), MOST_DELETED):
                await self._delete(keys[start : start + MOST_DELETED])

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[str]:
        check_prefix(prefix)
        parameters = {"list-type": "2", "prefix": self._prefix + prefix}
        if after:
            parameters["start-after"] = self._prefix + after
        while True:
            with self._call():
                page = await self._list(parameters)
            for found in page.iterfind(f"{_NAMESPACE}Contents/{_NAMESPACE}Key"):
                key = (found.text or "").removeprefix(self._prefix)
                if is_key(key):  # whatever else there is was not made by the gateway
                    yield key
            token = page.findtext(f"{_NAMESPACE}NextContinuationToken")
            if page.findtext(f"{_NAMESPACE}IsTruncated") != "true" or not token:
                return
            parameters["continuation-token"] = token

    async def close(self) -> None:
        self._closed = True
        await self._client.close()

    @contextmanager
    def _call(self) -> Iterator[None]:
        if self._closed:
            raise ObjectsUnavailable("the store is closed")
        try:
            yield
        except (AwsUnavailable, AwsRefusal, ElementTree.ParseError) as error:
            self._client.tell(error)
            raise ObjectsUnavailable(str(error)) from error
        except (KeyError, ValueError) as error:  # a header that is missing, or no number
            raise ObjectsUnavailable("s3: an answer that makes no sense") from error

    async def _send(
        self, call: str, method: str, key: str = "", *, query: str = "", body: bytes = b"", **headers: str
    ) -> Answer:
        path = f"{self._bucket}/{self._prefix}{key}" if key else f"{self._bucket}/"
        sha256 = sha256_of(body) if body else EMPTY_SHA256
        signed = {"x-amz-content-sha256": sha256, **{name.replace("_", "-"): value for name, value in headers.items()}}
        return await self._client.send(Request(call, method, path, query, signed, body, sha256))

    # --- URLs

    async def _sign(self, method: str, key: str, headers: dict[str, str], expires_at: int) -> tuple[str, int]:
        """A URL, and when it ends (ms): no later than `expires_at`, the credentials, and what S3 takes."""
        with self._call():
            keys = await self._client.keys()
        now_s = self._client.now_s()
        ends_s = min(
            expires_at / 1000, now_s + MAX_URL_LIFE_S, float("inf") if keys.expires_at is None else keys.expires_at
        )
        lives_s = max(1, int(ends_s - int(now_s)))
        path = f"{self._bucket}/{self._prefix}{key}"
        query = self._client.signer.query(keys, method, path, headers, lives_s=lives_s, now_s=now_s)
        return f"{self._public}{path}?{query}", min(expires_at, (int(now_s) + lives_s) * 1000)

    # --- What is there

    async def _look(self, key: str) -> ObjectInfo | None:
        """What is there, where a HEAD was answered with 403, which says no more. It may mean that nothing is there: so
        S3 answers whoever may not list the bucket ("HeadObject" in the Amazon S3 API Reference)."""
        try:
            answer = await self._send("GetObject", "GET", key, range="bytes=0-0")
        except AwsRefusal as error:
            if error.answer.status == 404 or (error.code == "AccessDenied" and not await self._listed(key)):
                return None
            raise
        size = answer.headers["content-range"].rpartition("/")[2]
        return ObjectInfo(key, int(size), answer.headers.get("content-type", ""))

    async def _listed(self, key: str) -> bool:
        """Whether the object is in the bucket, as far as one may know."""
        now = asyncio.get_running_loop().time()
        if now < self._no_list_until:
            return False
        try:
            page = await self._list({"list-type": "2", "max-keys": "1", "prefix": f"{self._prefix}{key}"})
        except AwsRefusal as error:
            if error.code != "AccessDenied":
                raise
            self._no_list_until = now + NO_LIST_S
            return False
        return page.findtext(f"{_NAMESPACE}Contents/{_NAMESPACE}Key") == f"{self._prefix}{key}"

    async def _list(self, parameters: dict[str, str]) -> ElementTree.Element:
        answer = await self._send("ListObjectsV2", "GET", query=canonical_query(parameters))
        return ElementTree.fromstring(answer.body)  # noqa: S314 - expat expands no entities that S3 would not have sent

    async def _delete(self, keys: Sequence[str]) -> None:
        named = "".join(f"<Object><Key>{escape(self._prefix + key)}</Key></Object>" for key in keys)
        body = f"<Delete><Quiet>true</Quiet>{named}</Delete>".encode()
        checked = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        answer = await self._send("DeleteObjects", "POST", query="delete=", body=body, content_md5=checked)
        root = ElementTree.fromstring(answer.body)  # noqa: S314 - as above
        if failed := [error.findtext(f"{_NAMESPACE}Code") for error in root.iterfind(f"{_NAMESPACE}Error")]:
            raise AwsUnavailable(f"s3 DeleteObjects: {len(failed)} of {len(keys)} failed, the first with {failed[0]}")


_SPELLED = {
    "content-type": "Content-Type",
    "if-none-match": "If-None-Match",
    "x-amz-checksum-sha256": "x-amz-checksum-sha256",
}
"""How the headers of an upload are written for whoever sends them."""


def _bucket_host(bucket: str, *, by_path: bool) -> Callable[[str], str]:
    return lambda region: amazon_host("s3", region) if by_path else f"{bucket}.{amazon_host('s3', region)}"
