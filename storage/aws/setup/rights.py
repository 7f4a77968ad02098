"""The rights of the gateway: an IAM policy."""

import json
from collections.abc import Sequence
from typing import Any

from storage.aws.setup.access import Access
from storage.aws.setup.bucket import key_prefix
from storage.aws.setup.table import INDEX
from storage.aws.setup.wanted import Wanted


def policy(wanted: Wanted, *, table: str | None = None, queue: str | None = None, access: Access | None = None) -> str:
    """The IAM policy with what the gateway does when it runs, and nothing else: JSON.

    `table`, `queue`: their ARNs, if they are known; else the account is a `*`. `access`: one that is there
    already. Needs no connection.
    """
    access = access or Access()
    statements: list[dict[str, Any]] = []
    if wanted.documents:
        table = table or access.arn(wanted.documents, "table/")
        statements += [
            _statement("Documents", "dynamodb", ("GetItem", "BatchGetItem", "PutItem", "Scan"), table),
            _statement("DueDocuments", "dynamodb", ("Query",), f"{table}/index/{INDEX}"),
        ]
    if wanted.objects:
        bucket, prefix = access.arn(wanted.objects), key_prefix(wanted.objects)
        listing = _statement("ListObjects", "s3", ("ListBucket",), bucket)
        if prefix:
            # Asking for an object that is not there names no prefix, and is answered 404 only to who may list.
            listing["Condition"] = {"StringLikeIfExists": {"s3:prefix": f"{prefix}*"}}
        objects = _statement("Objects", "s3", ("GetObject", "PutObject", "DeleteObject"), f"{bucket}/{prefix}*")
        statements += [objects, listing]
    if wanted.objects and wanted.events:
        queue = queue or access.arn(wanted.events)
        statements.append(_statement("UploadEvents", "sqs", ("GetQueueUrl", "ReceiveMessage", "DeleteMessage"), queue))
    return json.dumps({"Version": "2012-10-17", "Statement": statements}, indent=2)


def _statement(name: str, service: str, calls: Sequence[str], resource: str) -> dict[str, Any]:
    actions = [f"{service}:{call}" for call in calls]
    return {"Sid": name, "Effect": "Allow", "Action": actions, "Resource": resource}
