"""What killed uploads have left in a store: no listing shows it, and it takes room, which a bucket bills.
No torch.

S3 and what speaks its protocol: multipart uploads that were never completed. On a disk: drafts that obstore
would have renamed. Google bills such uploads too until they are aborted, which needs keys of another kind;
Azure and Cloudflare throw them away after a week (their documents).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from trainer.aws import complete_address
from trainer.contract import StoreError
from trainer.store import Store, is_draft


class UnfinishedUpload(NamedTuple):
    """One of them.

    Attributes:
        key: In the bucket, or the path of the file.
        upload_id: Of S3; empty on a disk.
    """

    key: str
    num_bytes: int
    upload_id: str


def unfinished_uploads(store: Store, folder: str) -> list[UnfinishedUpload]:
    """Those below a folder of a store, as far as they can be seen there.

    Raises:
        StoreError: The keys do not allow to list them.
    """
    if store.local_folder is not None:
        return list(_drafts(store.local_folder / folder))
    if not store.address.startswith("s3://"):
        return []
    bucket, prefix = _place(store)
    with _told(store, "list unfinished uploads"):
        client = _client(store)
        pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket,
                                                                        Prefix=f"{prefix}{folder}/")
        return [UnfinishedUpload(found["Key"], _num_bytes(store, client, found), found["UploadId"])
                for page in pages for found in page.get("Uploads", ())]


def abort_uploads(store: Store, uploads: Sequence[UnfinishedUpload]) -> None:
    """Give back what they take. One that is gone meanwhile is no error. Raises StoreError."""
    for upload in uploads:
        if not upload.upload_id:
            Path(upload.key).unlink(missing_ok=True)
            continue
        with _told(store, "abort an unfinished upload", passes="NoSuchUpload"):
            bucket, _ = _place(store)
            _client(store).abort_multipart_upload(Bucket=bucket, Key=upload.key, UploadId=upload.upload_id)


def what_remains(address: str) -> str | None:
    """What is to be known of unfinished uploads where they cannot be seen from here."""
    if address.startswith("gs://"):
        return ("Google bills uploads that were killed until they are aborted, and no listing shows them: a "
                "lifecycle rule of the bucket does it (AbortIncompleteMultipartUpload)")
    if address.startswith("az://"):
        return "Azure throws parts of uploads that were killed away after a week"
    return None


def _drafts(folder: Path) -> Iterator[UnfinishedUpload]:
    for path in sorted(folder.rglob("*")):
        if is_draft(path.name) and path.is_file():
            yield UnfinishedUpload(str(path), path.stat().st_size, "")


def _num_bytes(store: Store, client: Any, upload: Any) -> int:
    """Of its parts; 0 for one that has ended since it was listed."""
    bucket, _ = _place(store)
    pages = client.get_paginator("list_parts").paginate(Bucket=bucket, Key=upload["Key"],
                                                        UploadId=upload["UploadId"])
    with _told(store, "list the parts of an unfinished upload", passes="NoSuchUpload"):
        return sum(part["Size"] for page in pages for part in page.get("Parts", ()))
    return 0


def _client(store: Store) -> Any:
    import boto3

    options = parse_qs(urlsplit(complete_address(store.address)).query)
    return boto3.Session().client("s3", endpoint_url=options.get("endpoint", [None])[0],
                                  region_name=options.get("region", [None])[0])


def _place(store: Store) -> tuple[str, str]:
    """Bucket and prefix of a store; the prefix ends with a slash, or is empty."""
    parts = urlsplit(store.address)
    path = unquote(parts.path).strip("/")
    return parts.netloc, f"{path}/" if path else ""


@contextmanager
def _told(store: Store, verb: str, passes: str = "") -> Iterator[None]:
    """Turn what boto3 raises into ours; `passes` is the code of an answer that is no error."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        code = error.response["Error"]["Code"] if isinstance(error, ClientError) else str(error)
        if code != passes:
            raise StoreError(f"cannot {verb}: {code}", place=store.url,
                             fix="use keys that may (s3:ListBucketMultipartUploads, "
                                 "s3:ListMultipartUploadParts, s3:AbortMultipartUpload)") from error
