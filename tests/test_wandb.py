"""W&B shows every row once, whatever happens to the machine; and it costs training nothing.

The SDK is the real one, offline or against `wandb_server`; nothing leaves this machine.
"""

import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tests.trainer_runs import ROOT, TrainerRun, kill_tree, tiny_config, write_text  # noqa: E402
from tests.wandb_files import wandb_rows  # noqa: E402
from tests.wandb_records import add_attempt, new_folder  # noqa: E402
from tests.wandb_server import WandbServer, wandb_server  # noqa: E402
from tests.webhook_server import WebhookServer, webhook_server  # noqa: E402
from trainer.contract import ExitCode, LdlmError, Outcome  # noqa: E402
from trainer.run_folder import RunFolder, RunOutcome  # noqa: E402
from trainer.tell import tell_end  # noqa: E402
from trainer.wandb_command import require_no_offline_run  # noqa: E402
from trainer.wandb_panels import SECTIONS, workspace  # noqa: E402

KEY = "k0" * 20
STEPS = list(range(13))  # 0 has what was measured before training


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with wandb_server() as found:
        yield found


@pytest.fixture
def hook() -> Iterator[WebhookServer]:
    with webhook_server() as found:
        yield found


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainerRun, str]:
    """Twelve steps without a key, killed after the first checkpoint and resumed; and what was printed."""
    folder = tmp_path_factory.mktemp("offline")
    with wandb_server() as nobody:
        run = TrainerRun(tiny_config(write_text(folder / "prose.txt")), folder / "store", num_ranks=1,
                         environment={"WANDB_BASE_URL": nobody.url, "HOME": str(folder)})
        train_killed(run)
        code, output = run.finish()
        assert code == ExitCode.FINISHED, output
        assert nobody.seen == [] and nobody.keys == set()
    run.folder.write_bytes("recipe.json", b'{"name": "tiny", "train": %s}'
                           % run.config.model_dump_json().encode())
    return run, output


def train_killed(run: TrainerRun) -> None:
    node = run.start()
    run.wait_for(node, attempt=1, step=6, durable=4)
    kill_tree(node)


def environment(server: WandbServer, home: Path, **more: str) -> dict[str, str]:
    return {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "HOME": str(home), **more}


