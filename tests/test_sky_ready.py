"""What an API server must be like before a machine is rented through it."""

from dataclasses import replace

import pytest

from launcher.engines import check_server
from launcher.sky_ready import GUARDED, SkyServer, lacks

CONFIG = {cloud: {"remote_identity": "NO_UPLOAD"} for cloud in GUARDED}
READY = SkyServer(url="http://127.0.0.1:46580", is_here=True, version="0.14.1", config=CONFIG, laid_over={},
                  plugins={"ldlm": "of-now"}, supervises=True)


def said(server: SkyServer, cloud: str = "vast") -> str:
    return "\n".join(f"{lack.problem} | {lack.fix}" for lack in lacks(server, cloud, "of-now"))


@pytest.mark.parametrize("cloud", ["vast", "azure", "gcp"])
def test_a_server_that_is_ready_lacks_nothing(cloud: str) -> None:
    assert said(READY, cloud) == ""


@pytest.mark.parametrize("cloud", ["slurm", "k8s", "local"])
def test_a_cluster_of_ones_own_needs_none_of_it_and_no_server_is_asked(cloud: str) -> None:
    assert said(replace(READY, config={}, plugins={}, supervises=False), cloud) == ""
    check_server([cloud])


@pytest.mark.parametrize("missing", GUARDED)
def test_a_cloud_whose_keys_would_travel_is_named_wherever_one_rents(missing: str) -> None:
    config = {cloud: section for cloud, section in CONFIG.items() if cloud != missing}
    for cloud in ("vast", "azure", "gcp"):
        words = said(replace(READY, config=config), cloud)
        assert f"no remote_identity: NO_UPLOAD for {missing} | ldlm init, then .venv/bin/sky api" in words


@pytest.mark.parametrize("value", [
    "no_upload", "LOCAL_CREDENTIALS", "SERVICE_ACCOUNT", "", None, {"*": "NO_UPLOAD"}])
def test_only_the_very_word_counts_since_skypilot_obeys_no_other(value: object) -> None:
    assert "for vast" in said(replace(READY, config=CONFIG | {"vast": {"remote_identity": value}}))


@pytest.mark.parametrize(("config", "laid_over"), [
    ({"gcp": {"remote_identity": "NO_UPLOAD",
              "region_configs": {"us-central1": {"remote_identity": "SERVICE_ACCOUNT"}}}}, {}),
    ({"workspaces": {"lab": {"gcp": {"remote_identity": "SERVICE_ACCOUNT"}}, "odd": None}}, {}),
    ({}, {"gcp": {"remote_identity": "LOCAL_CREDENTIALS"}})])
def test_what_takes_the_word_back_elsewhere_is_found(config: dict, laid_over: dict) -> None:
    words = said(replace(READY, config=CONFIG | config, laid_over=laid_over))
    assert "remote_identity of gcp is another for a region, a workspace or this folder" in words
    assert "set it to NO_UPLOAD there too" in words


@pytest.mark.parametrize("cloud", ["vast", "azure", "gcp"])
def test_without_the_plugin_nothing_is_rented(cloud: str) -> None:
    assert "has not loaded ldlm's plugin" in said(replace(READY, plugins={"other": "1"}), cloud)


@pytest.mark.parametrize("cloud", ["vast", "azure", "gcp"])
@pytest.mark.parametrize(("where", "fix"), [
    ({}, ".venv/bin/sky api stop; .venv/bin/sky api start"),
    ({"is_here": False, "controller": "me@host:22"}, "commit what is changed here, then: ldlm controller up "
                                                     "--ssh me@host:22"),
    ({"is_here": False}, "bring ldlm on its machine to the commit of this checkout, then restart it there: "
                         ".venv/bin/sky api stop; .venv/bin/sky api start")])
def test_a_plugin_of_other_code_than_that_of_this_checkout_rents_nothing(where: dict, fix: str,
                                                                         cloud: str) -> None:
    server = replace(READY, plugins={"ldlm": "older"}, **where)
    assert said(server, cloud) == (
        "still runs another version of ldlm's plugin (older; of this checkout is of-now), which may rent by "
        f"other rules than this plan's | {fix}")


def test_a_machine_that_is_rented_to_supervise_would_have_no_keys() -> None:
    assert "would rent a machine to supervise the run" in said(replace(READY, supervises=False), "gcp")


def test_of_a_server_elsewhere_it_is_said_what_to_write_there() -> None:
    server = replace(READY, is_here=False, config={}, plugins={}, supervises=False)
    words = said(server)
    assert "on its machine, in its ~/.sky/config.yaml: vast: {remote_identity: NO_UPLOAD}, azure: " in words
    assert "in its ~/.sky/config.yaml: jobs: {controller: {consolidation_mode: true}}; then restart" in words
    assert "in its ~/.sky/plugins.yaml: plugins: [{class: launcher.sky_plugin.LdlmPlugin}]" in words
