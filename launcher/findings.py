"""What `ldlm doctor` finds, and how its checks run: all at once, none for longer than it may take."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from launcher.errors import LdlmError
from launcher.lint_rules import looks_secret


class Verdict(StrEnum):
    """What a line of the doctor says."""

    OK = "ok"
    PROBLEM = "problem"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True)
class Finding:
    """One line.

    Attributes:
        what: Two words: `Vast balance`.
        detail: What is so.
        fix: What to do or to type; nothing where all is well.
    """

    what: str
    verdict: Verdict
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class Check:
    """Looks at one thing and may find several.

    Attributes:
        what: Its name where it finds nothing, because it fails or hangs.
        look: An LdlmError out of it is a problem; what else it raises leaves the thing unchecked.
    """

    what: str
    look: Callable[[], Iterable[Finding]]


def run_checks(checks: Sequence[Check], timeout_s: float) -> list[Finding]:
    """What all checks find, in their order.

    Args:
        timeout_s: For all together. What then still looks is left behind, and ends with the program.
    """
    answers: list[list[Finding] | None] = [None] * len(checks)

    def run(index: int) -> None:
        answers[index] = _carefully(checks[index])

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(checks))]
    for thread in threads:
        thread.start()
    give_up = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, give_up - time.monotonic()))
    return [finding for check, answer in zip(checks, answers, strict=True)
            for finding in (_silent(check, timeout_s) if answer is None else answer)]


def _carefully(check: Check) -> list[Finding]:
    try:
        return list(check.look())
    except LdlmError as error:
        where = f"{error.place}: " if error.place else ""
        return [Finding(check.what, Verdict.PROBLEM, f"{where}{error.problem}", error.fix or "")]
    except Exception as error:  # noqa: BLE001  one check that fails must not cost the others
        first = next(iter(str(error).splitlines()), "")
        first = "" if looks_secret(first) else first
        return [Finding(check.what, Verdict.NOT_CHECKED, f"{type(error).__name__}: {first}"[:300])]


def _silent(check: Check, timeout_s: float) -> list[Finding]:
    return [Finding(check.what, Verdict.NOT_CHECKED, f"no answer within {timeout_s:g} s",
                    "look at the network, then try again")]
