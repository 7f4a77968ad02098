"""What is found wrong with the packets of a socket."""

from scripts.loadtest.deliveries import LOST_S, Deliveries
from scripts.loadtest.tally import Count, Fault


def test_nothing_is_wrong_with_versions_that_grow() -> None:
    deliveries = Deliveries(5)
    deliveries.owes(7, 0.0)
    assert [found for version in (6, 7, 20) for found in deliveries.came(version, 1.0)] == []
    assert deliveries.owed == ()


def test_the_same_version_twice_is_a_duplicate() -> None:
    deliveries = Deliveries(5)
    assert list(deliveries.came(6, 0.0)) == []
    assert list(deliveries.came(6, 0.0)) == [Fault.DUPLICATE]


def test_the_version_that_a_socket_was_opened_with_is_a_duplicate() -> None:
    assert list(Deliveries(5).came(5, 0.0)) == [Fault.DUPLICATE]


def test_without_a_version_a_packet_comes_in_any_case() -> None:
    assert list(Deliveries(0).came(0, 0.0)) == []


def test_an_older_version_is_stale() -> None:
    assert list(Deliveries(5).came(4, 0.0)) == [Fault.STALE]


def test_what_was_told_of_and_never_came_is_owed() -> None:
    deliveries = Deliveries(5)
    deliveries.owes(9, 0.0)
    assert list(deliveries.came(8, 99.0)) == []
    assert deliveries.owed == (9,)


def test_what_came_before_it_was_told_of_is_not_owed() -> None:
    deliveries = Deliveries(5)
    assert list(deliveries.came(9, 0.0)) == []
    deliveries.owes(9, 0.0)
    assert deliveries.owed == ()


def test_two_changes_that_meet_may_be_one_packet() -> None:
    deliveries = Deliveries(5)
    deliveries.owes(6, 0.0)
    assert list(deliveries.came(7, LOST_S)) == [Count.SKIPPED]


def test_a_later_change_does_not_hide_a_loss() -> None:
    deliveries = Deliveries(5)
    deliveries.owes(6, 0.0)
    assert list(deliveries.came(7, LOST_S + 0.1)) == [Fault.LOST]


def test_what_comes_late_is_not_lost() -> None:
    deliveries = Deliveries(5)
    deliveries.owes(6, 0.0)
    assert list(deliveries.came(6, LOST_S + 0.1)) == [Count.LATE]
