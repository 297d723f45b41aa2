"""Claims on money. Pure; `launcher/canary_claims.py` has the list."""

from decimal import Decimal

from launcher.canary_evidence import Evidence, Found, Mark, judged
from launcher.rental_cost import rental_of


def planned_first(evidence: Evidence) -> Found:
    """The moment of the plan against that of the first rental."""
    plan, record = evidence.plan, evidence.record
    starts = [rental.rented_at for rental in record.rentals] or [
        files.attempt.billed_from for files in record.attempts]
    if plan.usd is None:
        return Found(Mark.NOT_SHOWN, "the plan has no dollars: a price is not known")
    if not starts:
        return Found(Mark.NOT_SHOWN, "no machine has begun")
    first = min(starts)
    return judged(plan.planned_at <= first, f"~${plan.usd.mid:.4f} planned at {plan.planned_at:%H:%M:%S}, "
                                            f"the first machine at {first:%H:%M:%S} UTC")


def within_bid(evidence: Evidence) -> Found:
    """The highest price of each contract, as Vast has told it, against the bid of the plan."""
    rentals = evidence.record.rentals
    bids = {document: offer.bid_usd_per_hour for document, offer in evidence.plan.offers.items()
            if offer.bid_usd_per_hour}
    if not rentals or not bids:
        return Found(Mark.NOT_SHOWN, "nothing was rented by a bid")
    documents = {rental.instance_id: files.attempt.document for files in evidence.record.attempts
                 if (rental := rental_of(files, rentals))}
    words, is_within = [], True
    for rental in rentals:
        document = documents.get(rental.instance_id)
        bid = bids.get(document) if document else max(bids.values())
        if bid is None:
            continue
        paid = max(price.usd_per_hour for price in rental.prices)
        is_within = is_within and paid <= bid
        words.append(f"${paid:f} of ${bid:f}")
    return judged(is_within, f"an hour: {', '.join(words)}")


def under_cap(evidence: Evidence) -> Found:
    """The ledger against the cap."""
    spent, cap = evidence.report.spent_usd, evidence.max_cost_usd
    return judged(spent <= cap, f"${spent:.4f} of ${cap:.2f}")


def under_p90(evidence: Evidence) -> Found:
    """The ledger against the high end of the plan; one run in ten may be above it."""
    spent, planned = evidence.report.spent_usd, evidence.report.planned_usd
    if planned is None:
        return Found(Mark.NOT_SHOWN, "the plan has no dollars")
    return judged(spent <= planned.high, f"${spent:.4f}; planned ~${planned.mid:.4f}, ${planned.low:.4f} to "
                                          f"${planned.high:.4f}")


def adds_up(evidence: Evidence) -> Found:
    """The amounts as `ldlm cost --json` prints them."""
    shown = evidence.report.to_json()
    parts = [Decimal(usd) for usd in shown["usd_by_category"].values()]
    return judged(sum(parts, Decimal(0)) == Decimal(shown["spent_usd"]),
                   f"${sum(parts, Decimal(0))} in {len(parts)} categories, ${shown['spent_usd']} in all")


def is_the_provider_s(evidence: Evidence) -> Found:
    """The ledger against the provider's own record, machine by machine."""
    found = evidence.reconciliation
    if found is None or not found.machines:
        who = " and ".join(sorted(evidence.clouds))
        return Found(Mark.NOT_SHOWN, f"{who} cannot be asked what it has charged")
    words = (f"ours ${found.ours_usd:.4f}, theirs ${found.theirs_usd:.4f}, for {len(found.machines)} "
             "machines of Vast")
    if found.missing:
        return Found(Mark.NOT_SHOWN, f"{words}; not in Vast's record yet: {', '.join(found.missing)}; "
                                     f"judge again: ldlm canary {evidence.record.run_id}")
    if not found.is_equal:
        off = [f"{one.instance_id}: ours ${one.ours_usd:.4f}, theirs ${one.theirs_usd or 0:.4f}"
               for one in found.machines]
        return Found(Mark.FAIL, f"{words} ({'; '.join(off)}); its record may be late: "
                                f"ldlm canary {evidence.record.run_id}")
    if others := evidence.clouds - {"vast"}:
        return Found(Mark.NOT_SHOWN, f"{words}; {' and '.join(sorted(others))} cannot be asked")
    return Found(Mark.PASS, words)


def nothing_left(evidence: Evidence) -> Found:
    """What the account still has at Vast."""
    if evidence.left:
        return Found(Mark.FAIL, f"still rented: {', '.join(evidence.left)}; give back: ldlm sweep")
    if evidence.left is None or evidence.clouds != {"vast"}:
        return Found(Mark.NOT_SHOWN, "only Vast is asked what is still rented")
    return Found(Mark.PASS, f"of {len(evidence.record.rentals)} machines none")
