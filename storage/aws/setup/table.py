"""The table: its key, its index, that nobody deletes it, and that items expire."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from storage.aws.setup.changes import Change, NotSetUp, Part
from storage.aws.setup.service import Service

PATIENCE_S = 600.0
"""How long a table may take until it is ready: an index that is added to a large one takes minutes."""
LOOK_S = 2.0
"""How often it is looked at meanwhile."""

INDEX = "due"
_KEY = [{"AttributeName": "k", "KeyType": "HASH"}]
_DUE = {
    "IndexName": INDEX,
    "KeySchema": [{"AttributeName": "s", "KeyType": "HASH"}, {"AttributeName": "d", "KeyType": "RANGE"}],
    "Projection": {"ProjectionType": "KEYS_ONLY"},
}
_ATTRIBUTES = [{"AttributeName": name, "AttributeType": kind} for name, kind in (("k", "S"), ("s", "S"), ("d", "N"))]
_TTL = "x"
_NO_TABLE = ("ResourceNotFoundException",)


class Table:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._name = service.url.name
        self.arn: str | None = None

    def parts(self) -> list[Part]:
        on = self._service.on
        return [
            (on, self._itself),
            (f"{on}, index {INDEX}", self._index),
            (f"{on}, deletion protection", self._protection),
            (f"{on}, time to live", self._expiry),
        ]

    def _described(self) -> dict[str, Any] | None:
        found = self._service.ask("DescribeTable", TableName=self._name, absent=_NO_TABLE)
        table: dict[str, Any] | None = found and found["Table"]
        if table:
            self.arn = table.get("TableArn")
        return table

    def _itself(self) -> Iterator[Change]:
        table = self._described()
        if table is None:
            yield Change("create it, with the index due, paid by request", self._create)
            return
        if table["TableStatus"] == "DELETING":
            raise NotSetUp(f"the {self._service.on} is being deleted: run this again when it is gone")
        if table["TableStatus"] != "ACTIVE":
            yield Change("wait until it is ready", self._wait)
        if not _is_key(table["KeySchema"], table["AttributeDefinitions"], _KEY):
            raise NotSetUp(
                f"the {self._service.on} has another key than k (a string, and no sort key): it is somebody else's; "
                "name another table"
            )
        if _is_provisioned(table):
            yield Change("it has provisioned capacity, which stays as it is: what is above it is throttled")

    def _create(self) -> None:
        # Whoever else speaks like DynamoDB may not know the word: there it is tried apart.
        protected: dict[str, Any] = {} if self._service.url.endpoint else {"DeletionProtectionEnabled": True}
        self._service.ask(
            "CreateTable",
            needed=True,
            TableName=self._name,
            KeySchema=_KEY,
            AttributeDefinitions=_ATTRIBUTES,
            GlobalSecondaryIndexes=[_DUE],
            BillingMode="PAY_PER_REQUEST",
            **protected,
        )
        self._wait()

    def _wait(self) -> None:
        ends_s = time.monotonic() + PATIENCE_S
        while True:
            table = self._described() or {}
            states = [table.get("TableStatus"), *(index.get("IndexStatus", "ACTIVE") for index in _indexes(table))]
            if all(state == "ACTIVE" for state in states):
                return
            if time.monotonic() > ends_s:
                raise NotSetUp(f"the {self._service.on} is not ready yet: run this again later")
            time.sleep(LOOK_S)

    def _index(self) -> Iterator[Change]:
        table = self._described()
        if table is None:
            yield Change("comes with the table")
            return
        index = next((index for index in _indexes(table) if index["IndexName"] == INDEX), None)
        if index is None:
            yield Change("add it", lambda: self._add_index(table))
            return
        if not _is_key(index["KeySchema"], table["AttributeDefinitions"], _DUE["KeySchema"]):
            raise NotSetUp(
                f"the {self._service.on} has an index due with other keys than s (a string) and d (a number), and an "
                "index cannot be changed: delete it and run this again"
            )
        if index.get("Projection", {}).get("ProjectionType") != "KEYS_ONLY":
            yield Change("holds more than the keys: it works, but costs more; deleted, it is made anew by this command")
        if index.get("IndexStatus", "ACTIVE") != "ACTIVE":
            yield Change("wait until it is ready", self._wait)

    def _add_index(self, table: Mapping[str, Any]) -> None:
        index: dict[str, Any] = dict(_DUE)
        if _is_provisioned(table):
            capacity = table["ProvisionedThroughput"]
            index["ProvisionedThroughput"] = {
                name: capacity[name] for name in ("ReadCapacityUnits", "WriteCapacityUnits")
            }
        self._service.ask(
            "UpdateTable",
            needed=True,
            TableName=self._name,
            AttributeDefinitions=_ATTRIBUTES,
            GlobalSecondaryIndexUpdates=[{"Create": index}],
        )
        self._wait()

    def _protection(self) -> Iterator[Change]:
        table = self._described()
        if table is not None and "DeletionProtectionEnabled" not in table:
            yield Change("skipped: the endpoint does not know it")
        elif not (table or {}).get("DeletionProtectionEnabled"):
            yield Change("switch it on", self._protect)

    def _protect(self) -> None:
        self._service.ask("UpdateTable", TableName=self._name, DeletionProtectionEnabled=True)
        self._wait()

    def _expiry(self) -> Iterator[Change]:
        found = self._service.ask("DescribeTimeToLive", TableName=self._name, absent=_NO_TABLE) or {}
        expiry = found.get("TimeToLiveDescription", {})
        state = expiry.get("TimeToLiveStatus", "DISABLED")
        attribute = expiry.get("AttributeName")
        if state == "DISABLING" or (state != "DISABLED" and attribute != _TTL):
            raise NotSetUp(
                f"the {self._service.on} has, or had just now, items expire by {attribute or 'another attribute'}: "
                f"switch that off, and run this again after an hour, when DynamoDB takes {_TTL}"
            )
        if state == "DISABLED":
            yield Change(f"switch it on: what was removed goes for good by {_TTL}", self._expire)

    def _expire(self) -> None:
        specification = {"Enabled": True, "AttributeName": _TTL}
        self._service.ask("UpdateTimeToLive", TableName=self._name, TimeToLiveSpecification=specification)


def _indexes(table: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    indexes: Sequence[Mapping[str, Any]] = table.get("GlobalSecondaryIndexes") or ()
    return indexes


def _is_provisioned(table: Mapping[str, Any]) -> bool:
    """A table that is paid by request has a capacity of 0. How it is paid is not said of one that never changed."""
    return bool((table.get("ProvisionedThroughput") or {}).get("ReadCapacityUnits"))


def _is_key(schema: Any, definitions: Sequence[Mapping[str, str]], wanted: Any) -> bool:
    def read(part: Any) -> list[tuple[str, str]]:
        return sorted((key["AttributeName"], key["KeyType"]) for key in part)

    kinds = {given["AttributeName"]: given["AttributeType"] for given in definitions}
    right = {given["AttributeName"]: given["AttributeType"] for given in _ATTRIBUTES}
    return read(schema) == read(wanted) and all(kinds.get(name) == right[name] for name, _ in read(wanted))
