"""What the nodes of a rented run must know and nobody else may: keys of its store, of W&B, of the Hub.

They travel as SkyPilot's secrets, which it keeps out of the task's text and of its logs; never in the task,
the record or a command line.
"""

from collections.abc import Mapping

from launcher.errors import EngineError
from trainer.contract import Env

_OF_SERVICES = (Env.WANDB_KEY, "HF_TOKEN")
# As obstore reads them.
_OF_STORES = {"gs": ("GOOGLE_SERVICE_ACCOUNT_KEY",),
              "az": ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_TOKEN")}


def node_secrets(store_url: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Values by the names under which nodes look for them; only those that there are.

    Args:
        store_url: The run's store: keys of no other are given away.
        environ: Of this process.

    Raises:
        EngineError: There are no keys of the store, so no node could save anything.
    """
    scheme = store_url.partition(":")[0]
    found = {name: environ[name] for name in _OF_SERVICES if environ.get(name)}
    if scheme == "s3":
        return found | _aws()
    keys = {name: environ[name] for name in _OF_STORES.get(scheme, ()) if environ.get(name)}
    if scheme in _OF_STORES and not keys:
        raise EngineError(f"there are no keys of {store_url} for the nodes", place="environment",
                          fix=f"set one of: {', '.join(_OF_STORES[scheme])}")
    return found | keys


def _aws() -> dict[str, str]:
    """Whatever boto3 finds: variables, profile, SSO, assumed role."""
    import boto3

    credentials = boto3.Session().get_credentials()
    if credentials is None:
        raise EngineError("there are no AWS credentials for the nodes", place="environment",
                          fix="aws configure, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    frozen = credentials.get_frozen_credentials()
    found = {"AWS_ACCESS_KEY_ID": frozen.access_key, "AWS_SECRET_ACCESS_KEY": frozen.secret_key,
             "AWS_SESSION_TOKEN": frozen.token}
    return {name: value for name, value in found.items() if value}
