"""Whatever a user gets wrong ends in one message with place and fix, and costs nothing that was durable."""

import json
import shutil
import subprocess
import time
from hashlib import sha256
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tests.trainer_runs import ROOT, TrainerRun, tiny_config, write_text  # noqa: E402
from trainer.averaged_weights import load_averaged_weights  # noqa: E402
from trainer.contract import Env, ExitCode  # noqa: E402
from trainer.run_folder import RunFolder  # noqa: E402
from trainer.store import local_store_url, open_store  # noqa: E402


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "prose.txt")


@pytest.fixture(scope="module")
def trained_once(text: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainerRun:
    """Twelve steps on two ranks: checkpoints of steps 4, 8 and 12."""
    run = TrainerRun(tiny_config(text), tmp_path_factory.mktemp("trained") / "store")
    code, output = run.finish()
    assert code == ExitCode.FINISHED, output
    return run


@pytest.fixture
def trained(trained_once: TrainerRun, text: Path, tmp_path: Path) -> TrainerRun:
    """A copy of that run that a test may spoil, now with two more steps to go."""
    shutil.copytree(trained_once.store, tmp_path / "store")
    return TrainerRun(tiny_config(text, steps=14), tmp_path / "store")


def new_run(text: Path, tmp_path: Path, num_ranks: int = 2, **changes: object) -> TrainerRun:
    return TrainerRun(tiny_config(text, **changes), tmp_path / "store", num_ranks)


def shards(run: TrainerRun, step: int) -> list[Path]:
    """The files of a checkpoint that hold state, largest first."""
    found = (run.store / f"run/checkpoints/step-{step:08d}").glob("*.bin")
    return sorted(found, key=lambda path: path.stat().st_size, reverse=True)


def flip_bytes(path: Path) -> None:
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle:middle + 8] = bytes(byte ^ 0xFF for byte in data[middle:middle + 8])
    path.write_bytes(data)


def checkpoint_files(run: TrainerRun) -> dict[str, str]:
    """Hash of every file of every checkpoint."""
    folder = run.store / "run/checkpoints"
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def the_one_error(output: str) -> str:
    """The error in a log, with its fix. There is one, and no trace of a program around it."""
    assert "Traceback" not in output and "ChildFailedError" not in output, output
    assert output.count("error: ") == 1 and output.count("\n  fix: ") >= 1, output
    return output[output.index("error: "):]


# -- before any rank starts ------------------------------------------------------------------------


def test_a_batch_that_does_not_divide_is_refused_with_one_that_does(text: Path, tmp_path: Path) -> None:
    run = new_run(text, tmp_path, global_batch_size=5)

    code, output = run.finish()

    assert code == ExitCode.BAD_CONFIG
    message = the_one_error(output)
    assert "train.global_batch_size: global_batch_size is 5, but 2 ranks" in message
    assert "set it to 4 (any multiple of 2 works)" in message


@pytest.mark.parametrize(("config", "problem"), [
    ('{"steps": 3', "train: Invalid JSON"),
    ('{"steps": 0}', "train.steps: Input should be greater than 0"),
    ("", f"trainer.node: the environment has no {Env.TRAIN_CONFIG}"),
])
def test_a_config_that_cannot_be_is_one_line(text: Path, tmp_path: Path, config: str, problem: str) -> None:
    run = new_run(text, tmp_path)

    code, output = finish_with(run, {Env.TRAIN_CONFIG: config})

    assert code == ExitCode.BAD_CONFIG
    assert problem in the_one_error(output)


def test_a_limit_of_a_width_is_named_with_the_field(text: Path, tmp_path: Path) -> None:
    run = new_run(text, tmp_path)
    values = json.loads(run.config.model_dump_json())
    values["model"]["num_heads"] = 3

    code, output = finish_with(run, {Env.TRAIN_CONFIG: json.dumps(values)})

    assert code == ExitCode.BAD_CONFIG
    assert "train.model: width 16 does not split into 3 heads" in the_one_error(output)


def test_a_value_that_a_library_refuses_is_told_and_not_tried_again(text: Path, tmp_path: Path) -> None:
    run = new_run(text, tmp_path, num_ranks=1)
    (patched := tmp_path / "patched").mkdir()
    (patched / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'trainer.rank' in ' '.join(sys.orig_argv):\n"
        "    import torch\n"
        "    def refuse(*_, **__):\n"
        "        raise ValueError('Invalid beta parameter at index 0: 1')\n"
        "    torch.optim.AdamW.__init__ = refuse\n")

    code, output = run.finish(PYTHONPATH=f"{patched}:{ROOT}")

    assert code == ExitCode.BAD_CONFIG, output
    assert "a value is refused: Invalid beta parameter at index 0: 1\n  fix: " in output
    assert "Traceback" not in output


def test_an_unknown_document_is_refused(text: Path, tmp_path: Path) -> None:
    code, output = new_run(text, tmp_path).finish("dance")
    assert code == ExitCode.BAD_CONFIG
    assert "cannot run dance" in the_one_error(output) and "train, bench" in output


def test_a_store_that_cannot_be_written_is_named_before_training(text: Path, tmp_path: Path) -> None:
    run = new_run(text, tmp_path)
    run.store.mkdir()

    code, output = run.finish(prefix=on_a_disk_of(run.store, "size=1m,ro"))

    assert code not in (0, *ExitCode)
    message = the_one_error(output)
    assert f"{local_store_url(run.store)}/run/attempts/1/attempt.json: cannot write" in message
    assert "Read-only file system" in message and "check the folder's permissions" in message


def finish_with(run: TrainerRun, changes: dict[str, str]) -> tuple[int, str]:
    """Run one attempt whose environment differs from the one that the run would give it."""
    words = [f"{name}={value}" for name, value in changes.items()]
    return run.finish(prefix=("env", *words))


