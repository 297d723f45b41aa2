"""Whether a store that is a folder of this machine has room for the checkpoints that a run keeps."""

import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

from launcher.plan import Plan
from launcher.recipe import Recipe
from trainer.contract import Name, StoreError


def check_room(plan: Plan, recipe: Recipe) -> None:
    """Compare what a run that trains here has at most, while its last checkpoint is written, with the free
    disk and what its checkpoints take already.

    Raises:
        StoreError: It would be full before the run has ended.
    """
    url = recipe.store or ""
    if not (plan.sizes and plan.saves) or plan.only_benchmark or not url.startswith("file://"):
        return
    folder = Path(unquote(urlsplit(url).path))
    nearest = next(found for found in (folder, *folder.parents) if found.exists())
    keep, stay = recipe.train.checkpoint.keep, plan.saves.num_kept
    most = stay + keep
    room, needed = _room(nearest, folder / plan.run_id / Name.CHECKPOINTS), most * plan.sizes.checkpoint_bytes
    if room < needed:
        fewer = "every_steps=null" if recipe.train.checkpoint.every_steps else "keep=1"
        raise StoreError(f"{room / 2**30:,.1f} GiB are free there, and {most:,} checkpoints take "
                         f"{needed / 2**30:,.1f}: {stay:,} stay, {keep:,} more are there while it trains",
                         place=str(folder), fix="free some, name another store: --store, or keep fewer: "
                                                f"--set train.checkpoint.{fewer}")


def _room(disk: Path, checkpoints: Path) -> int:
    """Bytes for a run's checkpoints, of which a run that is resumed has some."""
    own = sum(path.stat().st_size for path in checkpoints.rglob("*") if path.is_file())
    return shutil.disk_usage(disk).free + own
