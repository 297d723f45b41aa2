"""What follows from the end of an attempt: the exit code table, as one pure function."""

from dataclasses import dataclass
from enum import StrEnum

from launcher.attempt_runner import AttemptResult
from launcher.task_documents import TaskDocument
from trainer.contract import ExitCode, Outcome


class Follows(StrEnum):
    """What the supervisor does after an attempt."""

    NEXT_DOCUMENT = "next document"
    RECOVER = "recover"  # does not count as a retry
    RETRY = "retry"
    END = "end"


@dataclass(frozen=True)
class Verdict:
    """What follows, and the outcome if nothing does."""

    follows: Follows
    outcome: Outcome
    reason: str


def judge(result: AttemptResult, document: TaskDocument, *, retries_used: int, stop_requested: bool,
          cause: str | None = None) -> Verdict:
    """Decide what follows an attempt.

    Args:
        retries_used: Retries since the newest durable step last moved.
        stop_requested: Somebody asked the run to stop: nothing is started again.
        cause: Why it failed, in the node's own words; None if it left none.
    """
    code, where = result.exit_code, "setup" if result.in_setup else str(document.document)
    ran = not result.in_setup
    if code == 0:
        return Verdict(Follows.NEXT_DOCUMENT, Outcome.FINISHED, f"{where} finished")
    if ran and code == ExitCode.BAD_CONFIG:
        why = cause or "recipe or data is wrong"
        return Verdict(Follows.END, Outcome.BAD_CONFIG, f"{where}: {why} (exit code 78)")
    if ran and code == ExitCode.BROKEN:
        why = cause or "diverged or broke"
        return Verdict(Follows.END, Outcome.DIVERGED, f"{where}: {why} (exit code 70)")
    if stop_requested:
        how = "after a last checkpoint" if ran and code == ExitCode.RECOVER else f"with exit code {code}"
        return Verdict(Follows.END, Outcome.STOPPED, f"stopped on request, {where} ended {how}")
    if result.preempted:
        return Verdict(Follows.RECOVER, Outcome.LOST, "the machine was taken back")
    if ran and code in document.recover_on_exit_codes:
        return Verdict(Follows.RECOVER, Outcome.LOST, f"{where} asks to be run again (exit code {code})")
    what = f"{where} failed with exit code {code}" + (f": {cause}" if cause else "")
    return _judge_crash(what, retries_used, document.max_restarts_on_errors)


def _judge_crash(what: str, used: int, allowed: int) -> Verdict:
    if used < allowed:
        return Verdict(Follows.RETRY, Outcome.LOST, f"{what}; retry {used + 1} of {allowed}")
    return Verdict(Follows.END, Outcome.LOST,
                   f"{what}; all {allowed} retries without a newer checkpoint are used")