def command(folder: RunFolder, name: str, *more: str,
            env: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """What `ldlm wandb` runs."""
    words = [sys.executable, "-m", "trainer.wandb_command", name, folder.run_id, "--store",
             folder.store.address, *more]
    return subprocess.run(words, cwd=ROOT, env=os.environ | env, text=True, capture_output=True, timeout=120,
                          check=False)


def recorded(run: TrainerRun) -> dict[int, dict[str, Any]]:
    """Rows that both attempts have left, by the plain rule: where both have a step, the second's counts."""
    rows: dict[int, dict[str, Any]] = {}
    for attempt in (1, 2):
        own: dict[int, dict[str, Any]] = {}
        for chunk in run.folder.store.objects(f"run/attempts/{attempt}/metrics"):
            for line in run.folder.store.get(chunk.key).decode().splitlines():
                row = json.loads(line)
                own.setdefault(row["step"], {}).update(row)
        rows.update(own)
    return rows


def assert_shows(history: list[dict[str, Any]], run: TrainerRun) -> None:
    """Every recorded row stands once in a history, in order, number by number."""
    assert [row["_step"] for row in history] == [row["train/step"] for row in history] == STEPS
    for row in history:
        expected = recorded(run)[row["_step"]]
        numbers = {name: value for name, value in expected.items()
                   if name not in ("step", "time") and not name.startswith("time_density/")}
        assert {name: row[name] for name in numbers} == pytest.approx(numbers, nan_ok=True)
        assert row["_timestamp"] == pytest.approx(expected["time"])


# -- while it trains -------------------------------------------------------------------------------


def test_a_run_that_was_killed_and_resumed_is_one_w_and_b_run_with_each_row_once(
        server: WandbServer, hook: WebhookServer, tmp_path: Path) -> None:
    config = tiny_config(write_text(tmp_path / "prose.txt"), steps=600, checkpoint={"every_steps": 4},
                         evaluate_every_steps=600)
    quick = environment(server, tmp_path, WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL="0.5",
                        LDLM_WEBHOOK_URL=hook.url)
    run = TrainerRun(config, tmp_path / "store", num_ranks=1, environment=quick)
    node, give_up = run.start(), time.monotonic() + run.deadline_s
    while not history(server) and time.monotonic() < give_up:
        time.sleep(0.05)
    kill_tree(node)
    before = list(history(server))
    assert before and before[-1]["_step"] < 600
    run.folder.close_open_attempts(run.folder.attempts(), "the machine was taken back", preempted=True)

    # Nearly done: how fast steps are differs from machine to machine.
    run.config = config = config.model_copy(update={"steps": run.checkpoints()[0].step + 40})
    code, output = run.finish()

    assert code == ExitCode.FINISHED, output
    assert f"W&B: {server.url}/someone/ldlm/runs/run" in output
    steps = [row["_step"] for row in history(server)]
    assert steps == list(range(run.folder.read("outcome.json", RunOutcome).step + 1))
    assert len(steps) > len(before)
    shown = server.runs["ldlm/run"]
    assert list(server.runs) == ["ldlm/run"]
    assert history(server)[: len(before)] == before
    assert shown.config["train"]["value"] == config.model_dump(mode="json")
    assert shown.exit_codes == [0]
    # Scores of the end stand with the losses of their step; texts as a table, q(u) as a histogram.
    assert {"loss/diffusion", "eval/latent_variance", "gamma", "goodput"} <= history(server)[-1].keys()
    assert history(server)[-1]["eval/reconstructions"]["_type"] == "table-file"
    assert history(server)[-1]["eval/samples"]["_type"] == "table-file"
    assert history(server)[-1]["time_density"]["_type"] == "histogram"
    assert any("media/table/eval/reconstructions" in name for name in shown.files)
    assert any("media/table/eval/samples" in name for name in shown.files)
    # How far it had come decides whether a model of this size is called stuck.
    told = {alert["title"]: alert["severity"] for alert in server.alerts if "learning" not in alert["title"]}
    assert told == {"run: preempted 1": "WARN", "run: recovered 2": "INFO", "run: finished": "INFO"}
    assert sorted(alert["title"].replace(": ", "/").replace(" ", "-") for alert in server.alerts) == sorted(
        hook.ids)
    kept = [run.folder.store.get(found.key) for found in run.folder.store.objects()]
    assert not any(b"a-secret" in text for text in kept) and "a-secret" not in output


def history(server: WandbServer) -> list[dict[str, Any]]:
    return server.runs["ldlm/run"].history if "ldlm/run" in server.runs else []


def test_an_outage_of_w_and_b_ends_no_run_and_the_rest_can_be_sent_later(
        server: WandbServer, tmp_path: Path) -> None:
    server.down = True
    run = TrainerRun(tiny_config(write_text(tmp_path / "prose.txt")), tmp_path / "store", num_ranks=1,
                     environment=environment(server, tmp_path))
    code, output = run.finish()
    assert code == ExitCode.FINISHED, output
    assert "W&B: not everything was sent; this sends the rest: ldlm wandb sync run" in output
    assert server.runs == {}
    assert KEY not in output
    assert all(KEY.encode() not in run.folder.store.get(found.key) for found in run.folder.store.objects())


_SENDS_TWICE = """
import sys
from pathlib import Path
from tests.trainer_runs import tiny_config
from trainer.run_folder import RunFolder
from trainer.store import open_store
from trainer.wandb_follow import _Sender
sender = _Sender(RunFolder(open_store(sys.argv[1]), "run"), tiny_config(Path("unused")), 1, Path(sys.argv[2]))
print(sender.pass_on(), sender.pass_on(), sender.pass_on(), sender.pass_on(exit_code=0))
"""


def test_rows_arrive_once_although_the_run_is_refused_at_first(
        server: WandbServer, tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "store")
    add_attempt(folder, range(1, 7), durable=6, exit_code=0)
    folder.write_bytes("attempts/1/metrics/000001.jsonl", b'{"step": 4, "time": 4, "eval/rank": 3.0}\n')
    folder.write_bytes("attempts/1/evaluations/00000004.json", 
                       b'{"reconstructions": [["text", "model"]], "samples": ["a", "b", "c"]}')
    server.refused = {"RunResumeStatus"}
    words = [sys.executable, "-c", _SENDS_TWICE, folder.store.address, str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, env=os.environ | environment(server, tmp_path), text=True,
                          capture_output=True, timeout=120, check=False)
    assert "False True True True" in done.stdout, done.stdout + done.stderr
    assert "warning: W&B: W&B cannot be reached, or refuses: " in done.stdout
    assert [row["_step"] for row in history(server)] == [1, 2, 3, 4, 5, 6]
    assert history(server)[3]["eval/rank"] == 3.0
    assert history(server)[3]["eval/reconstructions"]["nrows"] == 1
    assert history(server)[3]["eval/samples"]["nrows"] == 3
    assert [row["_step"] for row in history(server) if "eval/samples" in row] == [4]


# -- later -----------------------------------------------------------------------------------------


def test_without_a_key_nothing_is_sent_and_the_command_that_sends_it_is_printed(
        killed_run: tuple[TrainerRun, str]) -> None:
    _, output = killed_run
    assert "W&B: nothing was sent (no WANDB_API_KEY); this sends it: ldlm wandb sync run" in output


def test_an_offline_run_of_the_sdk_holds_each_row_once(
        killed_run: tuple[TrainerRun, str], server: WandbServer, tmp_path: Path) -> None:
    run, _ = killed_run
    done = command(run.folder, "sync", "--out", str(tmp_path), env={"HOME": str(tmp_path),
                                                                    "WANDB_BASE_URL": server.url})
    assert done.returncode == 0, done.stderr
    assert f"wrote 13 rows; on a machine with a network: wandb sync {tmp_path}" in done.stdout
    assert_shows(wandb_rows(tmp_path), run)
    assert server.seen == []
    evaluated = [row for row in wandb_rows(tmp_path) if "eval/hidden_loss" in row]
    assert [row["eval/samples/nrows"] for row in evaluated] == [run.config.sampling.num_samples]


def test_what_an_offline_run_holds_is_shown_once_however_often_it_is_written_and_sent(
        killed_run: tuple[TrainerRun, str], server: WandbServer, tmp_path: Path) -> None:
    run, _ = killed_run
    env = environment(server, tmp_path)
    first, again = (command(run.folder, "sync", "--out", str(tmp_path / "a b"), env=env) for _ in range(2))
    typed = shlex.split(first.stdout.partition("network: ")[2])
    assert typed[:2] == ["wandb", "sync"] and Path(typed[2]).is_dir(), first.stderr
    assert again.returncode == 1 and f"error: {typed[2]}: it is an offline run of this run" in again.stderr
    assert "fix: wandb sync '" in again.stderr
    assert len(list((tmp_path / "a b" / "wandb").glob("offline-run-*"))) == 1
    for _ in range(2):
        sent = subprocess.run([Path(sys.executable).with_name("wandb"), *typed[1:]], cwd=tmp_path,
                              env=os.environ | env, text=True, capture_output=True, timeout=120, check=False)
        assert sent.returncode == 0, sent.stderr
    assert "nothing new" in command(run.folder, "sync", env=env).stdout
    assert_shows(history(server), run)


def test_an_alert_that_nobody_was_sent_is_kept_offline_and_arrives_once_with_the_sync(
        server: WandbServer, tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "store")
    add_attempt(folder, range(1, 4), durable=3, exit_code=0)
    end = RunOutcome(outcome=Outcome.FINISHED, at=datetime.now(UTC), step=3, reason="3 steps")
    tell_end(folder, end, {})
    env = environment(server, tmp_path)
    first = command(folder, "sync", "--out", str(tmp_path / "out"), env=env)
    assert first.stdout.startswith("wrote 1 alerts; wrote 3 rows; "), first.stderr
    assert server.alerts == []
    typed = shlex.split(first.stdout.partition("network: ")[2])
    sent = subprocess.run([Path(sys.executable).with_name("wandb"), *typed[1:]], cwd=tmp_path,
                          env=os.environ | env, text=True, capture_output=True, timeout=120, check=False)
    assert sent.returncode == 0, sent.stderr
    assert "alerts" not in command(folder, "sync", env=env).stdout
    assert [(alert["title"], alert["text"]) for alert in server.alerts] == [
        ("run: finished", "it has finished: 3 steps ($1.00, step 3)")]


def test_only_an_offline_run_of_the_same_run_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "wandb" / "offline-run-20260101_120000-other-run").mkdir(parents=True)
    require_no_offline_run(tmp_path, "run")
    with pytest.raises(LdlmError):
        require_no_offline_run(tmp_path, "other-run")


