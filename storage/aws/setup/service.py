"""Asking one of Amazon's services. What it refuses, and what fails, is a sentence that says what to do."""

from collections.abc import Collection
from typing import Any

import botocore.exceptions
from botocore import xform_name
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    SSOError,
)

from storage.aws.setup.access import Access
from storage.aws.setup.changes import NotSetUp, UnknownCall
from storage.aws.url import AwsMisconfigured, AwsUrl

_NO_RIGHT = ("AccessDenied", "AccessDeniedException", "AllAccessDisabled", "AuthorizationError", "Forbidden", "403")
_BAD_KEYS = (
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSecurity",
    "InvalidSignatureException",
    "InvalidToken",
    "MissingAuthenticationToken",
    "MissingAuthenticationTokenException",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
)
_WRONG_TIME = ("RequestExpired", "RequestTimeTooSkewed")
_WRONG_REGION = (
    "301",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "InvalidLocationConstraint",
    "PermanentRedirect",
)
_UNKNOWN_CALL = ("501", "405", "MethodNotAllowed", "NotImplemented", "UnknownOperation", "UnknownOperationException")
_MISFIT = ("InvalidArgument", "InvalidRequest", "MalformedXML")

_RIGHTS = {
    "GetBucketCors": "GetBucketCORS",
    "PutBucketCors": "PutBucketCORS",
    "DeleteBucketCors": "PutBucketCORS",
    "GetBucketLifecycleConfiguration": "GetLifecycleConfiguration",
    "PutBucketLifecycleConfiguration": "PutLifecycleConfiguration",
    "GetBucketNotificationConfiguration": "GetBucketNotification",
    "PutBucketNotificationConfiguration": "PutBucketNotification",
    "GetPublicAccessBlock": "GetBucketPublicAccessBlock",
    "PutPublicAccessBlock": "PutBucketPublicAccessBlock",
}
"""Calls whose right is called otherwise than they are."""

_WHAT = {"dynamodb": "table", "s3": "bucket", "sqs": "queue"}


class Service:
    """One service, asked for one thing in it. `on`: that thing, as it is called in sentences."""

    def __init__(self, url: AwsUrl, access: Access) -> None:
        self.url = url
        self.on = f"{_WHAT[url.scheme]} {url.name}"
        try:
            self.region = access.region(url)
            self._client = access.client(url, self.region)
        except AwsMisconfigured as error:
            raise NotSetUp(str(error)) from error
        except (BotoCoreError, ValueError) as error:
            raise NotSetUp(f"the AWS configuration cannot be used: {_brief(error)}") from error

    def ask(
        self, call: str, *, absent: Collection[str] = (), needed: bool = False, **arguments: Any
    ) -> dict[str, Any] | None:
        """The answer; None where the error is one of `absent`. Raises UnknownCall, unless the call is `needed`, and
        NotSetUp."""
        try:
            answer: dict[str, Any] = getattr(self._client, xform_name(call))(**arguments)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in absent:
                return None
            if self.url.endpoint and not needed and self._is_unknown(call, code):
                raise UnknownCall(f"the endpoint does not know {call}, or not all of it ({code})") from error
            raise NotSetUp(self._refused(call, code, error)) from error
        except BotoCoreError as error:
            raise NotSetUp(self._failed(error)) from error
        return answer

    def elsewhere(self, region: str | None) -> str:
        """That the thing is not in our region, but in that one; None: nobody says where."""
        remedy = f"add ?region={region} to its URL" if region else "add its ?region=… to its URL"
        where = f" but in {region}" if region else ""
        return f"the {self.on} is not in {self.region}{where}: {remedy}"

    @staticmethod
    def _is_unknown(call: str, code: str) -> bool:
        return code in _UNKNOWN_CALL or (call.startswith("Put") and code in _MISFIT)

    def _refused(self, call: str, code: str, error: ClientError) -> str:
        told = error.response.get("Error", {})
        if code in _NO_RIGHT:
            right = f"{self.url.scheme}:{_RIGHTS.get(call, call)}"
            whose = ", or the bucket is somebody else's" if call == "GetBucketLocation" else ""
            return f"AWS refuses {right} on the {self.on}: these credentials lack the right{whose}"
        if code in _BAD_KEYS:
            return f"AWS does not take the credentials ({code}): they are wrong, or have expired"
        if code in _WRONG_TIME:
            return f"AWS refuses the time of the request ({code}): set this machine's clock"
        if code == "BucketAlreadyExists":
            return f"the {self.on} belongs to another account, and names are taken once in the world: name another"
        if code in _WRONG_REGION:
            headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
            return self.elsewhere(told.get("Region") or headers.get("x-amz-bucket-region"))
        if "overlap" in str(told.get("Message")).lower():
            return f"the {self.on} has a notification already for some of the same uploads: narrow or remove that one"
        return f"the {self.on}: {call} was refused: {code}: {_brief(told.get('Message', ''))}"

    def _failed(self, error: BotoCoreError) -> str:
        if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
            return (
                "there are no AWS credentials: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run "
                "this where a role gives some"
            )
        if isinstance(error, (CredentialRetrievalError, SSOError)):
            return f"the AWS credentials cannot be had: {_brief(error)}"
        if isinstance(error, (HTTPClientError, botocore.exceptions.ConnectionError)):
            return f"cannot reach {self._client.meta.endpoint_url} for the {self.on}: {type(error).__name__}"
        return f"the {self.on}: {_brief(error)}"


def _brief(error: object) -> str:
    """One line of an error's text."""
    return " ".join(str(error).split())[:300].rstrip(".")
