"""What `ldlm pull` brings home, and what it does not fetch twice; what a full disk leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tests.stored_checkpoints import commit  # noqa: E402
from trainer.contract import LdlmError, Name, StoreError, checkpoint_folder  # noqa: E402
from trainer.manifest import CheckpointError, complete_checkpoints  # noqa: E402
from trainer.piece_reader import read_pieces  # noqa: E402
from trainer.pull import main, pull  # noqa: E402
from trainer.pull_plan import Which, bytes_here, check_place, check_room, plan_pull  # noqa: E402
from trainer.run_folder import RunFolder  # noqa: E402
from trainer.store import local_store_url, open_store  # noqa: E402

ROOT = Path(__file__).parents[1]
RECORDS = {"recipe.json": b'{"name": "x"}', "plan.json": b"{}", "events/1-submitted.json": b"{}",
           "attempts/1/attempt.json": b"{}", "attempts/1/metrics/000000.jsonl": b'{"step": 1}\n',
           "bench/result.json": b'{"step": 8}'}


@pytest.fixture
def source(tmp_path: Path) -> RunFolder:
    """A run with its records and the checkpoints of steps 4 and 8."""
    folder = RunFolder(open_store(local_store_url(tmp_path / "store")), "r1")
    for name, data in RECORDS.items():
        folder.write_bytes(name, data)
    for step in (4, 8):
        commit(folder, step)
    return folder


def quiet(line: str) -> None:
    """Hear nothing."""


def damage(path: Path, at: int = 100) -> None:
    """Flip a bit; size and name stay."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def shard(run: RunFolder, step: int, rank: int = 0) -> Path:
    """The file of a shard of a run on this disk."""
    assert run.store.local_folder is not None
    return run.store.local_folder / run.run_id / checkpoint_folder(step) / f"a1-rank-{rank:04d}.bin"


def home(tmp_path: Path) -> RunFolder:
    """The run as it has come, through the store that the folder is now."""
    return RunFolder(open_store(local_store_url(tmp_path / "home")), "r1")


def is_whole(run: RunFolder, step: int) -> bool:
    """True if the checkpoint of a step is complete there and every piece reads back."""
    found = [manifest for manifest in complete_checkpoints(run, quiet) if manifest.step == step]
    return bool(found) and len(list(read_pieces(run, found[0], found[0].pieces))) == len(found[0].pieces)


def test_a_pulled_folder_is_a_store_with_the_run_and_its_newest_checkpoint(source, tmp_path):
    pulled = pull(source, tmp_path / "home", Which.NEWEST, quiet)
    run = home(tmp_path)
    assert pulled.steps == [8] and run.exists() and is_whole(run, 8)
    assert {name: run.read_bytes(name) for name in RECORDS} == RECORDS
    assert [manifest.step for manifest in complete_checkpoints(run, quiet)] == [8]
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(("which", "steps"), [(Which.ALL, [8, 4]), (Which.NONE, [])])
def test_all_checkpoints_or_none_come_when_that_is_asked_for(source, tmp_path, which, steps):
    assert pull(source, tmp_path / "home", which, quiet).steps == steps
    assert [manifest.step for manifest in complete_checkpoints(home(tmp_path), quiet)] == steps


def test_what_is_there_and_sound_is_not_fetched_again(source, tmp_path):
    first = pull(source, tmp_path / "home", Which.NEWEST, quiet)
    records = sum(map(len, RECORDS.values()))
    manifest = next(complete_checkpoints(source, quiet))
    assert (first.num_bytes, first.kept_bytes) == (manifest.num_bytes + records, 0)
    again = pull(source, tmp_path / "home", Which.NEWEST, quiet)
    assert (again.num_bytes, again.kept_bytes) == (records, manifest.num_bytes)


@pytest.mark.parametrize("how", ["flipped", "cut off", "longer", "gone"])
def test_of_a_file_that_is_not_what_was_written_only_what_is_wrong_comes_anew(source, tmp_path, how):
    pull(source, tmp_path / "home", Which.NEWEST, quiet)
    path, manifest = shard(home(tmp_path), 8), next(complete_checkpoints(source, quiet))
    if how == "flipped":
        damage(path)
    elif how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:1000] if how == "cut off" else path.read_bytes() + b"x")
    pulled = pull(source, tmp_path / "home", Which.NEWEST, quiet)
    assert is_whole(home(tmp_path), 8)
    came = pulled.num_bytes - sum(map(len, RECORDS.values()))
    assert came == (manifest.pieces[0].num_bytes if how == "flipped" else manifest.shards[0].num_bytes)


def test_of_a_file_that_came_in_part_only_the_missing_pieces_are_fetched(source, tmp_path):
    pull(source, tmp_path / "home", Which.NEWEST, quiet)
    path, pieces = shard(home(tmp_path), 8), next(complete_checkpoints(source, quiet)).pieces
    with path.open("r+b") as file:  # as a killed pull leaves it: its whole length, with holes
        file.truncate(pieces[2].offset + 10)
        file.truncate(shard(source, 8).stat().st_size)
    path.rename(f"{path}.part")
    pulled = pull(source, tmp_path / "home", Which.NEWEST, quiet)
    assert pulled.num_bytes - sum(map(len, RECORDS.values())) == pieces[2].num_bytes + pieces[3].num_bytes
    assert is_whole(home(tmp_path), 8) and not list(tmp_path.rglob("*.part"))


