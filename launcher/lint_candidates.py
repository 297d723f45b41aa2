"""Rules of lint about tasks that may run in several places: `ordered` and `any_of`. Pure.

Each docstring begins with the behaviour that the rule guards against.
"""

from collections.abc import Iterator

from launcher.lint_part import Found, TaskPart
from launcher.lint_vast import VAST
from trainer.contract import Document, Env


def any_of_with_vast(part: TaskPart) -> Iterator[Found]:
    """By any_of SkyPilot takes what is cheapest in its catalogs, where Vast's are old and its bids 0.00."""
    if "any_of" in part.block("resources") and part.machines(VAST):
        yield ("resources.any_of",
               "SkyPilot would choose by its catalogs, whose prices of vast are not those that are paid",
               "write ordered in place of any_of: its order counts")


def other_number_of_gpus(part: TaskPart) -> Iterator[Found]:
    """A recovery on another number of GPUs would start ranks that the checkpoint was not written by."""
    if part.name not in list(Document):
        return
    first, *others = part.machines()
    has = sorted(set(first.gpus.values()))
    for machine in others:
        if sorted(set(machine.gpus.values())) != has:
            yield (machine.where("accelerators"),
                   "has another number of GPUs than the first candidate, and a run keeps its number of ranks",
                   "leave out the candidates with other numbers of GPUs")


def places_not_told(part: TaskPart) -> Iterator[Found]:
    """A node that is not told of all places takes the price, the GPU and the name of another for its own."""
    machines = part.machines()
    places = [str(machine.values.get("infra")) for machine in machines]
    if part.name in list(Document) and machines[1:] and [one.infra for one in part.offers] != places:
        yield (f"envs.{Env.OFFERS}", f"does not tell of {', '.join(places)} in this order, so that a node "
               "would count the price of another place", "let ldlm render the task")
