"""Credits: how they are written down, who pays first, and that the parts add up to the total."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from launch_examples import example_plan

from launcher.credits import Charge, balances, expected, out_of_pocket
from launcher.errors import UsageError
from launcher.wallets import Wallet, read_wallets, written_down

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=365)


def wallet(usd: str, hours: float, cloud: str = "gcp", since: datetime = LONG_AGO) -> Wallet:
    return Wallet(cloud, Decimal(usd), NOW + timedelta(hours=hours), since)


def charge(usd: str, begins: float = 0, ends: float = 10, cloud: str = "gcp") -> Charge:
    return Charge(cloud, Decimal(usd), NOW + timedelta(hours=begins), NOW + timedelta(hours=ends))


def paid(charges: list[Charge], wallets: list[Wallet]) -> list[str]:
    payment = out_of_pocket(charges, wallets)
    return [*(str(usd) for _, usd in payment.parts), str(payment.out_of_pocket_usd)]


@pytest.mark.parametrize(("charges", "wallets", "says"), [
    ([charge("20")], [], ["20"]),
    ([charge("20")], [wallet("50", 100)], ["20", "0"]),
    ([charge("20")], [wallet("15", 100)], ["15", "5"]),
    ([charge("20")], [wallet("50", 5)], ["10.000000", "10.000000"]),  # half of its hours
    ([charge("20")], [wallet("50", -1)], ["20"]),
    ([charge("20")], [wallet("0", 100)], ["20"]),
    ([charge("20")], [wallet("50", 100, "azure")], ["20"]),
    ([charge("20")], [wallet("50", 100, since=NOW + timedelta(hours=5))], ["10.000000", "10.000000"]),
    ([charge("20")], [wallet("50", 100), wallet("50", 5)], ["10.000000", "10.000000", "0.000000"]),
    ([charge("20")], [wallet("5", 100), wallet("5", 50)], ["5", "5", "10"]),
    ([charge("20"), charge("4", 10, 11, "vast")], [wallet("50", 100), wallet("3", 100, "vast")],
     ["20", "3", "1"]),
    ([charge("20"), charge("20", 10, 20)], [wallet("25", 100)], ["25", "15"]),
    ([charge("3", 0, 0)], [wallet("50", 1)], ["3", "0"]),  # of no time: at once
])
def test_what_expires_first_pays_first_and_only_for_its_own_hours(charges, wallets, says):
    assert paid(charges, wallets) == says


MONEY = st.decimals(0, 1000, places=6)
HOURS = st.floats(-50, 50, allow_nan=False)
WALLETS = st.lists(st.builds(lambda usd, until, cloud, since: Wallet(
    cloud, usd, NOW + timedelta(hours=until), NOW + timedelta(hours=since)),
    MONEY, HOURS, st.sampled_from(("gcp", "azure")), HOURS), max_size=5)
CHARGES = st.lists(st.builds(lambda usd, begins, lasts, cloud: Charge(
    cloud, usd, NOW + timedelta(hours=begins), NOW + timedelta(hours=begins + lasts)),
    MONEY, HOURS, st.floats(0, 60), st.sampled_from(("gcp", "azure", "vast"))), max_size=5)


@given(CHARGES, WALLETS)
def test_nothing_is_negative_and_all_adds_up_to_the_total(charges, wallets):
    payment = out_of_pocket(charges, wallets)
    assert payment.usd == sum((one.usd for one in charges), Decimal(0))
    assert payment.out_of_pocket_usd >= 0
    assert all(0 < usd <= before.amount_usd for before, usd in payment.parts)
    assert payment.out_of_pocket_usd + sum((usd for _, usd in payment.parts), Decimal(0)) == payment.usd
    left = balances(wallets, charges)
    assert all(one.amount_usd >= 0 for one in left)
    gone = [one.amount_usd - other.amount_usd for one, other in zip(balances(wallets, []), left, strict=True)]
    assert sum(gone, Decimal(0)) == payment.usd - payment.out_of_pocket_usd


@given(CHARGES, WALLETS)
def test_no_wallet_pays_more_than_was_spent_at_its_cloud_within_its_own_days(charges, wallets):
    for before, usd in out_of_pocket(charges, wallets).parts:
        spent = Fraction(0)
        for one in charges:
            length = (one.ends - one.begins).total_seconds()
            inside = (min(one.ends, before.expires) - max(one.begins, before.since)).total_seconds()
            if one.cloud == before.cloud and (inside > 0 or (length == 0 and before.since <= one.begins)):
                spent += Fraction(one.usd) * (Fraction(inside) / Fraction(length) if length else 1)
        assert usd <= float(spent) + 1e-5


@given(CHARGES, WALLETS, MONEY)
def test_one_more_wallet_never_makes_a_run_dearer(charges, wallets, usd):
    more = [*wallets, Wallet("gcp", usd, NOW + timedelta(hours=3, seconds=1), LONG_AGO)]
    slack = Decimal("0.000001") * len(charges) * len(more)  # of parts that are rounded down
    assert out_of_pocket(charges, more).out_of_pocket_usd <= out_of_pocket(
        charges, wallets).out_of_pocket_usd + slack


@given(st.decimals(0, 100, places=4), st.decimals(0, 5, places=4), st.sampled_from((None, "slurm/ldlm")))
def test_what_a_plan_expects_is_charged_to_the_cent(total, controller, infra):
    plan = example_plan("vast", f"hardware.bench=[{{infra: {infra or 'vast'}, gpu: 'RTX5090:1'}}]")
    for parts in (plan.parts, plan.parts[-1:]):
        charges = expected(parts, plan.offers, total, controller, NOW)
        assert sum((one.usd for one in charges), Decimal(0)) == max(total, min(controller, total))
        assert all(one.usd >= 0 and one.begins <= one.ends for one in charges)
        assert charges[0].cloud == ("vast" if parts[1:] else (infra or "vast").partition("/")[0])
        ends = NOW + timedelta(hours=float(sum(part.hours.mid for part in parts)))
        assert abs(max(one.ends for one in charges) - ends) < timedelta(seconds=1)


def test_what_earlier_runs_have_spent_is_gone():
    (left,) = balances([wallet("100", 500, since=NOW - timedelta(hours=10))],
                       [charge("30", -20, 0), charge("5", -5, -4), charge("9", -8, -7, "vast")])
    assert left.amount_usd == Decimal("80.000000")  # half of the first was before it was written down


def test_a_plan_tells_it_in_one_line():
    payment = out_of_pocket([charge("20")], [wallet("15", 100), wallet("50", 100, "azure")])
    assert payment.words == (
        "pay ~$15.00 of the $15.00 at gcp until 2026-11-28; ~$5.00 are yours to pay")
    assert out_of_pocket([charge("20")], []).words.startswith("none pay for this")


def test_what_is_written_down_reads_back_with_its_moment():
    text = written_down(" gcp 300.50 2027-01-15 ,azure 100 2026-12-31", NOW)
    assert text == ("azure 100 2026-12-31 since 2026-11-24T12:00Z, "
                    "gcp 300.50 2027-01-15 since 2026-11-24T12:00Z")
    later = NOW + timedelta(days=3)
    assert read_wallets(text, later) == read_wallets("gcp 300.50 2027-01-15, azure 100 2026-12-31", NOW)
    assert written_down(text, later) == text


@pytest.mark.parametrize(("text", "says"), [
    ("", "'' is no wallet"),
    ("gcp 300", "'gcp 300' is no wallet"),
    ("gcp 300 2027-01-15 until 2027", "is no wallet"),
    ("gcp 300 2027-01-15,", "'' is no wallet"),
    ("gpc 300 2027-01-15", "'gpc' is no cloud that bills runs"),
    ("gcp -3 2027-01-15", "'-3' is no number of dollars"),
    ("gcp NaN 2027-01-15", "'NaN' is no number of dollars"),
    ("gcp inf 2027-01-15", "'inf' is no number of dollars"),
    ("gcp 1e9 2027-01-15", "'1e9' is no number of dollars"),
    ("gcp $300 2027-01-15", "'$300' is no number of dollars"),
    ("gcp 300 2027-02-30", "'2027-02-30' is no day"),
    ("gcp 300 15.1.2027", "'15.1.2027' is no day"),
    ("gcp 300 2027-01-15 since yesterday", "'yesterday' is no day"),
    ("gcp 300 2026-11-24", "that of gcp has expired on 2026-11-24"),
    ("gcp 300 2027-01-15, gcp 20 2027-01-15", "gcp until 2027-01-15 stands there twice"),
])
def test_what_is_no_wallet_is_refused_with_a_sentence(text, says):
    with pytest.raises(UsageError) as raised:
        written_down(text, NOW)
    assert says in raised.value.problem
    assert raised.value.place == "wallets" and raised.value.fix
