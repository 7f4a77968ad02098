"""Setting up a table."""

from dataclasses import replace
from typing import Any

import pytest

from storage.aws.setup import NotSetUp, table
from tests.storage.aws.test_setup.places import Place


def test_an_index_that_is_missing_is_added_and_the_rest_of_the_table_put_right(place: Place) -> None:
    place.dynamodb.create_table(
        TableName=place.name,
        KeySchema=[{"AttributeName": "k", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "k", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    place.only("documents")
    assert [line.partition(": ")[2].partition(":")[0] for line in place.lines()] == ["add it", *["switch it on"] * 2]
    assert not place.lines()
    assert place.state("table")["table"]["Table"]["GlobalSecondaryIndexes"][0]["IndexName"] == "due"


def test_provisioned_capacity_stays_and_the_index_gets_as_much(place: Place) -> None:
    place.dynamodb.create_table(
        TableName=place.name,
        KeySchema=[{"AttributeName": "k", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "k", "AttributeType": "S"}],
        ProvisionedThroughput={"ReadCapacityUnits": 3, "WriteCapacityUnits": 4},
    )
    place.only("documents")
    assert "provisioned capacity, which stays" in place.lines()[0]
    (index,) = place.state("table")["table"]["Table"]["GlobalSecondaryIndexes"]
    capacity = index["ProvisionedThroughput"]
    assert (capacity["ReadCapacityUnits"], capacity["WriteCapacityUnits"]) == (3, 4)


@pytest.mark.parametrize(
    ("key", "kind", "sort"), [("id", "S", None), ("k", "N", None), ("k", "S", "at")], ids=["name", "kind", "sort key"]
)
def test_a_table_with_another_key_is_refused(place: Place, key: str, kind: str, sort: str | None) -> None:
    place.only("documents")
    place.dynamodb.create_table(
        TableName=place.name,
        KeySchema=[
            {"AttributeName": key, "KeyType": "HASH"},
            *([{"AttributeName": sort, "KeyType": "RANGE"}] if sort else []),
        ],
        AttributeDefinitions=[
            {"AttributeName": key, "AttributeType": kind},
            *([{"AttributeName": sort, "AttributeType": "S"}] if sort else []),
        ],
        BillingMode="PAY_PER_REQUEST",
    )
    for dry in (True, False):
        with pytest.raises(NotSetUp, match="has another key than k"):
            place.run(dry=dry)


def test_an_index_with_other_keys_is_refused_and_one_that_holds_more_is_told_of(place: Place) -> None:
    def create(name: str, sort: str, kept: str) -> None:
        place.dynamodb.create_table(
            TableName=name,
            KeySchema=[{"AttributeName": "k", "KeyType": "HASH"}],
            AttributeDefinitions=[
                {"AttributeName": attribute, "AttributeType": kind}
                for attribute, kind in (("k", "S"), ("s", "S"), (sort, "N"))
            ],
            GlobalSecondaryIndexes=[
                {
                    "IndexName": "due",
                    "KeySchema": [
                        {"AttributeName": "s", "KeyType": "HASH"},
                        {"AttributeName": sort, "KeyType": "RANGE"},
                    ],
                    "Projection": {"ProjectionType": kept},
                }
            ],
            BillingMode="PAY_PER_REQUEST",
        )

    assert place.wanted.documents
    place.only("documents")
    create(place.name, "when", "KEYS_ONLY")
    with pytest.raises(NotSetUp, match="index due with other keys"):
        place.run()
    create(f"{place.name}-all", "d", "ALL")
    place.change(documents=replace(place.wanted.documents, name=f"{place.name}-all"))
    assert any("holds more than the keys" in line for line in place.lines())


def test_items_that_expire_by_another_attribute_are_a_sentence(place: Place) -> None:
    place.only("documents")
    place.run()
    for enabled, attribute in ((False, "x"), (True, "until")):
        place.dynamodb.update_time_to_live(
            TableName=place.name, TimeToLiveSpecification={"Enabled": enabled, "AttributeName": attribute}
        )
    with pytest.raises(NotSetUp, match="expire by until"):
        place.run()


def unready(monkeypatch: pytest.MonkeyPatch, *, looks: float) -> None:
    """Tables are still being made, or their indexes, for so many looks at them."""
    described, left = table.Table._described, looks

    def look(asked: table.Table) -> dict[str, Any] | None:
        nonlocal left
        found = described(asked)
        if found and left > 0:
            left -= 1
            if left % 2:
                return {**found, "TableStatus": "UPDATING"}
            index = {**found["GlobalSecondaryIndexes"][0], "IndexStatus": "CREATING"}
            return {**found, "GlobalSecondaryIndexes": [index]}
        return found

    monkeypatch.setattr(table.Table, "_described", look)


def test_a_table_and_its_index_are_waited_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.only("documents")
    unready(monkeypatch, looks=6)
    place.run()
    assert not place.lines()


def test_a_table_that_somebody_began_to_make_is_waited_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.only("documents")
    place.run()
    unready(monkeypatch, looks=4)
    assert place.lines() == [f"table {place.name}: wait until it is ready"]


def test_a_table_that_does_not_get_ready_is_a_sentence(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.only("documents")
    monkeypatch.setattr(table, "PATIENCE_S", 0.05)
    unready(monkeypatch, looks=float("inf"))
    with pytest.raises(NotSetUp, match="is not ready yet: run this again later"):
        place.run()
