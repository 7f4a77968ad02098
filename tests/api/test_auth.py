import asyncio
import base64
import hashlib
import hmac
import json
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from gateway.api import auth
from gateway.api.auth import Authorizer, Identity, issue_token
from gateway.api.keys import FixedKey, Key, PublishedKeys
from gateway.errors import GatewayError, Unauthorized, Unavailable

SECRET = "correct horse battery staple, and more"
NOW = 1_800_000_000.0
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


class Clock:
    def __init__(self, now_s: float = NOW) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["the first token", "a later token"])
async def authorizer(clock: Clock, request: pytest.FixtureRequest) -> Authorizer:
    """Of tokens whose header is known by then only the signature is looked at."""
    made = Authorizer(FixedKey.from_secret(SECRET), clock=clock)
    if request.param == "a later token":
        before = json.dumps({"sub": "before", "exp": NOW + 60})
        await made.verify(signed(sub="before"))
        await made.verify(by_hand({"alg": "HS256"}, before.encode()))
    return made


RSA_KEY = rsa.generate_private_key(65537, 2048)
OTHER_RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
PRIVATE = {"RS256": RSA_KEY, "ES256": EC_KEY, "EdDSA": ED_KEY}


def pem(key: Any) -> str:
    text: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return text.decode()


def signed(key: Any = SECRET, algorithm: str = "HS256", *, headers: dict[str, Any] | None = None, **claims: Any) -> str:
    given = {"sub": "alice", "exp": NOW + 60} | claims
    present = {name: value for name, value in given.items() if value is not ...}
    return jwt.encode(present, key, algorithm, headers=headers)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def by_hand(header: dict[str, Any], claims: bytes, key: bytes = SECRET.encode()) -> str:
    """A token that PyJWT would not make."""
    text = f"{b64(json.dumps(header).encode())}.{b64(claims)}"
    return f"{text}.{b64(hmac.digest(key, text.encode(), 'sha256'))}"


async def caller(authorizer: Authorizer, token: str) -> str:
    return (await authorizer.verify(token)).client_id


async def refusal(authorizer: Authorizer, token: str) -> str:
    with pytest.raises(Unauthorized) as refused:
        await authorizer.verify(token)
    detail = refused.value.detail
    assert not any(len(part) > 3 and part in detail for part in token.split("."))
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None
    return detail


async def test_a_good_token_says_who_calls(authorizer: Authorizer) -> None:
    assert await authorizer.authorize(f"Bearer {signed()}") == Identity("alice", None, NOW + 60)  # type: ignore[arg-type]
    assert (await authorizer.verify(signed(device="phone-1"))).device_id == "phone-1"


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer "])
async def test_the_scheme_may_be_written_in_any_case(authorizer: Authorizer, scheme: str) -> None:
    assert (await authorizer.authorize(f"{scheme} {signed()}")).client_id == "alice"


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic YTpi", "Token x", signed()])
async def test_a_missing_or_other_authorization_is_refused(authorizer: Authorizer, header: str | None) -> None:
    with pytest.raises(Unauthorized):
        await authorizer.authorize(header)


@pytest.mark.parametrize(
    "token",
    ["x", "..", "a.b.c", "é.é.é", "eyJ.eyJ.", "\udcff", signed() + ".x", signed()[:-4], "x" * 100_000, signed() + "!"],
)
async def test_what_is_no_jwt_is_refused(authorizer: Authorizer, token: str) -> None:
    await refusal(authorizer, token)


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda data: f"{b64(b'{')}.{b64(data)}.{b64(data)}"))
def test_whatever_comes_as_a_token_is_refused_and_nothing_else_happens(text: str) -> None:
    authorizer = Authorizer(FixedKey.from_secret(SECRET))
    with pytest.raises(Unauthorized):
        asyncio.run(authorizer.verify(text))


@given(st.binary(max_size=200) | st.recursive(st.none() | st.text(), st.lists).map(json.dumps).map(str.encode))
def test_whatever_a_signed_token_claims_is_judged_or_refused(claims: bytes) -> None:
    authorizer = Authorizer(FixedKey.from_secret(SECRET))
    with pytest.raises(Unauthorized):
        asyncio.run(authorizer.verify(by_hand({"alg": "HS256"}, claims)))


async def test_a_huge_token_is_refused_before_it_is_looked_at(authorizer: Authorizer) -> None:
    await refusal(authorizer, signed(more="x" * auth.MAX_TOKEN))


