from decimal import Decimal

import pytest

from gateway.console.charges import PACE_S, Charges, reading
from gateway.cost import MONTH_S, Prices, bill
from gateway.readings import VIDEOS, Kind, Reading, since_start

WRITES = Kind("units", "dynamodb", "write")


def at(seconds: int, counts: dict[Kind, int], started_s: int = 0) -> Reading:
    return Reading(Decimal(seconds), Decimal(started_s), {kind: Decimal(count) for kind, count in counts.items()})


def test_where_nothing_has_a_price_there_is_no_cost() -> None:
    charges = Charges()
    assert charges.told() is None
    charges.add("one", at(10, {Kind("requests", "sqlite", "commit"): 7, VIDEOS: 1}))
    assert charges.told() is None


def test_the_cost_so_far_is_what_the_bill_says_of_all_processes() -> None:
    readings = {"one": at(100, {WRITES: 10, VIDEOS: 2}), "two": at(100, {WRITES: 30}, started_s=40)}
    charges = Charges()
    for name, counted in readings.items():
        charges.add(name, counted)
    found = charges.told()
    total = bill(since_start(readings), Prices.built_in(), days=Decimal(1)).total
    assert found is not None
    assert total.dollars is not None
    assert total.per_million_videos is not None
    assert found["dollars"] == float(total.dollars)
    assert found["per_million_videos"] == float(total.per_million_videos)
    assert found["seconds"] == 100
    assert found["per_month"] is None, "of a pace nothing is known yet"
    assert found["stores"] == [{"store": "dynamodb", "dollars": float(total.dollars)}]


def per_month(writes_per_s: int) -> object:
    price = Prices.built_in().of(WRITES)
    assert price is not None
    return pytest.approx(float(writes_per_s * price * MONTH_S))


def test_the_month_goes_on_at_the_pace_of_the_last_minute() -> None:
    charges = Charges()
    for second in range(0, 300, 5):
        # A thousand a second at first, ten a second in the last two minutes.
        charges.add("one", at(second, {WRITES: 1000 * min(second, 180) + 10 * max(second - 180, 0)}))
    found = charges.told()
    assert found is not None
    assert found["per_month"] == per_month(10)
    assert len(charges._readings["one"]) <= PACE_S / 5 + 1


def test_a_process_that_is_heard_of_later_than_others_does_not_bring_its_past_into_the_pace() -> None:
    charges = Charges()
    charges.add("one", at(0, {WRITES: 100}, started_s=-500))
    charges.add("one", at(10, {WRITES: 200}, started_s=-500))
    charges.add("two", at(10, {WRITES: 1_000_000}, started_s=-500))
    found = charges.told()
    assert found is not None
    assert found["per_month"] == per_month(10)
    charges.add("two", at(20, {WRITES: 1_000_050}, started_s=-500))
    found = charges.told()
    assert found is not None
    assert found["per_month"] == per_month(15)


def test_who_is_gone_counts_no_more() -> None:
    charges = Charges()
    for name in ("one", "two"):
        charges.add(name, at(10, {WRITES: 1_000_000}))
    charges.keep({"two"})
    found = charges.told()
    price = Prices.built_in().of(WRITES)
    assert found is not None
    assert price is not None
    assert found["dollars"] == pytest.approx(float(price * 1_000_000))


def test_a_reading_is_what_a_process_told_of_it() -> None:
    told = {"at_s": 12.5, "started_s": 2, "counts": [["units", "dynamodb", "write", 4.5], ["videos", "", "", 3]]}
    assert reading(told) == Reading(Decimal("12.5"), Decimal(2), {WRITES: Decimal("4.5"), VIDEOS: Decimal(3)})


@pytest.mark.parametrize("counts", [None, 7, [7], [["units", "x"]], [["units", "x", "y", "many"]]])
def test_what_is_no_reading_is_refused(counts: object) -> None:
    with pytest.raises((ArithmeticError, LookupError, TypeError, ValueError)):
        reading({"at_s": 1, "started_s": 0, "counts": counts})
