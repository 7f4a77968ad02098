from gateway.bus import wire
from gateway.bus.bus import Cause, Dismissal
from tests.bus.listening import ALICE


def test_what_a_newer_release_says_is_left() -> None:
    assert wire.read(ALICE, bytes(8) + b"\x63" + b"whatever") is None
    assert wire.read(ALICE, b"\x01\x02") is None


def test_the_kinds_of_messages_are_what_other_releases_say() -> None:
    kinds = {cause: wire.dismissal(Dismissal(ALICE, None, cause))[8] for cause in Cause}
    assert kinds == {Cause.DISPLACED: 2, Cause.LOGGED_OUT: 3, Cause.SENT_BACK: 4}