async def test_a_tampered_token_is_refused(authorizer: Authorizer) -> None:
    header, claims, signature = signed().split(".")
    forged = b64(json.dumps({"sub": "bob", "exp": NOW + 60}).encode())
    assert "signature" in await refusal(authorizer, f"{header}.{forged}.{signature}")
    flipped = ("A" if signature[0] != "A" else "B") + signature[1:]
    assert "signature" in await refusal(authorizer, f"{header}.{claims}.{flipped}")
    await refusal(authorizer, f"{header}.{claims}.")
    await refusal(authorizer, signed("another secret, as long as it should be"))


async def test_an_unsigned_token_is_refused(authorizer: Authorizer) -> None:
    for algorithm in ("none", "None", "NONE", ""):
        claims = json.dumps({"sub": "alice", "exp": NOW + 60}).encode()
        for signature in ("", "AAAA"):
            await refusal(authorizer, f"{b64(json.dumps({'alg': algorithm}).encode())}.{b64(claims)}.{signature}")


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
async def test_another_hash_than_the_agreed_one_is_refused(authorizer: Authorizer, algorithm: str) -> None:
    assert "algorithm" in await refusal(authorizer, signed(SECRET * 2, algorithm))


@pytest.mark.parametrize("header", [{}, {"alg": None}, {"alg": ["HS256"]}, {"alg": "HS256", "kid": 7}])
async def test_an_ill_formed_header_is_refused(authorizer: Authorizer, header: dict[str, Any]) -> None:
    await refusal(authorizer, by_hand(header, b'{"sub":"alice","exp":1800000060}'))


@pytest.mark.parametrize("crit", [["x"], [], "x", ["exp"]])
async def test_a_critical_extension_that_nobody_knows_is_refused(authorizer: Authorizer, crit: Any) -> None:
    await refusal(authorizer, by_hand({"alg": "HS256", "crit": crit, "x": 1}, b'{"sub":"alice","exp":1800000060}'))


async def test_a_detached_payload_is_refused(authorizer: Authorizer) -> None:
    await refusal(authorizer, by_hand({"alg": "HS256", "crit": ["b64"], "b64": False}, b""))


async def test_exp_counts_with_leeway(authorizer: Authorizer, clock: Clock) -> None:
    token = signed(exp=NOW - 29.5)
    assert (await authorizer.verify(token)).expires_at == NOW - 29.5
    clock.now_s += 0.5
    assert "expired" in await refusal(authorizer, token)
    assert "expired" in await refusal(authorizer, signed(exp=NOW - 29.5))


async def test_nbf_counts_with_leeway(authorizer: Authorizer, clock: Clock) -> None:
    token = signed(nbf=NOW + 31)
    assert "not valid yet" in await refusal(authorizer, token)
    clock.now_s += 1
    assert await caller(authorizer, token)


async def test_the_injected_clock_alone_counts_and_iat_does_not(authorizer: Authorizer) -> None:
    assert await caller(authorizer, signed(iat=NOW + 10_000))


@pytest.mark.parametrize("exp", [..., None, "1800000060", True, [], {}, -1, 0])
async def test_a_token_without_a_usable_exp_is_refused(authorizer: Authorizer, exp: Any) -> None:
    await refusal(authorizer, signed(exp=exp))


@pytest.mark.parametrize("number", [b"1e999", b"9" * 400, b"NaN", b"Infinity"])
async def test_an_exp_beyond_numbers_is_refused(authorizer: Authorizer, number: bytes) -> None:
    await refusal(authorizer, by_hand({"alg": "HS256"}, b'{"sub":"alice","exp":' + number + b"}"))


@pytest.mark.parametrize("sub", [..., None, 7, "", ".", "..", "a b", "é", "a/b", "x" * 65, "alice\n", ["alice"]])
async def test_a_missing_or_ill_formed_sub_is_refused(authorizer: Authorizer, sub: Any) -> None:
    await refusal(authorizer, by_hand({"alg": "HS256"}, json.dumps(_claims(sub=sub)).encode()))


@pytest.mark.parametrize("device", [None, 7, "", "..", "a b", "x" * 65, ["d"]])
async def test_an_ill_formed_device_is_refused(authorizer: Authorizer, device: Any) -> None:
    await refusal(authorizer, by_hand({"alg": "HS256"}, json.dumps(_claims(device=device)).encode()))


