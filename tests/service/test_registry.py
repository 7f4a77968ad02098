"""Registered devices and their tokens: who has one has it alone."""

import asyncio
from collections.abc import Sequence

import pytest

from gateway.errors import Unavailable
from gateway.registry import TOKEN_PREFIX, TokenOwner, decode_owner, encode_owner, hash_token
from gateway.transit.state import ClientId, DeviceId, UnreadableDocument
from storage.documents import Document, StoreUnavailable
from tests.service.conftest import BOB, CAROL, PHONE, TABLET, Gateway


async def tokens_of(gateway: Gateway, client: ClientId) -> dict[DeviceId, str]:
    return {device: row.token_key for device, row in (await gateway.state(client)).devices.items()}


async def token_documents(gateway: Gateway) -> dict[str, TokenOwner | None]:
    page = await gateway.documents.inner.scan()
    return {
        document.key.removeprefix(TOKEN_PREFIX): decode_owner(document.body)
        for document in page.documents
        if document.key.startswith(TOKEN_PREFIX)
    }


async def test_a_registered_device_has_its_token(gateway: Gateway) -> None:
    await gateway.register(BOB, PHONE, "token")
    assert await tokens_of(gateway, BOB) == {PHONE: hash_token("token")}
    assert await gateway.registry.owner(hash_token("token")) == (BOB, PHONE, "token")


async def test_a_new_token_replaces_the_old_whose_document_goes(gateway: Gateway) -> None:
    await gateway.register(BOB, PHONE, "old")
    gateway.pass_time(1)
    await gateway.register(BOB, PHONE, "new")
    assert await tokens_of(gateway, BOB) == {PHONE: hash_token("new")}
    assert set(await token_documents(gateway)) == {hash_token("new")}


@pytest.mark.parametrize(("client", "device"), [(CAROL, PHONE), (BOB, TABLET), (CAROL, TABLET)])
async def test_a_token_that_another_had_moves(gateway: Gateway, client: ClientId, device: DeviceId) -> None:
    await gateway.register(BOB, PHONE)
    gateway.pass_time(1)
    await gateway.register(client, device)
    assert await tokens_of(gateway, client) == {device: hash_token("token")}
    assert PHONE not in await tokens_of(gateway, BOB) or client == BOB
    assert await token_documents(gateway) == {hash_token("token"): (client, device, "token")}


async def test_logging_out_removes_device_and_token_and_may_be_repeated(gateway: Gateway) -> None:
    await gateway.register()
    for _ in range(2):
        gateway.pass_time(1)
        await gateway.registry.unregister(BOB, PHONE)
        assert await tokens_of(gateway, BOB) == {}
        assert await token_documents(gateway) == {}


async def test_the_token_of_a_device_that_a_ninth_replaced_goes_with_it(gateway: Gateway) -> None:
    for n in range(9):
        await gateway.register(BOB, DeviceId(f"device{n}"), f"token{n}")
        gateway.pass_time(1)
    assert len(await tokens_of(gateway, BOB)) == 8
    assert hash_token("token0") not in await token_documents(gateway)


async def test_a_token_taken_anew_is_not_released_by_what_was_decided_before(gateway: Gateway) -> None:
    await gateway.register()
    gateway.pass_time(1)
    earlier = gateway.clock.now_ms
    gateway.pass_time(1)
    await gateway.registry.unregister(BOB, PHONE)
    await gateway.register()
    await gateway.registry.release(BOB, PHONE, hash_token("token"), before=earlier)
    assert set(await token_documents(gateway)) == {hash_token("token")}


async def test_a_token_is_released_by_its_owner_alone(gateway: Gateway) -> None:
    await gateway.register()
    gateway.pass_time(1)
    await gateway.registry.release(CAROL, PHONE, hash_token("token"))
    await gateway.registry.release(BOB, TABLET, hash_token("token"))
    assert set(await token_documents(gateway)) == {hash_token("token")}


@pytest.mark.parametrize("landed", [False, True])
async def test_a_registration_cut_off_anywhere_and_repeated_is_whole(landed: bool) -> None:
    for step in range(30):
        gateway = Gateway()
        await gateway.register(CAROL, TABLET, "new")
        await gateway.register(BOB, PHONE, "old")
        gateway.pass_time(1)
        left = step

        def cut(method: str, keys: Sequence[str]) -> None:
            nonlocal left
            if left == 0:
                raise StoreUnavailable("cut")
            left -= 1

        setattr(gateway.documents, "after" if landed else "before", cut)
        try:
            await gateway.register(BOB, PHONE, "new")
        except Unavailable:
            cut_off = True
        else:
            cut_off = False
        gateway.documents.heal()
        gateway.pass_time(1)
        await gateway.register(BOB, PHONE, "new")
        gateway.pass_time(2 * 3_600)
        await gateway.sweep.round(full=True)
        assert await tokens_of(gateway, BOB) == {PHONE: hash_token("new")}
        assert await token_documents(gateway) == {hash_token("new"): (BOB, PHONE, "new")}
        if not cut_off:
            return
    pytest.fail("the call never ends")


def test_an_owner_reads_back_as_it_was_and_keeps_its_token_to_itself() -> None:
    owner = TokenOwner(BOB, PHONE, "secret")
    assert decode_owner(encode_owner(owner)) == owner
    assert "secret" not in repr(owner)
    assert decode_owner(b"") is None


@pytest.mark.parametrize("body", [b"what", b"[]", b'{"f":2}', b'{"f":1,"c":"bob"}'])
def test_what_is_not_a_tokens_document_is_said_to_be_unreadable(body: bytes) -> None:
    with pytest.raises(UnreadableDocument):
        decode_owner(body)


async def test_a_log_out_that_comes_to_its_end_late_takes_no_token_that_was_taken_anew(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    await gateway.register()
    gateway.pass_time(1)
    taken = asyncio.Event()
    go_on = asyncio.Event()
    commit = gateway.documents.commit

    async def slow(documents: Sequence[Document]) -> list[Document]:
        written = await commit(documents)
        if asyncio.current_task() is late:
            taken.set()
            await go_on.wait()
        return written

    monkeypatch.setattr(gateway.documents, "commit", slow)
    late = asyncio.create_task(gateway.registry.unregister(BOB, PHONE))
    await taken.wait()  # the device is out of the list; the app has had no answer, and says it again
    await gateway.registry.unregister(BOB, PHONE)
    await gateway.register()
    gateway.pass_time(1)
    go_on.set()
    await late
    assert await tokens_of(gateway, BOB) == {PHONE: hash_token("token")}
    assert await token_documents(gateway) == {hash_token("token"): (BOB, PHONE, "token")}
