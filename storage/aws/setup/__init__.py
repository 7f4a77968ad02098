"""The table, the bucket and the queue: made where they are missing, put right where they drifted; and who may use them.

A command runs this, not the gateway, so it may wait for the network. Every change is described before it is made: a dry
run reads the same, looks at the same, and differs only in that nothing is made.

    wanted.py    what is to be there
    work.py      the round of work that makes it so, part by part
    changes.py   what the parts of that work say: a change, or why there can be none
    table.py     DynamoDB's part
    bucket.py    S3's
    queue.py     SQS's, and what the bucket sends there
    service.py   asking one service; its errors, in sentences
    access.py    the botocore session that all services are reached with, and ARNs
    rights.py    the IAM policy of the gateway
"""

from storage.aws.setup.changes import NotSetUp
from storage.aws.setup.rights import policy
from storage.aws.setup.wanted import Wanted
from storage.aws.setup.work import Setup

__all__ = ["NotSetUp", "Setup", "Wanted", "policy"]
