"""A dry run and a plan tell all that a launch would be refused for, each with its fix; a launch the first."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_lab import FAKE_NODE, Checkout, environment, files_below, without_quotes
from s3_server import KEYS, running_s3_server
from sky_server_lab import free_port

ALL = "a launch would be refused now:\n"


class Place:
    """A checkout of somebody who has set up nothing."""

    def __init__(self, folder: Path) -> None:
        self.home, self.checkout = folder / "home", Checkout(folder, FAKE_NODE)
        self.home.mkdir()
        self.own = {"HOME": str(self.home), "LDLM_HOME": str(self.home / ".ldlm"),
                    "SKYPILOT_API_SERVER_LOCAL_PORT": str(free_port()), "AWS_EC2_METADATA_DISABLED": "true"}

    def ldlm(self, *words: str, **own: str) -> "subprocess.CompletedProcess[str]":
        return self.checkout.ldlm(*words, env=environment(**self.own | own))

    def reasons(self, *words: str, **own: str) -> list[str]:
        """Of a dry run on Vast: each in one line, with its fix behind it."""
        done = self.ldlm("launch", "example", "--infra", "vast", *words, "--dry-run", **own)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("name: ") and "Traceback" not in done.stderr
        assert max(map(len, done.stderr.splitlines())) <= 80
        _, _, told = done.stderr.partition(ALL)
        told, end = told.removesuffix("\n").rsplit("\n", 1)
        assert end == "dry run: nothing was rented, started or written"
        return [" ".join(reason.split()) for reason in told.removeprefix("  - ").split("\n  - ")]

    def git(self, *words: str) -> None:
        subprocess.run(["git", "-C", str(self.checkout.folder), "-c", "user.name=I", "-c", "user.email=i@x",
                        *words], check=True, capture_output=True)

    def commit(self) -> None:
        (self.checkout.folder / ".gitignore").write_text("__pycache__\n")
        for words in (["init"], ["add", "-A"], ["commit", "-m", "all"]):
            self.git(*words)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    assert without_quotes(place.home / ".ldlm") == []
    assert [name for name in files_below(place.home) if name.partition("/")[0] != ".ldlm"] == []


NO_KEY = ("--infra vast: no Vast.ai credentials: nothing at ~/.config/vastai/vast_api_key fix: write the API "
          "key of your Vast.ai account to ~/.config/vastai/vast_api_key")
NO_STORE = ("train and bench: envs.LDLM_STORE: no store is set, so checkpoints have no place fix: ldlm init "
            "--store s3://BUCKET/PREFIX (or gs://, az://), or add --store URL")


def test_who_has_set_up_nothing_is_told_everything_at_once(place: Place) -> None:
    key, store, git, files = place.reasons("--set", "store=")
    assert (key, store) == (NO_KEY, NO_STORE)
    assert "this is no git repository" in git and git.endswith("fix: work in a clone, or add --allow-dirty")
    assert "SkyPilot would copy keys onto rented machines" in files and files.endswith("fix: ldlm init")


def test_keys_of_the_store_changes_in_no_commit_and_a_machine_that_nobody_takes_are_reasons_too(
        place: Place) -> None:
    place.commit()
    (place.checkout.folder / "forgotten.txt").write_text("")
    preempt, key, dirty, no_keys, _ = place.reasons("--store", "s3://bucket/ldlm", "--preempt-at", "step:3")
    assert preempt == ("--preempt-at: machines at vast are not taken back at step:3 fix: leave it out; "
                       "--infra local plays the cloud that takes a machine")
    assert key == NO_KEY
    assert dirty.endswith("what is in no commit goes to the nodes, too: forgotten.txt fix: commit it, name "
                          "it in .gitignore, or add --allow-dirty")
    assert no_keys.startswith("environment: there are no AWS credentials for the nodes fix: aws configure")


def test_with_keys_the_store_is_asked_and_only_what_is_still_lacking_is_told(place: Place) -> None:
    with running_s3_server() as s3:
        s3.make_bucket("runs")
        named = place.reasons("--store", s3.url("runs", "ldlm"), "--allow-dirty", **KEYS)
        # A long path is folded where the screen ends.
        assert [reason.partition(":")[0].replace(" ", "") for reason in named] == [
            "--infravast", str(place.home / ".sky")]
        _, missing, _ = place.reasons("--store", s3.url("nowhere", "ldlm"), "--allow-dirty", **KEYS)
    assert missing.startswith("s3://nowhere/ldlm/example-") and " fix: " in missing


def test_a_trap_that_stands_in_several_places_is_told_once(place: Place) -> None:
    without = ("--set", "hardware.train.1.bid_usd_per_hour=null",
               "--set", "hardware.bench=[{infra: azure, gpu: 'A100-80GB:1'}]")
    price = [reason for reason in place.reasons(*without) if "price is not known" in reason]
    assert [reason.partition(": the price")[0] for reason in price] == [
        "train and bench: envs.LDLM_PRICE_USD_PER_HOUR"]


def test_a_server_that_is_named_and_silent_is_a_reason_and_its_password_is_not_shown(place: Place) -> None:
    said = place.reasons(SKYPILOT_API_SERVER_ENDPOINT=f"http://me:secret@127.0.0.1:{free_port()}")
    (server,) = [reason for reason in said if "API server" in reason]
    assert server.startswith("http://me:...@127.0.0.1:") and "does not answer (Connection refused)" in server
    assert "secret" not in server and "fix: see that it runs" in server


def test_a_plan_says_the_same_to_people_and_to_programs(place: Place) -> None:
    args = ("plan", "example", "--infra", "vast", "--set", "store=")
    done = place.ldlm(*args)
    assert done.returncode == 0 and max(map(len, done.stdout.splitlines())) <= 80
    _, _, told = done.stdout.partition(f"nothing was started, and {ALL}")
    words = " ".join(told.split())
    assert NO_KEY in words and NO_STORE in words and "this is no git repository" in words
    assert told.endswith(f"this prints the task:\n  ldlm launch {' '.join(args[1:])} --dry-run\n")
    key, store, *_ = json.loads(place.ldlm(*args, "--json").stdout)["refusals"]
    assert f"{key['place']}: {key['problem']} fix: {key['fix']}" == NO_KEY
    assert f"{store['place']}: {store['problem']} fix: {store['fix']}" == NO_STORE


def test_a_launch_is_refused_for_the_first_of_them(place: Place) -> None:
    pytest.importorskip("vastai_sdk")
    args = ("launch", "example", "--infra", "vast", "--yes")
    done = place.ldlm(*args, "--set", "store=", "--preempt-at", "time:9")
    assert done.returncode == 2 and done.stderr.count("error:") == 1 and "--preempt-at: " in done.stderr
    key = place.home / ".config/vastai/vast_api_key"
    key.parent.mkdir(parents=True)
    key.write_text("k")
    done = place.ldlm(*args, "--set", "store=")
    assert done.returncode == 4 and "no store is set" in done.stderr
    done = place.ldlm(*args, "--allow-dirty")
    assert done.returncode == 5 and "there are no AWS credentials for the nodes" in done.stderr
    with running_s3_server() as s3:
        s3.make_bucket("runs")
        done = place.ldlm(*args, "--allow-dirty", "--store", s3.url("runs"), **KEYS)
    assert done.returncode == 5 and "copy keys onto rented machines" in done.stderr
    assert "fix: ldlm init" in done.stderr
    shutil.rmtree(place.home / ".config")


def test_a_run_id_that_is_taken_is_a_reason(place: Place) -> None:
    store = place.home / "store"
    (store / "mine").mkdir(parents=True)
    (store / "mine" / "recipe.json").write_text("{}")
    done = place.ldlm("launch", "example", "--store", str(store), "--run-id", "mine", "--dry-run")
    assert done.returncode == 0 and "a run 'mine' exists already" in done.stderr.partition(ALL)[2]
    shutil.rmtree(store)
