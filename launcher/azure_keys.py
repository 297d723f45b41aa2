"""Keys of a run's store at Azure that are good for its container alone, until a while past its deadline.

The key of a storage account opens all of it, for ever. A shared access signature is made from it on this
machine, by Azure's own package; no longest life is set, but one must be, so a run needs a deadline.
Never used at Azure.
"""

from datetime import timedelta
from importlib.util import find_spec

from launcher.store_keys import MARGIN_H, Needs

ACCOUNT_KEY, SIGNATURE = "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_KEY"  # as obstore reads them


def signature(store_url: str, account_key: str, needs: Needs) -> str | None:
    """A signature for the container of a store: read, list, write and delete.

    Args:
        store_url: `az://ACCOUNT/CONTAINER/prefix`.

    Returns:
        None where the run has no deadline, Azure's package is not here, or nodes read in another container.

    Raises:
        ValueError: It is no key.
    """
    account, _, path = store_url.partition("?")[0].removeprefix("az://").partition("/")
    container = path.partition("/")[0]
    elsewhere = [url for url in needs.reads
                 if url.startswith("az://") and not f"{url}/".startswith(f"az://{account}/{container}/")]
    if needs.until is None or elsewhere or not _has_package():
        return None
    from azure.storage.blob import ContainerSasPermissions, generate_container_sas

    return str(generate_container_sas(
        account, container, account_key=account_key,
        permission=ContainerSasPermissions(read=True, list=True, write=True, create=True, delete=True),
        expiry=needs.until + timedelta(hours=MARGIN_H), protocol="https"))


def _has_package() -> bool:
    try:
        return find_spec("azure.storage.blob") is not None
    except ModuleNotFoundError:  # a parent of it is absent
        return False
