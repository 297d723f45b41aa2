"""Our part inside SkyPilot's API server: how a machine of Vast is found and rented. `ldlm init` installs it.

SkyPilot 0.14.1 loses the filters of its search on the way to Vast and takes the first machine of whatever
comes, asked for or not; it writes the account's key on that machine; it waits for it without end. For tasks
of ours, which say so under a key of theirs, this file does that part instead. Other tasks are left alone,
but that `max_hourly_cost` on Azure and GCP means what it says for all of them: `launcher/sky_places.py`.
Where no machine is to be had at all, on any cloud, `launcher/capacity_watch.py` ends the wait.
"""

import json
import logging
import shlex
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sky.server import plugins

from launcher import capacity_watch, rental_log, rental_watch
from launcher.course import ELSEWHERE, ON_COURSE
from launcher.engine import has_credentials
from launcher.market import MARKET
from launcher.market_search import look_at_market, query_at, rentable_of
from launcher.plugin_version import plugin_version
from launcher.reconcile import CHARGES, COSTS
from launcher.rental_cost import node_terms
from launcher.rentals import HOURS_OF_MONTH, RENTALS, Rental, Rentals
from launcher.sky_clusters import clusters, costs
from launcher.sky_places import within_price
from launcher.sky_ready import KEYS
from launcher.sweep import CLUSTERS, MACHINES, Machines, RentedMachine, is_left
from launcher.vast_answers import silence_told
from launcher.vast_charges import charges_at_vast
from launcher.vast_credit import check_lasts, credit_at_vast
from launcher.vast_looks import Instances, in_words_of_skypilot, learn
from launcher.vast_onstart import first_commands, without_mark
from launcher.vast_raise import raise_bids
from launcher.vast_rent import rent
from launcher.vast_search import KEY, bid_for, rental_of
from launcher.vast_start import Hopeless, hopeless
from launcher.vast_wait import awaits, hear, wait_through
from trainer.rental_terms import TERMS

_VERSION = plugin_version()  # now: what is loaded, whatever is pulled later


class LdlmPlugin(plugins.BasePlugin):
    """What `~/.sky/plugins.yaml` names. `ldlm doctor` asks the server whether it is there."""

    @property
    def name(self) -> str:
        """As the server lists it."""
        return KEY

    @property
    def version(self) -> str:
        """Of its code: whoever launches through it must have the same."""
        return _VERSION

    def install(self, extension_context: plugins.ExtensionContext) -> None:
        """Take SkyPilot's place in front of Vast, and hold it to what a task may cost, once per process."""
        from sky.adaptors import vast
        from sky.provision import vast as provisioner
        from sky.provision.vast import utils
        from sky.utils import registry, resources_utils

        if ON_COURSE.lower() not in registry.JOBS_RECOVERY_STRATEGY_REGISTRY:  # every context knows its name
            registry.JOBS_RECOVERY_STRATEGY_REGISTRY.type_register(name=ON_COURSE)(_strategy())
        if extension_context.context is plugins.PluginContext.MAIN:
            capacity_watch.start()
            rental_watch.start(lambda: utils.list_instances())  # as it is then, below
        app = extension_context.app
        if app is not None:
            app.add_api_route(f"{RENTALS}/{{run_id}}", rentals_of, methods=["GET"])
            app.add_api_route(CLUSTERS, clusters, methods=["GET"])
            app.add_api_route(MARKET, look_at_market, methods=["POST"])
            app.add_api_route(CHARGES, charges, methods=["GET"])
            app.add_api_route(COSTS, costs, methods=["GET"])
            app.add_api_route(KEYS, keys_that_travel, methods=["GET"])
            app.add_api_route(MACHINES, machines, methods=["GET"])
            app.add_api_route(f"{MACHINES}/{{instance_id}}", give_back, methods=["DELETE"])
        if getattr(utils.launch, "is_ldlm", False):
            return
        resources_utils.make_launchables_for_valid_region_zones = within_price(
            resources_utils.make_launchables_for_valid_region_zones)
        utils.launch = launch_through(utils.launch, vast.vast)
        utils.list_instances = list_through(utils.list_instances, vast.vast)
        utils.remove = remove_through(utils.remove)
        provisioner.run_instances = wait_through(provisioner.run_instances)  # type: ignore[attr-defined]


