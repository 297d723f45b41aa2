"""What a store bills for keeping and for reading, and what machines pay to send to it and to fetch. Pure.

List prices of the standard class in the region named, without free allowances, requests or volume discounts.
Source: the providers' price pages, as copies of them and of comparisons say it. S3: aws.amazon.com/s3/pricing
(storage 2022, network 2026). Google: cloud.google.com/storage/pricing (2022) and its examples (no date). R2:
developers.cloudflare.com/r2/pricing (2026). Azure: its page on blobs (2026), network by a comparison (2026).
None was seen on a bill.
"""

from decimal import Decimal
from urllib.parse import parse_qs, urlsplit

from launcher.cloud_prices import egress_usd_per_gb, is_in_one_region
from launcher.frozen import Frozen
from launcher.offers import WITH_LIST_PRICES

_GB = 10**9


class StorePrice(Frozen):
    """Prices of one store.

    Attributes:
        place: Whose, and of which region.
        kept_usd_per_gb_month: For what lies there; a GB is 1e9 bytes.
        read_usd_per_gb: For what leaves it towards the internet.
    """

    place: str
    kept_usd_per_gb_month: Decimal
    read_usd_per_gb: Decimal

    def kept_usd_per_month(self, num_bytes: int) -> Decimal:
        """Dollars a month for so many bytes, unrounded."""
        return self.kept_usd_per_gb_month * num_bytes / _GB

    def read_usd(self, num_bytes: int) -> Decimal:
        """Dollars for reading so many bytes from elsewhere, unrounded."""
        return self.read_usd_per_gb * num_bytes / _GB


OWN_DISK = StorePrice(place="a disk of yours", kept_usd_per_gb_month=Decimal(0), read_usd_per_gb=Decimal(0))
_AWS = StorePrice(place="Amazon S3, us-east-1", kept_usd_per_gb_month=Decimal("0.023"),
                  read_usd_per_gb=Decimal("0.09"))
_GOOGLE = StorePrice(place="Google Cloud Storage, us-central1", kept_usd_per_gb_month=Decimal("0.020"),
                     read_usd_per_gb=Decimal("0.12"))
_AZURE = StorePrice(place="Azure Blob Storage, hot, eastus", kept_usd_per_gb_month=Decimal("0.018"),
                    read_usd_per_gb=Decimal("0.087"))
_CLOUDFLARE = StorePrice(place="Cloudflare R2", kept_usd_per_gb_month=Decimal("0.015"),
                         read_usd_per_gb=Decimal(0))
_ENDPOINTS = {"amazonaws.com": _AWS, "r2.cloudflarestorage.com": _CLOUDFLARE,
              "storage.googleapis.com": _GOOGLE}


_SENT_FROM_VAST = Decimal("0.01")  # the host's own price, each way, $0 to $0.02 as a rule (guess)
# $0.005 for a thousand writes (S3, the same list), and 60 of them to a GB in parts of 16 MiB.
_WRITES_USD_PER_GB = Decimal("0.0003")


def sent_usd_per_gb(infra: str, address: str | None) -> Decimal:
    """Dollars for a GB that machines send to the store at an address.

    Args:
        infra: `vast`, `gcp/us-central1`; of other clouds it costs nothing, as far as is known here.
        address: URL of the store; None: none is set yet.
    """
    cloud = infra.partition("/")[0]
    if cloud == "vast":
        return _SENT_FROM_VAST
    return egress_usd_per_gb(infra, address) if cloud in WITH_LIST_PRICES else Decimal(0)


def received_usd_per_gb(infra: str, address: str | None, said_by_host: Decimal | None = None) -> Decimal:
    """Dollars for a GB that machines fetch from the store at an address.

    Args:
        infra: See `sent_usd_per_gb`; a store bills nothing for what stays within its region.
        address: None: from elsewhere, where nobody bills for it.
        said_by_host: Of Vast, its own price; None: nobody has said.
    """
    is_vast = infra.partition("/")[0] == "vast"
    host = (_SENT_FROM_VAST if said_by_host is None else said_by_host) if is_vast else Decimal(0)
    price = store_price(address) if address else None
    return host + (price.read_usd_per_gb if price and not is_in_one_region(infra, address) else Decimal(0))


def request_usd_per_gb(address: str | None) -> Decimal:
    """Dollars for the requests that a GB takes on its way into the store at an address."""
    return Decimal(0) if not address or store_price(address) in (OWN_DISK, None) else _WRITES_USD_PER_GB


def store_price(address: str) -> StorePrice | None:
    """The list price of the store at an address; None where nobody here knows it."""
    parts = urlsplit(address)
    if parts.scheme != "s3":
        return {"file": OWN_DISK, "gs": _GOOGLE, "az": _AZURE}.get(parts.scheme)
    endpoint = parse_qs(parts.query).get("endpoint")
    if not endpoint:
        return _AWS
    host = urlsplit(endpoint[0]).hostname or ""
    return next((price for name, price in _ENDPOINTS.items() if f".{host}".endswith(f".{name}")), None)
