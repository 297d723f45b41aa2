"""Whose keys SkyPilot copies onto rented machines: what its own code says, in a home that has them all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.machine import key_files

pytest.importorskip("sky.jobs.state")

# What they hold is no key: names, addresses, which account is meant.
SETTINGS = {
    ".aws/config", ".azure/azureProfile.json", ".azure/clouds.config", ".azure/config",
    ".cloudflare/accountid", ".config/gcloud/active_config", ".config/gcloud/configurations",
    ".coreweave/cw.config", ".nebius/NEBIUS_DOMAIN.txt", ".nebius/NEBIUS_TENANT_ID.txt", ".oci/s3.config",
    ".sky/config.yaml", ".vastdata/vastdata.config"}
# Every file that SkyPilot could copy, as if all of them were there.
ASK = """
import json, os, pathlib
from sky.utils import registry
import sky
from sky.adaptors import cloudflare, coreweave, huggingface, nebius, oci_s3, vastdata
from sky.clouds import aws
from sky.clouds.utils import oci_utils
pathlib.Path("~/.kube").expanduser().mkdir()
pathlib.Path("~/.kube/config").expanduser().touch()
aws.AWS._current_identity_type = classmethod(lambda cls: aws.AWSIdentityType.SHARED_CREDENTIALS_FILE)
really, special = os.path.exists, {"kubernetes", "ssh", "nebius", "oci"}
found = {name for cloud in ("kubernetes", "ssh")
         for name in registry.CLOUD_REGISTRY[cloud].get_credential_file_mounts()}
os.path.exists = lambda path: True
for name, cloud in registry.CLOUD_REGISTRY.items():
    found |= set() if name in special else set(cloud.get_credential_file_mounts())
for store in (cloudflare, coreweave, huggingface, oci_s3, vastdata):
    found |= set(store.get_credential_file_mounts())
found |= {*nebius.get_credential_file_paths(), nebius.tenant_id_path(), "~/.oci/config",
          oci_utils.oci_config.get_sky_user_config_file(), "~/.aws/config"}
home = os.path.expanduser("~")
print(json.dumps(sorted(name.removeprefix("~/").removeprefix(home + "/") for name in found)))
"""


def test_every_key_that_skypilot_could_copy_is_one_that_a_rented_machine_is_searched_for(
        tmp_path: Path) -> None:
    asked = subprocess.run([sys.executable, "-c", ASK], env=os.environ | {"HOME": str(tmp_path)}, text=True,
                           capture_output=True, check=False)
    assert asked.returncode == 0, asked.stderr
    copied = set(json.loads(asked.stdout.splitlines()[-1]))
    assert len(copied) > 30
    home = tmp_path / "machine"
    for name in copied:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).touch()

    assert copied - set(key_files(home)) <= SETTINGS
    assert set(key_files(home)) <= copied - SETTINGS


# What our plugin in a server says of the home in which that runs.
TOLD = """
import json
from launcher.sky_plugin import keys_that_travel
from launcher.sky_ready import GUARDED
print(json.dumps(keys_that_travel(",".join(GUARDED))))
"""


def test_the_plugin_names_the_keys_that_skypilot_would_copy_from_its_home_and_cannot_be_told_to_keep(
        tmp_path: Path) -> None:
    def told() -> dict[str, list[str]]:
        done = subprocess.run([sys.executable, "-c", TOLD], env=os.environ | {"HOME": str(tmp_path)},
                              text=True, capture_output=True, check=True)
        return dict(json.loads(done.stdout.splitlines()[-1]))

    assert told() == {"files": []}
    for name in (".runpod/config.toml", ".lambda_cloud/lambda_keys", ".config/vastai/vast_api_key"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("key")
    assert told() == {"files": ["~/.lambda_cloud/lambda_keys", "~/.runpod/config.toml"]}