def on_a_disk_of(mount: Path, options: str) -> tuple[str, ...]:
    """Words before a command that let it see a small disk of its own at a folder."""
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no user namespaces")
    return ("unshare", "-Urm", "sh", "-ec", f'mount -t tmpfs -o {options} none "$0"; exec "$@"', str(mount))


# -- in the ranks ----------------------------------------------------------------------------------


def test_text_that_is_gone_at_a_resume_costs_no_checkpoint(trained: TrainerRun, tmp_path: Path) -> None:
    before = checkpoint_files(trained)
    missing = tmp_path / "nowhere.txt"
    run = TrainerRun(tiny_config(missing, steps=14), trained.store, num_ranks=1)

    code, output = run.finish()

    assert code == ExitCode.BAD_CONFIG, output
    message = the_one_error(output)
    assert f"{missing}: the source cannot be read: No such file or directory" in message
    assert checkpoint_files(run) == before


def test_damaged_checkpoints_are_passed_over_and_the_log_says_so(trained: TrainerRun) -> None:
    flip_bytes(shards(trained, 8)[0])
    newest = shards(trained, 12)[-1]
    newest.write_bytes(newest.read_bytes()[:-100])

    code, output = trained.finish()

    assert code == ExitCode.FINISHED, output
    assert f"checkpoint step-00000012 ignored: {newest.name} is missing or has the wrong size" in output
    assert "checkpoint of step 8 not used" in output and "the file is corrupt" in output
    assert "resumed from step 4 of 14" in output and "Traceback" not in output
    assert [manifest.step for manifest in trained.checkpoints()] == [14, 12, 8, 4]


def test_when_every_checkpoint_is_damaged_the_run_stops_and_deletes_nothing(trained: TrainerRun) -> None:
    for step in (4, 8, 12):
        flip_bytes(shards(trained, step)[0])
    before = checkpoint_files(trained)

    code, output = trained.finish()

    assert code == ExitCode.BROKEN, output
    message = the_one_error(output)
    assert "run/checkpoints: all 3 committed checkpoints are damaged" in message
    assert "restore one from a backup" in message
    marks = {f"step-{step:08d}/quarantine.json" for step in (4, 8, 12)}
    after = checkpoint_files(trained)
    assert after.keys() == before.keys() | marks and before.items() <= after.items()


def test_a_full_disk_loses_no_durable_step_and_with_room_the_last_one_is_saved(
        text: Path, tmp_path: Path, trained_once: TrainerRun) -> None:
    size = trained_once.checkpoints()[0].num_bytes
    run = new_run(text, tmp_path, num_ranks=1, heartbeat_s=30.0)
    run.store.mkdir()
    words = on_a_disk_of(run.store, f"size={size * 3 // 2}")
    log = tmp_path / "log"
    program = (f'"$@" > {log} 2>&1 & until grep -q "it is tried again while there is time" {log}; '
               f"do sleep 0.1; done; cat {log}; cp -r {run.store} {tmp_path}/full; "
               f"mount -o remount,size={size * 8} {run.store}; echo ROOM AGAIN; "
               f"wait $!; code=$?; cat {log}; cp -r {run.store} {tmp_path}/after; exit $code")

    code, output = run.finish(prefix=(*words, "sh", "-c", program, "sh"))

    first, second = output.split("ROOM AGAIN")
    assert code == 0, output
    assert "Traceback" not in output
    assert "No space left on device" in first and "free disk space, or name another store" in first
    assert f"{local_store_url(run.store)}/run/checkpoints/step-00000008/" in first
    assert "step 4 is the newest durable one" in first
    assert load_averaged_weights(folder_at(tmp_path / "full"), lambda _: None)[0].step == 4
    assert "checkpoint of step 12 is durable" in second
    assert load_averaged_weights(folder_at(tmp_path / "after"), lambda _: None)[0].step == 12


def test_one_rank_that_cannot_upload_is_heard_at_once_and_the_next_save_counts(
        text: Path, tmp_path: Path) -> None:
    run = new_run(text, tmp_path)
    obstacle = run.store / "run/checkpoints/step-00000008/a1-rank-0001.bin"
    obstacle.mkdir(parents=True)

    code, output = run.finish()

    assert code == ExitCode.FINISHED, output
    assert "warning: rank 1: checkpoint not saved: " in output and obstacle.name in output
    assert "rank 1 did not upload its shard" in output and "Traceback" not in output
    assert [manifest.step for manifest in run.checkpoints()] == [12, 4]


def folder_at(store: Path) -> RunFolder:
    return RunFolder(open_store(local_store_url(store)), "run")


def test_heartbeats_that_fail_for_a_moment_stop_nothing_and_lose_no_row(text: Path, tmp_path: Path) -> None:
    run = new_run(text, tmp_path, num_ranks=1, steps=80, checkpoint={"every_steps": 40, "keep": 2})
    node = run.start()
    run.wait_for(node, attempt=1, step=2)
    obstacle = run.store / "run/attempts/1/heartbeat.json"
    while not obstacle.is_dir():  # the next heartbeat may come between these two lines
        obstacle.unlink(missing_ok=True)
        try:
            obstacle.mkdir()
        except FileExistsError:
            continue
    time.sleep(0.4)
    obstacle.rmdir()
    output, _ = node.communicate(timeout=100)

    assert node.returncode == ExitCode.FINISHED, output
    assert "warning: heartbeat not written: " in output and "Traceback" not in output
    assert sorted(run.losses(1)) == list(range(1, 81))
    assert run.folder.attempt(1).heartbeat.durable_step == 80