def test_a_checkpoint_that_is_damaged_in_the_store_is_named_and_the_one_before_comes(source, tmp_path):
    damage(shard(source, 8, rank=1))
    said: list[str] = []
    assert pull(source, tmp_path / "home", Which.NEWEST, said.append).steps == [4]
    assert "checkpoint of step 8 not pulled" in "".join(said) and "XXH3 differs" in "".join(said)
    assert [manifest.step for manifest in complete_checkpoints(home(tmp_path), quiet)] == [4]
    assert not (tmp_path / "home" / "r1" / checkpoint_folder(8)).exists()


def test_when_every_checkpoint_is_damaged_nothing_passes_for_the_run(source, tmp_path):
    for step in (4, 8):
        damage(shard(source, step))
    with pytest.raises(CheckpointError, match="all 2 checkpoints are damaged") as caught:
        pull(source, tmp_path / "home", Which.NEWEST, quiet)
    assert "--checkpoints none" in (caught.value.fix or "")
    assert not home(tmp_path).exists()
    assert pull(source, tmp_path / "home", Which.NONE, quiet).steps == []


def test_a_save_that_did_not_finish_does_not_come(source, tmp_path):
    source.write_bytes(f"{checkpoint_folder(12)}/a2-rank-0000.bin", b"x" * 1000)
    assert pull(source, tmp_path / "home", Which.ALL, quiet).steps == [8, 4]


def test_it_does_not_come_into_its_own_store_nor_over_another_run_of_its_name(source, tmp_path):
    with pytest.raises(LdlmError, match="in this folder already"):
        check_place(source, tmp_path / "store")
    other = tmp_path / "home" / "r1"
    other.mkdir(parents=True)
    (other / Name.RECIPE).write_bytes(b"another")
    with pytest.raises(LdlmError, match="another run of the name r1"):
        check_place(source, tmp_path / "home")
    (tmp_path / "file").touch()
    with pytest.raises(LdlmError, match="is a file"):
        check_place(source, tmp_path / "file")
    check_place(source, tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


def test_what_would_not_fit_is_known_before(source, tmp_path):
    plan = plan_pull(source, Which.NEWEST, quiet)
    check_room(tmp_path / "not" / "there", plan.num_bytes)
    with pytest.raises(StoreError, match="MiB would not fit") as caught:
        check_room(tmp_path, 2**60)
    assert "--to DIR" in (caught.value.fix or "")
    assert bytes_here(plan, tmp_path / "home" / "r1") == 0
    pull(source, tmp_path / "home", Which.NEWEST, quiet)
    assert bytes_here(plan, tmp_path / "home" / "r1") == plan.wanted[0].num_bytes


def small_disk(source: RunFolder, size: str, at: Path) -> "subprocess.CompletedProcess[str]":
    """Pull in a namespace of its own onto a disk of this size; afterwards again, when it has grown."""
    pulling = (f"{sys.executable} -m trainer.pull r1 --store {source.store.address} --to {at} "
               "--checkpoints newest --json")
    script = (f"mount -t tmpfs -o size={size} none {at} && {pulling}; echo code $?; "
              f"ls {at}/r1; mount -o remount,size=64m {at} && {pulling}")
    return subprocess.run(["unshare", "-rm", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True,
                          timeout=100, check=False, env=os.environ)


def can_mount() -> bool:
    """True where a test may have a disk of its own."""
    try:
        done = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], check=False,
                              capture_output=True)
    except FileNotFoundError:
        return False
    return done.returncode == 0


@pytest.mark.skipif(not can_mount(), reason="no user namespaces here")
def test_a_full_disk_is_told_and_with_more_room_the_same_command_goes_on(source, tmp_path):
    (tmp_path / "home").mkdir()
    done = small_disk(source, "1m", tmp_path / "home")
    assert "cannot be written: No space left on device" in done.stderr
    assert "type the same command: what has come stays" in done.stderr
    code, *names = done.stdout.partition("{")[0].split("\n")
    assert (code, names) == ("code 6", ["checkpoints", ""])  # not yet a run
    pulled = json.loads("{" + done.stdout.partition("{")[2])
    assert pulled["steps"] == [8] and pulled["kept_bytes"] > 0


def test_the_command_line_says_what_has_come(source, tmp_path, capsys):
    arguments = ["r1", "--store", source.store.address, "--to", str(tmp_path / "my home")]
    assert main([*arguments, "--checkpoints", "newest"]) == 0
    use, last = capsys.readouterr().out.splitlines()
    assert use == f"use it: ldlm status r1 --store '{tmp_path}/my home'"
    assert last.startswith(f"pulled r1 into {tmp_path}/my home/r1: the checkpoint of step 8, 6 other files; ")
    assert main([*arguments, "--checkpoints", "all", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == [8, 4]
