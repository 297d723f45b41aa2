"""What the screens say of a run's learning: the verdict with its reasons, and what the run writes."""

from typing import Any

from launcher import console
from launcher.learning import Learned


def show_learning(found: Learned | None, *, with_samples: bool) -> None:
    """The verdict, each reason with what to change; then samples, unselected."""
    if found is None:
        return
    learning = found.learning
    console.answer()
    console.answer(f"Verdict at step {learning.step:,}: {learning.state}", "title")
    console.answer_facts([fact for reason in learning.reasons for fact in (
        ("because", reason.says), *([("so", reason.change)] if reason.change else []))])
    if with_samples and found.samples:
        console.answer()
        console.answer(f"Generated from noise at step {found.sampled_at_step:,}, unselected", "title")
        for sample in found.samples:
            console.answer(f"  > {console.one_line(sample)}")


def learning_json(found: Learned | None) -> dict[str, Any]:
    """What `status --json` adds of it: null before there is anything to judge."""
    if found is None:
        return {"learning": None}
    learning = found.learning
    return {"learning": {"state": learning.state.value, "step": learning.step,
                         "reasons": [reason._asdict() for reason in learning.reasons],
                         "samples": list(found.samples)}}
