"""What the README promises, as claims that the record of one run can show or refute. Pure.

Each is a function of the evidence. To add one, write it into the file where it belongs and put it into the
list. What a run cannot show is `not shown`, which is not a pass.
"""

from collections.abc import Callable, Sequence
from typing import Any

from launcher import canary_money_claims as money
from launcher import canary_run_claims as run
from launcher.canary_evidence import Evidence, Found, Verdict

CLAIMS: Sequence[tuple[str, Callable[[Evidence], Found]]] = (
    ("the plan had its dollars before anything was rented", money.planned_first),
    ("every machine that worked has the card that is paid for", run.right_machine),
    ("no key of a cloud lies on a rented machine", run.no_keys),
    ("no machine costs more than its bid", money.within_bid),
    ("a run that loses its machine goes on", run.went_on),
    ("it goes on from the newest durable checkpoint", run.from_newest),
    ("no more is lost than what two checkpoints are apart", run.lost_little),
    ("the losses are those of a run that nobody interrupted", run.losses_go_on),
    ("it trains to its last step", run.finished),
    ("it is benchmarked on an RTX 5090", run.benchmarked),
    ("it spends no more than its cap", money.under_cap),
    ("it spends no more than the plan's p90", money.under_p90),
    ("the categories of the bill add up to its total", money.adds_up),
    ("the bill is the provider's, to the cent", money.is_the_provider_s),
    ("nothing is left rented", money.nothing_left),
    ("every start tells how long its set-up took", run.set_up_timed),
)


def judge(evidence: Evidence) -> list[Verdict]:
    """Every claim, in the order in which they are printed."""
    return [Verdict(claim, *look(evidence)) for claim, look in CLAIMS]


def verdicts_json(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Stable form of `ldlm canary --json`."""
    return [{"claim": verdict.claim, "verdict": verdict.mark.value, "because": verdict.because}
            for verdict in verdicts]
