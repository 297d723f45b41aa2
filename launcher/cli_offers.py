"""`ldlm offers`: parse, call."""

from typing import Annotated

import typer

from launcher.cli_options import Infra, Json, OffersFile, infra_of, not_empty

Gpus = Annotated[list[str] | None, typer.Option(
    "--gpu", metavar="NAME[:NUMBER]", help="H100, or H100:8 in one machine. Repeatable.")]
Region = Annotated[str | None, typer.Option(
    "--region", callback=not_empty, help="Only regions with this in their names.")]
Spot = Annotated[bool | None, typer.Option(
    "--spot/--on-demand", help="Only what can be taken back, bids too; or only what cannot.")]
MostUsd = Annotated[str | None, typer.Option(
    "--max-usd-per-hour", callback=not_empty, help="Of one machine.")]
Sort = Annotated[str, typer.Option("--sort", help="price, per-gpu, reliability, upload, region or age.")]


def offers(gpu: Gpus = None, infra: Infra = None, region: Region = None, spot: Spot = None,
           max_usd_per_hour: MostUsd = None, sort: Sort = "price", saved: OffersFile = None,
           as_json: Json = False) -> None:
    """List what can be rented now, over clouds. Never spends."""
    from launcher.offer_list import Wanted, read_gpu, read_most, read_sort
    from launcher.offers_screen import run_offers

    most = read_most(max_usd_per_hour) if max_usd_per_hour else None
    gpus = tuple(dict.fromkeys(read_gpu(one, from_file=saved is not None) for one in gpu or ()))
    run_offers(Wanted(gpus, infra_of(infra), region, spot, most, read_sort(sort)), saved, as_data=as_json)
