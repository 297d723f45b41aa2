"""What can be rented now, as offers: one hardware choice with price and place.

A cloud's price is what its list or market says (`launcher/priced_offers.py`), within the recipe's; where
nobody was asked, or nothing is listed, what the recipe says.
"""

import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal

from launcher.availability import Seen
from launcher.bids import BidAdvice, advise, losses_per_hour
from launcher.frozen import Frozen
from launcher.gpu_kinds import GPU_KINDS
from launcher.priced_offers import PricedOffer, least_usd_per_hour, priced_for, with_dearest
from launcher.recipe import OWN, Candidate

DEFAULT_CPU_RANKS = 2
WITH_LIST_PRICES = ("azure", "gcp")  # SkyPilot's catalogs have them; of Vast they are no price list
_MOST_REGIONS = 5  # of a candidate that leaves them open: a task names each, and more are a wall of text
_USABLE = 0.985  # of the memory that the driver names, what CUDA offers (guess: 31.4 of 31.8 GiB)
_NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")


class Gpu(Frozen):
    """One GPU of this machine, as its driver names it."""

    name: str
    memory_gib: float
    driver: str

    @property
    def sky_name(self) -> str:
        """The name SkyPilot uses: `RTX5090` for `NVIDIA GeForce RTX 5090`, `A100-80GB`, `H100`."""
        words = re.sub(r"NVIDIA|GeForce|Tesla", "", self.name).strip()
        if match := re.match(r"RTX (?:PRO )?\d+( Ti)?", words):
            return match.group().replace(" ", "")
        model = re.split(r"[ -]", words)[0]
        return "A100-80GB" if model == "A100" and "80GB" in words else model


class Machine(Frozen):
    """What this machine has: CPU cores of this process, memory of all."""

    num_cores: int
    memory_gib: float
    gpus: tuple[Gpu, ...] = ()

    def lacks(self, gpu: str) -> str | None:
        """Why `RTX5090:2` cannot be had here; None if it can."""
        name, _, number = gpu.partition(":")
        found = sum(one.sky_name.lower() == name.lower() for one in self.gpus)
        if found >= int(number):
            return None
        if found:
            return f"this machine has {found} {name}, not {number}"
        here = ", ".join(dict.fromkeys(one.sky_name for one in self.gpus))
        return f"this machine has no {name} ({f'it has {here}' if here else 'nor any other GPU'})"


