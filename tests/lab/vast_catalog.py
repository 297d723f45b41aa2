"""SkyPilot's catalogs of the fake of Vast's machines: `python -m tests.lab.vast_catalog FOLDER`."""

import csv
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vastai.utils import _regions_rev  # which continent SkyPilot's names of regions end with

from tests.lab.vast_offers import Machine, machines

# SkyPilot's names of Vast's GPUs.
_ACCELERATORS = {"H100 SXM": "H100", "RTX 5090": "RTX5090", "RTX 3060": "RTX3060"}


# SkyPilot's `chunked` searches take machines with this many CPUs and MB or more, and call all of them so.
_CPUS, _RAM_MB = 32, 65536


def row(machine: Machine) -> dict[str, Any]:
    """One machine as SkyPilot's own fetcher writes it; spot prices are 0 there."""
    name, mib = _ACCELERATORS[machine.gpu_name], machine.gpu_ram * machine.num_gpus
    info = {"Gpus": [{"Name": name, "Count": machine.num_gpus, "MemoryInfo": {"SizeInMiB": mib}}],
            "TotalGpuMemoryInMiB": mib}
    country = machine.geolocation.rpartition(", ")[2]
    return {"InstanceType": f"{machine.num_gpus}x-{machine.gpu_name.replace(' ', '_')}-{_CPUS}-{_RAM_MB}",
            "AcceleratorName": name, "AcceleratorCount": machine.num_gpus, "vCPUs": _CPUS,
            "MemoryGiB": _RAM_MB / 1024, "GpuInfo": str(info), "Price": machine.dph_base,
            "SpotPrice": "0.00", "Region": f"{machine.geolocation}, {_regions_rev[country]}",
            "HostingType": 1}


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for found in map(row, machines()):  # SkyPilot wants one price for a type in a region
        rows.setdefault((found["InstanceType"], found["Region"]), found)
    _write(folder / "vast/vms.csv", rows.values())
    _write(folder / "common/accelerators.csv",
           ({"AcceleratorName": name, "Clouds": "['Vast']"} for name in _ACCELERATORS.values()))
