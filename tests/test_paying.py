"""Credits in a plan: read from the settings, less what runs of the store have spent, told in one line."""

import json
import os
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from cli_lab import RECIPE, ldlm, refused
from run_stories import PLAN, Story

from launcher.commands import PlanOptions
from launcher.errors import ConfigError
from launcher.launching import propose
from launcher.plan_screen import plan_json
from launcher.proposal import Proposal
from launcher.quotes import Order, Quote
from launcher.settings import Settings, read_settings, settings_text
from trainer.contract import Document, Name, attempt_file
from trainer.run_folder import Attempt, AttemptEnd

NOW = datetime.now(UTC).replace(microsecond=0)
SOON, LATER = (f"{NOW + timedelta(days=days):%Y-%m-%d}" for days in (30, 60))
ON_GCP = ('hardware.train=[{infra: gcp/us-central1, gpu: "A100-80GB:1", price_usd_per_hour: 3.60}]',
          'hardware.bench=[{infra: gcp/us-central1, gpu: "L4:1", price_usd_per_hour: 0.60}]')


@pytest.fixture
def home() -> Path:
    return Path(os.environ["LDLM_HOME"])


def has_said(home: Path, wallets: str) -> None:
    (home / "settings.json").write_text(json.dumps({"wallets": wallets}))


def planned(home: Path, *overrides: str) -> Proposal:
    options = PlanOptions(infra="gcp", store=f"file://{home}/store", max_cost="50",
                          overrides=(*ON_GCP, *overrides))
    return propose(Order(command="launch", what=RECIPE, options=options))


def ran_on_gcp(home: Path, hours: int, price: str = "3.60", *, is_simulated: bool = False) -> None:
    """A run of so many hours that ended an hour ago."""
    story = Story(f"file://{home}/store", "earlier-1")
    plan = PLAN | {"offers": {"train": {"price_is_simulated": is_simulated}, "bench": {}}}
    story.folder.write_bytes(Name.PLAN, json.dumps(plan).encode())
    end = NOW - timedelta(hours=1)
    story.folder.write(attempt_file(1, "attempt.json"), Attempt(
        number=1, document=Document.TRAIN, billed_from=end - timedelta(hours=hours), host="somewhere",
        price_usd_per_hour=Decimal(price), offer="A100-80GB:1 on gcp (spot)", cloud="gcp"))
    story.folder.write(attempt_file(1, "end.json"), AttemptEnd(at=end, exit_code=0, preempted=False,
                                                              reason="done"))


def told(proposal: Proposal) -> str:
    return proposal.payment.words if proposal.payment else ""


def test_credits_of_the_cloud_pay_and_the_plan_says_what_is_left_to_pay(home):
    has_said(home, f"gcp 300 {SOON}, azure 50 {SOON}")
    proposal = planned(home)
    assert proposal.payment and proposal.plan.usd
    assert proposal.payment.usd == proposal.plan.usd.mid
    assert proposal.payment.out_of_pocket_usd == 0
    assert told(proposal) == (f"pay ~${proposal.plan.usd.mid:.2f} of the $300.00 at gcp until {SOON}; ~$0.00 "
                              "are yours to pay")
    quote = Quote.of(Order(command="launch", what=RECIPE, options=PlanOptions()), proposal, None)
    assert Decimal(plan_json(proposal, quote, [])["out_of_pocket_usd"]) == 0


def test_what_runs_of_the_store_have_spent_is_taken_off_and_simulated_prices_are_not(home):
    has_said(home, f"gcp 36.50 {SOON}")
    ran_on_gcp(home, hours=10)
    assert "of the $0.50 at gcp" in told(planned(home))
    ran_on_gcp(home, hours=10, is_simulated=True)
    assert "of the $36.50 at gcp" in told(planned(home))
    ran_on_gcp(home, hours=11)
    assert told(planned(home)).startswith("none pay for this")


def test_what_was_spent_before_they_were_written_down_does_not_count(home):
    since = (NOW - timedelta(hours=6)).replace(second=0)
    has_said(home, f"gcp 36 {SOON} since {since:%Y-%m-%dT%H:%MZ}")
    ran_on_gcp(home, hours=10)
    words = told(planned(home))
    assert 17.9 < float(words.split("of the $")[1].split()[0]) < 18.1  # 5 of its 10 hours at $3.60


def test_without_credits_a_plan_says_nothing_of_them(home):
    assert planned(home).payment is None
    has_said(home, "gcp 300 2026-01-01")  # expired
    assert planned(home).payment is None


def test_a_run_that_cannot_be_read_is_told_of(home):
    has_said(home, f"gcp 300 {SOON}")
    ran_on_gcp(home, hours=10)
    (home / "store/earlier-1/attempts/1/attempt.json").write_text("{")
    warnings = " ".join(planned(home).plan.warnings)
    assert "what run records that cannot be read have spent of your credits is not known" in warnings


@pytest.mark.parametrize(("wallets", "says"), [
    ("gcp -1 2027-01-15", "wallets: '-1' is no number of dollars"),
    ("gcp NaN 2027-01-15", "wallets: 'NaN' is no number of dollars"),
    ("aws 5 2027-01-15", "wallets: 'aws' is no cloud"),
    (f"gcp 5 {SOON}, gcp 6 {SOON}", "stands there twice"),
])
def test_damaged_settings_are_named(home, wallets, says):
    has_said(home, wallets)
    with pytest.raises(ConfigError) as raised:
        read_settings()
    assert says in raised.value.problem and raised.value.place == str(home / "settings.json")


def test_settings_keep_their_wallets(home):
    settings = Settings(store="s3://bucket/x", wallets=f"gcp 5 {LATER}")
    (home / "settings.json").write_text(settings_text(settings))
    assert read_settings() == settings


def test_credits_are_set_by_a_command_and_refused_by_it(home):
    said = ldlm("config", "set", "wallets", f"gcp 300 {SOON}")
    assert said.returncode == 0 and f"wallets: none -> gcp 300 {SOON} since 2" in said.stdout
    assert (read_settings().wallets or "").startswith(f"gcp 300 {SOON} since ")
    before = read_settings()
    assert "'-3' is no number of dollars" in refused(2, "config", "set", "wallets", f"gcp -3 {SOON}")
    assert "has expired on 2026-01-01" in refused(2, "config", "set", "wallets", "gcp 3 2026-01-01")
    assert read_settings() == before
    assert ldlm("config", "set", "wallets", "none").returncode == 0 and read_settings().wallets is None


def test_where_credits_make_a_dearer_cloud_cheaper_for_the_user_it_is_planned_for(home):
    def first(*wallets: str) -> Proposal:
        has_said(home, ", ".join(wallets)) if wallets else None
        both = ('hardware.train=[{infra: gcp/us-central1, gpu: "A100-80GB:1", price_usd_per_hour: 3.60}, '
                '{infra: azure/eastus, gpu: "A100-80GB:1", price_usd_per_hour: 4.00}]')
        options = PlanOptions(store=f"file://{home}/store", max_cost="50", overrides=(both, ON_GCP[1]))
        return propose(Order(command="launch", what=RECIPE, options=options))

    assert first().plan.offers[Document.TRAIN].cloud == "gcp"
    on_credits = first(f"azure 50 {SOON}")
    assert on_credits.plan.offers[Document.TRAIN].cloud == "azure"
    assert "less out of your pocket than A100-80GB:1 on gcp" in (on_credits.plan.choice or "")
    assert first(f"azure 0.01 {SOON}").plan.offers[Document.TRAIN].cloud == "gcp"
