"""Signed URLs: what they allow, and that nothing about them can be changed."""

import hashlib
from urllib.parse import urlsplit

import pytest

from storage.objects import (
    MAX_CONTENT_TYPE_LENGTH,
    SERVED_PATH,
    ServedObjectStore,
    SignatureRefused,
    SignedUpload,
    UploadGrant,
)
from tests.storage.conftest import DATA, KEY, TYPE, SetClock, query_of

HOUR_MS = 3_600_000


async def sign(objects: ServedObjectStore, clock: SetClock, *, sha256: str | None = None) -> SignedUpload:
    return await objects.sign_upload(
        KEY, size=len(DATA), content_type=TYPE, sha256=sha256, expires_at=clock.now_ms + HOUR_MS
    )


@pytest.mark.parametrize("sha256", [None, hashlib.sha256(DATA).hexdigest()])
async def test_a_signed_upload_allows_what_was_signed(
    objects: ServedObjectStore, clock: SetClock, sha256: str | None
) -> None:
    upload = await sign(objects, clock, sha256=sha256)
    assert urlsplit(upload.url).path == SERVED_PATH + KEY
    assert upload.headers == {"Content-Type": TYPE}
    assert upload.expires_at == clock.now_ms + HOUR_MS
    assert objects.authorize_upload(KEY, query_of(upload.url)) == UploadGrant(KEY, len(DATA), TYPE, sha256)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_signed_download_allows_reading_though_nothing_is_stored(
    objects: ServedObjectStore, clock: SetClock, method: str
) -> None:
    download = await objects.sign_download(KEY, expires_at=clock.now_ms + HOUR_MS)
    assert urlsplit(download.url).path == SERVED_PATH + KEY
    assert download.expires_at == clock.now_ms + HOUR_MS
    objects.authorize_download(KEY, query_of(download.url), method="GET" if method == "GET" else "HEAD")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("method", "GET"),
        ("method", "POST"),
        ("expires", "9999999999999"),
        ("expires", "soon"),
        ("size", "1"),
        ("size", " 1024000"),
        ("type", "text/html"),
        ("sha256", "0" * 64),
        ("signature", "0" * 64),
        ("signature", ""),
        ("signature", "ä\ud800"),
    ],
)
async def test_an_upload_url_with_any_parameter_changed_is_refused(
    objects: ServedObjectStore, clock: SetClock, name: str, value: str
) -> None:
    query = query_of((await sign(objects, clock, sha256=hashlib.sha256(DATA).hexdigest())).url)
    assert name in query
    with pytest.raises(SignatureRefused):
        objects.authorize_upload(KEY, {**query, name: value})


@pytest.mark.parametrize("name", ["method", "expires", "size", "type", "sha256", "signature"])
async def test_an_upload_url_without_one_of_its_parameters_is_refused(
    objects: ServedObjectStore, clock: SetClock, name: str
) -> None:
    query = query_of((await sign(objects, clock, sha256=hashlib.sha256(DATA).hexdigest())).url)
    del query[name]
    with pytest.raises(SignatureRefused):
        objects.authorize_upload(KEY, query)


@pytest.mark.parametrize("extra", ["sha256", "key", "Size", "x", ""])
async def test_a_url_with_a_parameter_more_is_refused(objects: ServedObjectStore, clock: SetClock, extra: str) -> None:
    query = query_of((await sign(objects, clock)).url)
    with pytest.raises(SignatureRefused):
        objects.authorize_upload(KEY, {**query, extra: "0" * 64})
    query = query_of((await objects.sign_download(KEY, expires_at=clock.now_ms + HOUR_MS)).url)
    with pytest.raises(SignatureRefused):
        objects.authorize_download(KEY, {**query, extra: "0" * 64}, method="GET")


async def test_values_that_are_cut_elsewhere_are_another_signature(objects: ServedObjectStore, clock: SetClock) -> None:
    query = query_of((await sign(objects, clock)).url)
    with pytest.raises(SignatureRefused):
        objects.authorize_upload(KEY, {**query, "size": query["size"] + query["type"], "type": ""})


@pytest.mark.parametrize("key", [KEY + "x", KEY.replace("alice/bob", "bob/alice"), "", "../" + KEY, KEY + "\ud800"])
async def test_a_url_for_another_key_is_refused(objects: ServedObjectStore, clock: SetClock, key: str) -> None:
    query = query_of((await sign(objects, clock)).url)
    with pytest.raises(SignatureRefused):
        objects.authorize_upload(key, query)
    query = query_of((await objects.sign_download(KEY, expires_at=clock.now_ms + HOUR_MS)).url)
    with pytest.raises(SignatureRefused):
        objects.authorize_download(key, query, method="GET")


async def test_an_upload_url_downloads_nothing_and_the_other_way_round(
    objects: ServedObjectStore, clock: SetClock
) -> None:
    with pytest.raises(SignatureRefused):
        objects.authorize_download(KEY, query_of((await sign(objects, clock)).url), method="GET")
    download = await objects.sign_download(KEY, expires_at=clock.now_ms + HOUR_MS)
    with pytest.raises(SignatureRefused):
        objects.authorize_upload(KEY, query_of(download.url))


async def test_urls_die_when_they_expire(objects: ServedObjectStore, clock: SetClock) -> None:
    upload = await sign(objects, clock)
    download = await objects.sign_download(KEY, expires_at=clock.now_ms + HOUR_MS)
    clock.now_s += HOUR_MS / 1000 - 1
    objects.authorize_upload(KEY, query_of(upload.url))
    objects.authorize_download(KEY, query_of(download.url), method="HEAD")
    clock.now_s += 1
    with pytest.raises(SignatureRefused, match="expired"):
        objects.authorize_upload(KEY, query_of(upload.url))
    with pytest.raises(SignatureRefused, match="expired"):
        objects.authorize_download(KEY, query_of(download.url), method="HEAD")


async def test_a_refusal_never_repeats_the_url(objects: ServedObjectStore, clock: SetClock) -> None:
    query = query_of((await sign(objects, clock)).url)
    with pytest.raises(SignatureRefused) as refused:
        objects.authorize_upload(KEY, {**query, "size": "1"})
    assert query["signature"] not in str(refused.value)
    assert KEY not in str(refused.value)


async def test_signed_urls_are_not_shown(objects: ServedObjectStore, clock: SetClock) -> None:
    upload = await sign(objects, clock)
    download = await objects.sign_download(KEY, expires_at=clock.now_ms + HOUR_MS)
    assert "signature" not in repr(upload) + repr(download)


@pytest.mark.parametrize("size", [0, -1])
async def test_an_upload_of_no_bytes_is_not_signed(objects: ServedObjectStore, size: int) -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        await objects.sign_upload(KEY, size=size, content_type=TYPE, sha256=None, expires_at=1)


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "video",
        "video/",
        "/mp4",
        "video/mp4; x=1",
        "video/mp4\r\nX: y",
        "vidéo/mp4",
        "v/" + "m" * MAX_CONTENT_TYPE_LENGTH,
    ],
)
async def test_an_ill_formed_content_type_is_not_signed(objects: ServedObjectStore, content_type: str) -> None:
    with pytest.raises(ValueError, match="content type"):
        await objects.sign_upload(KEY, size=1, content_type=content_type, sha256=None, expires_at=1)


@pytest.mark.parametrize("sha256", ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 64 + "\n"])
async def test_an_ill_formed_hash_is_not_signed(objects: ServedObjectStore, sha256: str) -> None:
    with pytest.raises(ValueError, match="hex"):
        await objects.sign_upload(KEY, size=1, content_type=TYPE, sha256=sha256, expires_at=1)
