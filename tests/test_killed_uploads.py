"""What attempts that were killed in a save have left in a bucket: the next attempt of the run aborts it."""

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.killed_upload import begun_upload, killed_upload  # noqa: E402
from tests.s3_server import KEYS, S3Server, running_s3_server  # noqa: E402
from tests.trainer_runs import ROOT, TrainerRun, tiny_config, write_text  # noqa: E402
from trainer.contract import Document, Env, ExitCode  # noqa: E402
from trainer.retention import abort_killed  # noqa: E402
from trainer.run_folder import RunFolder  # noqa: E402
from trainer.store import open_store  # noqa: E402
from trainer.unfinished_uploads import unfinished_uploads  # noqa: E402

SHARD = "run/checkpoints/step-00000004/a{}-rank-0000.bin"


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with running_s3_server(python=str(ROOT / ".venv/bin/python")) as started:
        yield started


@pytest.fixture
def bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Address of a store in a bucket of its own."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    return server.url(server.bucket_of_its_own(tmp_path), "my runs")


def left(address: str) -> list[str]:
    """Names of the shards whose uploads have neither ended nor been aborted."""
    return sorted(upload.key.rpartition("/")[2] for upload in unfinished_uploads(open_store(address), "run"))


def test_an_attempt_aborts_what_killed_ones_have_begun_and_no_other_upload(
        bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    killed_upload(bucket, SHARD.format(1))
    killed_upload(bucket, SHARD.format(3))  # of an attempt that has taken the run over meanwhile
    killed_upload(bucket, SHARD.format(1).replace("run/", "run-2/"))
    alive = begun_upload(bucket, SHARD.format(2))
    abort_killed(RunFolder(open_store(bucket), "run"), attempt=2)
    alive.kill()
    alive.wait()
    assert left(bucket) == ["a2-rank-0000.bin", "a3-rank-0000.bin"]
    assert len(unfinished_uploads(open_store(bucket), "run-2")) == 1
    assert capsys.readouterr().out == ""


def test_a_trainer_that_follows_a_killed_one_leaves_nothing_of_it(bucket: str, tmp_path: Path) -> None:
    run = TrainerRun(tiny_config(write_text(tmp_path / "prose.txt"), steps=4, evaluate_every_steps=4),
                     tmp_path / "not-used", num_ranks=1, environment={Env.STORE: bucket}, deadline_s=300)
    folder = RunFolder(open_store(bucket), "run")
    first = folder.claim_attempt(Document.TRAIN, billed_from=datetime.now(UTC), host="h", offer="",
                                 price_usd_per_hour=Decimal(0))
    killed_upload(bucket, SHARD.format(first.number))
    code, output = run.finish()
    assert code == ExitCode.FINISHED, output
    assert [files.attempt.number for files in folder.attempts()] == [1, 2]
    assert left(bucket) == []


def test_keys_that_may_not_see_uploads_are_named_once_and_nothing_fails(
        bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(open_store(bucket), "run")
    monkeypatch.setenv("AWS_PROFILE", "not-there")  # boto3 reads it anew, the open store does not
    abort_killed(folder, attempt=2)
    (said,) = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("  fix")]
    assert said.startswith("note: uploads of attempts that were killed stay, if there are any: ")
