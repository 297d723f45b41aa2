"""Keys that are made for one run: asked of STS by boto3, judged by AWS's rules, used by the real store."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import pytest
from policy_server import MADE, Aws, is_allowed, running_aws

from launcher.commands import PlanOptions, propose
from launcher.errors import EngineError
from launcher.node_secrets import node_secrets, own_keys_warning
from launcher.refusals import refusals
from launcher.store_keys import Needs, policy
from trainer.contract import StoreError
from trainer.retention import abort_killed
from trainer.run_folder import RunFolder
from trainer.store import NotFoundError, open_store
from trainer.unfinished_uploads import unfinished_uploads

STORE = "s3://lab/team/ldlm"
OWN = {"AWS_ACCESS_KEY_ID": "AKIAOFTHEUSER0000000", "AWS_SECRET_ACCESS_KEY": "the-secret-of-the-user"}


def needs(hours: float | None = 30, reads: tuple[str, ...] = ()) -> Needs:
    return Needs("a-run", None if hours is None else datetime.now(UTC) + timedelta(hours=hours), reads)


@pytest.fixture(scope="module")
def aws() -> Iterator[Aws]:
    with running_aws() as found:
        found.s3.make_bucket("lab")
        yield found


@pytest.fixture
def user(aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A user with lasting keys, whose STS is the test's."""
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in OWN.items() | {"AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": "127.0.0.1",
                                      "AWS_ENDPOINT_URL_STS": aws.endpoint,
                                      "AWS_ENDPOINT_URL_S3": aws.endpoint}.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    aws.minted.clear()
    aws.makes_keys = aws.knows_keys = True
    return monkeypatch


