"""Regions and zones of clouds: by SkyPilot's catalogs where they lie here, else by lists of ours."""

import csv
import difflib
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from launcher.errors import UsageError

_CATALOGS = "~/.sky/catalogs"  # SkyPilot fetches one when a cloud is first used
WITH_CATALOGS = ("vast", "azure", "gcp")
_MOST_SHOWN = 8  # at once: more is a wall of text
# From memory: every region of a price list of GCP of July 2026 is among them; Azure's were not compared.
_REGIONS = {
    "azure": """australiacentral australiacentral2 australiaeast australiasoutheast austriaeast belgiumcentral
        brazilsouth brazilsoutheast canadacentral canadaeast centralindia centralus chilecentral denmarkeast
        eastasia eastus eastus2 francecentral francesouth germanynorth germanywestcentral indonesiacentral
        israelcentral israelnorthwest italynorth japaneast japanwest jioindiacentral jioindiawest koreacentral
        koreasouth malaysiawest mexicocentral newzealandnorth northcentralus northeurope norwayeast norwaywest
        polandcentral qatarcentral southafricanorth southafricawest southcentralus southeastasia southindia
        spaincentral swedencentral swedensouth switzerlandnorth switzerlandwest uaecentral uaenorth uksouth
        ukwest westcentralus westeurope westindia westus westus2 westus3""",
    "gcp": """africa-south1 asia-east1 asia-east2 asia-northeast1 asia-northeast2 asia-northeast3 asia-south1
        asia-south2 asia-southeast1 asia-southeast2 asia-southeast3 australia-southeast1 australia-southeast2
        europe-central2 europe-north1 europe-north2 europe-southwest1 europe-west1 europe-west10 europe-west12
        europe-west2 europe-west3 europe-west4 europe-west6 europe-west8 europe-west9 me-central1 me-central2
        me-west1 northamerica-northeast1 northamerica-northeast2 northamerica-south1 southamerica-east1
        southamerica-west1 us-central1 us-east1 us-east4 us-east5 us-south1 us-west1 us-west2 us-west3
        us-west4"""}
# A place, a country and, by Vast's SDK, a continent.
_OF_VAST = re.compile(r".*\b[A-Z]{2}, (AF|AS|EU|LC|NA|OC)", re.IGNORECASE)


def known_region(infra: str, place: str | None = "--infra") -> str:
    """An infra that `read_infra` has read, with its region as SkyPilot spells it.

    Raises:
        UsageError: Its cloud has no such region or zone.
    """
    cloud, _, within = infra.partition("/")
    region, _, zone = within.partition("/")
    if cloud not in WITH_CATALOGS or not region or region == "*":
        return infra
    catalog = _catalog(cloud)
    if not catalog and cloud == "vast":
        return _in_the_form_of_vast(infra, region, place)
    zones = catalog or {name: set() for name in _REGIONS[cloud].split()}
    spelled = {name.lower(): name for name in zones}.get(region.lower())
    if spelled is None:
        raise _unknown(cloud, region, sorted(zones), place, is_ours=not catalog)
    if zone and not (zone in zones[spelled] if catalog else re.fullmatch(rf"{spelled}-[a-z]", zone)):
        raise _unknown(f"{cloud}/{spelled}", zone, sorted(zones[spelled]), place, is_ours=not catalog)
    return "/".join(filter(None, (cloud, spelled, zone)))


def _in_the_form_of_vast(infra: str, region: str, place: str | None) -> str:
    if _OF_VAST.fullmatch(region):
        return infra
    raise UsageError(f"vast has no region {region!r}: SkyPilot writes them as place, country and continent",
                     place=place, fix="use vast, which is all the world, or one such as 'vast/Spain, ES, EU'")


def _unknown(where: str, name: str, known: list[str], place: str | None, *, is_ours: bool) -> UsageError:
    """The refusal of a region of a cloud, or of a zone of a region."""
    kind = "zone" if "/" in where else "region"
    near = ([one for one in known if name.lower() in one.lower().split(", ")]  # a country of Vast
            or difflib.get_close_matches(name, known))[:3]
    whole = [shlex.quote(f"{where}/{one}") for one in near]
    meant = f"did you mean {' or '.join(whole)}? Else " if whole else ""
    is_long = len(known) > _MOST_SHOWN
    shown = difflib.get_close_matches(name, known, n=3, cutoff=0) if is_long else known
    more = [f"and {len(known) - len(shown)} more"] if is_long else []
    has = f"; there is {'; '.join([*shown, *more])}" if shown and not (is_long and near) else ""
    listed = f"; all that sell a GPU: .venv/bin/sky gpus list GPU --infra {where.split('/')[0]} --all-regions"
    newer = " (after which newer ones count)" if is_ours else ""
    return UsageError(f"{where} has no {kind} {name!r}", place=place,
                      fix=f"{meant}leave the {kind} out{has}{listed + newer if is_long or is_ours else ''}")


def catalog_path(cloud: str) -> Path | None:
    """SkyPilot's list of a cloud's machines, the newest that lies here; None where there is none."""
    found = Path(_CATALOGS).expanduser().glob(f"*/{cloud}/vms.csv")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _catalog(cloud: str) -> Mapping[str, set[str]]:
    """Zones by region; empty where SkyPilot has no list of this cloud here."""
    path, zones = catalog_path(cloud), dict[str, set[str]]()
    if path:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if region := row.get("Region"):
                    zones.setdefault(region, set()).add(row.get("AvailabilityZone") or "")
    return zones
