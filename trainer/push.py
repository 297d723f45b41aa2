"""Upload of an export to the Hugging Face Hub, by huggingface_hub itself; the folder stays as it is."""

import os
from pathlib import Path

from trainer.contract import ConfigError, StoreError
from trainer.trunk import first_line

_OPTION = "--push-to-hub"


def check_name(name: str) -> None:
    """Refuse what cannot be the name of a model on the Hub, before any work. Raises ConfigError."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        if name.count("/") != 1:
            raise HFValidationError
    except HFValidationError as error:
        raise ConfigError(f"{name!r} cannot be the name of a model on the Hub", place=_OPTION,
                          fix=f"give it as owner/name: {_OPTION} me/my-model") from error


def push(folder: Path, name: str, message: str) -> str:
    """Upload every file of a folder as a model, which is made if it is not there. Returns its URL.

    Args:
        folder: A whole export.
        name: owner/name.
        message: Of the commit.

    Raises:
        StoreError: The Hub refused or could not be reached; the folder is as it was.
    """
    from huggingface_hub import HfApi, errors, get_token

    again = f"the export is whole at {folder}; push it again by the same command"
    if get_token() is None:
        raise StoreError("not uploaded: there is no token of the Hub here", place=f"{_OPTION} {name}",
                         fix=f"set HF_TOKEN to a token that may write; {again}")
    try:
        # HF_ENDPOINT is read once, at import, by huggingface_hub itself.
        hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        url = hub.create_repo(name, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    except errors.OfflineModeIsEnabled as error:
        raise StoreError("not uploaded: HF_HUB_OFFLINE is set", place=f"{_OPTION} {name}",
                         fix=f"unset HF_HUB_OFFLINE; {again}") from error
    except errors.HfHubHTTPError as error:
        raise StoreError(f"not uploaded: {_reason(error)}", place=f"{_OPTION} {name}",
                         fix=f"check that the token in HF_TOKEN may write there; {again}") from error
    # Whichever HTTP library it is built on, and whatever its transfer of large files raises.
    except (OSError, RuntimeError, ValueError, *errors.HfHubHTTPError.__bases__) as error:
        raise StoreError(f"not uploaded: {first_line(error)}", place=f"{_OPTION} {name}",
                         fix=f"check the network and HF_ENDPOINT; {again}") from error
    return str(url)


def _reason(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    words = {401: "the Hub does not know this token (401)", 403: "the token may not write there (403)"}
    return words.get(status or 0) or first_line(error)
