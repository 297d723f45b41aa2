"""Keys of a run's store that are good for this run alone, and for as long as it may last.

On S3 of AWS they are those of a federated user, which an IAM user's keys can make: they live for 36 hours at
most, and nothing on a node could renew them, so a run needs a deadline within that. A stranger's machine that
keeps them can write into one run for so long, and read the store. Azure's: `launcher/azure_keys.py`. On
Google's nodes get the keys that there are: downscoped tokens live for one hour.

Source: AWS's documents on GetFederationToken and on the actions of S3. Seen against a server that judges each
request by the policy (`tests/policy_server.py`), never at AWS.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from trainer.contract import Env

LONGEST_LIFE_H = 36.0  # of the keys of a federated user
MARGIN_H = 2.0  # after the deadline: the last checkpoint, the benchmark (guess)
_SHORTEST_S = 900


@dataclass(frozen=True)
class Needs:
    """What the nodes of a run do with its store.

    Attributes:
        until: The run's deadline; None: it has none.
        reads: Addresses of what they read elsewhere.
    """

    run_id: str
    until: datetime | None
    reads: tuple[str, ...] = ()

    @classmethod
    def of_task(cls, envs: Mapping[str, str]) -> "Needs":
        """From the variables of a task; one that somebody has written by hand may not say what it reads."""
        config = json.loads(envs.get(Env.TRAIN_CONFIG) or "{}")
        source = str(config.get("data", {}).get("source", ""))
        deadline = envs.get(Env.DEADLINE)
        return cls.of(envs[Env.RUN_ID], datetime.fromisoformat(deadline) if deadline else None, source)

    @classmethod
    def of(cls, run_id: str, until: datetime | None, source: str) -> "Needs":
        """Of a run that trains on `data.source`."""
        return cls(run_id, until, (source,) if source.startswith(("s3://", "az://")) else ())


def can_be_scoped(store_url: str) -> bool:
    """True for S3 of AWS itself: a server of another kind has no such keys, or another way to them."""
    parts = urlsplit(store_url)
    return parts.scheme == "s3" and "endpoint" not in parse_qs(parts.query)


def too_long(deadline_hours: float | None) -> str | None:
    """Why no keys live as long as a run may take, with what to type; None where they do."""
    longest = LONGEST_LIFE_H - MARGIN_H
    if deadline_hours is not None and deadline_hours <= longest:
        return None
    why = "the run has no deadline" if deadline_hours is None else f"the run may take {deadline_hours:g} h"
    return (f"keys for one run live for {LONGEST_LIFE_H:g} h at most, and {why}; --deadline {longest:g}, or "
            "less, gives them such keys")


def policy(store_url: str, needs: Needs, partition: str = "aws") -> dict[str, Any]:
    """What nodes may do: write into their run, read the store and the prepared text. AWS's policy language.

    Args:
        partition: Of AWS, which has others for China and for governments.

    Names can be listed in the whole bucket: only who may list learns that an object is missing, and not that
    it is forbidden.
    """
    bucket, prefix = _place(store_url)
    s3 = f"arn:{partition}:s3:::"
    places = [(bucket, prefix), *(_place(url) for url in needs.reads if url.startswith("s3://"))]
    return {"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": "s3:ListBucket",
         "Resource": sorted({f"{s3}{bucket}" for bucket, _ in places})},
        {"Effect": "Allow", "Action": "s3:ListBucketMultipartUploads", "Resource": f"{s3}{bucket}"},
        {"Effect": "Allow", "Action": "s3:GetObject", "Resource": [s3 + _below(*place) for place in places]},
        {"Effect": "Allow", "Action": ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload",
                                       "s3:ListMultipartUploadParts"],
         "Resource": s3 + _below(bucket, f"{prefix}{needs.run_id}/")},
        # Of buckets whose objects are encrypted by a key of the user's own.
        {"Effect": "Allow", "Action": ["kms:Decrypt", "kms:GenerateDataKey"], "Resource": "*",
         "Condition": {"StringLike": {"kms:ViaService": "s3.*.amazonaws.com"}}}]}


def mint(session: Any, store_url: str, needs: Needs, now: datetime) -> Any:
    """Keys for one run, as STS answers: AccessKeyId, SecretAccessKey, SessionToken, Expiration.

    Args:
        session: boto3's, with keys of an IAM user.

    Returns:
        None where its deadline does not fit, or its session has no lasting keys: a session makes no other.

    Raises:
        botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError: AWS does not make them, or the
            bucket does not know them: a bucket of another account may trust the user alone.
    """
    if needs.until is None or not can_be_scoped(store_url) or session.get_credentials().token:
        return None
    life = needs.until - now + timedelta(hours=MARGIN_H)
    if life > timedelta(hours=LONGEST_LIFE_H):
        return None
    in_url = parse_qs(urlsplit(store_url).query).get("region")
    region = in_url[0] if in_url else session.region_name or "us-east-1"
    rules = policy(store_url, needs, session.get_partition_for_region(region))
    answer = session.client("sts", region_name=region).get_federation_token(
        Name=needs.run_id[:32], DurationSeconds=max(_SHORTEST_S, int(life.total_seconds())),
        Policy=json.dumps(rules, separators=(",", ":")))
    keys = answer["Credentials"]
    bucket, prefix = _place(store_url)
    session.client("s3", region_name=region, aws_access_key_id=keys["AccessKeyId"],
                   aws_secret_access_key=keys["SecretAccessKey"], aws_session_token=keys["SessionToken"],
                   ).list_objects_v2(Bucket=bucket, Prefix=f"{prefix}{needs.run_id}/", MaxKeys=1)
    return keys


def _place(url: str) -> tuple[str, str]:
    """Bucket and prefix of an address; the prefix ends with a slash, or is empty."""
    parts = urlsplit(url)
    path = unquote(parts.path).strip("/")
    return parts.netloc, f"{path}/" if path else ""


def _below(bucket: str, prefix: str) -> str:
    """Everything below a prefix, in which a `*`, `?` or `$` would not mean itself."""
    return f"{bucket}/{re.sub(r'[*?$]', lambda found: f'${{{found[0]}}}', prefix)}*"
