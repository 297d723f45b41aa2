"""Whether a store that is a folder of this machine has room for the checkpoints that a run keeps."""

import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

from launcher.plan import Plan
from launcher.recipe import Recipe
from trainer.contract import StoreError


def check_room(plan: Plan, recipe: Recipe) -> None:
    """Compare the free disk with what is kept of a run that trains here, and one more that is being written.

    Raises:
        StoreError: It would be full before the run has ended.
    """
    url = recipe.store or ""
    if plan.sizes is None or plan.only_benchmark or not url.startswith("file://"):
        return
    keep = recipe.train.checkpoint.keep
    folder = Path(unquote(urlsplit(url).path))
    nearest = next(found for found in (folder, *folder.parents) if found.exists())
    free, needed = shutil.disk_usage(nearest).free, (keep + 1) * plan.sizes.checkpoint_bytes
    if free < needed:
        raise StoreError(f"{free / 2**30:,.1f} GiB are free there, and {keep + 1:,} checkpoints take "
                         f"{needed / 2**30:,.1f}: train.checkpoint.keep is {keep:,}, one more is written",
                         place=str(folder), fix="free some, name another store: --store, or keep fewer: "
                                                "--set train.checkpoint.keep=1")
