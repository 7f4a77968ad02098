"""Signatures: the same as those of botocore's own signers, for the same moment."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.aws.signing import EMPTY_SHA256, MAX_URL_LIFE_S, Keys, Signer, canonical_query, sha256_of

NOW_S = 1_750_000_000.0
DAY_S = 24 * 60 * 60
HOST = "videos.s3.eu-central-1.amazonaws.com"
REGION = "eu-central-1"

SECRETS = st.text(st.characters(codec="ascii", categories=("L", "N")) | st.sampled_from("/+"), min_size=1, max_size=40)
KEYS = st.builds(
    Keys,
    st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", min_size=16, max_size=20),
    SECRETS,
    st.none() | st.text("ABCxyz019/+=", min_size=1, max_size=100),
)
PATHS = st.lists(st.text("azAZ09._-~", min_size=1, max_size=20), max_size=6).map(lambda parts: "/" + "/".join(parts))
"""The services that know dots as parts of a path are not asked for such paths."""
PLAIN_PATHS = PATHS.filter(lambda path: not {".", ".."} & set(path.split("/")))
TEXTS = st.text(max_size=20)
QUERIES = st.dictionaries(TEXTS.filter(bool), TEXTS, max_size=5)
VALUES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=30)
"""Of headers, as they are sent here: without spaces at the ends, or more than one."""
WORDS = st.lists(VALUES, min_size=1, max_size=3).map(" ".join)
HEADERS = st.dictionaries(
    st.sampled_from(["content-length", "content-md5", "content-type", "if-none-match", "range", "x-amz-target"])
    | st.from_regex(r"x-amz-meta-[a-z0-9-]{1,10}", fullmatch=True),
    WORDS,
    max_size=5,
)
MOMENTS = st.floats(0, 4e9)
METHODS = st.sampled_from(["GET", "HEAD", "PUT", "POST", "DELETE"])


@contextmanager
def botocore_at(now_s: float) -> Iterator[None]:
    """The time, as botocore's signers see it."""
    with pytest.MonkeyPatch.context() as patch:
        moment = datetime.fromtimestamp(int(now_s), UTC)
        patch.setattr(botocore.auth, "get_current_datetime", lambda: moment)
        yield


def theirs(keys: Keys) -> Credentials:
    return Credentials(keys.access_key, keys.secret_key, keys.token)


def signed_by_botocore(kind: Any, service: str, keys: Keys, now_s: float, request: AWSRequest, **options: int) -> Any:
    with botocore_at(now_s):
        kind(theirs(keys), service, REGION, **options).add_auth(request)
    return request


def url_of(path: str, query: str = "") -> str:
    return f"https://{HOST}{path}" + (f"?{query}" if query else "")


# --- Requests


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(KEYS, MOMENTS, METHODS, PLAIN_PATHS, QUERIES, HEADERS, st.binary(max_size=200))
def test_a_request_is_signed_as_botocore_signs_it(
    keys: Keys,
    now_s: float,
    method: str,
    path: str,
    query: dict[str, str],
    headers: dict[str, str],
    body: bytes,
) -> None:
    encoded = canonical_query(query)
    ours = Signer("dynamodb", REGION).headers(
        keys, method, path, encoded, {"host": HOST, **headers}, payload_sha256=sha256_of(body), now_s=now_s
    )
    request = AWSRequest(method, url_of(path, encoded), {"host": HOST, **headers}, body)
    peer = signed_by_botocore(botocore.auth.SigV4Auth, "dynamodb", keys, now_s, request)
    assert ours == {name.lower(): value for name, value in peer.headers.items()}


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(KEYS, MOMENTS, METHODS, PATHS, QUERIES, HEADERS, st.binary(max_size=200))
def test_a_request_to_s3_is_signed_as_botocore_signs_it(
    keys: Keys,
    now_s: float,
    method: str,
    path: str,
    query: dict[str, str],
    headers: dict[str, str],
    body: bytes,
) -> None:
    encoded, sha256 = canonical_query(query), sha256_of(body)
    ours = Signer("s3", REGION).headers(
        keys,
        method,
        path,
        encoded,
        {"host": HOST, "x-amz-content-sha256": sha256, **headers},
        payload_sha256=sha256,
        now_s=now_s,
    )
    # Where the length and the MD5 are said, botocore leaves the body of a request over TLS unsigned.
    request = AWSRequest(method, url_of(path, encoded).replace("https", "http"), {"host": HOST, **headers}, body)
    peer = signed_by_botocore(botocore.auth.S3SigV4Auth, "s3", keys, now_s, request)
    assert ours == {name.lower(): value for name, value in peer.headers.items()}


def test_what_is_signed_is_not_changed() -> None:
    headers = {"host": HOST}
    signed = Signer("sqs", REGION).headers(
        Keys("AK", "SK", "token"), "POST", "/", "", headers, payload_sha256=EMPTY_SHA256, now_s=NOW_S
    )
    assert headers == {"host": HOST}
    assert signed.keys() == {"host", "x-amz-date", "x-amz-security-token", "authorization"}


