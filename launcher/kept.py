"""What a run still has, and what that costs: a bucket bills for ever, and so does a forgotten machine."""

from decimal import Decimal
from typing import Any

from launcher import console
from launcher.errors import RunRecordError
from launcher.rentals import RENTED_AT
from launcher.run_record import RunRecord, RunView, Status
from launcher.store_prices import OWN_DISK, StorePrice, store_price
from trainer.contract import Name
from trainer.run_folder import RunFolder
from trainer.run_parts import Amount
from trainer.store import Store, open_store

_CENT = Decimal("0.01")


def kept_checkpoints(record: RunRecord) -> Amount:
    """What the checkpoints of a run take, those that were not finished included. Raises StoreError."""
    folder = RunFolder(open_store(record.store_address), record.run_id)
    return Amount.of(folder.store.objects(folder.key(Name.CHECKPOINTS)))


def kept_facts(record: RunRecord) -> list[tuple[str, str]]:
    """For the screen of a run: what its checkpoints take and cost, or that they are gone; machines that live
    on."""
    kept, rented = kept_checkpoints(record), [("rented", words) for words in _lives_on(record)]
    if not kept.num_bytes:
        gone = [("kept", "no checkpoint is left in the store")] if _durable_step(record) else []
        return gone + rented
    price = store_price(record.store_address)
    month = ("" if price is OWN_DISK else
             f", {a_month(price, kept.num_bytes)}, until `ldlm rm {record.run_id}`")
    return [("kept", f"{console.data_size(kept.num_bytes)} of checkpoints{month}"), *rented]


def _lives_on(record: RunRecord) -> list[str]:
    """Machines that were given back, or taken for gone, and are billed all the same."""
    return [f"instance {rental.instance_id} at {RENTED_AT} was given back or thought gone, is still there, "
            "and billed: `ldlm sweep`" for rental in record.rentals if rental.lives_on]


def kept_json(record: RunRecord) -> dict[str, Any]:
    """The same for programs; null where the price of the store is not known."""
    kept = kept_checkpoints(record)
    usd = usd_per_month(store_price(record.store_address), kept.num_bytes)
    return {"checkpoint_bytes": kept.num_bytes, "checkpoint_usd_per_month": usd}


def usd_per_month(price: StorePrice | None, num_bytes: int) -> str | None:
    """What so many bytes cost a month, for programs; None where the price of the store is not known."""
    return None if price is None else f"{price.kept_usd_per_month(num_bytes):.6f}"


def show_bill_goes_on(view: RunView) -> None:
    """Say, of a run that has ended, that a bucket goes on to bill for its checkpoints, and of any run, that a
    machine lives on; and what ends that."""
    record, kept = view.record, kept_checkpoints(view.record)
    price, notes = store_price(record.store_address), _lives_on(record)
    if kept.num_bytes and price is not OWN_DISK and view.status is Status.ENDED:
        notes.append(f"its checkpoints stay in the bucket: {console.data_size(kept.num_bytes)}, "
                     f"{a_month(price, kept.num_bytes)}, until `ldlm rm {record.run_id}`; to have "
                     f"them at home first: `ldlm pull {record.run_id}`")
    if notes:
        console.answer()
        console.answer_notes(notes)


def a_month(price: StorePrice | None, num_bytes: int) -> str:
    """Dollars a month, for people; a store that bills shows at least that it does."""
    if price is None:
        return "price not known"
    usd = price.kept_usd_per_month(num_bytes)
    return f"{'< $0.01' if 0 < usd < _CENT else f'~{console.dollars(usd, 2)}'} a month"


def check_has_checkpoint(store: Store, record: RunRecord) -> None:
    """Refuse to go on with a run whose saved steps are gone: it would train them again, for money.

    Raises:
        RunRecordError: Its record knows a durable step, and no checkpoint is in the store.
    """
    step, prefix = _durable_step(record), f"{record.run_id}/{Name.CHECKPOINTS}"
    if step and not any(found.key.endswith(f"/{Name.MANIFEST}") for found in store.objects(prefix)):
        raise RunRecordError(f"the checkpoint of step {step:,} is not there any more, nor is another",
                             place=f"{store.url}/{prefix}",
                             fix="launch a new run: `ldlm rm` deletes checkpoints for good; or put back "
                                 f"what `ldlm pull {record.run_id}` has brought home")


def _durable_step(record: RunRecord) -> int:
    beats = (files.heartbeat for files in record.attempts)
    return max((beat.durable_step for beat in beats if beat), default=0)
