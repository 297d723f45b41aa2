"""`ldlm pull`: shows what would come from a store and what the network costs, asks, has it brought.

The bringing needs the hashes of checkpoints, so it is done in the trainer's environment.
"""

from contextlib import nullcontext
from pathlib import Path

from launcher import console
from launcher.carry_out import ask
from launcher.errors import UsageError
from launcher.runs import find_run
from launcher.store_prices import OWN_DISK, StorePrice, store_price
from launcher.trainer_commands import run_in_trainer, trainer_python
from trainer.pull_plan import PullPlan, Which, bytes_here, check_place, check_room, plan_pull
from trainer.run_folder import RunFolder
from trainer.run_parts import Amount


def run_pull(run_id: str, to: str, which: str, store_option: str | None, *, yes: bool, as_json: bool) -> int:
    """Show, ask, fetch. Returns the exit code of what fetches.

    Raises:
        UsageError: There is no such choice of checkpoints.
        RunRecordError: There is no such run.
        StoreError: The store cannot be read, or the disk has no room.
        Refused: Nobody agrees to pay for the network.
        LdlmError: It cannot come into this folder, or there is no trainer's environment.
    """
    if which not in list(Which):
        raise UsageError(f"{which!r} is no choice", place="--checkpoints", fix=f"use {', '.join(Which)}")
    folder, target = find_run(run_id, store_option), Path(to).expanduser()
    trainer_python()
    check_place(folder, target)
    plan = plan_pull(folder, Which(which), console.talk)
    left_bytes = plan.num_bytes - bytes_here(plan, target / run_id)
    check_room(target, left_bytes)
    price = store_price(folder.store.address)
    with console.aside() if as_json else nullcontext():
        _show(folder, plan, target, left_bytes, price)
    if price is not OWN_DISK:
        ask(f"Pull {console.data_size(left_bytes)}?", yes)
    return run_in_trainer("trainer.pull", [
        run_id, "--store", folder.store.address, "--to", str(target), "--checkpoints", which,
        *(["--json"] if as_json else [])])


def _show(folder: RunFolder, plan: PullPlan, target: Path, left_bytes: int, price: StorePrice | None) -> None:
    rows = [_row(f"checkpoint of step {manifest.step:,}", Amount(len(manifest.sizes), manifest.num_bytes))
            for manifest in plan.wanted]
    rows += [_row(part, Amount.of(found)) for part, found in plan.objects.items() if found]
    console.answer(f"Pull {folder.run_id} from {folder.store.url}", "title")
    console.answer_table(["what", "files", "size"], rows, right=[1, 2],
                         total=["total", "", console.data_size(plan.num_bytes)])
    console.answer()
    here = plan.num_bytes - left_bytes
    console.answer_facts([("to", str(target / folder.run_id)),
                          *([("there", f"{console.data_size(here)}, which is verified, not fetched again")]
                            if here else []),
                          ("network", _network_words(left_bytes, price))])
    if plan.which is not Which.NONE and not plan.checkpoints:
        console.answer_notes(["it has no complete checkpoint: the rest comes alone"])
    console.answer()


def _row(what: str, amount: Amount) -> list[str]:
    return [what, str(amount.num_files), console.data_size(amount.num_bytes)]


def _network_words(num_bytes: int, price: StorePrice | None) -> str:
    if price is None:
        return "what this store asks for it is not known here"
    if not price.read_usd_per_gb:
        return f"free: {price.place}"
    return (f"~{console.dollars(price.read_usd(num_bytes), 2)} at the list price of "
            f"${price.read_usd_per_gb} a GB ({price.place}), unless this machine is in that region")
