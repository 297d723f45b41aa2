"""One contract for every store, held against a folder and against a real S3 server."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import pytest

pytest.importorskip("moto")

from tests.s3_server import KEYS, S3Server, running_s3_server  # noqa: E402
from trainer.contract import AwayError, ConfigError, Document, StoreError, checkpoint_folder  # noqa: E402
from trainer.manifest import (  # noqa: E402
    Manifest,
    StoredFile,
    complete_checkpoints,
    newest_readable,
    read_rest,
)
from trainer.retention import Keep, retain
from trainer.run_folder import RunFolder  # noqa: E402
from trainer.store import (  # noqa: E402
    AlreadyExistsError,
    NotFoundError,
    Store,
    StoredObject,
    local_store_url,
    named_store,
    open_store,
)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with running_s3_server() as started:
        yield started


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_aws(monkeypatch)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


def forget_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that has never heard of AWS."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store below a prefix with a blank in it."""
    if request.param == "file":
        return open_store(local_store_url(tmp_path / "my store"))
    server: S3Server = request.getfixturevalue("server")
    server.make_bucket("shared")
    return open_store(server.url("shared", f"{uuid4()}/my%20store"))


@pytest.fixture
def folder(store: Store) -> RunFolder:
    return RunFolder(store, "run")


# -- the contract ---------------------------------------------------------------------------------


def test_what_was_put_is_what_is_got(store: Store) -> None:
    store.put("a/b.json", b"one")
    store.put("a/b.json", b"two")
    store.put("empty", b"")

    assert (store.get("a/b.json"), store.get("empty")) == (b"two", b"")


def test_a_store_says_by_its_own_clock_when_an_object_was_written(store: Store) -> None:
    before = datetime.now(UTC)
    store.put("run/attempt.json", b"{}")
    assert -1 <= (store.written_at("run/attempt.json") - before).total_seconds() < 30
    with pytest.raises(NotFoundError):
        store.written_at("run/nothing")