def _strategy() -> Any:
    """Ours; where it cannot even be loaded SkyPilot's own, for a task without a strategy cannot recover."""
    try:
        from launcher.sky_strategy import CourseStrategy
    except Exception:
        logging.getLogger("sky.ldlm").exception(f"ldlm's strategy cannot be loaded: {ELSEWHERE} stands in")
        from sky.jobs.recovery_strategy import EagerFailoverStrategyExecutor

        return EagerFailoverStrategyExecutor
    return CourseStrategy


def rentals_of(run_id: str) -> dict[str, Any]:
    """What this server has rented for a run, as the launcher asks for it."""
    found, num_torn = rental_log.read_all()
    mine = (rental for rental in found.values() if rental.run_id == run_id)
    return Rentals.of(mine, num_torn).model_dump(mode="json")


def keys_that_travel(kept: str) -> dict[str, list[str]]:
    """Files that SkyPilot would copy from here onto every machine that it rents, as it works them out itself.

    Args:
        kept: Clouds whose keys its config has it keep, with commas between them.
    """
    from sky.utils import registry

    from sky import check

    clouds = [cloud for name, cloud in registry.CLOUD_REGISTRY.items() if name in kept.split(",")]
    return {"files": sorted(check.get_cloud_credential_file_mounts(clouds))}


def charges(instance_ids: str, since: int) -> dict[str, Any]:
    """What Vast's record of charges says of some machines, as the launcher asks for it.

    Args:
        instance_ids: With commas between them.
        since: When the first of them was rented, in Unix seconds.
    """
    from sky.adaptors import vast

    with silence_told():
        found = charges_at_vast(vast.vast(), instance_ids.split(","), datetime.fromtimestamp(since, UTC),
                                datetime.now(UTC))
    return found.model_dump(mode="json")


def machines() -> dict[str, Any]:
    """Every machine that the account has at Vast now, as `ldlm sweep` asks for it; or that nobody knows."""
    from sky.adaptors import vast

    if not has_credentials("vast"):
        open_rentals = [one for one in rental_log.read().values() if one.ended_at is None]
        return Machines(machines=(), not_seen_end=len(open_rentals)).model_dump(mode="json")
    asked_at = datetime.now(UTC)
    with silence_told():
        found = {str(row["id"]): row for row in vast.vast().show_instances()}
    learn(found, asked_at)
    rentals = rental_log.read()
    return Machines(machines=(*(_machine(row, rentals.get(number), rentals.values())
                                for number, row in found.items()), *_volumes(vast.vast()))
                    ).model_dump(mode="json")


def _machine(row: Mapping[str, Any], rental: Rental | None, rentals: Collection[Rental]) -> RentedMachine:
    return RentedMachine(
        instance_id=str(row["id"]), label=without_mark(row.get("label")),
        status=row.get("actual_status") or "unknown",
        since=datetime.fromtimestamp(row.get("start_date") or 0, UTC), usd_per_hour=_usd_per_hour(row),
        rental=rental, run_id=rental.run_id if rental else None,
        is_left=rental is not None and is_left(rental, rentals))


def _usd_per_hour(row: Mapping[str, Any]) -> Decimal | None:
    """What a machine costs in the state in which it is; None where Vast does not say."""
    is_running = row.get("actual_status") in ("running", "frozen")
    price = row.get("dph_total" if is_running else "storage_total_cost")
    return None if price is None else Decimal(str(price))


def _volumes(sdk: Any) -> list[RentedMachine]:
    """Volumes of the account; none where Vast does not tell, which must not hide its machines."""
    import requests

    try:
        return [_volume(row) for row in sdk.show_volumes()]
    except (requests.RequestException, LookupError, TypeError, ValueError):
        return []


def _volume(row: Mapping[str, Any]) -> RentedMachine:
    """A disk that outlives its machine. That its row has the price of its offer is a guess."""
    size_gb, price = row.get("disk_space"), row.get("storage_cost")
    is_priced = size_gb is not None and price is not None
    return RentedMachine(
        instance_id=f"V.{row['id']}", label=row.get("label"), kind="volume",
        status=row.get("status") or "unknown", since=datetime.fromtimestamp(row.get("start_date") or 0, UTC),
        usd_per_hour=Decimal(str(size_gb)) * Decimal(str(price)) / HOURS_OF_MONTH if is_priced else None)


def give_back(instance_id: str) -> dict[str, bool]:
    """End a machine at Vast."""
    from sky.provision.vast import utils

    with silence_told():
        utils.remove(instance_id)
    return {"success": True}


