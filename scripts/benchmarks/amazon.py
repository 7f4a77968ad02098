"""Stands in for DynamoDB where a benchmark asks for more than an emulator can answer: items in a dict, no checks.

It does what the store of documents asks of it: GetItem, BatchGetItem, PutItem with its three conditions, Query and
Scan, which find nothing. For S3 it answers every HEAD and DELETE as if the object were there. Over TLS, with
a certificate of an authority that it puts into the folder it is given (`ca.pem`). Prints its port.
"""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import httptools
import orjson
import uvloop

from push.simulators.certificates import Authority

Item = dict[str, dict[str, str]]

_REFUSED = b"ConditionalCheckFailedException"


class Table:
    """Items by their key."""

    def __init__(self) -> None:
        self.items: dict[str, Item] = {}

    def get_item(self, asked: dict[str, Any]) -> dict[str, Any]:
        item = self.items.get(asked["Key"]["k"]["S"])
        return {"Item": item, "ConsumedCapacity": _CONSUMED} if item else {"ConsumedCapacity": _CONSUMED}

    def batch_get_item(self, asked: dict[str, Any]) -> dict[str, Any]:
        [(name, wanted)] = asked["RequestItems"].items()
        found = [self.items[key["k"]["S"]] for key in wanted["Keys"] if key["k"]["S"] in self.items]
        return {"Responses": {name: found}, "UnprocessedKeys": {}, "ConsumedCapacity": [_CONSUMED]}

    def put_item(self, asked: dict[str, Any]) -> dict[str, Any]:
        item, condition = asked["Item"], asked["ConditionExpression"]
        had, compared = self.items.get(item["k"]["S"]), int(asked["ExpressionAttributeValues"][":v"]["N"])
        if condition.startswith("v = :v"):
            right = had is not None and int(had["v"]["N"]) == compared
        else:
            right = had is None or ("x" in had and int(had["v"]["N"]) < compared)
        if not right:
            return {"__type": _REFUSED.decode(), "message": "no", "Item": had or {}}
        self.items[item["k"]["S"]] = item
        return {"ConsumedCapacity": _CONSUMED}

    def query(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"Items": [], "ConsumedCapacity": _CONSUMED}

    def scan(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"Items": [], "ConsumedCapacity": _CONSUMED}


_CONSUMED = {"TableName": "documents", "CapacityUnits": 1.0}


class Connection(asyncio.Protocol):
    """One connection: requests are answered as soon as they are whole."""

    def __init__(self, table: Table) -> None:
        self._parser = cast("Any", httptools.HttpRequestParser(self))
        self._calls: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "GetItem": table.get_item,
            "BatchGetItem": table.batch_get_item,
            "PutItem": table.put_item,
            "Query": table.query,
            "Scan": table.scan,
        }

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._target, self._body = "", b""

    def on_url(self, url: bytes) -> None:
        self._path = urlsplit(url.decode()).path

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-amz-target":
            self._target = value.decode().rpartition(".")[2]

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if not self._target:
            self._answer(b"200 OK", b"", b"Content-Type: video/mp4\r\nContent-Length: 100\r\n")
            return
        body = orjson.dumps(self._calls[self._target](orjson.loads(self._body)))
        status = b"400 Bad Request" if _REFUSED in body[:60] else b"200 OK"
        self._answer(status, body, b"Content-Type: application/x-amz-json-1.0\r\nContent-Length: %d\r\n" % len(body))

    def _answer(self, status: bytes, body: bytes, headers: bytes) -> None:
        head = b"HTTP/1.1 %s\r\nServer: Server\r\nDate: Mon, 30 Nov 2026 12:00:00 GMT\r\n" % status
        self._transport.write(head + headers + b"Connection: keep-alive\r\nx-amzn-RequestId: ABC\r\n\r\n" + body)


async def main(folder: Path) -> None:
    table, tls = Table(), Authority(folder).server_context()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(table), "127.0.0.1", 0, ssl=tls)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1])))