def test_a_command_takes_the_store_that_it_names_else_that_of_its_environment(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDLM_STORE", f"file://{tmp_path}/one")
    assert named_store(None).url == f"file://{tmp_path}/one"
    assert named_store(f"file://{tmp_path}/two").url == f"file://{tmp_path}/two"
    monkeypatch.delenv("LDLM_STORE")
    with pytest.raises(ConfigError, match="not said in which store the run is"):
        named_store(None)


def test_a_missing_object_has_an_error_of_its_own(store: Store) -> None:
    with pytest.raises(NotFoundError, match="a/b.json: no such object"):
        store.get("a/b.json")


def test_create_never_replaces(store: Store) -> None:
    store.put("once", b"first", create=True)

    with pytest.raises(AlreadyExistsError, match="once: it exists already"):
        store.put("once", b"second", create=True)
    assert store.get("once") == b"first"


def test_objects_are_listed_by_whole_path_segments_in_order(store: Store) -> None:
    for key in ("run/b/2", "run/b/1", "run/a", "run-2/a", "runner"):
        store.put(key, key.encode())

    assert store.objects("run") == [StoredObject("run/a", 5), StoredObject("run/b/1", 7),
                                    StoredObject("run/b/2", 7)]
    assert [found.key for found in store.objects()] == ["run-2/a", "run/a", "run/b/1", "run/b/2", "runner"]
    assert store.objects("nothing") == []


def test_folders_are_those_directly_below(store: Store) -> None:
    for key in ("run/attempts/1/a", "run/attempts/10/b/c", "run/attempts/2/a", "run/attempts/file"):
        store.put(key, b"")

    assert store.folders("run/attempts") == ["1", "10", "2"]
    assert store.folders("nothing") == []


def test_deleting_leaves_the_rest_and_does_not_mind_what_is_gone(store: Store) -> None:
    store.put("a", b"")
    store.put("b", b"")

    store.delete(["a", "never-there"])

    assert store.objects() == [StoredObject("b", 0)]


def test_an_object_of_many_parts_comes_back_whole(store: Store) -> None:
    data = os.urandom(1 << 20) * 23 + b"tail"  # obstore sends parts of 5 MiB from 10 MiB on

    store.put("shard.pt", data)

    assert store.objects() == [StoredObject("shard.pt", len(data))]
    assert sha256(store.get("shard.pt")).digest() == sha256(data).digest()


@pytest.mark.parametrize("key", ["with blank", "per%20cent", "plus+hash#quest?", "ümläut/日本", "a=b&c"])
def test_keys_may_hold_any_letters(store: Store, key: str) -> None:
    store.put(f"run/{key}", b"x")

    assert store.get(f"run/{key}") == b"x"
    assert store.objects("run") == [StoredObject(f"run/{key}", 1)]
    store.delete([f"run/{key}"])
    assert store.objects() == []


# -- the checkpoint protocol and the race for a number, on both ------------------------------------


def commit(folder: RunFolder, step: int, data: bytes) -> None:
    """Write a file and the manifest of a checkpoint, as the protocol says."""
    folder.write_bytes(f"{checkpoint_folder(step)}/a1-rest", data)
    rest = StoredFile(name="a1-rest", num_bytes=len(data), sha256=sha256(data).hexdigest())
    folder.write(f"{checkpoint_folder(step)}/manifest.json",
                 Manifest(step=step, attempt=1, world_size=1, shards=[], pieces=[], rest=rest, groups=[],
                          data_fingerprint="x", model={}))


def test_a_checkpoint_counts_when_its_manifest_does_on_every_store(folder: RunFolder) -> None:
    commit(folder, 4, b"four")
    commit(folder, 8, b"eight")
    folder.write_bytes(f"{checkpoint_folder(12)}/a1-rest", b"not committed")
    folder.write_bytes(f"{checkpoint_folder(8)}/a1-rest", b"EIGHT")  # same size, other bytes
    said: list[str] = []

    assert [manifest.step for manifest in complete_checkpoints(folder, said.append)] == [8, 4]
    found = newest_readable(folder, lambda manifest: read_rest(folder, manifest), said.append)

    assert found is not None and (found[0].step, found[1]) == (4, b"four")
    assert any("step-00000012 has no manifest" in line for line in said)
    assert any("checkpoint of step 8 not used" in line and "SHA-256" in line for line in said)


def test_old_checkpoints_go_on_every_store(folder: RunFolder) -> None:
    for step in (4, 8, 12):
        commit(folder, step, b"x")

    retain(folder, step=12, keep=Keep(2), attempt=1)

    left = {found.key.split("/")[2] for found in folder.store.objects("run/checkpoints")}
    assert left == {"step-00000008", "step-00000012"}


def test_claimers_at_the_same_time_get_different_numbers(folder: RunFolder) -> None:
    numbers, together = [], threading.Barrier(4)

    def claim() -> None:
        together.wait()
        numbers.append(folder.claim_attempt(Document.TRAIN, billed_from=datetime.now(UTC), offer="", host="h",
                                            price_usd_per_hour=Decimal("0.5")).number)

    claimers = [threading.Thread(target=claim) for _ in range(4)]
    for claimer in claimers:
        claimer.start()
    for claimer in claimers:
        claimer.join()

    assert sorted(numbers) == [1, 2, 3, 4]
    assert [files.attempt.number for files in folder.attempts()] == [1, 2, 3, 4]


# -- what a user can get wrong ----------------------------------------------------------------------


def test_a_plain_path_is_a_store_on_this_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text, url in (("data", f"file://{tmp_path}/data"), ("./data", f"file://{tmp_path}/data"),
                      (f"{tmp_path}/a b", f"file://{tmp_path}/a%20b")):
        opened = open_store(text)
        opened.put("key", b"there")
        assert (opened.url, opened.address) == (url, url)
    assert (tmp_path / "a b" / "key").read_bytes() == b"there"


@pytest.mark.parametrize("url", ["", "s3:bucket/x", "s3:/bucket", "ftp://host/x", "file://", "file://relative/x",
                                 "s3:///prefix", "gs://", "az://account", "az:///container"])
def test_a_url_that_names_no_store_is_refused_with_the_forms_there_are(url: str) -> None:
    with pytest.raises(StoreError) as caught:
        open_store(url)

    assert repr(url) in str(caught.value)
    for form in ("./dir", "s3://bucket/prefix", "gs://bucket/prefix", "az://ACCOUNT/CONTAINER/prefix"):
        assert form in str(caught.value.fix)


def test_opening_asks_nobody_and_an_azure_url_names_account_and_container() -> None:
    """No server is asked: the names do not exist, and the answer comes at once."""
    azure = open_store("az://myaccount/mycontainer/some%20where/deep")._backend
    google = open_store("gs://mybucket/deep")._backend
    amazon = open_store("s3://mybucket/deep?region=eu-west-3")._backend

    assert (azure.config["account_name"], azure.config["container_name"], azure.prefix) == (
        "myaccount", "mycontainer", "some where/deep")
    assert (google.config["bucket"], google.prefix) == ("mybucket", "deep")
    assert (amazon.config["bucket"], amazon.prefix) == ("mybucket", "deep")
    assert amazon.config["region"] == "eu-west-3"


def test_a_missing_bucket_is_named(server: S3Server) -> None:
    absent = open_store(server.url("not-there", "x"))

    with pytest.raises(StoreError, match="s3://not-there/x/key: cannot write: NoSuchBucket") as caught:
        absent.put("key", b"")
    assert "check that the bucket exists" in str(caught.value.fix)
    with pytest.raises(StoreError, match="cannot list: NoSuchBucket"):
        absent.objects()


def test_no_credentials_is_what_is_said_when_there_are_none(server: S3Server,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    forget_aws(monkeypatch)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # what a laptop finds after a second of waiting

    store = open_store(server.url("shared", "x"))

    for action in (lambda: store.get("key"), lambda: store.put("key", b""), store.objects):
        with pytest.raises(StoreError, match=": no AWS credentials found") as caught:
            action()
        assert "AWS_ACCESS_KEY_ID" in str(caught.value.fix)
        assert "169.254" not in str(caught.value)


def test_a_profile_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")

    with pytest.raises(StoreError, match="nobody") as caught:
        open_store("s3://bucket/x")
    assert "AWS_PROFILE" in str(caught.value.fix)


def test_a_wrong_key_is_told_from_a_missing_one(server: S3Server) -> None:
    server.make_bucket("shared")
    store = open_store(server.url("shared", "x"))
    server.trust_nobody()
    try:
        with pytest.raises(StoreError, match="cannot write: InvalidAccessKeyId") as caught:
            store.put("key", b"")
    finally:
        server.trust_everybody()
    assert not isinstance(caught.value, AwayError)
    assert "check that the key is right" in str(caught.value.fix)


def test_a_server_that_is_not_there_ends_in_one_line() -> None:
    store = open_store("s3://bucket/x?endpoint=http://127.0.0.1:9&region=us-east-1")

    with pytest.raises(AwayError) as caught:
        store.get("key")
    assert "127.0.0.1:9" in caught.value.problem and "\n" not in caught.value.problem
    assert "endpoint" in str(caught.value.fix)


@pytest.mark.parametrize("make_unusable", ["a file", "a read-only disk"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, make_unusable: str) -> None:
    if make_unusable == "a file":
        (tmp_path / "taken").write_text("")
        with pytest.raises(StoreError, match=r"taken/store: cannot open: .*Not a directory"):
            open_store(local_store_url(tmp_path / "taken" / "store"))
        return
    said = on_a_disk_of(tmp_path, "size=1m,ro", "store.put('key', b'x')")
    assert "cannot write" in said and "Read-only" in said and "check the folder's permissions" in said


def test_a_full_disk_leaves_the_object_before_and_no_debris(tmp_path: Path) -> None:
    said = on_a_disk_of(tmp_path, "size=1m", """
store.put('key', b'old')
try:
    store.put('key', bytes(2 << 20))
finally:
    print(store.get('key'), store.objects(), len(list(folder.iterdir())))
""")
    assert "b'old' [StoredObject(key='key', num_bytes=3)] 1" in said
    assert "cannot write" in said and "No space left" in said and "free disk space" in said


def on_a_disk_of(mount: Path, options: str, code: str) -> str:
    """Run code with a `store` on a small disk of its own; returns what it printed and the StoreError."""
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no user namespaces")
    program = f"""
from pathlib import Path
from trainer.contract import StoreError
from trainer.store import local_store_url, open_store
folder = Path({str(mount)!r})
store = open_store(local_store_url(folder))
try:
{"".join(f"    {line}{chr(10)}" for line in code.strip().splitlines())}
except StoreError as error:
    print(error)
"""
    shell = f'mount -t tmpfs -o {options} none "$0"; exec "$@"'
    done = subprocess.run(["unshare", "-Urm", "sh", "-ec", shell, str(mount), sys.executable, "-c", program],
                          cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_address_opens_the_same_store_again_with_endpoint_and_region() -> None:
    store = open_store("s3://bucket/runs?endpoint=http://127.0.0.1:9&region=us-east-1")
    assert store.url == "s3://bucket/runs"
    assert store.address == "s3://bucket/runs?endpoint=http://127.0.0.1:9&region=us-east-1"


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(StoreError, match="is a file, and a store is a folder") as caught:
        open_store(str(tmp_path / "a.txt"))
    assert caught.value.place == f"file://{tmp_path}/a.txt" and caught.value.fix == "name a folder"