def launch_through(launch: Callable[..., str], sdk: Callable[[], Any]) -> Callable[..., str]:
    """SkyPilot's `launch` of Vast for tasks of others, ours for tasks of ours.

    Args:
        launch: `sky.provision.vast.utils.launch`.
        sdk: Gives Vast's SDK.
    """
    def rent_or_launch(name: str, instance_type: str, region: str, disk_size: int, image_name: str,
                       *, create_instance_kwargs: dict[str, Any] | None = None,
                       ssh_public_key: str | None = None, **more: Any) -> str:
        wishes = dict(create_instance_kwargs or {})
        settings = wishes.pop(KEY, None)
        if settings is None:
            return launch(name, instance_type, region, disk_size, image_name, ssh_public_key=ssh_public_key,
                          create_instance_kwargs=create_instance_kwargs, **more)
        bid = wishes.pop("bid_price", None)
        contract: dict[str, Any] = {
            "label": name, "image": image_name, "disk": disk_size, "env": {"__SOURCE": "skypilot"},
            "onstart_cmd": first_commands(ssh_public_key, sdk().client.server_url, name,
                                          bid_follows=bid is not None and "bid_from" in settings),
            "login": more.get("login")} | wishes  # of a private registry
        query = query_at(settings, instance_type, region, disk_size, bids=bid is not None)
        offers = rentable_of(sdk(), query, disk_size, bids=bid is not None)
        if not offers:  # as SkyPilot says it
            raise RuntimeError(f"Vast offers no machine that fits now: {json.dumps(query)}")
        told_at, known = datetime.now(UTC), rental_log.read().values()

        def rental(offer: dict[str, Any], instance_id: str, now: datetime) -> Rental:
            own = bid_for(offer, settings, bid)
            return rental_of(offer, instance_id, settings, own, contract["disk"], now)

        credit = credit_at_vast(sdk())
        check_lasts(credit, rental(offers[0], "", told_at).prices[0].usd_per_hour)

        def of_offer(offer: dict[str, Any]) -> dict[str, Any]:
            terms = node_terms(rental(offer, "", told_at), known, credit).model_dump_json()
            onstart = f"printf %s {shlex.quote(terms)} > ~/{TERMS};{contract['onstart_cmd']}"
            own = bid_for(offer, settings, bid)
            return {"onstart_cmd": onstart} | ({} if own is None else {"price": own})

        offer, instance_id = rent(sdk(), offers, contract, of_offer)
        rented = rental(offer, instance_id, datetime.now(UTC))
        rental_log.rented(rented.model_copy(update={"told_at": told_at}))
        awaits(instance_id)
        return instance_id

    rent_or_launch.is_ldlm = True  # type: ignore[attr-defined]
    return rent_or_launch


def list_through(list_instances: Callable[[], Instances], sdk: Callable[[], Any]) -> Callable[[], Instances]:
    """SkyPilot's list of instances in words that it knows, without those of ours that never start.

    SkyPilot looks every few seconds while it waits and every quarter of a minute afterwards: what is learnt
    of our rentals is remembered here.

    Args:
        list_instances: `sky.provision.vast.utils.list_instances`.
        sdk: Gives Vast's SDK.
    """
    def known() -> Instances:
        asked_at, found = datetime.now(UTC), list_instances()
        learn(found, asked_at)
        raise_bids(sdk(), found, asked_at)
        in_words_of_skypilot(found)
        for rental in rental_log.read().values():
            if rental.ended_at is None and (
                    never := hopeless(rental, found.get(rental.instance_id), asked_at)):
                _give_up(sdk(), rental, never)
                del found[rental.instance_id]
        hear(found, asked_at)
        return found

    return known


def _give_up(sdk: Any, rental: Rental, never: Hopeless) -> None:
    sdk.destroy_instance(id=rental.instance_id)
    if never.unpulled:
        rental_log.unpulled(rental.instance_id, never.unpulled)
    rental_log.given_up(rental.instance_id, datetime.now(UTC), never.why)


def remove_through(remove: Callable[..., None]) -> Callable[..., None]:
    """SkyPilot's `remove` of Vast, which is remembered.

    Args:
        remove: `sky.provision.vast.utils.remove`.
    """
    def remove_and_note(instance_id: str) -> None:
        remove(instance_id)
        if instance_id in rental_log.read():
            rental_log.given_back(instance_id, datetime.now(UTC))

    return remove_and_note
