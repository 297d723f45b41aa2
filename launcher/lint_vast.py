"""Rules of lint about Vast.ai, as SkyPilot 0.14.1 rents there. Pure.

Each docstring begins with the behaviour that the rule guards against.
"""

from collections.abc import Iterator
from typing import Any

from launcher.lint_part import Found, TaskPart
from launcher.vast_search import IMAGE, KEY
from trainer.contract import Env

VAST = "vast"
_OPTIONS = "config.vast.create_instance_kwargs"
_BID = f"{_OPTIONS}.bid_price"


def spot_flag_on_vast(part: TaskPart) -> Iterator[Found]:
    """The flag use_spot never reaches Vast's request, so that a machine is rented on demand."""
    for machine in part.machines(VAST):
        if machine.values.get("use_spot"):
            yield (machine.where("use_spot"), "use_spot on vast silently rents on-demand",
                   "set bid_usd_per_hour on the candidate instead")


def bid_missing_on_vast(part: TaskPart) -> Iterator[Found]:
    """Vast rents on demand, at its full price, whatever is started without a bid (vast-cli#403)."""
    interruptible = any("(interruptible)" in machine.env(Env.OFFER) for machine in part.machines(VAST))
    if interruptible and not _has_bid(part):
        yield (_BID, "the plan counts on an interruptible machine, and without a bid vast rents on-demand",
               "set bid_usd_per_hour on the candidate")


def bid_for_on_demand_on_vast(part: TaskPart) -> Iterator[Found]:
    """Whatever is started with a bid can be taken back: what `config` says is for every alternative."""
    on_demand = any("(on-demand)" in machine.env(Env.OFFER) for machine in part.machines(VAST))
    if on_demand and _has_bid(part):
        yield (_BID, "the plan counts on a machine that nobody takes back, and with a bid vast rents an "
               "interruptible one", "leave either bids or on-demand candidates on vast in the document")


def search_missing_on_vast(part: TaskPart) -> Iterator[Found]:
    """SkyPilot loses the filters of its own search and rents the first machine that Vast has, of any kind."""
    if part.machines(VAST) and not (_options(part).get(KEY) or {}).get("filters"):
        yield (f"{_OPTIONS}.{KEY}", "without filters SkyPilot rents whatever vast offers first",
               "leave the block as ldlm renders it")


def one_bid_for_several_on_vast(part: TaskPart) -> Iterator[Found]:
    """What `config` says is for every alternative: a bid for one card is offered for all of them."""
    count = len({(name, number) for machine in part.machines(VAST) for name, number in machine.gpus.items()})
    if count > 1 and _has_bid(part):
        yield (_BID, f"the one bid of a task would be offered for {count} kinds of machine on vast",
               "leave one candidate on vast in the document")


def several_nodes_on_vast(part: TaskPart) -> Iterator[Found]:
    """SkyPilot has no clusters on Vast: nothing is found to rent."""
    if part.machines(VAST) and (part.body.get("num_nodes") or 1) > 1:
        yield "num_nodes", "SkyPilot has no clusters on vast", "set num_nodes to 1, or choose another cloud"


def mount_on_vast(part: TaskPart) -> Iterator[Found]:
    """A Vast machine is a container without FUSE, in which no bucket can be mounted."""
    for mount in part.mounts():
        if part.machines(VAST) and mount.mode.startswith("MOUNT"):
            yield (mount.place, "vast cannot mount buckets (no FUSE)",
                   "use mode COPY; the trainer uploads checkpoints itself")


def image_missing_on_vast(part: TaskPart) -> Iterator[Found]:
    """Without an image SkyPilot starts vastai/base:0.0.2, an image never tried with this trainer."""
    for machine in part.machines(VAST):
        if not machine.values.get("image_id"):
            yield (machine.where("image_id"),
                   "without an image SkyPilot starts vastai/base:0.0.2, never tried with this trainer",
                   f"set image_id to docker:{IMAGE}")


def disk_missing_on_vast(part: TaskPart) -> Iterator[Found]:
    """Without a size SkyPilot takes 256 GB (and once took 10), billed until the machine is destroyed."""
    for machine in part.machines(VAST):
        if not machine.values.get("disk_size"):
            yield (machine.where("disk_size"),
                   "without a size the disk is SkyPilot's own 256 GB, which vast bills by the hour, also "
                   "while the machine is stopped",
                   "set disk_gib on the candidate")


def price_cap_on_vast(part: TaskPart) -> Iterator[Found]:
    """Vast's catalog is never refreshed and has no spot prices: a cap on them compares with old ones."""
    for machine in part.machines(VAST):
        if machine.values.get("max_hourly_cost") is not None:
            yield (machine.where("max_hourly_cost"),
                   "SkyPilot compares this cap with a catalog of vast that is never refreshed and has 0.00 "
                   "for every spot price",
                   "take it out: the bid is the most that an hour can cost")


def _has_bid(part: TaskPart) -> bool:
    return any(_options(part).get(name) for name in ("bid_price", "price"))


def _options(part: TaskPart) -> dict[str, Any]:
    vast = part.block("config").get(VAST)
    options = vast.get("create_instance_kwargs") if isinstance(vast, dict) else None
    return options if isinstance(options, dict) else {}