def test_what_was_trained_without_a_key_is_sent_later_and_only_once(
        killed_run: tuple[TrainerRun, str], server: WandbServer, tmp_path: Path) -> None:
    run, _ = killed_run
    first = command(run.folder, "sync", env=environment(server, tmp_path))
    assert first.returncode == 0, first.stderr
    assert "sent 13 rows, from step 0 on" in first.stdout
    again = command(run.folder, "sync", env=environment(server, tmp_path))
    assert "nothing new: W&B has all rows that are settled" in again.stdout, again.stderr
    assert "alerts" not in again.stdout
    assert_shows(history(server), run)
    assert server.runs["ldlm/run"].summary["outcome"] == "finished: 12 steps"
    assert server.runs["ldlm/run"].summary["verdict"] == "too early"


def test_only_the_project_of_the_recipe_counts_whatever_the_users_environment_says(
        server: WandbServer, tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "store")
    add_attempt(folder, range(1, 4), durable=3, exit_code=0)
    folder.write_bytes("recipe.json", b'{"train": {"wandb": {"project": "mine"}}}')
    done = command(folder, "sync", env=environment(server, tmp_path) | {
        "WANDB_PROJECT": "other", "WANDB_RUN_ID": "other", "WANDB_MODE": "disabled", "WANDB_RESUME": "never"})
    assert done.returncode == 0, done.stderr
    assert list(server.runs) == ["mine/run"]
    assert server.runs["mine/run"].commit == "a" * 40


