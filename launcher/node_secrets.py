"""What the nodes of a rented run must know and nobody else may: keys of its store, of W&B, of the Hub,
of the registry of its image, the address of the user's webhook.

They travel as SkyPilot's secrets, which it keeps out of the task's text and of its logs; never in the task,
the record or a command line.
"""

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from launcher.azure_keys import ACCOUNT_KEY, SIGNATURE, signature
from launcher.errors import EngineError
from launcher.registry_login import registry_login
from launcher.store_keys import Needs, can_be_scoped, mint, too_long
from launcher.webhook_setting import webhook_envs
from trainer.aws import HOW_TO_SIGN_IN
from trainer.config import TrainConfig
from trainer.contract import Env
from trainer.run_folder import RunFolder
from trainer.services import HUB_KEY, asks_hub, goes_online
from trainer.store import Store

OWN_KEYS = "LDLM_OWN_KEYS"  # nodes may have the user's own keys of AWS where none can be made for the run
# As obstore reads them.
_OF_STORES = {"gs": ("GOOGLE_SERVICE_ACCOUNT_KEY",),
              "az": (ACCOUNT_KEY, SIGNATURE, "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_TOKEN")}
# Of Google not the login of this machine: it may be a person's, or one that rents machines.
_HOW_TO_SET = {"gs": 'export GOOGLE_SERVICE_ACCOUNT_KEY="$(cat KEY.json)", the key of a service account that '
                     "may use this bucket alone",
               "az": f"set one of: {', '.join(_OF_STORES['az'])}"}


def node_secrets(store_url: str, environ: Mapping[str, str], needs: Needs | None = None) -> dict[str, str]:
    """Keys of its store and of its registry, by the names under which nodes look for them.

    Args:
        store_url: The run's store: keys of no other are given away.
        environ: Of this process.
        needs: Of the run: where its store can make keys for it alone, they are made. None: nothing is made.

    Raises:
        EngineError: There are no keys of the store, so no node could save anything; AWS makes none for the
            run, and the user has not said that nodes may have others; or half a login of a registry.
    """
    scheme = store_url.partition(":")[0]
    found = registry_login(environ)
    if scheme == "s3":
        return found | _aws(store_url, None if environ.get(OWN_KEYS) else needs)
    keys = {name: environ[name] for name in _OF_STORES.get(scheme, ()) if environ.get(name)}
    if scheme in _OF_STORES and not keys:
        raise EngineError(f"there are no keys of {store_url} for the nodes", place="environment",
                          fix=_HOW_TO_SET[scheme])
    return found | (_azure(store_url, keys, needs) if scheme == "az" and needs else keys)


def own_keys_warning(store_url: str | None, environ: Mapping[str, str], needs: Needs,
                     deadline_hours: float | None) -> str | None:
    """Why nodes would get the user's own keys of a store that can make others, with what to type; None where
    they get others, and where there are no keys. A warning of a plan: asks neither AWS nor Azure."""
    if store_url is None:
        return None
    if store_url.startswith("az:") and environ.get(ACCOUNT_KEY):
        with suppress(EngineError):
            if ACCOUNT_KEY in _azure(store_url, {ACCOUNT_KEY: environ[ACCOUNT_KEY]}, needs):
                return ("nodes get the key of your whole storage account: one for the container alone needs "
                        "--deadline HOURS, and pip install -e '.[azure]'")
    if not can_be_scoped(store_url):
        return None
    own = "nodes get your own AWS keys"
    if environ.get(OWN_KEYS):
        return f"{own}, as {OWN_KEYS} says"
    with suppress(EngineError):
        if _own().token:
            return (f"{own}, which are of a session: when they expire, often within hours, nothing more is "
                    "saved; keys of an IAM user last, and make others for this run alone")
    why = too_long(deadline_hours)
    return f"{own}: {why}" if why else None


def service_keys(envs: Mapping[str, str], store: Store, environ: Mapping[str, str]) -> dict[str, str]:
    """Keys of W&B and of the Hub that one document's programs use, of those that there are, and the webhook.

    Args:
        envs: Of the document; one that somebody has written by hand may have no train config.
        store: Of the run: what it holds a mirror of is not asked of the Hub.
        environ: Of this process.

    Raises:
        ConfigError: There is a mirror of the encoder, and the model has no such layer.
        StoreError: The store cannot be read.
    """
    if not envs.get(Env.TRAIN_CONFIG):
        return {}
    config, found = TrainConfig.model_validate_json(envs[Env.TRAIN_CONFIG]), webhook_envs(environ)
    if goes_online(config.wandb, environ):
        found[str(Env.WANDB_KEY)] = environ[Env.WANDB_KEY]
    if environ.get(HUB_KEY) and asks_hub(config.token_encoder, RunFolder(store, envs[Env.RUN_ID])):
        found[HUB_KEY] = environ[HUB_KEY]
    return found


def _azure(store_url: str, keys: dict[str, str], needs: Needs) -> dict[str, str]:
    """A signature for the run's container instead of the account's key; other keys as they are."""
    if ACCOUNT_KEY not in keys:
        return keys
    try:
        signed = signature(store_url, keys[ACCOUNT_KEY], needs)
    except ValueError as error:  # of base64; it does not quote the key
        raise EngineError(f"{ACCOUNT_KEY} is no key of a storage account: {error}", place="environment",
                          fix="copy it anew: az storage account keys list --account-name ACCOUNT") from error
    return {SIGNATURE: signed} if signed else keys


def _aws(store_url: str, needs: Needs | None) -> dict[str, str]:
    """Keys for this run, else whatever boto3 finds: variables, profile, SSO, assumed role."""
    own = _own()
    if needs and (made := _minted(store_url, needs)):
        return _named(made["AccessKeyId"], made["SecretAccessKey"], made["SessionToken"])
    return _named(own.access_key, own.secret_key, own.token)


def _own() -> Any:
    """The user's own keys. Raises EngineError where there are none."""
    import boto3
    from botocore.exceptions import BotoCoreError

    try:
        credentials = boto3.Session().get_credentials()
        if credentials:
            return credentials.get_frozen_credentials()
    except BotoCoreError as error:
        raise EngineError(f"AWS credentials cannot be used: {error}", place="environment",
                          fix=HOW_TO_SIGN_IN) from error
    raise EngineError("there are no AWS credentials for the nodes", place="environment",
                      fix="aws configure, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")


def _minted(store_url: str, needs: Needs) -> Any:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return mint(boto3.Session(), store_url, needs, datetime.now(UTC))
    except (BotoCoreError, ClientError) as error:
        raise EngineError("no keys can be made for this run alone, and nodes would get your own AWS keys: "
                          f"{error}", place=store_url,
                          fix="take keys of an IAM user of the bucket's account who may do "
                              f"sts:GetFederationToken; or let nodes have yours: export {OWN_KEYS}=1"
                          ) from error


def _named(key_id: str, secret: str, token: str | None) -> dict[str, str]:
    found = {"AWS_ACCESS_KEY_ID": key_id, "AWS_SECRET_ACCESS_KEY": secret, "AWS_SESSION_TOKEN": token}
    return {name: value for name, value in found.items() if value}
