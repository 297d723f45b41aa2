"""What a run costs its user when credits pay for a part of it. Pure.

Credits expire, so those that expire first pay first, and none pays for what is spent after its end. The
dollars of a charge are taken as spent evenly over its time.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import ROUND_DOWN, Decimal

from launcher.estimate import Part
from launcher.offers import Offer
from launcher.wallets import Wallet
from trainer.contract import Document

_EXACT = Decimal("0.000001")
_ELSEWHERE = "elsewhere"  # no cloud


@dataclass(frozen=True)
class Charge:
    """Dollars that a cloud charges between two moments, 0 or more, evenly."""

    cloud: str
    usd: Decimal
    begins: datetime
    ends: datetime

    def usd_between(self, since: datetime, until: datetime) -> Decimal:
        """The part that falls between two moments, rounded down to a millionth of a dollar."""
        if self.ends <= self.begins:
            return self.usd if since <= self.begins < until else Decimal(0)
        inside = min(self.ends, until) - max(self.begins, since)
        if inside <= timedelta(0):
            return Decimal(0)
        if inside == self.ends - self.begins:
            return self.usd
        share = Decimal(inside // timedelta(microseconds=1)) / (
            (self.ends - self.begins) // timedelta(microseconds=1))
        return min(self.usd, (self.usd * share).quantize(_EXACT, rounding=ROUND_DOWN))


@dataclass(frozen=True)
class Payment:
    """Who pays for a run.

    Attributes:
        usd: All of it.
        parts: Wallets as they were before, each with what it pays, more than 0.
    """

    usd: Decimal
    parts: tuple[tuple[Wallet, Decimal], ...] = ()

    @property
    def out_of_pocket_usd(self) -> Decimal:
        """What no wallet pays; with the parts it adds up to all, exactly."""
        return self.usd - sum((usd for _, usd in self.parts), Decimal(0))

    @property
    def words(self) -> str:
        """For a plan."""
        if not self.parts:
            return "none pay for this: they are at other clouds, used up or end too soon"
        paid = [f"~${usd:.2f} of the ${wallet.amount_usd:.2f} at {wallet.cloud} until "
                f"{wallet.expires:%Y-%m-%d}" for wallet, usd in self.parts]
        return f"pay {' and '.join(paid)}; ~${self.out_of_pocket_usd:.2f} are yours to pay"


def out_of_pocket(charges: Sequence[Charge], wallets: Sequence[Wallet]) -> Payment:
    """Who pays for the charges of one candidate: what is expected of it, minus what credits pay in time.

    Args:
        charges: Of the run, in their order; of a range of estimates those of one end of it.
        wallets: As they are now, see `balances`.
    """
    left = balances(wallets, charges)
    parts = tuple((before, before.amount_usd - after.amount_usd)
                  for before, after in zip(sorted(wallets, key=_first_out), left, strict=True)
                  if after.amount_usd < before.amount_usd)
    return Payment(sum((charge.usd for charge in charges), Decimal(0)), parts)


def expected(parts: Sequence[Part], offers: Mapping[Document, Offer], total_usd: Decimal,
             controller_usd: Decimal, now: datetime) -> list[Charge]:
    """What a run expects to be charged from now on: training with all that belongs to it, then the benchmark.

    Args:
        parts: Hours and dollars by their middle estimates, in order.
        offers: On which each document runs.
        total_usd: Of everything; what the parts do not name of it is charged where training runs.
        controller_usd: Of it, what is paid to who supervises, with whom there are no credits.
    """
    charges, begins, left_usd = list[Charge](), now, max(Decimal(0), total_usd - controller_usd)
    benched = [part.usd.mid for part in parts if part.usd and part.document is Document.BENCH]
    documents = [which for which in Document if any(part.document is which for part in parts)]
    for which in documents:
        hours = sum((part.hours.mid for part in parts if part.document is which), Decimal(0))
        usd = left_usd if which is documents[-1] else max(Decimal(0), left_usd - sum(benched, Decimal(0)))
        ends = begins + timedelta(hours=float(hours))
        charges.append(Charge(offers[which].cloud, usd, begins, ends))
        begins, left_usd = ends, left_usd - usd
    if controller_usd:
        charges.append(Charge(_ELSEWHERE, min(controller_usd, total_usd), now, begins))
    return charges


def balances(wallets: Iterable[Wallet], charges: Iterable[Charge]) -> list[Wallet]:
    """What is left in wallets after charges, those first that expire first; never less than nothing."""
    left = sorted(wallets, key=_first_out)
    for charge in sorted(charges, key=lambda charge: charge.begins):
        paid = Decimal(0)
        for index, wallet in enumerate(left):
            if wallet.cloud != charge.cloud:
                continue
            # What earlier wallets have paid is of the same hours: all of them are before its end, too.
            payable = charge.usd_between(wallet.since, wallet.expires) - paid
            usd = max(Decimal(0), min(wallet.amount_usd, payable))
            left[index] = replace(wallet, amount_usd=wallet.amount_usd - usd)
            paid += usd
    return left


def _first_out(wallet: Wallet) -> tuple[datetime, str]:
    return wallet.expires, wallet.cloud
