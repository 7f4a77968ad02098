"""What is to be there."""

from dataclasses import dataclass

from storage.aws.url import AwsUrl


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be there. None: nobody asks Amazon for that.

    `origins`: web origins whose pages move objects; `*` alone: all. `expire_days`: objects that are older than so many
    days have been forgotten by everybody.
    """

    documents: AwsUrl | None
    objects: AwsUrl | None
    events: AwsUrl | None
    origins: tuple[str, ...]
    expire_days: int
