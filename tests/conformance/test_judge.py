"""What a client tells and shows is held against what happened."""

import hashlib
from pathlib import Path

import pytest

from tests.conformance.judge import (
    Book,
    Change,
    Sending,
    Shown,
    State,
    Truth,
    differences,
    forgotten,
    undelivered,
)
from tests.conformance.witness import Kind

VIDEO = b"a video"
DIGEST = hashlib.sha256(VIDEO).hexdigest()
NOTHING = State((), ())


class Judged:
    """Bob's book, and what was found wrong with what he tells. Ann has sent him a video."""

    def __init__(self) -> None:
        self.kinds: list[Kind] = []
        sent = {("ann", "bob"): {DIGEST}}
        self.book = Book("bob", lambda kind, _: self.kinds.append(kind), lambda *pair: sent.get(pair, set()))

    def tell(self, *statuses: str, key: str = "v", reason: str | None = None, file: Path | None = None) -> None:
        for status in statuses:
            self.book.tells(Change(key, key, "ann", status, reason, None if file is None else str(file)))


@pytest.fixture
def judged() -> Judged:
    return Judged()


@pytest.mark.parametrize(
    ("statuses", "kinds"),
    [
        (("queued", "uploaded", "notified", "downloaded", "viewed"), []),
        (("uploaded", "viewed"), []),
        (("complete",), []),
        (("arrived", "gone"), []),
        (("uploaded", "uploaded"), [Kind.TOLD_TWICE]),
        (("downloaded", "notified"), [Kind.BACKWARDS]),
        (("viewed", "complete"), [Kind.BACKWARDS]),
        (("gone", "arrived"), [Kind.BACKWARDS]),
        (("lost",), [Kind.BACKWARDS]),
    ],
)
def test_statuses_only_move_forward(judged: Judged, statuses: tuple[str, ...], kinds: list[Kind]) -> None:
    judged.tell(*statuses)
    assert judged.kinds == kinds


def test_only_the_last_change_before_a_kill_may_come_again_and_once(judged: Judged) -> None:
    judged.tell("uploaded", "notified")
    judged.book.killed()
    judged.tell("notified")
    assert not judged.kinds
    judged.tell("notified")
    assert judged.kinds == [Kind.TOLD_TWICE]


def test_an_older_change_may_not_come_again_after_a_kill(judged: Judged) -> None:
    judged.tell("uploaded", key="v")
    judged.tell("uploaded", key="w")
    judged.book.killed()
    judged.tell("uploaded", key="v")
    assert judged.kinds == [Kind.TOLD_TWICE]


@pytest.mark.parametrize(("reason", "kinds"), [("superseded", []), ("invalid", [Kind.ENDED]), (None, [Kind.ENDED])])
def test_a_video_is_given_up_for_few_reasons(judged: Judged, reason: str | None, kinds: list[Kind]) -> None:
    judged.tell("failed", reason=reason)
    assert judged.kinds == kinds


@pytest.mark.parametrize(("data", "kinds"), [(VIDEO, []), (VIDEO[1:], [Kind.BYTES])])
def test_the_bytes_of_a_video_are_those_that_were_sent(
    judged: Judged, tmp_path: Path, data: bytes, kinds: list[Kind]
) -> None:
    (tmp_path / "v").write_bytes(data)
    judged.tell("arrived", "ready", file=tmp_path / "v")
    assert judged.kinds == kinds


def test_a_video_that_is_ready_has_a_file(judged: Judged, tmp_path: Path) -> None:
    judged.tell("ready", file=tmp_path / "nowhere")
    judged.tell("ready", key="w")
    assert judged.kinds == [Kind.BYTES, Kind.BYTES]