def test_keys_are_made_for_the_run_and_live_two_hours_past_its_deadline(aws: Aws, user) -> None:
    assert node_secrets(STORE, {}, needs()) == {
        "AWS_ACCESS_KEY_ID": MADE["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": MADE["SecretAccessKey"],
        "AWS_SESSION_TOKEN": MADE["SessionToken"]}
    (asked,) = aws.minted
    assert (asked["Action"], asked["Name"]) == ("GetFederationToken", "a-run")
    assert 32 * 3600 - 60 < int(asked["DurationSeconds"]) <= 32 * 3600
    assert len(asked["Policy"]) < 2048  # AWS takes no longer one


@pytest.mark.parametrize(("store", "hours", "token"), [
    (STORE, None, ""), (STORE, 34.1, ""), (f"{STORE}?endpoint=https://minio.example", 30, ""),
    (STORE, 30, "of-a-session")])
def test_where_none_can_be_made_nodes_get_the_user_s_and_nobody_is_asked(aws: Aws, user, store, hours,
                                                                        token) -> None:
    if token:
        user.setenv("AWS_SESSION_TOKEN", token)
    own = OWN | ({"AWS_SESSION_TOKEN": token} if token else {})
    assert node_secrets(store, {}, needs(hours)) == own and aws.minted == []


@pytest.mark.parametrize("lacking", ["makes_keys", "knows_keys"])
def test_where_they_cannot_be_made_or_used_nodes_get_the_user_s_only_if_the_user_says_so(aws: Aws, user,
                                                                                       lacking: str) -> None:
    setattr(aws, lacking, False)
    with pytest.raises(EngineError, match="nodes would get your own AWS keys.*AccessDenied") as caught:
        node_secrets(STORE, {}, needs())
    assert "sts:GetFederationToken" in caught.value.fix and "LDLM_OWN_KEYS=1" in caught.value.fix
    assert OWN["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)
    aws.minted.clear()
    assert node_secrets(STORE, {"LDLM_OWN_KEYS": "1"}, needs()) == OWN and aws.minted == []


def test_keys_that_cannot_be_made_are_a_reason_of_the_plan_and_not_of_what_follows_its_approval(
        aws: Aws, user) -> None:
    user.delenv("AWS_ENDPOINT_URL_S3")
    aws.makes_keys = False
    proposal = propose("canary", PlanOptions(infra="vast", store=STORE, deadline="30"))
    assert not any("own AWS keys" in line for line in proposal.plan.warnings)
    assert any("nodes would get your own AWS keys" in error.problem
               for error in refusals(proposal, allow_dirty=True))
    user.setenv("LDLM_OWN_KEYS", "1")
    proposal = propose("canary", PlanOptions(infra="vast", store=STORE, deadline="30"))
    assert any("own AWS keys, as LDLM_OWN_KEYS says" in line for line in proposal.plan.warnings)


def test_an_sso_login_that_has_expired_is_told_with_what_to_do(user, tmp_path: Path) -> None:
    for name in OWN:
        user.delenv(name)
    (tmp_path / "AWS_CONFIG_FILE").write_text(
        "[default]\nsso_start_url = https://x.example\nsso_region = eu-west-1\nsso_account_id = 1\n"
        "sso_role_name = r\nregion = eu-west-1\n")
    user.setenv("HOME", str(tmp_path))
    with pytest.raises(EngineError, match="AWS credentials cannot be used"):
        node_secrets(STORE, {}, needs())
    assert own_keys_warning(STORE, {}, needs(), 30) is None


def test_in_another_partition_of_aws_its_names_are_used(aws: Aws, user) -> None:
    aws.knows_keys = False  # the judge knows one partition
    with pytest.raises(EngineError):
        node_secrets(f"{STORE}?region=cn-north-1", {}, needs())
    assert "arn:aws-cn:s3:::lab/team/ldlm/a-run/*" in aws.minted[0]["Policy"]
    assert "arn:aws:" not in aws.minted[0]["Policy"]


ARN = "arn:aws:s3:::"


@pytest.mark.parametrize(("action", "resource", "allowed"), [
    ("s3:PutObject", "lab/team/ldlm/a-run/checkpoints/step-00000010/rank-0.pt", True),
    ("s3:DeleteObject", "lab/team/ldlm/a-run/outcome.json", True),
    ("s3:AbortMultipartUpload", "lab/team/ldlm/a-run/x", True),
    ("s3:AbortMultipartUpload", "lab/team/ldlm/b-run/x", False),
    ("s3:ListBucketMultipartUploads", "lab", True), ("s3:ListBucketMultipartUploads", "texts", False),
    ("s3:GetObject", "lab/team/ldlm/data/books/manifest.json", True),
    ("s3:GetObject", "lab/team/ldlm/weights/x/config.json", True),
    ("s3:GetObject", "texts/shards*/part", True), ("s3:GetObject", "texts/shardsX/part", False),
    ("s3:ListBucket", "lab", True), ("s3:ListBucket", "texts", True), ("s3:ListBucket", "other", False),
    ("s3:PutObject", "lab/team/ldlm/a-run2/x", False), ("s3:PutObject", "lab/team/ldlm/data/books/x", False),
    ("s3:DeleteObject", "lab/team/ldlm/b-run/outcome.json", False),
    ("s3:PutObject", "texts/shards*/part", False), ("s3:GetObject", "lab/team/secret", False),
    ("s3:GetObject", "lab/team/ldlm2/x", False), ("s3:GetObject", "other/team/ldlm/a-run/x", False),
    ("s3:PutBucketPolicy", "lab", False), ("iam:CreateUser", "lab", False)])
def test_the_policy_allows_what_a_node_does_and_no_more(action: str, resource: str, allowed: bool) -> None:
    rules = policy(STORE, needs(reads=("s3://texts/shards*",)))
    assert is_allowed(rules, action, f"{ARN}{resource}", {}) is allowed


def test_keys_of_encryption_are_used_through_s3_alone() -> None:
    rules = policy(STORE, needs())
    key = "arn:aws:kms:eu-west-1:1:key/2"
    assert is_allowed(rules, "kms:Decrypt", key, {"kms:ViaService": "s3.eu-west-1.amazonaws.com"})
    assert not is_allowed(rules, "kms:Decrypt", key, {"kms:ViaService": "ec2.eu-west-1.amazonaws.com"})
    assert not is_allowed(rules, "kms:Decrypt", key, {})


def test_a_node_s_store_does_all_its_work_with_them_and_none_on_other_runs(aws: Aws, user,
                                                                          tmp_path: Path) -> None:
    for name, value in node_secrets(STORE, {}, needs()).items():
        user.setenv(name, value)
    store = open_store(aws.url("lab", "team/ldlm"))
    large = tmp_path / "rank-0.pt"
    large.write_bytes(b"x" * 12_000_000)  # goes part by part
    store.put("a-run/checkpoints/rank-0.pt", large)
    store.put("a-run/attempts/1/attempt.json", b"{}", create=True)
    assert store.get_range("a-run/checkpoints/rank-0.pt", 0, 3) == b"xxx"
    assert [item.key for item in store.objects("a-run")] == ["a-run/attempts/1/attempt.json",
                                                            "a-run/checkpoints/rank-0.pt"]
    with pytest.raises(NotFoundError):
        store.get("a-run/outcome.json")
    client = boto3.client("s3", endpoint_url=aws.endpoint, region_name="us-east-1")
    client.create_multipart_upload(Bucket="lab",
                                   Key="team/ldlm/a-run/checkpoints/step-00000010/a1-rank-0000.bin")
    abort_killed(RunFolder(store, "a-run"), attempt=2)
    assert unfinished_uploads(store, "a-run") == []
    store.delete(["a-run/attempts/1/attempt.json", "a-run/never"])
    assert store.folders("a-run") == ["checkpoints"]
    for refused in (lambda: store.put("b-run/x", b""), lambda: store.delete(["b-run/x"]),
                    lambda: open_store(aws.url("lab", "team")).get("secret"),
                    lambda: open_store(aws.url("other", "team/ldlm")).objects()):
        with pytest.raises(StoreError, match="AccessDenied"):
            refused()
    user.delenv("AWS_SESSION_TOKEN")
    with pytest.raises(StoreError, match="AccessDenied"):
        open_store(aws.url("lab", "team/ldlm")).objects("a-run")


@pytest.mark.parametrize(("store", "hours", "said"), [
    (STORE, None, "the run has no deadline; --deadline 34, or less"),
    (STORE, 40, "the run may take 40 h; --deadline 34"), (STORE, 34, None),
    (f"{STORE}?endpoint=https://minio.example", None, None), ("gs://bucket", None, None), (None, None, None)])
def test_a_plan_says_why_nodes_would_get_the_user_s_own_keys(user, store, hours, said) -> None:
    warning = own_keys_warning(store, {}, needs(hours), hours)
    assert (warning is None) if said is None else said in warning


def test_a_plan_says_so_of_keys_of_a_session_whatever_its_deadline(user) -> None:
    user.setenv("AWS_SESSION_TOKEN", "of-a-session")
    for hours in (None, 30, 40):
        warning = own_keys_warning(STORE, {}, needs(hours), hours)
        assert "your own AWS keys, which are of a session" in warning and "--deadline" not in warning


def test_what_nodes_need_is_read_from_the_task() -> None:
    config = {"LDLM_RUN_ID": "a-run", "LDLM_DEADLINE": "2026-11-28T12:00:00+00:00",
              "LDLM_TRAIN_CONFIG": json.dumps({"data": {"source": "s3://texts/shards"}})}
    noon = datetime(2026, 11, 28, 12, tzinfo=UTC)
    assert Needs.of_task(config) == Needs("a-run", noon, ("s3://texts/shards",))
    config |= {"LDLM_DEADLINE": "", "LDLM_TRAIN_CONFIG": json.dumps({"data": {"source": "shards:books"}})}
    assert Needs.of_task(config) == Needs("a-run", None)
