"""Which machines of Vast never start: by what docker says on them, and by how long they take."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from launcher.rentals import Price, Rental, Terms
from launcher.vast_start import Hopeless, hopeless

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
RENTAL = Rental(run_id="one", instance_id="5", machine_id=7, rented_at=NOON, terms=Terms(disk_gb=1),
                prices=(Price(at=NOON, usd_per_hour=Decimal(1)),))
IMAGE = "an/image:1"


def after(minutes: float, status: str = "LOADING", said: str | None = None,
          rental: Rental = RENTAL) -> Hopeless | None:
    row = {"status": status, "status_msg": said, "image_uuid": IMAGE}
    return hopeless(rental, row, NOON + timedelta(minutes=minutes))


# Docker's own words.
@pytest.mark.parametrize("said", [
    "Error response from daemon: manifest for an/image:1 not found: manifest unknown: manifest unknown",
    "Error response from daemon: pull access denied for an/image, repository does not exist or may require "
    "'docker login': denied: requested access to the resource is denied",
    "Error: no matching manifest for linux/amd64 in the manifest list entries",
    "docker: invalid reference format: error"])
def test_an_image_that_no_machine_can_pull_is_named(said):
    assert after(0.5, said=said) == Hopeless(f"does not start: {said}", unpulled=IMAGE)


@pytest.mark.parametrize("said", [
    "Error response from daemon: failed to register layer: write /x: no space left on device",
    "Error response from daemon: toomanyrequests: You have reached your pull rate limit",
    "OCI runtime create failed: nvidia-container-cli: initialization error",
    "Error response from daemon: Get https://registry-1.docker.io/v2/: net/http: request canceled"])
def test_what_is_wrong_with_one_machine_is_no_fault_of_the_image(said):
    assert after(0.5, said=said) == Hopeless(f"does not start: {said}")


@pytest.mark.parametrize("said", [None, "", "Pulling fs layer", "an/image:1: Verifying Checksum",
                                  "success, running an/image:1"])
def test_a_machine_that_loads_has_its_time(said):
    assert after(25, said=said) is None
    assert after(26, said=said) == Hopeless("has not started in 26 minutes")


def test_one_that_is_stopped_before_it_ever_ran_has_been_outbid():
    assert after(2, "EXITED") is None
    assert after(3, "STOPPED") == Hopeless("has not started in 3 minutes")


def test_one_that_runs_or_has_run_or_is_not_listed_is_left_to_skypilot():
    has_run = RENTAL.model_copy(update={"running_at": NOON})
    assert after(99, "RUNNING", "an error of long ago") is None
    assert after(99, "EXITED", rental=has_run) is None
    assert hopeless(RENTAL, None, NOON + timedelta(hours=9)) is None