@pytest.mark.parametrize(
    ("truth", "state", "kinds"),
    [
        (Truth({"s": "notified"}, {"r": "downloaded"}), ("notified", "ready"), []),
        (Truth({}, {}), (None, None), []),
        (Truth({}, {}), ("complete", "ready"), []),
        (Truth({}, {}), ("notified", None), [Kind.LISTS]),
        (Truth({}, {}), ("queued", None), [Kind.LISTS]),
        (Truth({}, {}), (None, "arrived"), [Kind.LISTS]),
        (Truth({"s": "viewed"}, {}), ("notified", None), [Kind.LISTS]),
        (Truth({"s": "viewed"}, {}), (None, None), [Kind.LISTS]),
        (Truth({}, {"r": "uploaded"}), (None, None), [Kind.LISTS]),
        (Truth({}, {"r": "uploaded"}), (None, "arrived"), [Kind.LISTS]),
        (Truth({}, {"r": "uploaded"}), (None, "ready"), [Kind.LISTS]),
    ],
)
def test_the_lists_of_a_client_are_those_of_the_gateway(
    judged: Judged, truth: Truth, state: tuple[str | None, str | None], kinds: list[Kind]
) -> None:
    sent, received = state
    shown = State((Shown("k", "s", sent),) if sent else (), (Shown(None, "r", received),) if received else ())
    assert [kind for kind, _ in differences(truth, shown, judged.book)] == kinds


@pytest.mark.parametrize(
    ("truth", "state"),
    [
        (Truth({}, {"r": "downloaded"}), State((), (Shown(None, "r", "ready"),))),
        (Truth({}, {}), State((), (Shown(None, "r", "ready"),))),
        (Truth({}, {"r": "downloaded"}), NOTHING),
    ],
)
def test_what_was_viewed_is_listed_nowhere(judged: Judged, truth: Truth, state: State) -> None:
    assert Kind.VIEWED not in {kind for kind, _ in differences(truth, state, judged.book)}
    judged.book.viewed.add("r")
    assert Kind.VIEWED in {kind for kind, _ in differences(truth, state, judged.book)}


def test_what_a_client_has_taken_on_it_shows_until_it_has_told_the_end(judged: Judged) -> None:
    judged.book.sendings.append(Sending("ann", DIGEST, "k"))
    assert [kind for kind, _ in forgotten(NOTHING, judged.book)] == [Kind.LOST]
    assert not list(forgotten(State((Shown("k", None, "queued"),), ()), judged.book))
    judged.tell("notified", key="k")
    assert [kind for kind, _ in forgotten(NOTHING, judged.book)] == [Kind.LOST]
    judged.tell("complete", key="k")
    assert not list(forgotten(NOTHING, judged.book))


@pytest.mark.parametrize("sending", [Sending("ann", DIGEST), Sending("ann", DIGEST, "k", deleted=True)])
def test_what_it_never_took_on_or_was_told_to_delete_it_may_forget(judged: Judged, sending: Sending) -> None:
    judged.book.sendings.append(sending)
    assert not list(forgotten(NOTHING, judged.book))


def kinds_undelivered(*books: list[Sending], arrived: set[str]) -> list[Kind]:
    taken = []
    for sendings in books:
        judged = Judged()
        judged.book.sendings.extend(sendings)
        taken.append(judged.book)
    return [kind for kind, _ in undelivered("bob", taken, {"ann": arrived, "bob": set()})]


def test_the_newest_video_of_a_pair_arrives_unless_it_is_deleted() -> None:
    older, newer = Sending("ann", "1", "k"), Sending("ann", "2", "l")
    assert kinds_undelivered([older, newer], arrived={"2"}) == []
    assert kinds_undelivered([older, newer], arrived={"1"}) == [Kind.LOST]
    assert kinds_undelivered([older, Sending("ann", "2", "l", deleted=True)], arrived=set()) == []
    assert kinds_undelivered([older, Sending("ann", "2")], arrived=set()) == []


def test_of_two_devices_either_may_have_the_newest() -> None:
    assert kinds_undelivered([Sending("ann", "1", "k")], [Sending("ann", "2", "l")], arrived={"1"}) == []


@pytest.mark.parametrize(
    "said",
    [{}, {"sent": [], "received": None}, {"sent": [{}], "received": []}, {"sent": ["v"], "received": []}],
)
def test_a_state_that_is_none_is_an_error(said: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="sent"):
        State.parse(said)


@pytest.mark.parametrize("said", [{}, {"key": "v", "peer": "ann"}, {"key": 7, "peer": "ann", "status": "viewed"}])
def test_a_change_that_is_none_is_an_error(said: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="a change"):
        Change.parse(said)