def test_rows_that_are_no_numbers_and_rows_far_apart_arrive(server: WandbServer, tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "store")
    add_attempt(folder, range(10, 4000, 1000), durable=4000, exit_code=0)
    folder.write_bytes("attempts/1/metrics/000001.jsonl", b'{"step": 5000, "time": 1, "loss/hidden": NaN}\n')
    done = command(folder, "sync", env=environment(server, tmp_path))
    assert "sent 5 rows" in done.stdout, done.stderr
    assert [row["_step"] for row in history(server)] == [10, 1010, 2010, 3010, 5000]
    assert math.isnan(float(history(server)[-1]["loss/hidden"]))


def test_a_run_that_its_node_sends_is_left_to_it(server: WandbServer, tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "store")
    add_attempt(folder, range(1, 4), durable=3, beat_at=datetime.now(UTC))
    folder.write_bytes("attempts/1/wandb.json", b'{"url": "https://there"}')
    done = command(folder, "sync", env=environment(server, tmp_path))
    assert done.returncode == 1
    assert "https://there: its node sends this run while it trains" in done.stderr
    assert server.runs == {}


@pytest.mark.parametrize(("name", "run_id", "key", "words"), [
    ("sync", "run", "", "there is no key for W&B"), ("workspace", "run", "", "there is no key for W&B"),
    ("sync", "gone", KEY, "no run 'gone'")])
def test_what_cannot_be_sent_is_refused_in_words(
        name: str, run_id: str, key: str, words: str, server: WandbServer, tmp_path: Path) -> None:
    folder = RunFolder(new_folder(tmp_path / "store").store, run_id)
    done = command(folder, name, env=environment(server, tmp_path) | {"WANDB_API_KEY": key})
    assert done.returncode == 1
    assert words in done.stderr and "fix:" in done.stderr and "Traceback" not in done.stderr
    assert server.seen == []


# -- panels ----------------------------------------------------------------------------------------


def test_every_panel_shows_rows_that_a_run_has(killed_run: tuple[TrainerRun, str]) -> None:
    run, _ = killed_run
    names = {name for row in recorded(run).values() for name in row} | {"time_density"}
    on_gpus_only = {"mfu", "peak_memory_gib"}
    shown = {metric for plots in SECTIONS.values() for metrics in plots.values() for metric in metrics}
    assert shown - names == on_gpus_only
    assert {name for name in names if name.startswith("eval/")} <= shown


def test_the_workspace_has_training_steps_as_its_axis() -> None:
    spec = workspace("team", "ldlm")._to_model().model_dump(by_alias=True)
    sections = spec["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == [*SECTIONS, "Texts"]
    lines = [panel["config"] for section in sections for panel in section["panels"]
             if panel["viewType"] == "Run History Line Plot"]
    assert len(lines) == sum(map(len, SECTIONS.values()))
    assert {config["xAxis"] for config in lines} == {"train/step"}
    assert lines[0]["metrics"] == ["eval/diffusion_loss", "eval/diffusion_loss_linear",
                                   "eval/diffusion_loss_trivial"]


def test_the_workspace_is_made_in_the_project_of_the_run(server: WandbServer, tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "store")
    folder.write_bytes("recipe.json", b'{"train": {"wandb": {"project": "mine", "entity": "team"}}}')
    done = command(folder, "workspace", env=environment(server, tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith(f"{server.url}/team/mine?nw=")
    (view,) = server.views
    assert (view["projectName"], view["entityName"], view["displayName"]) == ("mine", "team", "ldlm")
    assert "eval/latent_variance" in view["spec"]
