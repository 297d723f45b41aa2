"""What Azure and GCP bill beside the hours of a machine: its disk, its address, what leaves it. Pure.

List prices in dollars, without free allowances and volume discounts; none was seen on a bill. Google's disks:
cloud.google.com/compute/disks-image-pricing, by the month of 730 hours and the second, a GB is 2^30 bytes (a
copy of it and c3x.dev, 2026); balanced and SSD of us-central1. Its network: cloud.google.com/vpc/pricing, by
2^30 bytes (dev.to, 2026-03). Azure: premium SSDs of eastus are billed by the next larger size (Microsoft's
`disks-understand-billing`; sizes as lucidity.cloud has them, 2026, below 128 GiB from memory); its network by
the part of the world that is left (lucidity.cloud, 2026). Addresses: c3x.dev (Azure, 2026); Google's from
memory. What comes in costs nothing at either.

Where a region's own price is not known here, a dearer one counts, never a cheaper one.
"""

import re
from decimal import Decimal
from urllib.parse import parse_qs, urlsplit

from launcher.offers import Offer

_HOURS_OF_MONTH = 730
_GB, _GIB = 10**9, 2**30
_HOME = {"gcp": "us-central1", "azure": "eastus"}  # where the prices of disks below are from
_DISK_ELSEWHERE = Decimal("1.5")  # times those, in the dearest region (guess)
# A GiB and month. SkyPilot 0.14.1 takes the first where a task names no tier (`clouds/gcp.py`), and Hyperdisk
# where a machine takes nothing else: its capacity is cheaper, its speed is billed apart, so that the price of
# the SSD counts (guess). So it does where the machine is not known.
_GCP_BALANCED, _GCP_SSD = Decimal("0.10"), Decimal("0.17")
_ONLY_HYPERDISK = ("a3-ultragpu", "a4-", "g4-", "n4-")
# A month of a disk of so many GiB at most: P1 to P50. SkyPilot takes premium SSDs (`clouds/azure.py`), or the
# cheaper standard ones for the few machines that cannot have them.
_AZURE_PREMIUM = {4: Decimal("0.60"), 8: Decimal("1.20"), 16: Decimal("2.40"), 32: Decimal("5.28"),
                  64: Decimal("10.21"), 128: Decimal("19.71"), 256: Decimal("38.02"), 512: Decimal("73.22"),
                  1024: Decimal("135.17"), 2048: Decimal("259.05"), 4096: Decimal("495.57")}
_GCP_ADDRESS, _GCP_SPOT_ADDRESS, _AZURE_ADDRESS = Decimal("0.005"), Decimal("0.0025"), Decimal("0.005")
_GCP_EGRESS, _GCP_EGRESS_AUSTRALIA = Decimal("0.12"), Decimal("0.19")  # a GiB; to and from Australia
# A GB that leaves Azure from North America and Europe; from elsewhere; from South America, the dearest.
_AZURE_EGRESS, _AZURE_EGRESS_FAR, _AZURE_EGRESS_DEAREST = Decimal("0.087"), Decimal("0.12"), Decimal("0.181")
_AZURE_NEAR = re.compile(r".*us\d?|(canada|mexico|uk|france|germany|italy|norway|poland|spain|sweden"
                         r"|switzerland).*|(north|west)europe")
_SCHEMES = {"gcp": "gs", "azure": "az"}  # of a cloud's own stores


def disk_usd_per_hour(offer: Offer) -> Decimal:
    """Dollars an hour of the disks of an offer on Azure or GCP, all nodes together, unrounded."""
    elsewhere = 1 if _region(offer.infra) == _HOME[offer.cloud] else _DISK_ELSEWHERE
    return _disk_usd_per_month(offer) * elsewhere * offer.num_nodes / _HOURS_OF_MONTH


def _disk_usd_per_month(offer: Offer) -> Decimal:
    if offer.cloud == "gcp":
        machine = offer.listed.instance_type if offer.listed else None
        is_balanced = machine and not machine.startswith(_ONLY_HYPERDISK)
        return (_GCP_BALANCED if is_balanced else _GCP_SSD) * offer.disk_gib
    size, usd = next((row for row in _AZURE_PREMIUM.items() if offer.disk_gib <= row[0]),
                     list(_AZURE_PREMIUM.items())[-1])
    return usd * max(Decimal(1), Decimal(offer.disk_gib) / size)


def address_usd_per_hour(offer: Offer) -> Decimal:
    """Dollars an hour of the public addresses of an offer on Azure or GCP, all nodes together."""
    if offer.cloud == "azure":
        return _AZURE_ADDRESS * offer.num_nodes
    return (_GCP_SPOT_ADDRESS if offer.spot else _GCP_ADDRESS) * offer.num_nodes


def egress_usd_per_gb(infra: str, address: str | None) -> Decimal:
    """Dollars for 10^9 bytes that leave a machine for the store at an address; unrounded.

    Nothing where both are known to be in one region of one cloud: of a bucket only its URL says where it is
    (`gs://bucket/prefix?region=us-central1`). Else the price of the internet counts, within a cloud, too.

    Args:
        infra: Of Azure or GCP, in SkyPilot's language.
        address: None: no store is set yet.
    """
    if is_in_one_region(infra, address):
        return Decimal(0)
    region = _region(infra)
    if infra.startswith("gcp"):
        is_far = not region or "australia" in f"{region} {_region_of_store(address)}"
        return (_GCP_EGRESS_AUSTRALIA if is_far else _GCP_EGRESS) * _GB / _GIB
    if not region or region.startswith(("brazil", "chile")):
        return _AZURE_EGRESS_DEAREST
    return _AZURE_EGRESS if _AZURE_NEAR.fullmatch(region) else _AZURE_EGRESS_FAR


def hides_its_region(infra: str, address: str | None) -> bool:
    """True for a store of the machines' own cloud whose URL does not say where it is."""
    return _is_own(infra, address) and not _region_of_store(address)


def is_in_one_region(infra: str, address: str | None) -> bool:
    """True where machines of Azure or GCP and a store are known to be in one region of one cloud."""
    return _is_own(infra, address) and _region(infra) == _region_of_store(address) != ""


def _is_own(infra: str, address: str | None) -> bool:
    """True where machines and a store are of one cloud."""
    return urlsplit(address or "").scheme == _SCHEMES.get(infra.partition("/")[0])


def _region(infra: str) -> str:
    """`us-central1` of `gcp/us-central1/us-central1-a`; empty where it is left open."""
    parts = infra.split("/")
    return parts[1].lower() if len(parts) > 1 and parts[1] != "*" else ""


def _region_of_store(address: str | None) -> str:
    """What the URL of a store says of its region; empty where it says nothing."""
    named = parse_qs(urlsplit(address or "").query).get("region")
    return named[0].lower() if named else ""
