"""What commands that run in the trainer's environment share: how they talk, and how they end."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from trainer.contract import ConfigError, LdlmError
from trainer.interrupts import INTERRUPTED


def talk(line: str) -> None:
    """What a person reads meanwhile; standard output is for the answer."""
    print(line, file=sys.stderr, flush=True)


def carry_out(work: Callable[[], str], *, out: Path | None = None,
              interrupted: str | Callable[[], str] = "interrupted",
              words: Callable[[LdlmError], str] = str) -> int:
    """Do the work of a command and print its answer. Returns the exit code, as of the `ldlm` command.

    Args:
        work: Returns the answer.
        out: What it writes, for what its disk may say.
        interrupted: Said after Ctrl-C: what has become of the work.
        words: How an error is told to whoever typed the command.
    """
    try:
        answer = work()
    except KeyboardInterrupt:
        talk(interrupted if isinstance(interrupted, str) else interrupted())
        return INTERRUPTED
    except OSError as error:
        if out is None:
            raise
        problem: LdlmError = ConfigError(f"cannot be written: {error.strerror or error}", place=str(out),
                                         fix="name another place: --out PATH")
    except LdlmError as error:
        problem = error
    else:
        return _print(answer)
    talk(f"error: {words(problem)}")
    return problem.cli_exit_code


def _print(answer: str) -> int:
    try:
        print(answer, flush=True)
        return 0
    except BrokenPipeError:
        # Whoever read the answer has had enough; the flush at exit must not complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
