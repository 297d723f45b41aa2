"""Where something may run: how an infra is read, and which regions there are."""

import csv
import shutil
from pathlib import Path

import pytest
from cli_lab import environment, ldlm, refused
from typer.testing import CliRunner

from launcher.cli import app
from launcher.errors import UsageError
from launcher.infra import read_infra
from launcher.recipe import list_recipes, load_recipe
from launcher.regions import known_region

CATALOGS = Path(__file__).parent / "catalogs"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home without SkyPilot's catalogs."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def catalogs(home: Path) -> Path:
    """A user's home with those of the tests."""
    shutil.copytree(CATALOGS, home / ".sky" / "catalogs")
    return home


def refusal(infra: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        known_region(read_infra(infra))
    assert caught.value.place == "--infra"
    return caught.value


@pytest.mark.parametrize(("typed", "read"), [
    ("VAST", "vast"), (" gcp/US-Central1/ ", "gcp/us-central1"), ("gcp/*", "gcp"),
    ("Kubernetes/a/b", "k8s/a/b"),
    ("Slurm/Mine/Long", "slurm/Mine/Long"), ("vast/Texas, US, NA", "vast/Texas, US, NA"),
    ("vast/, US, NA", "vast/, US, NA"), ("GCP/*/us-central1-a", "gcp/*/us-central1-a"), ("Local", "local")])
def test_an_infra_is_read_as_skypilot_reads_it(typed: str, read: str) -> None:
    assert read_infra(typed) == read


@pytest.mark.parametrize(("typed", "problem", "fix"), [
    ("vst", "'vst' is no infrastructure that ldlm knows",
     "did you mean vast? Else use one of local, vast, azure, gcp, slurm, k8s"),
    ("mars", "'mars' is no infrastructure", "use one of local, vast, azure, gcp, slurm, k8s"),
    ("aws/us-east-1", "'aws/us-east-1' is no infrastructure", "use one of local"),
    ("gcp/a/b/c/d", "'gcp/a/b/c/d' is not written as gcp/REGION/ZONE", "use gcp alone, or gcp/REGION/ZONE"),
    ("gcp/../x", "'gcp/../x' is not written as gcp/REGION/ZONE", "use gcp alone"),
    ("gcp//x", "'gcp//x' is not written as gcp/REGION/ZONE", "use gcp alone"),
    ("vast/US/x/y/z", "'vast/US/x/y/z' is not written as vast/REGION", "use vast alone, or vast/REGION"),
    ("azure/eastus/1", "'azure/eastus/1' is not written as azure/REGION", "use azure alone"),
    ("local/x", "'local/x' is not written as local", "use local alone")])
def test_what_skypilot_could_not_read_is_refused_with_what_is_near(
        typed: str, problem: str, fix: str) -> None:
    error = refusal(typed)
    assert error.problem.startswith(problem) and str(error.fix).startswith(fix)


@pytest.mark.parametrize(("typed", "problem", "fix"), [
    ("gcp/nowhere-central9", "gcp has no region 'nowhere-central9'", "gcp/europe-central2"),
    ("gcp/us-centrl1", "gcp has no region 'us-centrl1'", "did you mean gcp/us-central1"),
    ("gcp/us-central1/us-east1-b", "gcp/us-central1 has no zone 'us-east1-b'", "leave the zone out"),
    ("azure/eastsu", "azure has no region 'eastsu'", "azure/eastus"),
    ("vast/XX", "vast has no region 'XX'", "'vast/Spain, ES, EU'"),
    ("vast/Nowhere, XX, ZZ", "vast has no region 'Nowhere, XX, ZZ'", "use vast, which is all the world")])
def test_without_a_catalog_here_a_region_is_looked_for_in_a_list_of_ours(
        home: Path, typed: str, problem: str, fix: str) -> None:
    error = refusal(typed)
    assert error.problem.startswith(problem) and fix in str(error.fix)
    for known in ("gcp/us-central1/us-central1-a", "azure/indonesiacentral", "vast/Spain, ES, EU",
                  "slurm/any"):
        assert known_region(known) == known


def test_a_region_that_our_list_lacks_counts_once_skypilot_s_is_here(home: Path) -> None:
    assert ".venv/bin/sky gpus list GPU --infra gcp --all-regions" in str(refusal("gcp/us-moon1").fix)
    (home / ".sky/catalogs/v8/gcp").mkdir(parents=True)
    with (home / ".sky/catalogs/v8/gcp/vms.csv").open("w") as file:
        csv.writer(file).writerows([("Region", "AvailabilityZone"), ("us-moon1", "us-moon1-a")])
    assert known_region("gcp/us-moon1") == "gcp/us-moon1"
    assert str(refusal("gcp/us-central1").fix).endswith("leave the region out; there is us-moon1")


@pytest.mark.parametrize(("typed", "spelled"), [
    ("VAST/texas, us, na", "vast/Texas, US, NA"), ("gcp/US-East5", "gcp/us-east5"),
    ("gcp/us-central1/us-central1-a", "gcp/us-central1/us-central1-a")])
def test_a_region_is_spelled_as_skypilot_s_catalog_does(catalogs: Path, typed: str, spelled: str) -> None:
    assert known_region(read_infra(typed)) == spelled


@pytest.mark.parametrize(("typed", "fix"), [
    ("vast/US", "did you mean 'vast/Oregon, US, NA' or 'vast/Texas, US, NA'? Else leave the region out"),
    ("vast/XX", "; Poland, PL, EU; Spain, ES, EU; Texas, US, NA; Thailand, TH, AS"),
    ("gcp/us-central1/us-central1-q", "did you mean gcp/us-central1/us-central1-a? Else leave the zone out"),
    ("gcp/nowhere-central9", "us-central1")])
def test_a_region_that_the_catalog_lacks_is_refused_with_those_that_it_has(
        catalogs: Path, typed: str, fix: str) -> None:
    assert fix in str(refusal(typed).fix)


@pytest.mark.parametrize("typed", ["gcp/us-centrl1", "gcp/moon", "azure/eastsu", "gcp/us-central1/moon"])
def test_a_refusal_of_a_region_is_no_wall_of_text(home: Path, typed: str) -> None:
    """GCP has more than 40 regions, Azure more than 60: the nearest, and how to list them all."""
    fix = str(refusal(typed).fix)
    assert len(fix) < 260
    assert f".venv/bin/sky gpus list GPU --infra {typed.split('/')[0]} --all-regions" in fix


def test_every_region_of_a_recipe_is_known(home: Path) -> None:
    recipes = [load_recipe(found.name) for found in list_recipes()]
    for candidate in (one for recipe in recipes for one in (*recipe.hardware.train, *recipe.hardware.bench)):
        assert known_region(candidate.infra) == candidate.infra


@pytest.mark.parametrize("command", [["plan", "smoke"], ["launch", "smoke", "--dry-run"], ["doctor"],
                                     ["resume", "r"], ["bench", "r"]])
def test_every_command_reads_it_alike(home: Path, command: list[str]) -> None:
    env = environment(HOME=str(home))
    assert "did you mean vast?" in refused(2, *command, "--infra", "vst", env=env)
    assert "gcp has no region 'nowhere-central9'" in refused(2, *command, "--infra", "gcp/nowhere-central9",
                                                             env=env)


@pytest.mark.parametrize("command", [["plan", "smoke"], ["doctor"], ["offers"], ["bench", "r"]])
def test_two_places_are_refused_whoever_calls_the_command(home: Path, command: list[str]) -> None:
    """By what was parsed, not by the words of this process."""
    for two in (["--infra", "vast", "--infra", "gcp"], ["--infra=gcp", "--infra", "gcp"]):
        error = CliRunner().invoke(app, [*command, *two]).exception
        assert isinstance(error, UsageError) and str(error).startswith("--infra: is there twice"), error
    assert "is empty" in str(CliRunner().invoke(app, [*command, "--infra", ""]).exception)


def test_a_cloud_in_capitals_is_that_cloud(home: Path) -> None:
    done = ldlm("plan", "smoke", "--infra", "GCP/us-EAST5", "--store", "s3://b/p",
                env=environment(HOME=str(home)))
    assert "on gcp/us-east5 (spot)" in done.stdout, done.stderr