def probe_machine() -> Machine:
    """Look at this machine. No GPU is found without `nvidia-smi`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(num_cores=cores, memory_gib=round(memory / 2**30, 1), gpus=_probe_gpus())


def _probe_gpus() -> tuple[Gpu, ...]:
    try:
        # 10 s: a driver that hangs must not hang every command.
        done = subprocess.run(_NVIDIA_SMI, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return parse_gpus(done.stdout)


def parse_gpus(csv: str) -> tuple[Gpu, ...]:
    """GPUs from the output of nvidia-smi (`name, MiB, driver` per line); odd lines are passed over."""
    rows = [[cell.strip() for cell in line.split(",")] for line in csv.splitlines()]
    return tuple(Gpu(name=row[0], memory_gib=round(int(row[1]) / 1024, 1), driver=row[2])
                 for row in rows if len(row) == 3 and row[1].isdigit())


class Offer(Frozen):
    """One hardware choice with price and place.

    Attributes:
        gpu: SkyPilot's name without the number; None: no GPU, `cpu_ranks` processes instead.
        gpu_memory_gib: Of one GPU: as probed here, else by its name or the recipe's word; None without a
            GPU, or when it is not known.
        host_memory_gib: Of one node; None when it is not known.
        lacks: What this machine lacks of the local hardware that the recipe names: it can be planned for,
            and not be launched here. None if nothing is lacking.
        spot: The machine can be taken back: spot on Azure and GCP, interruptible on Vast.
        price_usd_per_hour: All nodes together; None when it is not known here. What nodes count; of a bid
            the most that the GPUs can cost.
        on_demand_usd_per_hour: All nodes together, of the same hardware there; None: not known.
        price_is_simulated: Nobody sends a bill of this price.
        torch_index: Of wheels, beside pip's own; None: the locked torch as it is.
        seen_at: UTC, when the price was true.
        listed: The list's or market's own word on it, with all else that it says; None: nobody was asked, or
            has it. On Vast the cheapest machine that fits.
        least_usd_per_hour: What the cheapest of its kind costs there now, of a bid the lowest that wins,
            where that is more than the recipe pays; None: it is not, or nobody was asked.
        limit_usd_per_hour: The most that a machine is rented for on demand at Vast, with its disk, or that is
            bid for it; None: its price.
        bid_from_usd_per_hour: Of a bid that follows the market up to the limit: no less is bid; None: it
            stays as it is.
        advice: On a bid at Vast, by the market; None: nobody was asked, or no bid up to the limit wins.
        seen: What earlier runs of the store have seen of machines there, one each.
        seen_elsewhere: ... of the same card at other places of the cloud, all of them together.
    """

    infra: str
    gpu: str | None
    gpu_memory_gib: float | None = None
    num_gpus: int
    host_memory_gib: float | None = None
    lacks: str | None = None
    num_nodes: int
    cpu_ranks: int
    spot: bool
    price_usd_per_hour: Decimal | None
    on_demand_usd_per_hour: Decimal | None
    price_is_simulated: bool
    bid_usd_per_hour: Decimal | None
    image: str | None
    torch_index: str | None = None
    disk_gib: int
    seen_at: datetime
    listed: PricedOffer | None = None
    least_usd_per_hour: Decimal | None = None
    limit_usd_per_hour: Decimal | None = None
    bid_from_usd_per_hour: Decimal | None = None
    advice: BidAdvice | None = None
    seen: tuple[Seen, ...] = ()
    seen_elsewhere: Seen | None = None

    @property
    def most_usd_per_hour(self) -> Decimal | None:
        """What an hour of all nodes can cost at most; None when that is not known."""
        return self.price_usd_per_hour if self.limit_usd_per_hour is None else self.limit_usd_per_hour

    @property
    def too_low(self) -> str | None:
        """Why nothing is to be had for its price now; None: something may be."""
        most, least = self.most_usd_per_hour, self.least_usd_per_hour
        if most is None or least is None or least <= most:
            return None
        if self.bid_usd_per_hour is None:
            return f"at {_usd(most)} an hour nothing is rented; the lowest price is {_usd(least)}"
        return f"at {_usd(most)} an hour nothing wins; the lowest bid is {_usd(least)}"

    @property
    def hours_to_outbid(self) -> float | None:
        """Until a bid loses its machine, by the model of `launcher/bids.py`; None: no market is known."""
        if self.bid_usd_per_hour is None or self.listed is None:
            return None
        return 1 / losses_per_hour(self.bid_usd_per_hour, self.listed.price_usd_per_hour)

    @property
    def cloud(self) -> str:
        """First part of infra: `gcp` of `gcp/us-central1`."""
        return self.infra.partition("/")[0]

    @property
    def is_local(self) -> bool:
        """True for the machine that the launcher runs on."""
        return self.infra == "local"

    def ranks_per_node(self, gpus_per_rank: int) -> int:
        """Processes of training on one node; 0 when it has fewer GPUs than one of them takes."""
        return self.num_gpus // gpus_per_rank if self.num_gpus else self.cpu_ranks

    @property
    def accelerators(self) -> str | None:
        """`RTX5090:1`, or None without a GPU."""
        return f"{self.gpu}:{self.num_gpus}" if self.gpu else None

    @property
    def hardware(self) -> str:
        """What does the work, wherever it stands; speeds are compared by it."""
        each = self.accelerators or f"{self.cpu_ranks} CPU core{'s' if self.cpu_ranks > 1 else ''}"
        return f"{self.num_nodes}x {each}" if self.num_nodes > 1 else each

    @property
    def label(self) -> str:
        """`2 CPU cores here`, `RTX5090:1 on vast (interruptible)`, `2x H100:8 on gcp (spot)`."""
        if self.is_local:
            return f"{self.hardware} {'on a machine of yours' if self.lacks else 'here'}"
        taken = "interruptible" if self.cloud == "vast" else "spot"
        return f"{self.hardware} on {self.infra} ({taken if self.spot else 'on-demand'})"


def make_offers(candidates: Iterable[Candidate], machine: Machine, now: datetime,
                priced: Sequence[PricedOffer] = ()) -> tuple[Offer, ...]:
    """The offers behind candidates, in their order; of one that leaves its region open the cheapest regions.

    Those come last for whose price nothing is to be had now.

    Args:
        priced: What clouds list, and markets have.
    """
    counted = with_dearest(priced)
    offers = [offer for candidate in candidates
              for offer in _listed_offers(candidate, counted, now)
              or _on_demand_instead(candidate, counted, now)
              or [_unlisted_offer(candidate, counted, machine, now)]]
    return tuple(sorted(offers, key=lambda offer: offer.too_low is not None))


def _unlisted_offer(candidate: Candidate, priced: Sequence[PricedOffer], machine: Machine,
                    now: datetime) -> Offer:
    least = least_usd_per_hour(candidate, priced)
    return make_offer(candidate, machine, now).model_copy(update={"least_usd_per_hour": least})


def _listed_offers(candidate: Candidate, priced: Sequence[PricedOffer], now: datetime) -> list[Offer]:
    """The offers behind a candidate that somebody has priced: of Vast one, of other clouds one a region."""
    by_region: dict[str, PricedOffer] = {}
    for one in priced_for(candidate, priced):
        by_region.setdefault("" if one.cloud == "vast" else one.region, one)
    return [_listed_offer(candidate, one, now) for one in list(by_region.values())[:_MOST_REGIONS]]


def _on_demand_instead(candidate: Candidate, priced: Sequence[PricedOffer], now: datetime) -> list[Offer]:
    """With `bid: auto` on demand, where that is within its limit and no bid up to it wins."""
    most, lowest = candidate.most_bid_usd_per_hour, least_usd_per_hour(candidate, priced)
    if not candidate.bid or most is None or lowest is None:
        return []
    fixed = candidate.model_copy(update={"bid": None, "most_bid_usd_per_hour": None,
                                         "price_usd_per_hour": most})
    return [offer.model_copy(update={"advice": advise(lowest, offer.price_usd_per_hour, most)})
            for offer in _listed_offers(fixed, priced, now)]


def _listed_offer(candidate: Candidate, listed: PricedOffer, now: datetime) -> Offer:
    if candidate.takes_bids:
        return _bid_offer(candidate, listed, now)
    is_at_vast, nodes = listed.cloud == "vast", candidate.num_nodes
    each = listed.with_disk_usd_per_hour(candidate.disk_gib) if is_at_vast else listed.price_usd_per_hour
    on_demand = listed.on_demand_usd_per_hour if listed.can_be_taken else each
    is_narrower = not is_at_vast and len(listed.infra) > len(candidate.infra)  # a zone stays a zone
    return cloud_offer(candidate, now).model_copy(update={
        "infra": listed.infra if is_narrower else candidate.infra,
        "price_usd_per_hour": each * nodes,
        "on_demand_usd_per_hour": None if on_demand is None else on_demand * nodes,
        "limit_usd_per_hour": candidate.price_usd_per_hour if is_at_vast else None,
        "listed": listed, "seen_at": listed.seen_at})


def _bid_offer(candidate: Candidate, listed: PricedOffer, now: datetime) -> Offer:
    """The offer behind a candidate that bids: at its own bid; with `bid: auto` at the one that is advised, or
    on demand where that is."""
    offer, on_demand = cloud_offer(candidate, now), listed.on_demand_usd_per_hour
    most = offer.most_usd_per_hour or Decimal(0)
    fixed = None if on_demand is None else listed.model_copy(
        update={"price_usd_per_hour": on_demand}).with_disk_usd_per_hour(candidate.disk_gib)
    # On demand a limit is one with the disk.
    is_within = fixed is not None and fixed <= most
    advice = advise(listed.price_usd_per_hour, on_demand if is_within else None, most)
    offer = offer.model_copy(update={"listed": listed, "seen_at": listed.seen_at, "advice": advice,
                                     "on_demand_usd_per_hour": on_demand})
    if not candidate.bid or advice is None:
        return offer
    if advice.bid_usd_per_hour is None:
        return offer.model_copy(update={"spot": False, "bid_usd_per_hour": None,
                                        "bid_from_usd_per_hour": None, "price_usd_per_hour": fixed})
    return offer.model_copy(update={"bid_usd_per_hour": advice.bid_usd_per_hour,
                                    "price_usd_per_hour": advice.bid_usd_per_hour})


def _usd(price: Decimal) -> str:
    """Cents, and less where there is less: a limit that is rounded down would not do."""
    return f"${price.quantize(Decimal('0.01')) if price == round(price, 2) else price.normalize():f}"


def make_offer(candidate: Candidate, machine: Machine, now: datetime) -> Offer:
    """The offer behind a candidate, on this machine or in a cloud, by the recipe's word alone."""
    return local_offer(candidate, machine, now) if candidate.is_local else cloud_offer(candidate, now)


