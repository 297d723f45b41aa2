"""`ldlm doctor`: whether everything is there before money is spent, and what to do where it is not."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from launcher import console
from launcher.commands import PlanOptions, check_keyless, propose
from launcher.doctor_clouds import (
    look_at_access,
    look_at_azure_quota,
    look_at_credit,
    look_at_gcp_quota,
    look_at_renting,
    look_at_switch,
)
from launcher.doctor_here import look_at_disk, look_at_store, look_at_wandb, look_at_webhook
from launcher.doctor_search import look_at_search
from launcher.doctor_sky import look_at_controller, look_at_sky, look_at_version
from launcher.engine import has_credentials, is_known, no_engine
from launcher.errors import EngineError
from launcher.findings import Check, Finding, Verdict, run_checks
from launcher.offers import Offer
from launcher.proposal import Proposal
from launcher.runs import default_store_url
from launcher.settings import usual_store_url
from launcher.sky_ready import RENTED
from trainer.store import store_url

_TIMEOUT_S = 40.0  # importing SkyPilot takes up to 9 s on a busy machine; the longest question 20


@dataclass(frozen=True)
class _Scope:
    """What is looked at.

    Attributes:
        needed: Clouds that were asked for; none: whatever there is.
        named: These, and what else the plan may go to.
        infra: As typed.
    """

    needed: frozenset[str]
    named: frozenset[str]
    infra: str | None
    proposal: Proposal | None

    @property
    def clouds(self) -> list[str]:
        """Clouds to look at."""
        return [name for name in (*RENTED, "slurm") if name in (self.named or RENTED)]

    def wish(self, cloud: str) -> tuple[Offer | None, str | None]:
        """What the plan would rent there first, and in which region, as far as somebody said."""
        plan = self.proposal.plan if self.proposal else None
        offers = [offer for document in plan.offers for offer in plan.candidates(document)] if plan else []
        offer = next((offer for offer in offers if offer.cloud == cloud), None)
        infras = [infra for infra in (offer.infra if offer else "", self.infra or "")
                  if infra.startswith(f"{cloud}/")]
        return offer, infras[0].split("/")[1] if infras else None


def examine(recipe: str | None, infra: str | None, store: str | None, *,
            try_webhook: bool = False) -> list[Finding]:
    """Look at everything that a run would need; says that it does.

    Args:
        recipe: Its plan says what is needed; None: nothing in particular.
        infra: Where it would run; None: where the recipe says, without one at every cloud.
        store: As typed.
        try_webhook: Send it a message.

    Raises:
        EngineError: There is no such infra.
        RecipeError, ConfigError, NoOfferError: The recipe cannot be planned.
    """
    if infra and not is_known(infra):
        raise no_engine(infra)
    check_keyless(store or "")
    console.talk(f"looking, for {_TIMEOUT_S:g} s at most ...", "quiet")
    began = time.monotonic()
    proposal = propose(recipe, PlanOptions(infra=infra, store=store)) if recipe else None
    if proposal:
        needed = frozenset(offer.cloud for offer in proposal.plan.offers.values())
    else:
        needed = frozenset([infra.partition("/")[0]] if infra else [])
    named = needed | frozenset(proposal.plan.clouds if proposal else ())
    scope = _Scope(needed, named, infra, proposal)
    # A plan waits for a silent store, too.
    return run_checks(_checks(scope, store, try_webhook), round(_TIMEOUT_S - (time.monotonic() - began)))


def _checks(scope: _Scope, store: str | None, try_webhook: bool) -> list[Check]:
    recipe, plan = (scope.proposal.recipe, scope.proposal.plan) if scope.proposal else (None, None)
    url = recipe.store if recipe else store or usual_store_url()
    if url is None and scope.needed <= {"local"} and scope.needed:
        url = default_store_url()
    is_rented = bool(scope.named & set(RENTED))
    found = [Check("disk", look_at_disk),
             Check("store", partial(look_at_store, store_url(url) if url else None, is_rented=is_rented)),
             Check("W&B", partial(look_at_wandb, recipe.train.wandb.mode if recipe else "auto")),
             Check("webhook", partial(look_at_webhook, is_tried=try_webhook))]
    if not scope.clouds:
        return found
    found += [Check("SkyPilot", look_at_version), Check("controller", look_at_controller),
              Check("API server", partial(look_at_sky, frozenset(scope.clouds)))]
    means = {"vast": Check("Vast credit", partial(look_at_credit, plan)),
             "azure": Check("Azure quota", partial(look_at_azure_quota, *scope.wish("azure"))),
             "gcp": Check("GCP quota", partial(look_at_gcp_quota, *scope.wish("gcp")))}
    if url and not scope.needed:
        found.append(Check("renting", partial(look_at_renting, store_url(url))))
    for name in scope.clouds:
        found.append(Check(name, partial(look_at_access, name, needed=name in scope.needed)))
        if name == "vast" and (name in scope.needed or has_credentials(name)):
            found.append(Check("Vast search", look_at_search))
        if name in means and has_credentials(name):
            found.append(means[name])
        if name in scope.needed:
            found.append(Check(f"{name} switch", partial(look_at_switch, name)))
    return found


def show(findings: Sequence[Finding]) -> None:
    """A line for each, what to do beneath it; a command is never folded, so that it can be copied."""
    styles = {Verdict.OK: "fix", Verdict.PROBLEM: "problem", Verdict.NOT_CHECKED: "note"}
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        console.answer_finding(str(finding.verdict), styles[finding.verdict], finding.what.ljust(width),
                               finding.detail, finding.fix)


def as_json(findings: Sequence[Finding]) -> dict[str, object]:
    """Stable form of `doctor --json`."""
    return {"ready": not _problems(findings),
            "findings": [{"what": finding.what, "verdict": str(finding.verdict), "detail": finding.detail,
                          "fix": finding.fix or None} for finding in findings]}


def judge(findings: Sequence[Finding]) -> None:
    """Pass where nothing is a problem. Raises EngineError."""
    if number := _problems(findings):
        raise EngineError(f"{number} problem{'s' * (number > 1)} found", place="doctor",
                          fix="do what stands beneath each, then ask again")


def _problems(findings: Sequence[Finding]) -> int:
    return sum(finding.verdict is Verdict.PROBLEM for finding in findings)
