"""SkyPilot waits for a machine of Vast that will not come: its real wait, beside others who look as well."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from test_sky_plugin import DEAR, Vast, vast
from test_vast_market import H100_CHEAPEST

pytest.importorskip("vastai")
from sky.provision.common import ProvisionConfig, ProvisionRecord  # noqa: E402
from sky.provision.vast import utils  # noqa: E402
from sky.server import plugins  # noqa: E402

from launcher import rental_log  # noqa: E402
from launcher.sky_plugin import LdlmPlugin  # noqa: E402
from sky import provision  # noqa: E402
from tests.lab.vast_market import MISSING_TAG  # noqa: E402

__all__ = ["vast"]  # a fixture
RENTED = "5001"


@pytest.fixture
def meanwhile(vast: Vast, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[], Any]]]:
    """What others do between SkyPilot's looks, one step to a look; and that it does not look once more."""
    LdlmPlugin().install(plugins.ExtensionContext())
    steps: list[Callable[[], Any]] = []

    def sleep(seconds: float) -> None:
        assert steps, "SkyPilot goes on waiting"
        other = threading.Thread(target=steps.pop(0))  # as another process: it does not wait itself
        other.start()
        other.join()

    monkeypatch.setattr(time, "sleep", sleep)
    yield steps
    assert steps == []


def provisioned(image: str = "an/image:1") -> ProvisionRecord:
    """As SkyPilot's provisioner does it."""
    config = ProvisionConfig(
        provider_config={"create_instance_kwargs": {"ldlm": DEAR}}, authentication_config={},
        docker_config={}, node_config={"ImageId": image, "InstanceType": "2x-H100_SXM-32-65536",
                                       "DiskSize": 200, "Preemptible": False},
        count=1, tags={}, resume_stopped_nodes=False, ports_to_open_on_launch=None)
    return provision.run_instances("vast", "Spain, ES, EU", "train-1", "train-1", config=config)


def later(monkeypatch: pytest.MonkeyPatch, **passed: float) -> Callable[[], None]:
    """A step after which the plugin takes it to be so much later."""
    from launcher import sky_plugin

    class Later(datetime):
        @classmethod
        def now(cls, zone: Any = None) -> datetime:  # type: ignore[override]
            return datetime.now(zone) + timedelta(**passed)

    return lambda: monkeypatch.setattr(sky_plugin, "datetime", Later)


def test_a_machine_that_comes_is_waited_for(vast, meanwhile):
    meanwhile += [utils.list_instances, lambda: vast.lab.host.ready[int(RENTED)]()]
    assert provisioned().head_instance_id == RENTED


def test_who_waits_hears_that_another_has_given_the_machine_up(vast, meanwhile):
    def finds_no_image() -> None:
        vast.market._instances[int(RENTED)].image = f"an/image{MISSING_TAG}"
        assert utils.list_instances() == {}  # and no error: what it looks for is something else

    meanwhile += [finds_no_image]
    said = f"machine {H100_CHEAPEST} of Vast does not start: .*not found.*, so it was given back"
    with pytest.raises(RuntimeError, match=said):
        provisioned()
    assert vast.market.rows() == [] and rental_log.read()[RENTED].unpulled


def test_who_waits_gives_the_machine_up_itself(vast, meanwhile):
    with pytest.raises(RuntimeError, match="does not start: .*not found.*, so it was given back"):
        provisioned(image=f"an/image{MISSING_TAG}")
    assert vast.ended() == [f"/api/v0/instances/{RENTED}/"]


def test_who_waits_hears_that_the_machine_was_given_back_by_hand(vast, meanwhile):
    meanwhile += [lambda: utils.remove(RENTED)]
    with pytest.raises(RuntimeError, match="4102 of Vast was given back before it was ready"):
        provisioned()


def test_who_waits_hears_that_the_host_has_vanished_but_not_at_the_first_look(vast, meanwhile, monkeypatch):
    meanwhile += [lambda: vast.market.vanish(int(RENTED)), lambda: None, later(monkeypatch, seconds=30),
                  later(monkeypatch, seconds=90)]
    with pytest.raises(RuntimeError, match="4102 of Vast is gone: it vanished before it was ready"):
        provisioned()


def test_a_machine_that_one_list_lacks_is_waited_for(vast, meanwhile, monkeypatch):
    rows = vast.market.rows
    meanwhile += [lambda: monkeypatch.setattr(vast.market, "rows", list),
                  lambda: monkeypatch.setattr(vast.market, "rows", rows),
                  later(monkeypatch, seconds=90), lambda: vast.lab.host.ready[int(RENTED)]()]
    assert provisioned().head_instance_id == RENTED


def test_once_the_machine_is_there_its_end_is_no_error_of_a_list(vast, meanwhile):
    meanwhile += [lambda: vast.lab.host.ready[int(RENTED)]()]
    provisioned()
    utils.remove(RENTED)
    assert utils.list_instances() == {}