def local_offer(candidate: Candidate, machine: Machine, now: datetime) -> Offer:
    """This machine, at the price that the recipe simulates (0 when it names none).

    Without `gpu` a run takes one GPU if there is one, else CPU cores. GPUs that are not here are offered
    as they are known by name, so that they can be planned for; `lacks` says so.
    """
    wanted = candidate.gpu or (f"{machine.gpus[0].sky_name}:1" if machine.gpus else None)
    lacks = machine.lacks(wanted) if wanted else None
    name, _, number = (wanted or "").partition(":")
    here = min((gpu.memory_gib for gpu in machine.gpus if gpu.sky_name.lower() == name.lower()), default=None)
    memory = known_memory(candidate) if lacks else here and round(here * _USABLE, 1)
    return Offer(infra="local", gpu=name or None, gpu_memory_gib=memory, num_gpus=int(number or 0),
                 num_nodes=1, host_memory_gib=None if lacks else machine.memory_gib, lacks=lacks,
                 cpu_ranks=min(candidate.cpu_ranks or DEFAULT_CPU_RANKS, machine.num_cores), spot=False,
                 price_usd_per_hour=candidate.price_usd_per_hour or Decimal(0),
                 on_demand_usd_per_hour=candidate.on_demand_usd_per_hour, price_is_simulated=True,
                 bid_usd_per_hour=None, image=None, disk_gib=candidate.disk_gib, seen_at=now)


