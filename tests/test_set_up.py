"""`ldlm init` as a person or a script meets it: real files in a home of its own, read by SkyPilot itself."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cli_lab import RECIPE, Terminal, check_golden, environment, files_below, ldlm, refused
from s3_server import KEYS, running_s3_server
from sky_server_lab import free_port

from launcher.sky_ready import GUARDED

THEIRS = """\
# of the lab
gcp:
  use_internal_ips: true  # shared
vast: {datacenter_only: true}
jobs:
  bucket: s3://lab
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home, empty."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LDLM_HOME", str(tmp_path / ".ldlm"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("SKYPILOT_API_SERVER_LOCAL_PORT", str(free_port()))
    for name in ("SKYPILOT_API_SERVER_ENDPOINT", "SKYPILOT_GLOBAL_CONFIG", "SKYPILOT_SERVER_PLUGINS_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def wrote(home: Path, name: str, text: str) -> Path:
    path = home / ".sky" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def settings(home: Path) -> dict[str, str]:
    return dict(json.loads((home / ".ldlm" / "settings.json").read_text()))


def contents(home: Path) -> dict[str, bytes]:
    return {name: (home / name).read_bytes() for name in files_below(home) if (home / name).is_file()}


def init(*args: str) -> str:
    done = ldlm("init", "--yes", *args)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_everything_is_shown_written_and_private(home: Path) -> None:
    said = init("--store", "s3://bucket/ldlm", "--max-cost", "20", "--wandb-project", "mine")
    check_golden("screen-init.txt", said.replace(str(home), "HOME"))
    assert settings(home) == {"store": "s3://bucket/ldlm", "max_cost_usd": "20", "wandb_project": "mine"}
    for path in (home / ".ldlm/settings.json", home / ".sky/config.yaml", home / ".sky/plugins.yaml"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_second_time_changes_nothing_and_says_so(home: Path) -> None:
    init("--store", "s3://bucket/ldlm")
    before = contents(home)
    for args in ((), ("--store", "s3://bucket/ldlm")):
        assert init(*args) == "everything is set up already: nothing was changed\n"
    assert contents(home) == before


# Asks SkyPilot itself, in a process that has this home: which keys it would copy, and what it has read.
_ASK_SKYPILOT = """
import json, sys
from sky import check, skypilot_config
from sky.server import plugins
from sky.utils import registry
guarded = [cloud for name, cloud in registry.CLOUD_REGISTRY.items()
           if skypilot_config.get_effective_workspace_region_config(
               cloud=name, region="here", keys=("remote_identity",), default_value=None) == "NO_UPLOAD"]
print(json.dumps({
    "guarded": sorted(str(cloud).lower() for cloud in guarded),
    "travel": sorted(check.get_cloud_credential_file_mounts(guarded)),
    "open": sorted(check.get_cloud_credential_file_mounts([])),
    "config": skypilot_config.to_dict(),
    "plugins": plugins._load_plugin_config()}))
"""


def test_skypilot_takes_what_was_written_and_copies_no_key_of_a_cloud(home: Path) -> None:
    pytest.importorskip("sky.jobs.state")
    wrote(home, "config.yaml", THEIRS)
    wrote(home, "plugins.yaml", "plugins:\n- class: theirs.Plugin\n")
    keys = (".config/vastai/vast_api_key", ".azure/msal_token_cache.json", ".config/gcloud/credentials.db")
    for name in keys:
        (home / name).parent.mkdir(parents=True)
        (home / name).write_text("key")
    init()
    done = subprocess.run([sys.executable, "-c", _ASK_SKYPILOT], cwd=home, env=environment(), text=True,
                          capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["guarded"]) == set(GUARDED)
    assert set(found["open"]) >= {f"~/{name}" for name in keys}
    assert found["travel"] == []
    assert found["config"]["gcp"] == {"use_internal_ips": True, "remote_identity": "NO_UPLOAD"}
    assert found["config"]["jobs"] == {"bucket": "s3://lab", "controller": {"consolidation_mode": True}}
    assert found["plugins"] == {"plugins": [{"class": "launcher.sky_plugin.LdlmPlugin"},
                                            {"class": "theirs.Plugin"}]}


def test_what_others_have_written_stays_with_its_comments_and_a_copy_is_kept(home: Path) -> None:
    path = wrote(home, "config.yaml", THEIRS)
    path.chmod(0o640)
    said = ldlm("init", "--yes")
    assert path.read_text().startswith(
        "# of the lab\ngcp:\n  remote_identity: NO_UPLOAD\n  use_internal_ips: true  # shared\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    (kept,) = path.parent.glob("config.yaml.*.bak")
    assert kept.read_text() == THEIRS
    assert f"the old one is {kept.name}" in said.stderr


def test_a_linked_config_stays_a_link(home: Path) -> None:
    (home / "dotfiles").mkdir()
    (home / "dotfiles" / "sky.yaml").write_text(THEIRS)
    (home / ".sky").mkdir()
    (home / ".sky" / "config.yaml").symlink_to(home / "dotfiles" / "sky.yaml")
    init()
    assert (home / ".sky" / "config.yaml").is_symlink()
    assert "NO_UPLOAD" in (home / "dotfiles" / "sky.yaml").read_text()


@pytest.mark.parametrize(("name", "text"), [
    ("config.yaml", "vast: {remote_iden"), ("config.yaml", "- a list\n"), ("config.yaml", "vast: oh\n"),
    ("config.yaml", "a: \xff\n"), ("plugins.yaml", "plugins: {class: x}\n"), ("plugins.yaml", "plugins: [")])
def test_a_torn_file_of_skypilot_is_left_alone_and_nothing_is_written(home: Path, name: str,
                                                                      text: str) -> None:
    path = wrote(home, name, "")
    path.write_bytes(text.encode("latin-1"))
    said = refused(5, "init", "--yes", "--store", "s3://bucket/ldlm")
    assert f"error: {path}: is SkyPilot's and cannot be changed: " in said
    assert "put this into it by hand: " in said
    assert path.read_bytes() == text.encode("latin-1")
    assert [found for found in files_below(home) if found not in (".sky", f".sky/{name}")] == []


@pytest.mark.parametrize("text", [
    "{", "[]", '{"store": 1}', '{"shop": "x"}', '{"max_cost_usd": "-1"}', "\xff"])
def test_torn_settings_are_told_wherever_they_are_needed(home: Path, text: str) -> None:
    (home / ".ldlm").mkdir()
    (home / ".ldlm" / "settings.json").write_bytes(text.encode("latin-1"))
    for args in (("init", "--yes"), ("plan", RECIPE), ("status",)):
        said = refused(3, *args)
        assert f"error: {home}/.ldlm/settings.json: cannot be understood: " in said
        assert "fix: delete it and type `ldlm init`" in said


def test_a_home_that_cannot_be_written_is_told_and_loses_nothing(home: Path) -> None:
    (home / "file").write_text("")
    env = environment(LDLM_HOME=str(home / "file" / "x"))
    said = refused(1, "init", "--yes", "--store", "s3://b", env=env)
    assert "error: " in said and "fix: check that it exists, its permissions" in said
    assert files_below(home) == ["file"]


@pytest.mark.parametrize(("args", "code", "words"), [
    (("--store", "ftp://x"), 6, "cannot open a store at 'ftp://x'"),
    (("--store", "s3://key:secret@bucket"), 2, "--store: holds what looks like a key"),
    (("--store", "az://a/c?sig=abc"), 2, "--store: holds what looks like a key"),
    (("--max-cost", "much"), 2, "--max-cost: 'much' is no number of dollars"),
    (("--wandb-project", "a b"), 2, "'a b' is no name of W&B"),
    (("--api-server", "sky.example.org"), 2, "--api-server: 'sky.example.org' is no URL"),
    (("--api-server", "ssh://me@-oProxyCommand=x"), 2, "is no machine that ssh could reach"),
    (("--api-server", "https://a.b", "--controller-usd-per-hour", "-1"), 2, "'-1' is no price of an hour"),
    (("--api-server", "https://me:pw@sky.example.org"), 2, "--api-server: holds what looks like a key"),
    (("--store", ""), 2, "--store: is empty")])
def test_an_answer_that_cannot_be_used_is_refused_and_nothing_is_written(home: Path, args, code,
                                                                         words) -> None:
    assert words in refused(code, "init", "--yes", *args)
    assert files_below(home) == []


def test_a_bucket_that_is_not_there_is_refused_and_one_that_cannot_be_reached_is_said(
        home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with running_s3_server() as s3:
        s3.make_bucket("runs")
        missing, there = s3.url("nowhere", "ldlm"), s3.url("runs", "ldlm")
        said = refused(6, "init", "--yes", "--store", missing)
        assert "check that the bucket exists" in said and files_below(home) == []
        done = ldlm("init", "--yes", "--store", there)
        assert done.returncode == 0 and "could not be looked at" not in done.stderr
    done = ldlm("init", "--yes", "--store", missing)  # nobody answers there any more
    assert done.returncode == 0 and "could not be looked at now: " in done.stderr
    assert settings(home)["store"] == missing


def test_where_nobody_can_answer_nothing_is_done(home: Path) -> None:
    said = refused(1, "init", "--store", "s3://bucket/ldlm")
    assert "nobody is here to answer, so nothing was done" in said and "ldlm init --yes" in said
    assert files_below(home) == []


def test_a_person_is_asked_for_what_is_not_given_and_again_after_a_slip(home: Path) -> None:
    screen = Terminal("init", "--store", "s3://bucket/ldlm", "--wandb-entity", "none")
    for question, typed in (("Dollars", "much"), ("such as --max-cost 12.5", ""), ("Dollars", "20"),
                            ("Project on W&B", ""), ("URL of your SkyPilot", ""), ("Write this?", "y")):
        screen.wait_for(question)
        screen.text = screen.text.partition(question)[2]
        if typed or question != "such as --max-cost 12.5":
            screen.type(f"{typed}\n")
    assert screen.wait() == 0
    assert settings(home) == {"store": "s3://bucket/ldlm", "max_cost_usd": "20"}


@pytest.mark.parametrize("keys", ["\x03", "\x04"])
def test_whoever_ends_it_at_a_question_has_changed_nothing(home: Path, keys: str) -> None:
    screen = Terminal("init")
    screen.wait_for("Object store")
    screen.type(keys)
    assert screen.wait() == 130
    assert "interrupted, so nothing was changed" in screen.plain()
    assert files_below(home) == []


def test_no_leaves_everything_as_it_was(home: Path) -> None:
    screen = Terminal("init", "--store", "s3://b", "--max-cost", "1", "--wandb-project", "p",
                      "--wandb-entity", "e", "--api-server", "none")
    screen.wait_for("Write this?")
    screen.type("n\n")
    assert screen.wait() == 1
    assert files_below(home) == []


def test_a_server_elsewhere_has_files_of_its_own(home: Path) -> None:
    said = init("--api-server", "https://sky.example.org/")
    assert settings(home) == {"api_server": "https://sky.example.org"}
    assert not (home / ".sky").exists()
    assert "https://sky.example.org has a config of its own" in said
    assert "sky.example.org" not in init("--api-server", "none")
    assert settings(home) == {} and (home / ".sky" / "config.yaml").exists()


def test_a_server_elsewhere_has_a_price_that_goes_with_it(home: Path) -> None:
    init("--api-server", "https://sky.example.org", "--controller-usd-per-hour", "0.0080")
    assert settings(home) == {"api_server": "https://sky.example.org", "controller_usd_per_hour": "0.0080"}
    found = plan()
    assert found["controller_usd_per_hour"] == "0.0080"
    hours, usd = found["hours"], found["controller_usd"]
    assert isinstance(hours, dict) and isinstance(usd, dict)
    for end in ("low", "mid", "high"):
        assert abs(float(usd[end]) - float(hours[end]) * 0.008) < 0.0001
    assert plan(SKYPILOT_API_SERVER_ENDPOINT="https://another.example.org")["controller_usd_per_hour"] is None
    init("--api-server", "ssh://me@sky.example.org:2222/")
    assert settings(home)["api_server"] == "ssh://me@sky.example.org:2222"
    init("--api-server", "none")
    assert settings(home) == {}


@pytest.mark.parametrize(("infra", "warns"), [("vast", True), ("gcp", True), ("local", False)])
def test_a_plan_for_a_cloud_says_that_this_machine_must_stay_awake(home: Path, infra: str,
                                                                   warns: bool) -> None:
    args = ("plan", RECIPE, "--infra", infra, "--json")
    words = "while this machine sleeps or is off, no run is recovered"
    assert (words in ldlm(*args).stdout) == warns
    init("--api-server", "https://sky.example.org")
    assert words not in ldlm(*args).stdout


def test_the_server_of_the_settings_is_the_one_that_is_asked(home: Path) -> None:
    pytest.importorskip("sky.jobs.state")
    init("--api-server", "http://127.0.0.1:1")
    said = refused(5, "launch", "tests/lab/smoke.yaml", "--infra", "slurm/x", "--set",
                   "hardware.train.0.infra=slurm/x", "--store", f"file://{home}/store", "--yes")
    assert "http://127.0.0.1:1: SkyPilot's API server does not answer" in said


def plan(*args: str, **env: str) -> dict[str, object]:
    done = ldlm("plan", RECIPE, "--infra", "vast", "--json", *args, env=environment(**env))
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_what_is_typed_wins_over_the_environment_and_that_over_settings_and_those_over_a_recipe(
        home: Path) -> None:
    assert plan()["store"] == "s3://bucket/ldlm"  # the recipe's
    init("--store", "s3://mine")
    assert plan()["store"] == "s3://mine"
    assert plan(LDLM_STORE="s3://shell")["store"] == "s3://shell"
    assert plan("--store", "s3://typed", LDLM_STORE="s3://shell")["store"] == "s3://typed"


def test_a_cap_of_the_settings_lowers_that_of_a_recipe_and_never_raises_it(home: Path) -> None:
    own = float(str(plan()["max_cost_usd"]))
    init("--max-cost", "500")
    assert float(str(plan()["max_cost_usd"])) == own
    init("--max-cost", str(own / 2))
    assert float(str(plan()["max_cost_usd"])) == own / 2
    assert float(str(plan("--max-cost", "300")["max_cost_usd"])) == 300
    assert float(str(plan("--set", "limits.max_cost_usd=200")["max_cost_usd"])) == 200


def test_a_cap_that_is_too_low_names_the_settings(home: Path) -> None:
    init("--max-cost", "0.001")
    said = refused(4, "plan", RECIPE)
    assert f"error: {home}/.ldlm/settings.json: this run would cost" in said
    assert "fix: add --max-cost" in said


def test_runs_are_shown_on_the_project_of_the_settings(home: Path) -> None:
    init("--wandb-project", "yes", "--wandb-entity", "lab")  # a word that YAML takes for true
    done = ldlm("launch", RECIPE, "--infra", "vast", "--dry-run")
    assert '"project":"yes","entity":"lab"' in done.stdout.replace(" ", "").replace("\n", ""), done.stdout


def test_runs_are_listed_from_the_store_of_the_settings(home: Path) -> None:
    init("--store", str(home / "runs"))
    assert f"no runs in file://{home}/runs yet" in ldlm("status").stdout
