"""What the real SkyPilot would pay for machines, region by region, by its catalogs in this home."""

import json
from pathlib import Path
from typing import Any


def _answer() -> None:
    request = json.loads(Path("request.json").read_text())
    with (Path.home() / ".sky/catalogs/v8/gcp/vms.csv").open("a") as file:  # before SkyPilot reads it
        file.write("".join(f"{row}\n" for row in request["gcp_rows"]))
    Path("answer.json").write_text(json.dumps(
        {f"{cloud} {gpu} {'spot' if spot else 'on-demand'}": _by_region(cloud, gpu, spot=spot)
         for cloud, gpu in request["machines"] for spot in (True, False)}))


def _by_region(cloud: str, gpu: str, *, spot: bool) -> dict[str, list[Any]]:
    from sky.utils import resources_utils

    import sky

    machine = sky.Resources(infra=cloud, accelerators=gpu, use_spot=spot)
    kinds = machine.cloud.get_feasible_launchable_resources(machine, 1).resources_list
    places = [place for kind in kinds
              for place in resources_utils.make_launchables_for_valid_region_zones(kind)]
    return {place.region: [place.instance_type, round(place.get_cost(3600), 6)] for place in places}


if __name__ == "__main__":
    _answer()
