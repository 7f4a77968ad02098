"""How a video is sent: announced, uploaded, confirmed, and where to go on after a failure."""

from dataclasses import dataclass, replace
from enum import StrEnum

from gateway.client.failures import GatewayError, Remedy
from gateway.client.messages import Upload


class Step(StrEnum):
    """What is to be done next for a video that is being sent."""

    ANNOUNCE = "announce"
    UPLOAD = "upload"
    CONFIRM = "confirm"


@dataclass(frozen=True, slots=True)
class Delivery:
    """A video on its way to the gateway. Each method returns what it is afterwards, to be kept before the next step is
    taken: whoever is cut off then goes on where it was.

    `source`: the path of its bytes. `size`: how many they are. `upload`: how to upload them, once it is announced.
    `late`: an upload that had no answer may still arrive.
    """

    source: str
    size: int
    content_type: str
    sha256: str
    step: Step = Step.ANNOUNCE
    upload: Upload | None = None
    late: bool = False

    def announced(self, upload: Upload) -> "Delivery":
        """It has been announced."""
        return replace(self, step=Step.UPLOAD, upload=upload, late=False)

    def uploading(self) -> "Delivery":
        """The upload begins. An upload without an answer may have arrived whole: to ask that first, by confirming it,
        can save sending it all again."""
        return replace(self, step=Step.CONFIRM)

    def not_uploaded(self, error: GatewayError) -> "Delivery":
        """The upload failed."""
        if error.remedy is Remedy.ANNOUNCE:
            return replace(self, step=Step.ANNOUNCE, upload=None)
        if error.status is None:
            return replace(self, late=True)
        # What stands between may say so of an upload that arrived all the same.
        return replace(self, step=Step.UPLOAD, late=self.late or error.status == 408 or error.status >= 500)

    def not_stored(self) -> "Delivery":
        """The gateway finds nothing stored: upload it (again) while the URL lives."""
        return replace(self, step=Step.UPLOAD, late=True)
