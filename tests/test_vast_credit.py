"""The prepaid credit of an account: asked where its key is, counted down where a machine lives on it."""

import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
import requests
from cli_lab import ldlm
from run_stories import RUN_ID, at, preempted_once

from launcher.rental_cost import node_terms
from launcher.rentals import Price, Rental, Terms
from launcher.vast_credit import Credit, check_lasts, credit_at_vast
from trainer.contract import Env, Outcome
from trainer.notices import Notice, VastCredit, cloud_named, watch
from trainer.rental_terms import TERMS, RentalTerms
from trainer.run_folder import AttemptEnd, Traffic

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)
ROWS = [{"actual_status": "running", "dph_total": 2.5, "storage_total_cost": 0.1},
        {"actual_status": "exited", "dph_total": 2.5, "storage_total_cost": 0.1}, {"actual_status": None}]


class Sdk:
    """As Vast's SDK answers these two questions."""

    def __init__(self, user: object, rows: object = ()) -> None:
        self._user, self._rows = user, rows

    def show_user(self) -> object:
        if isinstance(self._user, Exception):
            raise self._user
        return self._user

    def show_instances(self) -> object:
        return self._rows


def test_other_machines_of_the_account_live_on_the_same_credit() -> None:
    found = credit_at_vast(Sdk({"credit": 7.8, "balance": 0}, ROWS))
    assert found == Credit(Decimal("7.8"), Decimal("2.6"))
    assert found.hours(Decimal("1.3")) == 2


@pytest.mark.parametrize("user", [requests.HTTPError("404"), {}, {"credit": None}, {"credit": "NaN"}, []])
def test_what_vast_does_not_say_is_no_reason_not_to_rent(user: object) -> None:
    assert credit_at_vast(Sdk(user)) is None
    check_lasts(None, Decimal(9))


@pytest.mark.parametrize(("usd", "minutes"), [("3.90", None), ("1.95", "30"), ("-2", "0")])
def test_no_machine_is_rented_that_would_be_stopped_before_it_has_done_anything(
        usd: str, minutes: str | None) -> None:
    credit = Credit(Decimal(usd), Decimal("2.60"))
    if minutes is None:
        return check_lasts(credit, Decimal("1.30"))
    with pytest.raises(RuntimeError, match=f"lasts for {minutes} minutes of a machine at .1.30 an hour"):
        check_lasts(credit, Decimal("1.30"))


def test_a_machine_is_told_of_the_credit_and_never_of_the_key() -> None:
    rental = Rental(run_id="one", instance_id="i", machine_id=7, rented_at=NOON,
                    terms=Terms(disk_gb=100, disk_usd_per_gb_month=Decimal("0.216")),
                    prices=(Price(at=NOON, usd_per_hour=Decimal("1.20")),))
    told = node_terms(rental, [], Credit(Decimal(9), Decimal("0.77")))
    assert (told.credit_usd, told.others_usd_per_hour) == (9, Decimal("0.77"))
    # 1.20 for its GPUs, 0.03 for its disk and 0.77 for the others: two dollars an hour.
    left_s = told.credit_left_s(Decimal("1.20"), Decimal("0.50"), NOON + timedelta(hours=1))
    assert left_s == pytest.approx(3.25 * 3600)
    assert node_terms(rental, []).credit_left_s(Decimal("1.20"), Decimal(0), NOON) is None


def credit_here(home: Path, usd: str | None) -> VastCredit:
    """Of a machine that was rented an hour ago, at a dollar an hour and two cents a GB."""
    terms = RentalTerms(rented_at=datetime.now(UTC) - timedelta(hours=1), sent_usd_per_gb=Decimal("0.02"),
                        credit_usd=usd and Decimal(usd))
    (home / TERMS).write_text(terms.model_dump_json())
    return VastCredit(home, {Env.PRICE: "1"}, lambda: Traffic(sent_bytes=10**10))


def test_a_machine_hears_when_its_credit_will_be_used_up(tmp_path: Path) -> None:
    found = credit_here(tmp_path, "2.20")()
    assert found is not None and found.is_taken and found.left_s == pytest.approx(3600, abs=5)
    assert found.why.startswith("Vast stops this machine, for the credit is used up, at ")
    assert (over := credit_here(tmp_path, "0.30")()) and over.left_s == pytest.approx(0, abs=5)
    assert credit_here(tmp_path, None)() is None and credit_here(tmp_path, "10000")() is None
    (tmp_path / TERMS).unlink()
    assert VastCredit(tmp_path, {}, Traffic)() is None


def test_a_run_whose_credit_is_used_up_says_so_and_not_that_its_cap_is_reached(tmp_path, monkeypatch):
    """The words are those of the notice; SkyPilot then finds no machine, since none is rented on nothing."""
    monkeypatch.setenv("LDLM_HOME", str(tmp_path))
    story = preempted_once(f"file://{tmp_path}/store")
    why = credit_here(tmp_path, "0.30")().why
    story.folder.write("attempts/1/end.json", AttemptEnd(
        at=at(600), exit_code=75, preempted=True, reason=f"checkpoint of step 100 committed: {why}"))
    add = "Vast's prepaid credit was used up, not the run's cap: add credit at https://cloud.vast.ai/billing"

    def said(command: str) -> str:
        done = ldlm(command, RUN_ID)
        assert done.returncode == 0 and max(map(len, done.stdout.splitlines())) <= 80
        return " ".join(done.stdout.split())

    assert f"{add}; then it goes on by itself" in said("status")
    assert f"{add} preemptions" in said("cost") and "credit used up" in said("cost")
    story.outcome(Outcome.NO_CAPACITY, 30000, 100)
    assert f"{add}, then ldlm resume {RUN_ID}" in said("status")
    story.attempt(2, 40000)  # there is credit again
    story.folder.add_event("resumed", at(40000))
    assert "prepaid" not in said("status")


def test_a_run_leaves_when_a_last_checkpoint_needs_the_time_and_not_before() -> None:
    cloud, heard, asked = cloud_named("vast"), list[Notice](), list[float]()
    lefts = iter([7200.0, 3600.0, 1000.0, 700.0])

    def ask() -> Notice:
        asked.append(left_s := next(lefts))
        return Notice("credit", time.monotonic() + left_s, is_taken=True)

    watch(cloud, ask, heard.append, lambda _: None, save_s=lambda: 300.0)
    assert asked == [7200.0, 3600.0, 1000.0, 700.0] and len(heard) == 1
    assert cloud.ask_every_s > 0 and cloud.notice_s == 0  # of a bid that is lost there is still no notice

