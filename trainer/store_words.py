"""What an object store's refusal means and what to do about it: our errors for obstore's words. No torch."""

import re

from trainer import aws
from trainer.contract import AwayError, StoreError

_CLOUDS = {"s3": "AWS", "gs": "Google", "az": "Azure"}
HOW_TO_SIGN_IN = {
    "s3": aws.HOW_TO_SIGN_IN,
    "gs": "set GOOGLE_SERVICE_ACCOUNT_KEY to a service account's key, as rented nodes need it; for this "
          "machine alone: `gcloud auth application-default login`",
    "az": "set AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_SAS_TOKEN",
}
# Where a rented machine finds its own identity. Elsewhere it is the last place that a client tries.
_METADATA_SERVICES = ("169.254.169.254", "169.254.170.2", "metadata.google.internal")
# No connection, a server's own trouble, or this machine's clock. What else is refused is so everywhere.
_AWAY = re.compile(r"HTTP error: |status code: (5\d\d|429)\b|RequestTimeTooSkewed")
_NO_BUCKET = re.compile("(?i)nosuchbucket|bucket does not exist|containernotfound")
_REDIRECT = "Received redirect without LOCATION"  # obstore's words for S3's answer from a wrong region


class NoBucketError(StoreError):
    """The bucket that a store's URL names is not there."""


def explained(message: str, place: str, verb: str) -> StoreError:
    """Our error for a message of obstore, without its debug dump.

    Args:
        place: URL of the object; its scheme says whose dialect it is.
        verb: What was tried: read, write, list, delete, open.
    """
    first_line = re.sub(r"^Generic \w+ error: ", "", message.split("\n", 1)[0])
    scheme = place.partition(":")[0]
    # What our own provider raised stands behind its name and the type of the error.
    provider = re.search(r"External AWS credential provider: (?:\w+: )?(.*)", first_line)
    if provider:
        return StoreError(f"cannot {verb}: {provider[1]}", place=place, fix=HOW_TO_SIGN_IN["s3"])
    if any(address in message for address in _METADATA_SERVICES):
        return StoreError(f"cannot {verb}: no {_CLOUDS.get(scheme, 'cloud')} credentials found", place=place,
                          fix=HOW_TO_SIGN_IN.get(scheme))
    # S3 says what is wrong at the end, in XML; gs and az speak this dialect too.
    said = re.search(r"<Code>(.*?)</Code>\s*<Message>(.*?)</Message>", message, re.DOTALL)
    problem = f"{said[1]}: {said[2]}" if said else first_line[:300]
    if _REDIRECT in message:
        problem = "the bucket is in another region than the store's URL, or the environment, says"
    kind = NoBucketError if _NO_BUCKET.search(message) else AwayError if _AWAY.search(message) else StoreError
    return kind(f"cannot {verb}: {problem}", place=place, fix=_fix_for(message, scheme))


def _fix_for(message: str, scheme: str) -> str:
    lowered = re.sub(r":\d+/", "/", message.lower())  # without ports, which may look like a status
    if "no space left" in lowered:
        return "free disk space, or name another store with --store"
    if _NO_BUCKET.search(message):
        return "check that the bucket exists, in the region and at the endpoint that the URL names"
    if expected := re.search(r"region '[\w-]+' is wrong; expecting '([\w-]+)'", message):
        return f"name the bucket's region in the store's URL: ?region={expected[1]}"
    if _REDIRECT in message:
        return ("name the bucket's region in the store's URL: ?region=REGION; `aws s3api get-bucket-location "
                "--bucket BUCKET` tells it")
    if any(word in lowered for word in ("permission", "denied", "read-only", "forbidden", "403")):
        if scheme == "file":
            return "check the folder's permissions, or name another store with --store"
        return "check that the key is right and may do this, or name another store with --store"
    if any(word in lowered for word in ("credential", "token", "401", "unauthenticated")):
        return f"renew the credentials of this store: {HOW_TO_SIGN_IN.get(scheme, 'sign in again')}"
    if scheme == "file":
        return "check the folder, and that it can be written here; or name another store with --store"
    return "check the store's URL, region and endpoint, and that it is reachable from here"
