"""What is known to go wrong with a task on its cloud. Pure; raising is the caller's.

Each rule is a behaviour of SkyPilot 0.14.1 or of a cloud that fails silently or costs money; it has one
message, one fix, and one task that trips it and no other: tests/lint/NAME.yaml.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from launcher import lint_candidates as candidates
from launcher import lint_rules as any_cloud
from launcher import lint_vast as on_vast
from launcher.lint_part import Found, TaskPart
from launcher.render import Task

Check = Callable[[TaskPart], Iterator[Found]]


@dataclass(frozen=True)
class LintProblem:
    """One trap in a task.

    Attributes:
        rule: Name of the rule that found it.
        place: Document and key: `train: resources.use_spot`.
    """

    rule: str
    place: str
    problem: str
    fix: str


@dataclass(frozen=True)
class Rule:
    """One known trap.

    Attributes:
        name: `spot-flag-on-vast`; also of its failing example.
        guards_against: What would happen.
    """

    name: str
    guards_against: str
    check: Check

    @classmethod
    def of(cls, check: Check) -> Self:
        """The rule of a function: its name, and its docstring as the behaviour that it guards against."""
        return cls(check.__name__.replace("_", "-"), inspect.getdoc(check) or "", check)


RULES = tuple(Rule.of(check) for check in (
    any_cloud.null_value,
    any_cloud.infra_local,
    on_vast.spot_flag_on_vast,
    on_vast.bid_missing_on_vast,
    on_vast.bid_for_on_demand_on_vast,
    on_vast.search_missing_on_vast,
    on_vast.one_bid_for_several_on_vast,
    on_vast.several_nodes_on_vast,
    on_vast.mount_on_vast,
    on_vast.image_missing_on_vast,
    on_vast.disk_missing_on_vast,
    on_vast.price_cap_on_vast,
    any_cloud.spot_flag_missing,
    any_cloud.geforce_on_azure_or_gcp,
    any_cloud.on_demand_h100_on_gcp,
    any_cloud.old_cuda_image,
    any_cloud.old_cuda_torch,
    any_cloud.override_in_candidate,
    any_cloud.remote_identity,
    any_cloud.other_recovery_code,
    any_cloud.recovery_code_missing,
    any_cloud.restarts_on_errors,
    any_cloud.same_machine_again,
    any_cloud.job_name,
    any_cloud.document_order,
    any_cloud.skypilot_task_id,
    any_cloud.cached_mount,
    any_cloud.relative_source,
    any_cloud.copy_past_endpoint,
    any_cloud.secret_in_envs,
    any_cloud.secret_with_value,
    any_cloud.number_in_envs,
    any_cloud.unknown_price,
    any_cloud.store_not_set,
    any_cloud.file_store_on_rented,
    candidates.any_of_with_vast,
    candidates.other_number_of_gpus,
    candidates.places_not_told,
))


def lint(task: Task) -> list[LintProblem]:
    """Every known trap in a task, by document, then by rule; an empty list is good news."""
    found = (LintProblem(rule.name, f"{part.name}: {place}", problem, fix)
             for part in _parts(task.documents()) for rule in RULES
             for place, problem, fix in rule.check(part))
    return list(dict.fromkeys(found))  # alternatives share what stands above them


def _parts(documents: list[dict[str, Any]]) -> Iterator[TaskPart]:
    header = documents[0] if documents and set(documents[0]) <= {"name", "execution"} else None
    if header is not None:
        yield TaskPart("header", header)
    job_name = None if header is None else header.get("name")
    names: tuple[str, ...] = ()
    for body in documents if header is None else documents[1:]:
        name = str(body.get("name", "?"))
        yield TaskPart(name, body, job_name, names)
        names += (name,)
