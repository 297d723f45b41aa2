"""Which rented machines nobody needs any more, and that one that cannot be given back keeps no other."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from launcher.engine import EnginePhase
from launcher.errors import EngineError
from launcher.rentals import Price, Rental, Terms
from launcher.sweep import RentedMachine, give_back, is_left, machines_json, orphans

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def rental(number: int, run_id: str | None, minute: int = 0, usd: str = "1.50") -> Rental:
    then = NOON + timedelta(minutes=minute)
    return Rental(run_id=run_id, instance_id=str(number), machine_id=7, rented_at=then,
                  prices=(Price(at=then, usd_per_hour=Decimal(usd)),), terms=Terms(disk_gb=1))


def machine(number: int, run_id: str | None, *, label: str | None = "train-3-ab12-head", usd: str = "1.50",
            is_left: bool = False) -> RentedMachine:
    return RentedMachine(instance_id=str(number), label=label, status="running", since=NOON, is_left=is_left,
                         usd_per_hour=Decimal(usd), run_id=run_id,
                         rental=rental(number, run_id, usd=usd) if run_id else None)


def found(*machines: RentedMachine, alive: tuple[str, ...] = (), jobs: dict[int, str] | None = None,
          phase: EnginePhase = EnginePhase.RUNNING) -> list[str]:
    """Orphans, where these runs are in a phase and all others have ended."""
    return [one.instance_id for one in orphans(
        machines, lambda run_id: phase if run_id in alive else EnginePhase.ENDED, jobs or {})]


def test_a_live_run_keeps_the_machine_that_it_has_not_left_and_no_other():
    assert found(machine(1, "a", is_left=True), machine(2, "a"), machine(3, "b"), alive=("a", "b")) == ["1"]


@pytest.mark.parametrize("phase", EnginePhase)
def test_only_a_run_that_has_ended_or_never_was_frees_its_machine(phase):
    is_over = phase in (EnginePhase.ENDED, EnginePhase.NONE)
    assert found(machine(1, "a"), alive=("a",), phase=phase) == (["1"] if is_over else [])


def test_a_run_has_left_what_it_has_given_back_and_what_it_had_before_the_one_that_it_has_now():
    old, new, other = rental(1, "a"), rental(2, "a", minute=9), rental(3, "b", minute=20)
    everything = (old, new, other)
    assert [is_left(one, everything) for one in everything] == [True, False, False]
    given_back = new.model_copy(update={"given_back_at": NOON + timedelta(minutes=10)})
    assert is_left(given_back, everything)  # though it is there, and the run has no other


def test_machines_of_runs_that_have_ended_are_nobody_s_the_dearest_first():
    assert found(machine(1, "a", usd="0.50"), machine(2, "b", usd="2.00"), machine(3, "c"), alive=("c",)) == [
        "2", "1"]


def test_a_machine_with_the_name_of_a_task_is_ours_though_nobody_remembers_renting_it():
    assert found(machine(1, None), machine(2, None, label="bench-12-0f3a9c-head")) == ["1", "2"]


def test_machines_of_others_are_not_touched():
    names = ("my-notebook", None, "sky-train-1-head-x", "train-x-ab-head")
    assert found(*(machine(number, None, label=name) for number, name in enumerate(names))) == []


def cluster(name: str, run_id: str | None, usd: str | None = "1.50") -> RentedMachine:
    return RentedMachine(instance_id=name, label=f"{name}-0f3a9c", cloud="gcp", kind="cluster", run_id=run_id,
                         job=int(name.split("-")[1]), status="UP", since=NOON,
                         usd_per_hour=None if usd is None else Decimal(usd))


def test_a_live_job_keeps_the_clusters_that_bear_its_number_and_its_run_keeps_no_others():
    assert found(cluster("train-4", "a"), cluster("bench-5", "a"), cluster("train-6", "b"),
                 alive=("a", "b"), jobs={5: "a"}) == ["train-4", "train-6"]


def test_a_cluster_is_not_owned_by_somebody_else_s_job_that_has_got_its_number():
    assert found(cluster("train-4", "a"), cluster("prepare-5", None), jobs={4: "theirs", 5: "prepare"}) == [
        "train-4"]


def test_a_machine_and_a_cluster_of_one_run_do_not_hide_each_other():
    assert found(machine(1, "a"), cluster("train-4", "a"), alive=("a",)) == ["train-4"]
    assert found(machine(1, "a"), cluster("train-4", "a"), jobs={4: "a"}) == ["1"]


def test_a_price_that_is_not_known_is_no_price_of_nothing():
    (row,) = machines_json([cluster("train-4", None, usd=None)])
    assert (row["cloud"], row["kind"], row["run_id"], row["usd_per_day"]) == ("gcp", "cluster", None, None)


def test_what_a_day_costs_is_told_exactly():
    assert machines_json([machine(1, "a", usd="0.51")]) == [{
        "instance_id": "1", "label": "train-3-ab12-head", "status": "running", "run_id": "a",
        "cloud": "vast", "kind": "instance", "is_remembered": True,
        "since": "2026-11-23T12:00:00+00:00", "usd_per_day": "12.2400"}]


def test_one_machine_that_cannot_be_given_back_keeps_no_other():
    class Renter:
        gone: list[str] = []

        def give_back(self, instance_id: str) -> None:
            if instance_id == "1":
                raise EngineError("Vast refuses", place="Vast", fix="look there")
            self.gone.append(instance_id)

    renter = Renter()
    assert give_back(renter, [machine(1, "a"), machine(2, "a")]) == ["1: Vast refuses"]
    assert renter.gone == ["2"]