# --- URLs


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    KEYS,
    MOMENTS,
    st.sampled_from(["GET", "PUT"]),
    PATHS,
    HEADERS,
    st.integers(1, MAX_URL_LIFE_S),
    st.sampled_from([HOST, "127.0.0.1:9000", "[::1]:9000"]),
)
def test_a_url_is_signed_as_botocore_signs_it(
    keys: Keys, now_s: float, method: str, path: str, headers: dict[str, str], lives_s: int, host: str
) -> None:
    headers = {"host": host, **headers}
    query = Signer("s3", REGION).query(keys, method, path, headers, lives_s=lives_s, now_s=now_s)
    request = AWSRequest(method, url_of(path), headers)
    peer = signed_by_botocore(botocore.auth.S3SigV4QueryAuth, "s3", keys, now_s, request, expires=lives_s)
    assert _parameters(query) == _parameters(urlsplit(peer.url).query)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(KEYS, MOMENTS, st.integers(1, 2**40), st.binary(min_size=32, max_size=32), st.booleans())
def test_an_upload_of_a_size_and_a_hash_is_signed_as_botocore_signs_it(
    keys: Keys, now_s: float, size: int, sha256: bytes, hashed: bool
) -> None:
    headers = {"host": HOST, "content-length": str(size), "content-type": "video/mp4", "if-none-match": "*"}
    if hashed:
        headers["x-amz-checksum-sha256"] = sha256.hex()
    query = Signer("s3", REGION).query(keys, "PUT", "/7/alice/bob", headers, lives_s=60, now_s=now_s)
    request = AWSRequest("PUT", url_of("/7/alice/bob"), headers)
    peer = signed_by_botocore(botocore.auth.S3SigV4QueryAuth, "s3", keys, now_s, request, expires=60)
    assert _parameters(query) == _parameters(urlsplit(peer.url).query)


def _parameters(query: str) -> dict[str, list[str]]:
    return parse_qs(query, strict_parsing=True)


def test_the_signature_stands_last_and_whatever_else_is_in_order() -> None:
    query = Signer("s3", REGION).query(Keys("AK", "SK", "to/ken"), "GET", "/a", {"host": HOST}, lives_s=60, now_s=NOW_S)
    assert query.startswith("X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AK%2F20250615%2Feu-central-1%2Fs3%2F")
    assert "&X-Amz-Date=20250615T150640Z&X-Amz-Expires=60&X-Amz-Security-Token=to%2Fken&X-Amz-Signed" in query
    assert query.rpartition("&")[2].startswith("X-Amz-Signature=")


# --- The key that is derived


def _signature(signer: Signer, keys: Keys, now_s: float) -> str:
    signed = signer.headers(keys, "GET", "/", "", {"host": HOST}, payload_sha256=EMPTY_SHA256, now_s=now_s)
    return signed["authorization"]


def test_a_signer_that_was_used_signs_like_one_that_was_not_whatever_the_day_and_the_credentials() -> None:
    old, new = Keys("AK", "old"), Keys("AK", "new")
    used = Signer("dynamodb", REGION)
    for keys, now_s in (
        (old, NOW_S),
        (old, NOW_S + 1),
        (old, NOW_S + DAY_S),
        (new, NOW_S + DAY_S),
        (new, NOW_S),
        (old, NOW_S),
    ):
        assert _signature(used, keys, now_s) == _signature(Signer("dynamodb", REGION), keys, now_s)


def test_the_day_changes_at_midnight_of_universal_time() -> None:
    midnight_s = NOW_S // DAY_S * DAY_S
    signer = Signer("dynamodb", REGION)
    assert "AK/20250614/" in _signature(signer, Keys("AK", "SK"), midnight_s - 0.001)
    assert "AK/20250615/" in _signature(signer, Keys("AK", "SK"), midnight_s)


@pytest.mark.parametrize("other", [Signer("s3", REGION), Signer("dynamodb", "eu-central-2")])
def test_a_signature_is_for_one_service_in_one_region(other: Signer) -> None:
    keys = Keys("AK", "SK")
    ours, theirs = (_signature(signer, keys, NOW_S) for signer in (Signer("dynamodb", REGION), other))
    assert ours.rpartition("=")[2] != theirs.rpartition("=")[2]


def test_secrets_are_not_shown() -> None:
    keys = Keys("AK", "hidden-key", "hidden-token", expires_at=NOW_S)
    signer = Signer("s3", REGION)
    _signature(signer, keys, NOW_S)
    assert repr(keys) == f"Keys(access_key='AK', expires_at={NOW_S})"
    assert "hidden" not in str(keys) + repr(signer)


# --- Queries and hashes


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(QUERIES)
def test_a_query_says_what_it_was_made_of(query: dict[str, str]) -> None:
    found = parse_qs(canonical_query(query), keep_blank_values=True)
    assert {name: values[0] for name, values in found.items()} == query


def test_a_query_is_in_the_order_of_what_is_encoded() -> None:
    assert canonical_query({}) == ""
    assert canonical_query({"delete": ""}) == "delete="
    assert canonical_query({"b": "2", "a": "x y/z~", "a-": "1"}) == "a=x%20y%2Fz~&a-=1&b=2"
    assert canonical_query({"a{": "1", "aa": "2"}) == "a%7B=1&aa=2"


def test_a_hash_is_written_in_hexadecimal() -> None:
    assert sha256_of(b"") == EMPTY_SHA256
    assert sha256_of(b"body") == hashlib.sha256(b"body").hexdigest()
