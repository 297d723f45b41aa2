"""What the real SkyPilot refuses or fails of comes out as a problem in our words, with what to do."""

from pathlib import Path
from typing import Any

import pytest
from sky_catalogs import optimized, run_beside_catalogs

from launcher.sky_errors import explained, in_one_line, refusal
from launcher.sky_jobs import job_state

LATER = "or choose another region or cloud: --infra"
COUNTING = "N counting the recipe's candidates from 0"
OTHER_GPUS = "choose other GPUs or less memory: --set hardware.train.0.gpu=NAME:NUMBER"


def task(infra: str, gpus: str, more: str = "") -> str:
    """A task of one document."""
    resources = f"{{infra: {infra}, accelerators: '{gpus}'{more}}}"
    return f"name: r\n---\nname: train\nresources: {resources}\nrun: echo\n"


def no_region(name: str, near: str = "", kind: str = "region") -> tuple[str, str]:
    """Problem and fix for a region that is not there."""
    meant = f"did you mean {near}? Else " if near else ""
    return (f"SkyPilot knows no {kind} {name} of this cloud",
            f"{meant}leave the {kind} out of infra, and SkyPilot looks in all of them")


# A task that SkyPilot refuses before anything is rented: problem and fix.
REFUSED = {
    task("vast/XX", "H100:1"): no_region("XX"),
    task("azure/eastus9", "H100:8"): no_region("eastus9", "eastus or eastus2"),
    task("gcp/us-centrl1", "H100:8"): no_region("us-centrl1", "us-central1"),
    task("gcp/us-central1/us-central1-q", "H100:8"): no_region("us-central1-q", "us-central1-a", "zone"),
    task("azure", "RTX5090:1"): ("no cloud that is enabled offers 1x Azure({'RTX5090': 1})", OTHER_GPUS),
    task("gcp", "H100:3"): ("no cloud that is enabled offers 1x GCP({'H100': 3})",
                            f"did you mean H100:8? Else {OTHER_GPUS}"),
    task("vast", "H100:1", ", memory: 900+"): (
        "no cloud that is enabled offers 1x Vast(mem=900+, {'H100': 1})", OTHER_GPUS),
    task("gcp/us-east5", "H200:8"): (
        "no cloud that is enabled offers 1x GCP({'H200': 8}, region=us-east5)", OTHER_GPUS),
}
# A story of sky_refusals: problem and fix.
STORIES = {
    "no quota": ("the quota of GCP for a3-highgpu-8g spot machines in us-central1 is zero",
                 f"ask GCP for it, which can take days; {LATER}"),
    "quota of gcp": ("the cloud's quota is too small: Got return code 'QUOTA_EXCEEDED' in us-central1-a: "
                     "\"Quota 'PREEMPTIBLE_NVIDIA_H100_GPUS' exceeded.  Limit: 0.0 in region us-central1\"",
                     f"ask the cloud for more, which can take days; {LATER}"),
    "stock-out": ("no such machine is free in all zones in us-central1", f"wait, {LATER}"),
    "nothing on vast": ('vast has no offer with chunked=true georegion=true geolocation="NA" disk_space>=100 '
                        'num_gpus=1 gpu_name="RTX 5090" cpu_ram>="48.0"',
                        "wait, or name another card: --set hardware.train.0.gpu=NAME:NUMBER"),
    "no image": ("the image me/mine:1 cannot be pulled",
                 "check its name and its tag; if it is not public, set SKYPILOT_DOCKER_USERNAME, "
                 "SKYPILOT_DOCKER_PASSWORD, SKYPILOT_DOCKER_SERVER; or leave image out of the candidate"),
    "old credentials": ("GCP does not take the credentials: Token has been expired or revoked.",
                        "sign in again, then .venv/bin/sky check"),
    "dear on the way": (
        "SkyPilot's catalogs have nothing for 1x GCP([Spot], {'A100-80GB': 8}) up to $9 an hour a machine",
        f"pay more: --set hardware.train.N.price_usd_per_hour=USD, of all nodes, {COUNTING}; {LATER}"),
    "cloud not enabled": ("SkyPilot has gcp not enabled",
                          "see what is missing: .venv/bin/sky check; or choose another cloud: --infra"),
}
NOT_REFUSED = ("not too dear", "dear but for another")
# Launches that are refused before a run is recorded.
LAUNCHES = {
    "region of a launch": no_region("us-centrl1", "us-central1"),
    "dear everywhere": (
        "by SkyPilot's catalog 2x A100-80GB:8 on gcp (spot) costs $28.44/h or more, "
        "and the recipe pays $28.42",
        f"add --set hardware.train.N.price_usd_per_hour=28.44, {COUNTING}; {LATER}"),
    "dear in its region": (
        "by SkyPilot's catalog 2x A100-80GB:8 on gcp/us-central1 (spot) costs $44.16/h or more, and the "
        "recipe pays $44.00", f"add --set hardware.train.N.price_usd_per_hour=44.16, {COUNTING}; {LATER}"),
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return optimized({text: text for text in REFUSED}, tmp_path_factory.mktemp("refused"))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    program = str(Path(__file__).parent / "sky_refusals.py")
    return run_beside_catalogs(program, {}, tmp_path_factory.mktemp("told"))


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text.split("{")[1].split("}")[0])
def test_a_task_that_skypilot_refuses_is_told_with_what_to_do(text, refused):
    _, _, *ours = refused[text]
    assert tuple(ours) == REFUSED[text]


def test_a_launch_whose_price_some_place_has_is_not_refused(told):
    assert [told[story] for story in NOT_REFUSED] == [[], []]


@pytest.mark.parametrize("story", LAUNCHES)
def test_a_launch_is_refused_before_its_run_is_recorded(story, told):
    _, _, *ours = told[story]
    assert tuple(ours) == LAUNCHES[story]


@pytest.mark.parametrize("story", STORIES)
def test_what_fails_in_renting_is_told_with_what_to_do(story, told):
    _, _, *ours = told[story]
    assert tuple(ours) == STORIES[story]


def test_every_story_has_its_words(told):
    assert set(told) == {*STORIES, *LAUNCHES, *NOT_REFUSED}


def test_no_cloud_at_all_is_told_with_what_to_do(tmp_path):
    (_, _, *ours) = optimized({"x": task("gcp", "H100:8")}, tmp_path, clouds=())["x"]
    assert ours == ["SkyPilot has no cloud enabled", "see what is missing: .venv/bin/sky check"]


@pytest.mark.parametrize("story", STORIES)
def test_why_a_job_has_failed_is_told_in_the_same_words(story, told):
    """The jobs controller keeps the type before the text."""
    kind, text, problem, fix = told[story]
    row = {"status": "FAILED_NO_RESOURCE", "task_name": "train", "job_name": "run",
           "failure_reason": f"sky.exceptions.{kind}: {text}"}
    assert job_state([row]).detail == f"train: FAILED_NO_RESOURCE: {problem}; {fix}"


def test_what_is_not_known_is_told_in_skypilots_words_without_colour_and_class():
    reason = "[sky.exceptions.ClusterSetUpError] \x1b[31mthe node is gone\x1b[0m\nmore"
    assert explained(reason) is None
    assert in_one_line(reason) == "the node is gone"
    error = refusal(ValueError(reason))
    assert (error.problem, error.fix) == ("SkyPilot refuses: the node is gone",
                                          "look into its request: sky api status; sky api logs ID")
    assert refusal(ValueError()).problem == "SkyPilot refuses: ValueError"
