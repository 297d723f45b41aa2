"""Credits that the user has at clouds, as they are written down: `gcp 300 2027-01-15, azure 100 2026-12-31`.

Dollars are those that are left when it is written down; what runs spend there from then on is taken off
(`launcher/credits.py`). Standard library only: settings are read before anything slow.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation

from launcher.errors import UsageError

CLOUDS = ("azure", "gcp", "vast")  # that bill runs
HIGHEST_USD = 1_000_000  # as of a run's cap
_SINCE = "since"
_EXAMPLE = ("write cloud, dollars left and the day at whose beginning (UTC) they expire: gcp 300 2027-01-15, "
            "azure 100 2026-12-31")


@dataclass(frozen=True)
class Wallet:
    """Dollars that are paid for already, or given.

    Attributes:
        amount_usd: Left at `since`; 0 or more.
        expires: UTC. From then on nothing is paid of it: the beginning of the day that is named.
        since: UTC. What was spent before does not count.
    """

    cloud: str
    amount_usd: Decimal
    expires: datetime
    since: datetime

    def __str__(self) -> str:
        """As it stands in the settings."""
        return (f"{self.cloud} {self.amount_usd:f} {self.expires:%Y-%m-%d} {_SINCE} "
                f"{self.since:%Y-%m-%dT%H:%MZ}")


def read_wallets(text: str, now: datetime) -> tuple[Wallet, ...]:
    """Wallets of a text, those first that expire first. One that has expired is left to who reads them.

    Args:
        text: `CLOUD DOLLARS DAY`, with commas between them; behind each may stand `since MOMENT`.
        now: UTC; the moment of those that name none.

    Raises:
        UsageError: It is no such text, a cloud is unknown, an amount is no price, one wallet stands twice.
    """
    found = [_read(part.split(), now) for part in text.split(",")]
    seen = set()
    for wallet in found:
        if (key := (wallet.cloud, wallet.expires)) in seen:
            raise _problem(f"{wallet.cloud} until {wallet.expires:%Y-%m-%d} stands there twice",
                           "add the two up, or correct a day")
        seen.add(key)
    return tuple(sorted(found, key=lambda wallet: (wallet.expires, wallet.cloud)))


def written_down(text: str, now: datetime) -> str:
    """What a person types, as it stands in the settings. Raises UsageError, for an expired one, too."""
    wallets = read_wallets(text, now)
    for wallet in wallets:
        if wallet.expires <= now:
            raise _problem(f"that of {wallet.cloud} has expired on {wallet.expires:%Y-%m-%d}",
                           "leave it out, or correct the day")
    return ", ".join(map(str, wallets))


def _read(words: list[str], now: datetime) -> Wallet:
    if len(words) not in (3, 5) or words[3:4] not in ([], [_SINCE]):
        raise _problem(f"{' '.join(words)!r} is no wallet", _EXAMPLE)
    cloud, amount, day = words[:3]
    if cloud not in CLOUDS:
        raise _problem(f"{cloud!r} is no cloud that bills runs", f"use one of {', '.join(CLOUDS)}")
    since = _moment(words[4], "%Y-%m-%dT%H:%MZ") if words[3:] else now
    return Wallet(cloud, _dollars(amount), _moment(day, "%Y-%m-%d"), since)


def _dollars(text: str) -> Decimal:
    try:
        usd = Decimal(text)
    except InvalidOperation:
        usd = Decimal("NaN")
    if not usd.is_finite() or not 0 <= usd <= HIGHEST_USD:
        raise _problem(f"{text!r} is no number of dollars", f"write a number from 0 to {HIGHEST_USD:,}")
    return usd


def _moment(text: str, form: str) -> datetime:
    try:
        return datetime.strptime(text, form).replace(tzinfo=UTC)
    except ValueError:
        raise _problem(f"{text!r} is no day of the calendar", "write it like 2027-01-15") from None


def _problem(problem: str, fix: str) -> UsageError:
    return UsageError(problem, place="wallets", fix=fix)
