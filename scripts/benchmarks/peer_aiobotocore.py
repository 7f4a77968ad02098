"""The peer of scripts/bench-aws: aiobotocore's low-level clients. Prints what each call takes, in µs of CPU.

peer_aiobotocore.py ENDPOINT COUNT AT_ONCE
"""

import asyncio
import itertools
import sys
import time

import uvloop
from aiobotocore.session import get_session
from botocore.config import Config


async def main(endpoint: str, count: int, at_once: int) -> None:
    given = {
        "region_name": "eu-central-1",
        "endpoint_url": endpoint,
        "config": Config(max_pool_connections=64),
    }
    session, numbers = get_session(), itertools.count()
    async with session.create_client("dynamodb", **given) as dynamodb, session.create_client("s3", **given) as s3:

        async def load() -> None:
            await dynamodb.get_item(
                TableName="documents",
                Key={"k": {"S": "client:a"}},
                ConsistentRead=True,
                ReturnConsumedCapacity="TOTAL",
            )

        async def commit() -> None:
            key = {"S": f"client:peer-{at_once}-{next(numbers)}"}
            await dynamodb.put_item(
                TableName="documents",
                Item={"k": key, "v": {"N": "1796052751731249"}, "n": {"B": b"nonce."}, "b": {"B": b"x" * 900}},
                ConditionExpression="attribute_not_exists(k) OR (attribute_exists(x) AND v < :v)",
                ExpressionAttributeValues={":v": {"N": "1796052751731249"}},
                ReturnConsumedCapacity="TOTAL",
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
            )

        async def head() -> None:
            await s3.head_object(Bucket="bucket", Key="7/video")

        async def sign() -> None:
            video = {"ContentLength": 100, "ContentType": "video/mp4", "IfNoneMatch": "*"}
            await s3.generate_presigned_url("put_object", Params={"Bucket": "bucket", "Key": "7/video", **video})

        for call in (load, commit, head, sign):

            async def some(call=call) -> None:  # type: ignore[no-untyped-def]
                for _ in range(count // at_once):
                    await call()

            await call()
            began = time.process_time()
            await asyncio.gather(*(some() for _ in range(at_once)))
            print(call.__name__, (time.process_time() - began) / (count // at_once * at_once) * 1e6)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