def _claims(**claims: Any) -> dict[str, Any]:
    return {name: value for name, value in ({"sub": "alice", "exp": NOW + 60} | claims).items() if value is not ...}


@pytest.mark.parametrize(
    ("claims", "good"),
    [
        ({"aud": "gw", "iss": "id"}, True),
        ({"aud": ["other", "gw"], "iss": "id"}, True),
        ({"aud": ["other"], "iss": "id"}, False),
        ({"aud": [], "iss": "id"}, False),
        ({"aud": "gwx", "iss": "id"}, False),
        ({"aud": {"gw": 1}, "iss": "id"}, False),
        ({"aud": ["gw", 7], "iss": "id"}, False),
        ({"iss": "id"}, False),
        ({"aud": "gw"}, False),
        ({"aud": "gw", "iss": "other"}, False),
        ({"aud": "gw", "iss": ["id"]}, False),
    ],
)
async def test_aud_and_iss_must_be_the_configured_ones(clock: Clock, claims: dict[str, Any], good: bool) -> None:
    authorizer = Authorizer(FixedKey.from_secret(SECRET), audience="gw", issuer="id", clock=clock)
    token = by_hand({"alg": "HS256"}, json.dumps(_claims(**claims)).encode())
    if good:
        assert await caller(authorizer, token)
    else:
        await refusal(authorizer, token)


async def test_aud_and_iss_do_not_matter_where_none_is_configured(authorizer: Authorizer) -> None:
    assert await caller(authorizer, signed(aud="whoever", iss="whoever"))


@pytest.mark.parametrize("algorithm", PRIVATE)
async def test_a_public_key_verifies_its_own_algorithm(clock: Clock, algorithm: str) -> None:
    authorizer = Authorizer(FixedKey.from_pem(pem(PRIVATE[algorithm])), clock=clock)
    assert (await authorizer.verify(signed(PRIVATE[algorithm], algorithm))).client_id == "alice"
    for other, key in PRIVATE.items():
        if other != algorithm:
            assert "algorithm" in await refusal(authorizer, signed(key, other))


@pytest.mark.parametrize("algorithm", PRIVATE)
async def test_a_public_key_is_never_taken_for_a_secret(clock: Clock, algorithm: str) -> None:
    text = pem(PRIVATE[algorithm])
    authorizer = Authorizer(FixedKey.from_pem(text), clock=clock)
    for key in (text, text.strip()):
        token = by_hand({"alg": "HS256"}, json.dumps(_claims()).encode(), key.encode())
        assert "algorithm" in await refusal(authorizer, token)


async def test_another_padding_of_the_same_rsa_key_is_refused(clock: Clock) -> None:
    authorizer = Authorizer(FixedKey.from_pem(pem(RSA_KEY)), clock=clock)
    for algorithm in ("PS256", "RS384", "RS512"):
        assert "algorithm" in await refusal(authorizer, signed(RSA_KEY, algorithm))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        pem(RSA_KEY)[:200],
        pem(rsa.generate_private_key(65537, 1024)),  # noqa: S505 - refused
        pem(ec.generate_private_key(ec.SECP384R1())),
        RSA_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
    ],
)
def test_a_key_that_will_not_do_is_refused_at_once(text: str) -> None:
    with pytest.raises(ValueError, match="public key"):
        FixedKey.from_pem(text)


@pytest.mark.parametrize("text", [pem(RSA_KEY), '{"kty":"oct","k":"' + "A" * 50 + '"}', ""])
def test_a_secret_that_is_no_secret_is_refused_at_once(text: str) -> None:
    with pytest.raises(ValueError, match="secret"):
        FixedKey.from_secret(text)


async def test_an_issued_token_is_good_for_its_time(clock: Clock) -> None:
    authorizer = Authorizer(FixedKey.from_secret(SECRET), audience="gw", issuer="id", clock=clock)
    token = issue_token(SECRET, "bob", device_id="d", ttl_s=60, now=NOW, audience="gw", issuer="id")
    assert await authorizer.verify(token) == Identity("bob", "d", NOW + 60)  # type: ignore[arg-type]
    clock.now_s += 90
    assert "expired" in await refusal(authorizer, token)


@pytest.mark.parametrize(("client_id", "device_id"), [("a b", None), ("", None), ("..", None), ("a", "é"), ("a", "")])
def test_no_token_is_issued_for_an_ill_formed_id(client_id: str, device_id: str | None) -> None:
    with pytest.raises(ValueError, match=r"client_id|device_id"):
        issue_token(SECRET, client_id, device_id=device_id, ttl_s=60, now=NOW)


