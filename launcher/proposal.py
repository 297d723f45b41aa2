"""What the user is asked to approve."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from launcher.course import Course
from launcher.credits import Payment
from launcher.errors import LdlmError
from launcher.market import Market
from launcher.plan import Plan
from launcher.recipe import Recipe, checkout_folder
from launcher.render import Task, Templates, render
from trainer.contract import Document


@dataclass(frozen=True)
class Proposal:
    """A recipe and its plan; `launch` carries out exactly this.

    Attributes:
        refusals: Why it can be planned and not be launched: its text is not there, its prices are too old.
        markets: What there is at Vast for its documents now; nothing of those that nobody has asked about.
        market_problem: Why it was not asked, or has not answered.
        payment: Who pays for it; None: there are no credits, or a price is not known.
    """

    recipe: Recipe
    plan: Plan
    refusals: tuple[LdlmError, ...] = ()
    markets: Mapping[Document, Market] = field(default_factory=dict)
    market_problem: str | None = None
    payment: Payment | None = None

    @cached_property
    def task(self) -> Task:
        """The task rendered from this very plan."""
        return render(self.plan, self.recipe, Templates.load(), checkout_folder())

    @property
    def course(self) -> Course | None:
        """By which the run decides between spot and on demand; None: it does not."""
        if self.plan.only_benchmark:
            return None
        return Course.of_task(self.task.document(Document.TRAIN)["envs"])

    @property
    def infra(self) -> str:
        """Where training would run."""
        return self.plan.offers[Document.TRAIN].infra

    @property
    def is_local(self) -> bool:
        """True if nothing is rented."""
        return self.plan.offers[Document.TRAIN].is_local
