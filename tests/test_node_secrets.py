"""Keys that travel to rented nodes: those of the run's store and of its services, no others."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from launcher.errors import EngineError
from launcher.node_secrets import node_secrets, service_keys
from launcher.recipe import load_recipe
from trainer.manifest import StoredFile
from trainer.mirror_format import MirrorManifest
from trainer.store import open_store
from trainer.store_words import HOW_TO_SIGN_IN

ELSEWHERE = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AZURE_STORAGE_SAS_KEY": "sas",
             "GOOGLE_SERVICE_ACCOUNT_KEY": "{}", "VAST_API_KEY": "vast", "GITHUB_TOKEN": "gh"}


SERVICES = {"WANDB_API_KEY": "wandb", "HF_TOKEN": "hf"}
ONLINE, OFFLINE, OFF = (f"train.wandb.mode='{mode}'" for mode in ("auto", "offline", "off"))
QWEN = "Qwen/Qwen3.6-35B-A3B"


def keys_of(tmp_path: Path, recipe: str, *overrides: str, environ: dict[str, str] = SERVICES) -> set[str]:
    """Names of the services' keys that a document of a recipe's run gets."""
    config = load_recipe(recipe, ["limits.max_cost_usd=99999", *overrides]).train
    envs = {"LDLM_RUN_ID": "a-run", "LDLM_TRAIN_CONFIG": config.model_dump_json()}
    found = service_keys(envs, open_store(str(tmp_path / "store")), environ | ELSEWHERE)
    assert found.items() <= environ.items()
    return set(found)


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
    assert node_secrets("s3://bucket/ldlm", ELSEWHERE) == {
        "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_SESSION_TOKEN": "token"}


@pytest.mark.parametrize(("store", "keys"), [
    ("az://account/container", {"AZURE_STORAGE_SAS_KEY": "sas"}),
    ("gs://bucket", {"GOOGLE_SERVICE_ACCOUNT_KEY": "{}"}), ("file:///shared/ldlm", {})])
def test_keys_of_other_stores_and_of_clouds_stay_here(store: str, keys: dict[str, str]) -> None:
    assert node_secrets(store, ELSEWHERE) == keys


@pytest.mark.parametrize(("cloud", "name"), [
    ("az", "AZURE_STORAGE_SAS_TOKEN"), ("az", "AZURE_STORAGE_ACCOUNT_KEY"),
    ("gs", "GOOGLE_SERVICE_ACCOUNT_KEY")])
def test_what_a_store_s_error_advises_is_what_nodes_can_be_given(cloud: str, name: str) -> None:
    assert node_secrets(f"{cloud}://account/container", {name: "key"}) == {name: "key"}
    assert f"set {name}" in HOW_TO_SIGN_IN[cloud] or f"or {name}" in HOW_TO_SIGN_IN[cloud]


def test_the_google_login_of_this_machine_is_no_key_for_strangers_and_the_fix_names_one_that_is(
        tmp_path: Path) -> None:
    login = tmp_path / "key.json"  # it may rent machines
    login.write_text('{"type": "service_account"}')
    with pytest.raises(EngineError, match="there are no keys of gs://bucket for the nodes") as caught:
        node_secrets("gs://bucket", {"GOOGLE_APPLICATION_CREDENTIALS": str(login)})
    assert caught.value.fix.startswith('export GOOGLE_SERVICE_ACCOUNT_KEY="$(cat KEY.json)"')
    assert "this machine alone: `gcloud auth application-default login`" in HOW_TO_SIGN_IN["gs"]


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


def test_the_key_of_wandb_travels_where_the_run_is_shown_and_the_hub_s_where_the_encoder_comes_from_it(
        tmp_path: Path) -> None:
    both = {"WANDB_API_KEY", "HF_TOKEN"}
    assert keys_of(tmp_path, "qwen3.6-35b-a3b", ONLINE) == both
    assert keys_of(tmp_path, "qwen3.6-35b-a3b", OFFLINE) == keys_of(
        tmp_path, "qwen3.6-35b-a3b", OFF) == {"HF_TOKEN"}
    assert keys_of(tmp_path, "canary", ONLINE) == {"WANDB_API_KEY"}  # its encoder comes in a package
    assert keys_of(tmp_path, "canary", OFF) == set()
    unset = {"HF_TOKEN": "", "WANDB_API_KEY": ""}
    assert keys_of(tmp_path, "qwen3.6-35b-a3b", ONLINE, environ=unset) == set()


def test_an_encoder_in_a_folder_or_in_a_mirror_asks_no_hub(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert keys_of(tmp_path, "canary", OFF, f"train.token_encoder.name={model}") == set()
    asked = {"": datetime(2026, 11, 1, tzinfo=UTC)}
    manifest = MirrorManifest(name=QWEN, asked=asked, commit=None, source="x", num_blocks=40,
                              kept_blocks=38, weights="bf16",
                              files=[StoredFile(name="block", num_bytes=1, sha256="0")])
    folder = tmp_path / "store" / "weights" / QWEN.replace("/", "--") / "38-blocks-bf16"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    assert keys_of(tmp_path, "qwen3.6-35b-a3b", OFF) == set()
    assert keys_of(tmp_path, "qwen3.6-35b-a3b", OFF, "train.token_encoder.layer=9") == {"HF_TOKEN"}


def test_the_webhook_of_the_environment_or_of_its_file_goes_to_every_node(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"LDLM_WEBHOOK_URL": "https://hooks.example.org/a-secret"}
    assert keys_of(tmp_path, "canary", OFF, environ=environ) == set(environ)
    monkeypatch.setenv("LDLM_HOME", str(tmp_path))
    (tmp_path / "webhook").write_text("https://hooks.example.org/kept\n")
    train = load_recipe("canary", []).train.model_dump_json()
    envs, store = {"LDLM_RUN_ID": "a-run", "LDLM_TRAIN_CONFIG": train}, open_store(str(tmp_path / "store"))
    assert service_keys(envs, store, {}) == {"LDLM_WEBHOOK_URL": "https://hooks.example.org/kept"}
    assert service_keys(envs, store, environ) == environ


def test_a_document_without_a_train_config_asks_no_service(tmp_path: Path) -> None:
    assert service_keys({}, open_store(str(tmp_path)), SERVICES) == {}
