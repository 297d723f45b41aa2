"""S3 as AWS's own tools find it: keys, region and endpoint of the environment or of a profile. No torch."""

import os
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from trainer.contract import StoreError

HOW_TO_SIGN_IN = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; or `aws configure`"
# botocore renews keys at the latest when ten minutes of them are left; obstore would keep them for thirty.
_KEYS_HOLD = timedelta(minutes=9)
_S3_ENDPOINT = "AWS_ENDPOINT_URL_S3"
# Of each part of an address: variables, of which the first that is set counts, and its key in a profile.
# AWS_ENDPOINT is obstore's own.
_PARTS = {"endpoint": ((_S3_ENDPOINT, "AWS_ENDPOINT_URL", "AWS_ENDPOINT"), "endpoint_url"),
          "region": (("AWS_REGION", "AWS_DEFAULT_REGION"), "region")}


def complete_address(address: str) -> str:
    """The address of a store with the endpoint and the region that this machine adds to it: it opens the same
    store on a machine that has neither. Those that it names win; of other clouds they come back as they are.

    Raises:
        StoreError: The AWS profile cannot be read, or this machine would ask another endpoint than it names.
    """
    parts = urlsplit(address)
    named = dict(parse_qsl(parts.query))
    if parts.scheme != "s3" or (parts.query and not named):  # a `?` of a glob begins no query
        return address
    # obstore 0.12.1 lets nothing win over this variable.
    if (of_s3 := os.environ.get(_S3_ENDPOINT)) and of_s3 != named.get("endpoint", of_s3):
        raise StoreError(f"{_S3_ENDPOINT} is {of_s3}, and the store's URL names {named['endpoint']}",
                         place="store", fix=f"unset {_S3_ENDPOINT}")
    added = {name: value for name, (variables, key) in _PARTS.items()
             if name not in named and (value := _first(variables) or _of_profile(key))}
    if not added:
        return address
    query = "&".join(filter(None, (parts.query, urlencode(added, safe=":/"))))
    return parts._replace(query=query).geturl()


def _first(names: tuple[str, ...]) -> str | None:
    return next((value for name in names if (value := os.environ.get(name))), None)


def _of_profile(key: str) -> str | None:
    """What the profile in use says of S3, else of all services."""
    from botocore.exceptions import BotoCoreError
    from botocore.session import get_session

    session = get_session()
    try:
        profile = session.get_scoped_config()
        services = session.full_config.get("services", {}).get(profile.get("services"), {})
    except BotoCoreError as error:
        raise _unusable(error) from error
    found: str | None = services.get("s3", {}).get(key) or profile.get(key)
    return found


class _NoCredentials(Exception):
    """Nobody told us who we are."""


class AwsCredentials:
    """Whatever boto3 finds: variables, profile, SSO, assumed role, instance role. Looked up at first use.

    Raises:
        StoreError: The AWS profile cannot be read.
    """

    def __init__(self) -> None:
        import boto3
        from botocore.exceptions import BotoCoreError

        try:
            self._session = boto3.Session()
        except BotoCoreError as error:
            raise _unusable(error) from error
        self._provider: Any = None

    def __call__(self) -> Any:
        from obstore.auth.boto3 import Boto3CredentialProvider

        if self._provider is None:
            if self._session.get_credentials() is None:
                raise _NoCredentials("no AWS credentials found")
            self._provider = Boto3CredentialProvider(self._session, ttl=_KEYS_HOLD)
        return self._provider()


def _unusable(error: Exception) -> StoreError:
    return StoreError(f"AWS credentials cannot be used: {error}", place="store", fix=HOW_TO_SIGN_IN)