class CountingKey(FixedKey):
    """A key that counts how often it was asked for, and can be withdrawn."""

    asked = 0
    withdrawn = 0
    only = None  # type: ignore[assignment]

    def generation(self) -> int:
        return self.withdrawn

    async def find(self, algorithm: str, kid: str | None) -> Key:
        self.asked += 1
        return await super().find(algorithm, kid)


async def test_a_verified_token_is_not_verified_again_until_a_key_is_withdrawn(clock: Clock) -> None:
    keys = CountingKey.from_secret(SECRET)
    assert isinstance(keys, CountingKey)
    authorizer = Authorizer(keys, clock=clock)
    token = signed()
    assert await authorizer.verify(token) is await authorizer.verify(token)
    assert keys.asked == 1
    keys.withdrawn = 1
    await authorizer.verify(token)
    assert keys.asked == 2


async def test_remembered_tokens_are_bounded_and_hold_no_token(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_REMEMBERED", 3)
    authorizer = Authorizer(FixedKey.from_secret(SECRET), clock=clock)
    tokens = [signed(sub=f"client-{number}") for number in range(5)]
    for token in tokens:
        await authorizer.verify(token)
    assert list(authorizer._verified) == [hashlib.sha256(token.encode()).digest() for token in tokens[-3:]]


async def test_a_refused_token_is_not_remembered(authorizer: Authorizer) -> None:
    before = dict(authorizer._verified)
    for token in (signed(exp=NOW - 100), signed(sub="a b"), signed("another secret, as long as it should be")):
        await refusal(authorizer, token)
    assert authorizer._verified == before


@pytest.mark.parametrize("algorithm", PRIVATE)
async def test_later_tokens_of_a_public_key_are_verified_as_the_first_was(algorithm: str, clock: Clock) -> None:
    key = PRIVATE[algorithm]
    made = Authorizer(FixedKey.from_pem(pem(key)), clock=clock)
    for name in ("first", "second", "third"):
        assert await caller(made, signed(key, algorithm, sub=name)) == name
    said, _, _ = signed(key, algorithm, sub="somebody").rpartition(".")
    _, _, of_another = signed(key, algorithm, sub="else").rpartition(".")
    for signature in (of_another, "", "!", of_another[:-8]):
        await refusal(made, f"{said}.{signature}")


# --- keys behind a URL ---


class KeyServer:
    """A real HTTP server for one JWK set, which counts, can be slow and can fail."""

    def __init__(self) -> None:
        self.fetches = 0
        self.body = b""
        self.status = 200
        self.location: str | None = None
        self.gate = threading.Event()
        self.gate.set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.fetches += 1
                server.gate.wait(10)
                self.send_response(server.status)
                if server.location:
                    self.send_header("Location", server.location)
                self.send_header("Content-Length", str(len(server.body)))
                self.end_headers()
                self.wfile.write(server.body)

            def log_message(self, *_: object) -> None:
                """Not on the test's output."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/keys"

    def publish(self, *entries: Any) -> None:
        self.body = json.dumps({"keys": entries}).encode()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[KeyServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = KeyServer()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.gate.set()
    server.http.shutdown()
    server.http.server_close()
    thread.join()


@pytest.fixture
def monotonic() -> Clock:
    return Clock(1000)


@pytest.fixture
async def keys(server: KeyServer, monotonic: Clock) -> AsyncIterator[PublishedKeys]:
    keys = PublishedKeys(server.url, monotonic=monotonic)
    yield keys
    await keys.close()


@pytest.fixture
def published(keys: PublishedKeys, clock: Clock) -> Authorizer:
    return Authorizer(keys, clock=clock)


def jwk(key: PrivateKey, kid: str | None, **more: Any) -> dict[str, Any]:
    match key:
        case rsa.RSAPrivateKey():
            members = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
        case ec.EllipticCurvePrivateKey():
            members = jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
        case _:
            members = jwt.algorithms.OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return members | ({"kid": kid} if kid is not None else {}) | more


def kid(name: str) -> dict[str, str]:
    return {"kid": name}


async def settled(keys: PublishedKeys) -> None:
    if keys._fetching is not None:
        await asyncio.wait([keys._fetching])


async def test_published_keys_verify_by_kid(server: KeyServer, published: Authorizer) -> None:
    server.publish(jwk(RSA_KEY, "r"), jwk(EC_KEY, "e", use="sig", alg="ES256"), jwk(ED_KEY, "d", key_ops=["verify"]))
    assert await caller(published, signed(RSA_KEY, "RS256", headers=kid("r")))
    assert await caller(published, signed(EC_KEY, "ES256", headers=kid("e")))
    assert await caller(published, signed(ED_KEY, "EdDSA", headers=kid("d")))
    assert server.fetches == 1


async def test_a_kid_of_another_key_or_none_that_is_published_is_refused(
    server: KeyServer, published: Authorizer
) -> None:
    server.publish(jwk(RSA_KEY, "r"), jwk(OTHER_RSA_KEY, "o"), jwk(EC_KEY, "e"))
    assert "signature" in await refusal(published, signed(RSA_KEY, "RS256", headers=kid("o")))
    for name in ("x", "e", ""):
        assert "not published" in await refusal(published, signed(RSA_KEY, "RS256", headers=kid(name)))


async def test_without_a_kid_the_only_key_of_that_algorithm_counts(server: KeyServer, published: Authorizer) -> None:
    server.publish(
        jwk(RSA_KEY, None), jwk(EC_KEY, "e"), jwk(ED_KEY, "d"), jwk(ed25519.Ed25519PrivateKey.generate(), "f")
    )
    assert await caller(published, signed(RSA_KEY, "RS256"))
    assert await caller(published, signed(EC_KEY, "ES256"))
    assert "not published" in await refusal(published, signed(ED_KEY, "EdDSA"))


async def test_a_published_secret_verifies_nothing(server: KeyServer, published: Authorizer) -> None:
    server.publish(jwk(RSA_KEY, "r"), {"kty": "oct", "k": b64(SECRET.encode()), "kid": "s", "alg": "HS256"})
    await refusal(published, signed(headers=kid("s")))
    await refusal(published, signed(jwk(RSA_KEY, "r")["n"], headers=kid("r")))


async def test_keys_that_are_of_no_use_are_left_out(server: KeyServer, published: Authorizer) -> None:
    useless: Sequence[Any] = [
        7,
        {},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "r"},
        {"kty": "RSA", "n": "!", "e": "AQAB", "kid": "r"},
        {"kty": "OKP", "crv": "Ed448", "x": "AA", "kid": "r"},
        jwk(ec.generate_private_key(ec.SECP384R1()), "r"),
        jwk(rsa.generate_private_key(65537, 1024), "r"),  # noqa: S505 - left out
        jwk(OTHER_RSA_KEY, "r", use="enc"),
        jwk(OTHER_RSA_KEY, "r", alg="RS512"),
        jwk(OTHER_RSA_KEY, "r", key_ops=["encrypt"]),
        jwk(OTHER_RSA_KEY, 7),  # type: ignore[arg-type]
    ]
    server.publish(*useless, jwk(RSA_KEY, "r", x5c=["ignored"]))
    assert await caller(published, signed(RSA_KEY, "RS256", headers=kid("r")))


async def test_a_private_key_that_slipped_into_the_set_verifies_like_its_public_one(
    server: KeyServer, published: Authorizer
) -> None:
    server.publish(jwt.algorithms.RSAAlgorithm.to_jwk(RSA_KEY, as_dict=True) | {"kid": "r", "key_ops": ["verify"]})
    assert await caller(published, signed(RSA_KEY, "RS256", headers=kid("r")))


async def test_all_who_wait_share_one_fetch(server: KeyServer, published: Authorizer) -> None:
    server.publish(jwk(RSA_KEY, "r"))
    server.gate.clear()
    calls = [
        asyncio.create_task(published.verify(signed(RSA_KEY, "RS256", headers=kid("r"), sub=f"c{number}")))
        for number in range(20)
    ]
    done, _ = await asyncio.wait(calls, timeout=0.05)
    assert not done
    calls[0].cancel()
    server.gate.set()
    await asyncio.wait(calls)
    assert calls[0].cancelled()
    assert {call.result().client_id for call in calls[1:]} == {f"c{number}" for number in range(1, 20)}
    assert server.fetches == 1


async def test_a_malformed_token_causes_no_fetch(server: KeyServer, published: Authorizer) -> None:
    for token in ("x", signed(), by_hand({"alg": "none"}, b"{}"), by_hand({"alg": "HS256", "kid": "r"}, b"{}")):
        with pytest.raises(GatewayError):
            await published.verify(token)
    assert server.fetches == 0


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b""),
        (404, b'{"keys":[]}'),
        (200, b""),
        (200, b"nonsense"),
        (200, b'{"keys":[]}'),
        (200, b'{"keys":7}'),
        (200, b"[" * 100_000),
        (200, b'{"keys":[{"kty":"oct","k":"AAAA"}]}'),
        (200, b" " * (256 * 1024 + 1)),
    ],
)
async def test_before_the_first_good_fetch_nothing_can_be_said(
    server: KeyServer, published: Authorizer, monotonic: Clock, status: int, body: bytes
) -> None:
    server.status, server.body = status, body
    token = signed(RSA_KEY, "RS256", headers=kid("r"))
    for _ in range(3):
        with pytest.raises(Unavailable) as refused:
            await published.verify(token)
        assert refused.value.retry_after_s is not None
    assert server.fetches == 1
    server.status = 200
    server.publish(jwk(RSA_KEY, "r"))
    monotonic.now_s += 2
    assert await caller(published, token)


async def test_a_redirect_is_not_followed(server: KeyServer, published: Authorizer) -> None:
    server.publish(jwk(RSA_KEY, "r"))
    server.status, server.location = 302, server.url + "2"
    with pytest.raises(Unavailable):
        await published.verify(signed(RSA_KEY, "RS256", headers=kid("r")))
    assert server.fetches == 1


async def test_an_unknown_kid_causes_a_fetch_at_most_every_half_minute(
    server: KeyServer, published: Authorizer, monotonic: Clock
) -> None:
    server.publish(jwk(RSA_KEY, "old"))
    await published.verify(signed(RSA_KEY, "RS256", headers=kid("old")))
    server.publish(jwk(RSA_KEY, "old"), jwk(OTHER_RSA_KEY, "new"))
    token = signed(OTHER_RSA_KEY, "RS256", headers=kid("new"))
    monotonic.now_s += 29
    for _ in range(3):
        await refusal(published, token)
    assert server.fetches == 1
    monotonic.now_s += 1
    assert await caller(published, token)
    assert server.fetches == 2


async def test_while_the_url_is_down_known_keys_go_on_and_unknown_ones_cannot_be_judged(
    server: KeyServer, published: Authorizer, keys: PublishedKeys, monotonic: Clock
) -> None:
    server.publish(jwk(RSA_KEY, "r"))
    await published.verify(signed(RSA_KEY, "RS256", headers=kid("r")))
    server.status = 503
    monotonic.now_s += 10_000
    assert await caller(published, signed(RSA_KEY, "RS256", headers=kid("r"), sub="bob"))
    await settled(keys)
    assert await caller(published, signed(RSA_KEY, "RS256", headers=kid("r"), sub="carol"))
    with pytest.raises(Unavailable):
        await published.verify(signed(OTHER_RSA_KEY, "RS256", headers=kid("new")))
    assert server.fetches == 2


async def test_a_withdrawn_key_verifies_nothing_after_the_next_refresh_not_even_a_remembered_token(
    server: KeyServer, published: Authorizer, keys: PublishedKeys, monotonic: Clock
) -> None:
    server.publish(jwk(RSA_KEY, "old"), jwk(EC_KEY, "e"))
    token = signed(RSA_KEY, "RS256", headers=kid("old"))
    await published.verify(token)
    server.publish(jwk(EC_KEY, "e"))
    monotonic.now_s += 600
    assert await caller(published, token)  # the refresh runs behind it
    await settled(keys)
    assert "not published" in await refusal(published, token)
    assert server.fetches == 2


async def test_a_key_that_is_added_leaves_remembered_tokens_alone(
    server: KeyServer, published: Authorizer, keys: PublishedKeys, monotonic: Clock
) -> None:
    server.publish(jwk(RSA_KEY, "old"))
    await published.verify(signed(RSA_KEY, "RS256", headers=kid("old")))
    server.publish(jwk(RSA_KEY, "old"), jwk(EC_KEY, "e"))
    monotonic.now_s += 600
    before = keys.generation()
    await settled(keys)
    assert keys.generation() == before
    assert server.fetches == 2


async def test_closing_gives_up_a_fetch_that_hangs(server: KeyServer, keys: PublishedKeys) -> None:
    server.gate.clear()
    call = asyncio.create_task(keys.find("RS256", "r"))
    await asyncio.wait([call], timeout=0.05)
    await keys.close()
    await asyncio.wait([call], timeout=1)
    assert call.done()
