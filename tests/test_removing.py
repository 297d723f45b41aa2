"""`ldlm rm`: what it shows, what it deletes, what it leaves, from a disk and from a bucket."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import boto3
import pytest
from cli_lab import Terminal, files_below, ldlm, refused
from killed_upload import killed_upload
from run_stories import Story, every_fate, preempted_once
from s3_server import KEYS, S3Server, running_s3_server

from launcher.errors import RunRecordError
from launcher.kept import a_month
from launcher.removing import check_not_alive, find_doomed, remove, show
from launcher.store_prices import store_price
from trainer import unfinished_uploads as unfinished_uploads_module
from trainer.contract import Name
from trainer.run_folder import RunFolder
from trainer.run_parts import Part
from trainer.store import Store, StoredObject, local_store_url, open_store
from trainer.unfinished_uploads import unfinished_uploads, what_remains

SHARD = "story-1/checkpoints/step-00000500/a9-rank-0000.bin"


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with running_s3_server() as started:
        yield started


@pytest.fixture
def bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Address of a store in a bucket of its own."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    return server.url(server.bucket_of_its_own(tmp_path), "my runs")


@pytest.fixture(params=["file", "s3"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return local_store_url(tmp_path / "store")
    return str(request.getfixturevalue("bucket"))


def names(address: str) -> set[str]:
    """First folder of every object of the run."""
    return {found.key.split("/")[1] for found in open_store(address).objects("story-1")}


def test_the_checkpoints_go_and_what_the_run_was_and_cost_stays(address):
    every_fate(address)
    parts = ldlm("cost", "story-1", "--store", address).stdout.split("\n\n")
    before = "\n\n".join(part for part in parts if not part.startswith("  ! "))
    done = ldlm("rm", "story-1", "--store", address, "--yes")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines()[1:-1])) <= 80
    assert done.stdout.splitlines()[-1] == (
        "deleted the checkpoints of story-1: 4.0 KiB freed; its record stays: ldlm cost story-1")
    assert Name.CHECKPOINTS not in names(address) and names(address) >= {"attempts", "bench", "recipe.json"}
    assert ldlm("cost", "story-1", "--store", address).stdout == before
    assert "no checkpoint is left in the store" in ldlm("status", "story-1", "--store", address).stdout
    again = ldlm("rm", "story-1", "--store", address, "--yes")
    assert again.stdout.splitlines()[-1].startswith("nothing was deleted: story-1 has no checkpoint")


def test_with_all_nothing_of_the_run_is_left(address, tmp_path):
    every_fate(address)
    preempted_once(address, "story-10")
    done = ldlm("rm", "story-1", "--all", "--json", "--yes", "--store", address)
    deleted = json.loads(done.stdout)["deleted"]
    assert deleted["checkpoints"] == {"num_files": 4, "num_bytes": 4 * 2**10}
    assert names(address) == set()
    assert "no run 'story-1'" in refused(6, "status", "story-1", "--store", address)
    assert ldlm("status", "story-10", "--store", address).returncode == 0
    if address.startswith("file:"):
        assert files_below(tmp_path / "store")[0] == "story-10"


def test_what_killed_uploads_have_left_is_counted_and_goes_too(address):
    every_fate(address)
    killed_upload(address, SHARD)
    left = unfinished_uploads(open_store(address), "story-1")
    assert len(left) == 1 and left[0].num_bytes > 0
    assert not unfinished_uploads(open_store(address), "story")
    done = ldlm("rm", "story-1", "--store", address, "--yes")
    assert "unfinished uploads       1" in done.stdout
    assert unfinished_uploads(open_store(address), "story-1") == []


def test_an_upload_of_another_run_whose_name_begins_the_same_is_left_alone(bucket):
    every_fate(bucket)
    store = open_store(bucket)
    client = boto3.client("s3", endpoint_url=bucket.partition("endpoint=")[2].partition("&")[0])
    name = store.url.split("/")[2]
    client.create_multipart_upload(Bucket=name, Key="my runs/story-10/checkpoints/step-00000001/a.bin")
    assert ldlm("rm", "story-1", "--all", "--yes", "--store", bucket).returncode == 0
    assert len(unfinished_uploads(store, "story-10")) == 1


def test_an_upload_that_ends_while_it_is_counted_takes_nothing_and_hides_no_other(bucket, monkeypatch):
    every_fate(bucket)
    store = open_store(bucket)
    client = boto3.client("s3", endpoint_url=bucket.partition("endpoint=")[2].partition("&")[0])
    name = store.url.split("/")[2]
    made = [client.create_multipart_upload(Bucket=name, Key=f"my runs/story-1/checkpoints/{key}")
            for key in ("a", "b")]
    counted = unfinished_uploads_module._num_bytes

    def count(store, client, upload):
        client.abort_multipart_upload(Bucket=name, Key=made[0]["Key"], UploadId=made[0]["UploadId"])
        monkeypatch.setattr(unfinished_uploads_module, "_num_bytes", counted)
        return counted(store, client, upload)

    monkeypatch.setattr(unfinished_uploads_module, "_num_bytes", count)
    assert [upload.key[-1] for upload in unfinished_uploads(store, "story-1")] == ["a", "b"]


class DyingStore(Store):
    """A store that is interrupted after some deletions."""

    def __init__(self, inner: Store, lives: int) -> None:
        super().__init__(inner.url, inner.address, inner._backend)
        self.lives = lives

    def delete(self, keys):
        for key in keys:
            if not self.lives:
                raise KeyboardInterrupt
            self.lives -= 1
            super().delete([key])


@pytest.mark.parametrize("lives", [0, 1, 3, 4, 5])
@pytest.mark.parametrize("options", [[], ["--all"]])
def test_an_interrupted_deletion_leaves_no_checkpoint_that_looks_whole_and_can_be_repeated(
        tmp_path, lives, options):
    address = local_store_url(tmp_path / "store")
    folder = every_fate(address).folder
    for step in (100, 170):
        folder.write_bytes(f"checkpoints/step-{step:08d}/a.bin", b"x")
    dying = RunFolder(DyingStore(folder.store, lives), "story-1")
    with pytest.raises(KeyboardInterrupt):
        remove(dying, find_doomed(dying, everything=bool(options)))
    left = {found.key for found in folder.store.objects("story-1/checkpoints")}
    assert sum(key.endswith(f"/{Name.MANIFEST}") for key in left) == max(0, 4 - lives)  # they went first
    assert sum(key.endswith("/a.bin") for key in left) == min(2, 6 - lives)
    assert folder.exists()
    assert ldlm("rm", "story-1", "--yes", *options, "--store", address).returncode == 0
    assert names(address) == set() if options else Name.CHECKPOINTS not in names(address)


def test_a_run_that_some_machine_has_just_been_heard_of_is_not_deleted(tmp_path):
    story = Story(f"file://{tmp_path}/store")
    story.attempt(1, 0)
    now = datetime.now(UTC)
    beat = {"at": now.isoformat(), "step": 3, "total_steps": 9, "resumed_from_step": 0, "durable_step": 0,
            "durable_train_s": 0, "durable_evaluate_s": 0, "phases": {}, "tokens_per_s": 0, "spent_usd": "0"}
    story.folder.write_bytes("attempts/1/heartbeat.json", json.dumps(beat).encode())
    with pytest.raises(RunRecordError, match="is running on somewhere") as caught:
        check_not_alive(story.folder)
    assert caught.value.fix == "stop it first: ldlm stop story-1, there"
    story.beat(1, 50, step=3, durable=2, train=5)  # of long ago
    check_not_alive(story.folder)


def test_bytes_and_dollars_are_shown_before_the_question_and_no_is_no(tmp_path):
    address = local_store_url(tmp_path / "store")
    every_fate(address)
    terminal = Terminal("rm", "story-1", "--store", address)
    terminal.wait_for("[y/N]")
    shown = terminal.plain()
    terminal.type("n\n")
    assert terminal.wait() == 1
    assert re.search(r"checkpoints +4 +4\.0 KiB +- +deleted", shown) and "stays" in shown
    assert "! without checkpoints it cannot be resumed, sampled or exported" in shown
    assert "Delete the checkpoints of story-1, 4.0 KiB? [y/N]" in shown
    assert Name.CHECKPOINTS in names(address)


def test_a_run_whose_checkpoints_are_gone_is_not_trained_again_by_accident(tmp_path):
    address = local_store_url(tmp_path / "store")
    preempted_once(address)
    assert ldlm("rm", "story-1", "--store", address, "--yes").returncode == 0
    said = refused(6, "resume", "story-1", "--store", address, "--yes", "--max-cost", "2")
    assert "the checkpoint of step 100 is not there any more, nor is another" in said
    assert "launch a new run" in said and "`ldlm pull story-1`" in said


def test_keys_that_may_not_list_uploads_are_named_and_the_rest_goes_on(bucket, monkeypatch, capsys):
    folder = every_fate(bucket).folder
    monkeypatch.setenv("AWS_PROFILE", "not-there")  # boto3 reads it anew, the open store does not
    doomed = find_doomed(folder, everything=False)
    assert "unfinished uploads stay, and are billed if there are any" in capsys.readouterr().err
    assert doomed.uploads == [] and doomed.num_bytes == 4 * 2**10


def test_a_bucket_says_under_the_bill_that_it_goes_on_and_how_that_ends(bucket, tmp_path):
    every_fate(bucket)
    said = " ".join(ldlm("cost", "story-1", "--store", bucket).stdout.split())
    assert said.endswith("! its checkpoints stay in the bucket: 4.0 KiB, price not known, until `ldlm rm "
                         "story-1`; to have them at home first: `ldlm pull story-1` "
                         "story-1: finished; $2.3400 spent")
    status = " ".join(ldlm("status", "story-1", "--store", bucket).stdout.split())
    assert "4.0 KiB of checkpoints, price not known, until `ldlm rm story-1`" in status
    at_home = local_store_url(tmp_path / "store")
    every_fate(at_home)
    assert "checkpoints stay" not in ldlm("cost", "story-1", "--store", at_home).stdout


def test_where_the_price_is_known_each_kind_has_its_dollars_a_month(tmp_path, capsys):
    folder = every_fate(local_store_url(tmp_path / "store")).folder
    doomed = find_doomed(folder, everything=False)
    huge = [StoredObject("story-1/checkpoints/step-00000400/a.bin", 10**12)]
    folder.store.address = "gs://bucket/runs"
    show(folder, doomed._replace(objects={Part.CHECKPOINTS: huge}))
    said = capsys.readouterr().out
    assert "checkpoints       1   931.3 GiB   ~$20.00   deleted" in said
    assert "$0.020 a GB and month (Google Cloud Storage, us-central1)" in said
    assert "AbortIncompleteMultipartUpload" in said
    assert max(map(len, said.splitlines()[1:])) <= 80


@pytest.mark.parametrize(("num_bytes", "shown"), [
    (0, "~$0.00 a month"), (10**6, "< $0.01 a month"), (30 * 10**9, "~$0.69 a month")])
def test_what_a_bucket_bills_is_never_shown_as_nothing(num_bytes, shown):
    assert a_month(store_price("s3://bucket/x"), num_bytes) == shown


def test_of_clouds_whose_uploads_cannot_be_seen_it_is_said_what_becomes_of_them():
    assert "AbortIncompleteMultipartUpload" in str(what_remains("gs://bucket/x"))
    assert "after a week" in str(what_remains("az://account/container/x"))
    assert what_remains("s3://bucket/x") is None
