"""Keys that travel to rented nodes: those of the run's store and of its services, no others."""

from pathlib import Path

import pytest

from launcher.errors import EngineError
from launcher.node_secrets import node_secrets

ELSEWHERE = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AZURE_STORAGE_SAS_KEY": "sas",
             "GOOGLE_SERVICE_ACCOUNT_KEY": "{}", "VAST_API_KEY": "vast", "GITHUB_TOKEN": "gh"}


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No keys of AWS but those that a test sets."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return monkeypatch


def test_a_profile_s_keys_travel_under_the_names_that_nodes_look_for(aws, tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = id\naws_secret_access_key = key\naws_session_token = token\n")
    assert node_secrets("s3://bucket/ldlm", {"WANDB_API_KEY": "wandb", "HF_TOKEN": ""} | ELSEWHERE) == {
        "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_SESSION_TOKEN": "token",
        "WANDB_API_KEY": "wandb"}


@pytest.mark.parametrize(("store", "keys"), [
    ("az://account/container", {"AZURE_STORAGE_SAS_KEY": "sas"}),
    ("gs://bucket", {"GOOGLE_SERVICE_ACCOUNT_KEY": "{}"}), ("file:///shared/ldlm", {})])
def test_keys_of_other_stores_and_of_clouds_stay_here(store: str, keys: dict[str, str]) -> None:
    assert node_secrets(store, ELSEWHERE) == keys


@pytest.mark.parametrize(("store", "fix"), [("s3://bucket", "aws configure"),
                                            ("az://account/container", "AZURE_STORAGE_SAS_KEY")])
def test_a_store_whose_keys_are_missing_is_refused_before_anything_is_rented(aws, store: str,
                                                                             fix: str) -> None:
    with pytest.raises(EngineError, match="keys|credentials") as caught:
        node_secrets(store, {})
    assert fix in str(caught.value)


def test_the_login_of_a_private_registry_travels_whole_or_not_at_all() -> None:
    login = {"SKYPILOT_DOCKER_USERNAME": "me", "SKYPILOT_DOCKER_PASSWORD": "secret",
             "SKYPILOT_DOCKER_SERVER": "ghcr.io"}
    assert node_secrets("file:///shared/ldlm", ELSEWHERE | login) == login
    del login["SKYPILOT_DOCKER_PASSWORD"]
    with pytest.raises(EngineError, match="a login of a registry without SKYPILOT_DOCKER_PASSWORD") as caught:
        node_secrets("file:///shared/ldlm", login)
    assert caught.value.fix == "set all three, or none: unset SKYPILOT_DOCKER_USERNAME SKYPILOT_DOCKER_SERVER"