def known_memory(candidate: Candidate) -> float | None:
    """GiB of one GPU of a candidate, by the recipe's word or its name; None when nothing is known."""
    name = (candidate.gpu or "").partition(":")[0]
    return candidate.gpu_memory_gib or (GPU_KINDS[name].memory_gib if name in GPU_KINDS else None)


def cloud_offer(candidate: Candidate, now: datetime) -> Offer:
    """A machine that is rented, or of a cluster of the user's own. Its price is the bid, the most that its
    hour can cost, or what the recipe says."""
    own, most = candidate.price_usd_per_hour, candidate.most_bid_usd_per_hour
    # The dearest, where no market tells.
    bid = candidate.bid_usd_per_hour or (most if candidate.bid else None)
    name, _, number = (candidate.gpu or "").partition(":")
    return Offer(infra=candidate.infra, gpu=name or None,
                 gpu_memory_gib=known_memory(candidate), num_gpus=int(number or 0),
                 num_nodes=candidate.num_nodes, cpu_ranks=candidate.cpu_ranks or DEFAULT_CPU_RANKS,
                 spot=candidate.spot or bid is not None,
                 price_usd_per_hour=own if own is not None else bid,
                 on_demand_usd_per_hour=None, price_is_simulated=own is not None and candidate.cloud in OWN,
                 bid_usd_per_hour=bid, limit_usd_per_hour=most,
                 bid_from_usd_per_hour=None if most is None else candidate.bid_usd_per_hour or Decimal(0),
                 image=candidate.image,
                 torch_index=candidate.torch_index,
                 disk_gib=candidate.disk_gib, seen_at=now)
